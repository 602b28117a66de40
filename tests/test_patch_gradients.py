"""patch_gradients and patch_gram on any shape, stride and alignment, and sizes that no machine holds."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sgdkern.ops import patch_gradients, patch_gram

axis = st.tuples(st.integers(0, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(0, 70),
    channels=st.integers(0, 5),
    outputs=st.integers(0, 9),
    axes=st.tuples(axis, axis),
    dtype=st.sampled_from(patch_gradients.dtypes),
    step=st.integers(1, 2),
    offset=st.integers(0, 3),
    last=st.booleans(),
)
@example(  # torch calls a tensor of no samples contiguous, whatever its strides
    num_samples=0,
    channels=3,
    outputs=5,
    axes=((3, 3, 2, 1), (3, 1, 3, 1)),
    dtype=torch.float64,
    step=1,
    offset=3,
    last=True,
)
def test_on_any_shape_and_stride(num_samples, channels, outputs, axes, dtype, step, offset, last):
    generator = torch.Generator().manual_seed(num_samples)

    def strided(*shape):
        n, c, h, w = shape
        whole = torch.randn((n, h, w, c + offset) if last else (n * step, c, h, w + offset), generator=generator)
        return (whole[..., offset:].movedim(3, 1) if last else whole[::step, ..., offset:]).to(dtype)

    sizes = [
        max(0, positions - 1) * stride + (kernel - 1) * dilation + 1 for positions, kernel, stride, dilation in axes
    ]
    positions, *geometry = ([*values] for values in zip(*axes, strict=True))
    inputs, grads = strided(num_samples, channels, *sizes), strided(num_samples, outputs, *positions)
    rows = patch_gradients(inputs, grads, *geometry)
    truth = patch_gradients.reference(inputs.double(), grads.double(), *geometry)
    largest = patch_gradients.reference(inputs.double().abs(), grads.double().abs(), *geometry)
    precision = torch.finfo(rows.dtype).eps
    assert rows.shape == truth.shape
    assert ((rows - truth).abs() <= (positions[0] * positions[1] + 3) * precision * largest).all()
    gram = patch_gram(inputs, grads, *geometry)
    terms = rows.shape[1] + 2 * positions[0] * positions[1] + 6
    assert ((gram - truth @ truth.T).abs() <= terms * precision * (largest @ largest.T)).all()


@pytest.mark.skipif(not patch_gradients.is_compiled("cpu"), reason="the CPU library is not built")
def test_sizes_that_no_machine_holds_are_errors():
    one = torch.ones(1, 1, 1, 1)
    for inputs, grads in [
        (one.expand(10**9, 1, 1, 1), one.expand(10**9, 1, 1, 1)),
        (one.expand(2, 2**60, 1, 1), one.expand(2, 2**60, 1, 1)),
        (one.expand(2**31, 1, 1, 1), one.expand(2**31, 1, 1, 1)),
    ]:
        with pytest.raises(RuntimeError):
            patch_gram(inputs, grads, [1, 1], [1, 1], [1, 1])
    with pytest.raises(RuntimeError, match="patch_gradients"):
        patch_gradients(one.expand(2, 2**60, 1, 1), one.expand(2, 2**60, 1, 1), [1, 1], [1, 1], [1, 1])
