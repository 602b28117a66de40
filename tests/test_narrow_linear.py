"""narrow_linear on any shape and stride, on every instruction set, and what it refuses; parity is in test_ops."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native import dev_module

from sgdkern.ops import narrow_linear


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 70), st.integers(0, 300), st.integers(0, 20)),
    steps=st.tuples(*[st.integers(1, 3)] * 4),
    biased=st.booleans(),
    dtype=st.sampled_from(narrow_linear.dtypes),
    seed=st.integers(0, 2**31),
)
@example(shape=(9, 2050, 7), steps=(1, 1, 1, 1), biased=True, dtype=torch.float32, seed=0)
def test_any_shape_and_stride(shape, steps, biased, dtype, seed):
    rows, features, outputs = shape
    generator = torch.Generator().manual_seed(seed)

    def strided(rows, columns, row_step, column_step):
        return torch.randn(rows * row_step, columns * column_step, generator=generator).to(dtype)[
            ::row_step, ::column_step
        ]

    inputs, weight = strided(rows, features, *steps[:2]), strided(outputs, features, *steps[2:])
    bias = strided(1, outputs, 1, steps[0])[0] if biased else None
    truth, scale = inputs.double() @ weight.double().T, inputs.double().abs() @ weight.double().abs().T
    truth, scale = (truth, scale) if bias is None else (truth + bias.double(), scale + bias.double().abs())
    result = narrow_linear(inputs, weight, bias)
    # A sum of I products and the bias loses at most I + 1 roundings of the sum of their sizes.
    assert ((result.double() - truth).abs() <= (features + 2) * torch.finfo(dtype).eps * scale).all()


def test_a_row_does_not_depend_on_the_others():
    inputs, weight = torch.randn(100, 300), torch.randn(7, 300)
    whole = narrow_linear(inputs, weight, None)
    assert torch.equal(torch.cat([narrow_linear(some, weight, None) for some in inputs.split(13)]), whole)


def test_what_is_not_finite_stays_in_its_row():
    inputs, weight = torch.ones(70, 21), torch.ones(6, 21)
    inputs[7, 20], inputs[69, 0] = torch.inf, torch.nan
    finite = narrow_linear(inputs, weight, torch.ones(6)).isfinite().all(1)
    assert finite.logical_not().nonzero().flatten().tolist() == [7, 69]


def test_every_instruction_set_agrees_with_the_reference():
    native = dev_module("kernels")
    generator = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        for rows, features, outputs in [(1, 3, 1), (33, 257, 10), (65, 1100, 6), (5, 0, 3)]:
            inputs, weight = (generator.standard_normal((count, features)).astype(dtype) for count in (rows, outputs))
            bias = generator.standard_normal(outputs).astype(dtype)
            truth = inputs.astype(np.longdouble) @ weight.T + bias
            function = getattr(native, f"narrow_linear_{dtype.__name__}")
            for name in native.instruction_sets():
                one, three = (function(inputs, weight, bias, name, threads) for threads in (1, 3))
                assert np.array_equal(one, three)
                assert np.abs(one - truth).max(initial=0) <= 50 * np.finfo(dtype).eps * np.abs(truth).max(initial=0)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.ones(3), torch.ones(2, 3), None), ValueError, r"must be \[N, I\], the weight \[O, I\]"),
        ((torch.ones(4, 3), torch.ones(2, 4), None), ValueError, r"\[4, 3\] and \[2, 4\]"),
        ((torch.ones(4, 3), torch.ones(2, 3), torch.ones(3)), ValueError, r"the bias must be \[2\], got \[3\]"),
        ((torch.ones(4, 3), torch.ones(2, 3).double(), None), ValueError, "must share dtype"),
        ((torch.ones(4, 3), torch.ones(2, 3), torch.ones(2).double()), ValueError, "must share dtype"),
        ((torch.ones(4, 3).half(), torch.ones(2, 3).half(), None), NotImplementedError, "float16"),
    ],
)
def test_says_what_is_wrong(arguments, error, text):
    with pytest.raises(error, match=text):
        narrow_linear(*arguments)
    if narrow_linear.is_compiled("cpu"):
        with pytest.raises(RuntimeError, match="narrow_linear"):
            narrow_linear.overload(*arguments)
