"""The operations that multiply K without having it, on any shape, stride and instruction set, and what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import dev_module

from sgdkern.ops import gram, gram_matvec, linear_gram_matvec, patch_gradients, patch_gram_matvec

ONE = [1, 1]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def within(result, kernel, weights, largest, roundings):
    """The bound of any order of summation: so many roundings of the sum of absolute values."""
    truth = torch.cat([kernel.diagonal()[:, None], kernel @ weights.double()], 1)
    scale = torch.cat([largest.diagonal()[:, None], largest @ weights.double().abs()], 1)
    return ((result - truth).abs() <= roundings * torch.finfo(result.dtype).eps * scale).all()


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(0, 220),
    widths=st.lists(st.integers(0, 70), min_size=2, max_size=4),
    num_columns=st.integers(0, 3),
    dtype=st.sampled_from(gram_matvec.dtypes),
    step=st.integers(1, 3),
    offset=st.integers(0, 3),
)
def test_on_any_shape_and_stride(num_samples, widths, num_columns, dtype, step, offset):
    factors = [
        normal(num_samples * step, width * step + offset, seed=place)[::step, offset::step].to(dtype)[:, :width]
        for place, width in enumerate(widths)
    ]
    weights = normal(num_columns, num_samples, dtype=torch.promote_types(dtype, torch.float32)).T
    biases = [width % 2 == 0 for width in widths[1:]]
    wide = [factor.double() for factor in factors]
    kernel = gram.reference(wide[:-1], wide[1:], biases)
    largest = gram.reference([f.abs() for f in wide[:-1]], [f.abs() for f in wide[1:]], biases)
    roundings = 2 * max(widths) + len(widths) + num_samples + 8
    assert within(gram_matvec(factors[:-1], factors[1:], biases, weights), kernel, weights, largest, roundings)
    layers = zip(factors[:-1], factors[1:], biases, strict=True)
    one_by_one = sum(linear_gram_matvec(*layer, weights).double() for layer in layers)
    assert within(one_by_one.to(weights.dtype), kernel, weights, largest, roundings + len(widths))


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(0, 70),
    channels=st.integers(0, 5),
    outputs=st.integers(0, 40),
    sides=st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(1, 2)),
    num_columns=st.integers(0, 3),
    dtype=st.sampled_from(patch_gram_matvec.dtypes),
    last=st.booleans(),
)
def test_of_convolutions_on_any_shape(num_samples, channels, outputs, sides, num_columns, dtype, last):
    positions, kernel, stride = sides
    size = max(0, positions - 1) * stride + kernel

    def image(seed, channels, *sizes):
        whole = normal(num_samples, *sizes, channels, seed=seed, dtype=dtype).movedim(3, 1)
        return whole if last else whole.contiguous()

    inputs, grads = image(0, channels, size, size), image(1, outputs, positions, positions)
    geometry = [kernel, kernel], [stride, stride], ONE
    weights = normal(num_samples, num_columns, dtype=torch.promote_types(dtype, torch.float32))
    rows = patch_gradients.reference(inputs.double(), grads.double(), *geometry)
    largest = patch_gradients.reference(inputs.double().abs(), grads.double().abs(), *geometry)
    roundings = rows.shape[1] + num_samples + 2 * positions**2 + 8
    result = patch_gram_matvec(inputs, grads, *geometry, weights)
    assert within(result, rows @ rows.T, weights, largest @ largest.T, roundings)


def test_every_instruction_set_agrees_with_the_reference():
    native = dev_module("kernels")
    for dtype in (torch.float32, torch.float64):
        kind = str(dtype).removeprefix("torch.")
        dense, patches = getattr(native, f"gram_matvec_{kind}"), getattr(native, f"patch_gram_matvec_{kind}")
        linear = getattr(native, f"linear_gram_matvec_{kind}")
        for num_samples, widths in [(1, (1, 1)), (33, (7, 16)), (450, (9, 4)), (97, (40, 31)), (97, (130, 60))]:
            a, d = (normal(num_samples, width, seed=width, dtype=dtype) for width in widths)
            weights = normal(num_samples, 2, dtype=dtype)
            truth = gram_matvec.reference([a.double()], [d.double()], [True], weights.double())
            for name in native.instruction_sets():
                one, three = (dense([a.numpy()], [d.numpy()], [True], weights.numpy(), name, k) for k in (1, 3))
                assert np.array_equal(one, three)
                assert np.abs(one - truth.numpy()).max() <= 50 * np.finfo(one.dtype).eps * truth.abs().max()
                one, three = (linear(a.numpy(), d.numpy(), True, weights.numpy(), name, k) for k in (1, 3))
                assert np.array_equal(one, three)
                assert np.abs(one - truth.numpy()).max() <= 50 * np.finfo(one.dtype).eps * truth.abs().max()
        for num_samples, positions, widths in [(1, 1, (1, 1)), (40, 9, (13, 5)), (97, 3, (150, 33)), (33, 40, (2, 70))]:
            a, d = (normal(num_samples, positions, width, seed=width, dtype=dtype) for width in widths)
            weights = normal(num_samples, 2, dtype=dtype)
            columns = [factor.double().transpose(1, 2)[..., None] for factor in (a, d)]
            truth = patch_gram_matvec.reference(*columns, ONE, ONE, ONE, weights.double())
            for name in native.instruction_sets():
                one, three = (patches(a.numpy(), d.numpy(), weights.numpy(), name, k) for k in (1, 3))
                assert np.array_equal(one, three)
                assert np.abs(one - truth.numpy()).max() <= 50 * np.finfo(one.dtype).eps * truth.abs().max()


def test_what_is_not_finite_stays_in_its_sample_s_norm():
    inputs, grads = [normal(50, 6)], [normal(50, 5)]
    inputs[0][7, 2] = float("nan")
    assert gram_matvec(inputs, grads, [True], normal(50, 1))[:, 0].isfinite().sum() == 49
    assert linear_gram_matvec(inputs[0], grads[0], True, normal(50, 1))[:, 0].isfinite().sum() == 49
    inputs, grads = normal(50, 6, 9, 1), normal(50, 5, 9, 1)
    inputs[7, 2, 3] = float("nan")
    assert patch_gram_matvec(inputs, grads, ONE, ONE, ONE, normal(50, 1))[:, 0].isfinite().sum() == 49


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (torch.ones(4), r"must be \[N, k\] with N = 4, got \[4\]"),
        (torch.ones(3, 1), r"must be \[N, k\] with N = 4, got \[3, 1\]"),
        (torch.ones(4, 1, dtype=torch.float64), "must be torch.float32 on cpu, got torch.float64"),
    ],
)
def test_says_what_is_wrong(weights, text):
    dense, patches = ([normal(4, 3)], [normal(4, 2)], [True]), (normal(4, 3, 5, 1), normal(4, 2, 5, 1), ONE, ONE, ONE)
    linear = normal(4, 3), normal(4, 2), True
    for op, args in ((gram_matvec, dense), (linear_gram_matvec, linear), (patch_gram_matvec, patches)):
        with pytest.raises(ValueError, match=text):
            op(*args, weights)
        if op.is_compiled("cpu"):
            with pytest.raises(RuntimeError, match="weights must be"):
                op.overload(*args, weights)


@pytest.mark.skipif(not gram_matvec.is_compiled("cpu"), reason="the CPU library is not built")
def test_sizes_that_no_machine_holds_are_errors():
    one = torch.ones(1, 1)
    for factor in (one.expand(10**10, 1), torch.ones(1).as_strided((2, 2**60), (0, 0))):
        weights = one.expand(len(factor), 1)
        with pytest.raises(RuntimeError):
            gram_matvec([factor], [factor], [True], weights)
        with pytest.raises(RuntimeError):  # which keeps as much as the output gradients
            linear_gram_matvec(factor, factor.expand(-1, max(100, factor.shape[1])), True, weights)
        with pytest.raises(RuntimeError):
            patch_gram_matvec(factor[:, :, None, None], factor[:, :, None, None], ONE, ONE, ONE, weights)


@pytest.mark.parametrize("outputs", [10, 48, 100])
def test_squares_of_output_gradients_may_leave_their_range(outputs: int) -> None:
    """A saturated loss: ‖d‖² is 0 in float32, or infinite, while ‖a‖² ‖d‖² is an ordinary number."""
    for of_grads, of_inputs in ((1e-22, 1e3), (1e19, 1e-10)):
        inputs, grads = of_inputs * normal(20, 50), of_grads * normal(20, outputs, seed=1)
        norms = linear_gram_matvec(inputs, grads, False, normal(20, 1))[:, 0]
        true = inputs.double().square().sum(1) * grads.double().square().sum(1)
        torch.testing.assert_close(norms.double(), true, rtol=1e-5, atol=0)
