"""gram_positions on any shape and stride, on every instruction set, and what it refuses; parity is in test_ops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import dev_module
from test_ops import assert_accurate, gram_positions_in_extended_precision, samples

from sgdkern.ops import gram, gram_positions, patch_gram


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(0, 30),
    num_positions=st.one_of(st.integers(0, 12), st.sampled_from([31, 64, 97, 193])),
    widths=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    bias=st.booleans(),
    dtype=st.sampled_from(gram_positions.dtypes),
    step=st.tuples(*[st.integers(1, 2)] * 3),
    offset=st.integers(0, 3),
    order=st.permutations(range(3)),
)
def test_on_any_shape_and_stride(num_samples, num_positions, widths, bias, dtype, step, offset, order):
    generator = torch.Generator().manual_seed(num_samples)

    def strided(width):
        shape = [size * k for size, k in zip((num_samples, num_positions, width), step, strict=True)]
        shape[2] += offset
        whole = torch.randn([shape[axis] for axis in order], generator=generator)
        whole = whole.permute([order.index(axis) for axis in range(3)])
        return whole[:: step[0], :: step[1], offset :: step[2]].to(dtype)

    inputs, grads = (strided(width) for width in widths)
    result = gram_positions(inputs, grads, bias)
    # The a-priori bound of any order of summation: as many roundings as terms and factors, of the absolute values' sum.
    roundings = sum(widths) + 2 * num_positions + 8
    largest = gram_positions_in_extended_precision(inputs.abs(), grads.abs(), bias)
    error = np.abs(result.double().numpy() - gram_positions_in_extended_precision(inputs, grads, bias))
    assert (error <= roundings * torch.finfo(result.dtype).eps * largest).all()


def test_one_position_is_the_plain_gram_matrix():
    inputs, grads = normal(150, 1, 20, dtype=torch.float64), normal(150, 1, 7, seed=1, dtype=torch.float64)
    torch.testing.assert_close(gram_positions(inputs, grads, True), gram([inputs[:, 0]], [grads[:, 0]], [True]))


def test_pairs_of_positions_are_explicit_gradients_multiplied():
    inputs, grads = normal(31, 9, 12, dtype=torch.float64), normal(31, 9, 5, seed=1, dtype=torch.float64)
    plane = [factor.transpose(1, 2)[..., None] for factor in (inputs, grads)]
    torch.testing.assert_close(gram_positions(inputs, grads, False), patch_gram(*plane, [1, 1], [1, 1], [1, 1]))


def test_is_symmetric_and_positive_semidefinite():
    kernel = gram_positions(normal(60, 7, 30, dtype=torch.float64), normal(60, 7, 4, dtype=torch.float64), True)
    if gram_positions.is_compiled("cpu"):
        assert torch.equal(kernel, kernel.T)
    torch.testing.assert_close(kernel, kernel.T)
    eigenvalues = torch.linalg.eigvalsh(kernel)
    assert eigenvalues.min() >= -1e-12 * eigenvalues.max()


@pytest.mark.parametrize("num_positions", [3, 50, 200])
def test_keeps_what_is_not_finite_where_it_is(num_positions):
    inputs, grads = normal(9, num_positions, 6), normal(9, num_positions, 5)
    inputs[4, num_positions // 2, 1] = float("nan")
    clean = torch.isfinite(gram_positions(inputs, grads, True))
    assert not clean[4].any()
    assert not clean[:, 4].any()
    keep = torch.arange(9) != 4
    assert clean[keep][:, keep].all()


def test_every_instruction_set_agrees_with_the_reference():
    native = dev_module("kernels")
    functions = {torch.float32: native.gram_positions_float32, torch.float64: native.gram_positions_float64}
    for dtype, function in functions.items():
        for args in samples(gram_positions, dtype, "cpu"):
            dense = [np.ascontiguousarray(factor.numpy()) for factor in args[:2]]
            for name in native.instruction_sets():
                one = torch.from_numpy(function(*dense, args[2], name, 1))
                assert_accurate(gram_positions, args, one)
                assert torch.equal(one, torch.from_numpy(function(*dense, args[2], name, 3)))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda a, b: (a[:, 0], b), ValueError, r"must be \[N, T, features\], got \[4, 5\]"),
        (lambda a, b: (a[:3], b), ValueError, r"share N and T, got \[3, 2, 5\] and \[4, 2, 3\]"),
        (lambda a, b: (a, b[:, :1]), ValueError, r"share N and T, got \[4, 2, 5\] and \[4, 1, 3\]"),
        (lambda a, b: (a.double(), b), ValueError, "share dtype and device"),
        (lambda a, b: (a.int(), b.int()), NotImplementedError, "got torch.int32"),
    ],
)
def test_says_what_is_wrong(change, error, text):
    args = (*change(normal(4, 2, 5), normal(4, 2, 3)), True)
    with pytest.raises(error, match=text):
        gram_positions(*args)
    if gram_positions.is_compiled("cpu"):  # what would corrupt memory the kernel refuses by itself
        with pytest.raises(RuntimeError, match="gram_positions"):
            gram_positions.overload(*args)


def test_survives_sizes_that_no_machine_holds():
    one = torch.ones(1)
    for shape in [(2**31, 1, 1), (1, 2**40, 1), (10**5, 10**9, 1), (2, 2**20, 2**40)]:
        factor = one.as_strided(shape, (0, 0, 0))
        with pytest.raises(RuntimeError):
            gram_positions(factor, factor, True)
