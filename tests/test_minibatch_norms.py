"""minibatch_norms on any shape and stride, on every instruction set, and what it refuses; parity is in test_ops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import dev_module

from sgdkern.ops import gram, minibatch_norms


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def network(num_samples=9, dtype=torch.float32):
    inputs, output_grads = [normal(num_samples, 5), normal(num_samples, 4)], [normal(num_samples, 4, seed=1)] * 2
    return [a.to(dtype) for a in inputs], [d.to(dtype) for d in output_grads], [True, False]


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(1, 40),
    widths=st.lists(st.integers(0, 70), min_size=2, max_size=4),
    shape=st.tuples(st.integers(0, 4), st.integers(0, 17)),
    dtype=st.sampled_from(minibatch_norms.dtypes),
    step=st.integers(1, 3),
    offset=st.integers(0, 3),
)
def test_on_any_shape_and_stride(num_samples, widths, shape, dtype, step, offset):
    generator = torch.Generator().manual_seed(num_samples)

    def strided(width):
        whole = torch.randn(num_samples * step, width * step + offset, generator=generator)
        return whole[::step, offset::step].to(dtype)[:, :width]

    indices = torch.randint(num_samples, shape, generator=generator)
    inputs, output_grads = [strided(w) for w in widths[:-1]], [strided(w) for w in widths[1:]]
    biases = [w % 2 == 0 for w in widths[1:]]
    result = minibatch_norms(inputs, output_grads, biases, indices).double()
    wide = ([a.double() for a in inputs], [d.double() for d in output_grads])
    blocks = [gram.reference(*wide, biases)[some][:, some].sum() for some in indices]
    largest = [gram.reference(*[[f.abs() for f in s] for s in wide], biases)[some][:, some].sum() for some in indices]
    roundings = max(widths[:-1]) + max(widths[1:]) + 8  # of any order of summation
    for value, truth, scale in zip(result, blocks, largest, strict=True):
        precision = torch.finfo(minibatch_norms(inputs, output_grads, biases, indices).dtype).eps
        assert abs(value - truth) <= roundings * precision * scale


def test_a_minibatch_of_one_sample_is_its_squared_norm():
    inputs, output_grads, biases = network(dtype=torch.float64)
    norms = minibatch_norms(inputs, output_grads, biases, torch.arange(9)[:, None])
    torch.testing.assert_close(norms, gram(inputs, output_grads, biases).diagonal())


def test_what_is_not_finite_stays_in_its_minibatches():
    inputs, output_grads, biases = network()
    inputs[0][7, 2] = float("nan")
    finite = minibatch_norms(inputs, output_grads, biases, torch.tensor([[0, 1], [7, 1], [8, 8]])).isfinite()
    assert finite.tolist() == [True, False, True]


def test_every_instruction_set_agrees_with_the_reference():
    native = dev_module("kernels")
    functions = {torch.float32: native.minibatch_norms_float32, torch.float64: native.minibatch_norms_float64}
    for dtype, function in functions.items():
        for inputs, output_grads, biases, indices in minibatch_norms.sample_inputs(dtype, torch.device("cpu")):
            sides = [[np.ascontiguousarray(f.numpy()) for f in side] for side in (inputs, output_grads)]
            wide = [[f.double() for f in side] for side in (inputs, output_grads)]
            truth = minibatch_norms.reference(*wide, biases, indices).numpy()
            scale = np.abs(truth).max(initial=0)
            for name in native.instruction_sets() if inputs[0].shape[0] else []:
                one, three = (function(*sides, biases, np.ascontiguousarray(indices), name, k) for k in (1, 3))
                assert np.array_equal(one, three)
                assert np.abs(one - truth).max(initial=0) <= 50 * np.finfo(one.dtype).eps * scale


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        (torch.tensor([0, 1]), r"must be int64 \[M, B\]"),
        (torch.tensor([[0.0]]), r"must be int64 \[M, B\]"),
        (torch.tensor([[0, 9]]), r"must be in \[0, 9\), got 0 to 9"),
        (torch.tensor([[-1, 3]]), r"must be in \[0, 9\), got -1 to 3"),
    ],
)
def test_says_what_is_wrong(indices, text):
    with pytest.raises(ValueError, match=text):
        minibatch_norms(*network(), indices)
    if minibatch_norms.is_compiled("cpu"):
        with pytest.raises(RuntimeError, match="minibatch_norms"):
            minibatch_norms.overload(*network(), indices)
