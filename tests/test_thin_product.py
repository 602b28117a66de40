"""thin_product on any shape and stride, on every instruction set, and what it refuses; parity is in test_ops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import dev_module

from sgdkern.ops import thin_product


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 80), st.integers(0, 300), st.integers(0, 40)),
    steps=st.tuples(*[st.integers(1, 3)] * 4),
    transposed=st.booleans(),
    dtype=st.sampled_from(thin_product.dtypes),
    seed=st.integers(0, 2**31),
)
def test_any_shape_and_stride(shape, steps, transposed, dtype, seed):
    generator = torch.Generator().manual_seed(seed)

    def strided(rows, columns, row_step, column_step):
        return torch.randn(rows * row_step, columns * column_step, generator=generator).to(dtype)[
            ::row_step, ::column_step
        ]

    matrix, vectors = strided(*shape[:2], *steps[:2]), strided(*shape[1:], *steps[2:])
    matrix = matrix.T.contiguous().T if transposed else matrix
    truth, scale = matrix.double() @ vectors.double(), matrix.double().abs() @ vectors.double().abs()
    result = thin_product(matrix, vectors)
    # A sum of K products loses at most K roundings of the sum of their sizes.
    assert ((result.double() - truth).abs() <= (shape[1] + 1) * torch.finfo(dtype).eps * scale).all()


def test_what_is_not_finite_stays_in_its_row():
    matrix, vectors = torch.ones(40, 20), torch.ones(20, 3)
    matrix[7, 3], matrix[39, 0] = torch.inf, torch.nan
    for stored in (matrix, matrix.T.contiguous().T):
        finite = thin_product(stored, vectors).isfinite().all(1)
        assert finite.logical_not().nonzero().flatten().tolist() == [7, 39]


@pytest.mark.parametrize("transposed", [False, True])
def test_every_instruction_set_agrees_with_the_reference(transposed):
    native = dev_module("kernels")
    generator = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        for rows, features in [(1, 3), (33, 257), (70, 40), (5, 0)]:
            matrix = generator.standard_normal((features, rows) if transposed else (rows, features)).astype(dtype)
            vectors = generator.standard_normal((features, 16)).astype(dtype)
            truth = (matrix.T if transposed else matrix).astype(np.longdouble) @ vectors
            function = getattr(native, f"thin_product_{dtype.__name__}")
            for name in native.instruction_sets() if not transposed or rows >= 32 else []:
                one, three = (function(matrix, vectors, transposed, name, k) for k in (1, 3))
                assert np.array_equal(one, three)
                assert np.abs(one - truth).max(initial=0) <= 50 * np.finfo(dtype).eps * np.abs(truth).max(initial=0)


@pytest.mark.parametrize(
    ("matrix", "vectors", "error", "text"),
    [
        (torch.ones(3), torch.ones(3, 1), ValueError, r"must be \[M, K\], the vectors \[K, b\]"),
        (torch.ones(3, 2), torch.ones(3, 1), ValueError, r"\[3, 2\] and \[3, 1\]"),
        (torch.ones(3, 2), torch.ones(2, 1).double(), ValueError, "must share dtype"),
        (torch.ones(3, 2).half(), torch.ones(2, 1).half(), NotImplementedError, "float16"),
    ],
)
def test_says_what_is_wrong(matrix, vectors, error, text):
    with pytest.raises(error, match=text):
        thin_product(matrix, vectors)
    if thin_product.is_compiled("cpu"):
        with pytest.raises(RuntimeError, match="thin_product"):
            thin_product.overload(matrix, vectors)
