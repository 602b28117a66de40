"""The Gram matrix of a layer whose weight is used at several positions: a convolution, or a sequence layer."""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from sgdkern.ops.gram import DTYPES
from sgdkern.ops.patch_gradients import check_patches, patch_gradients, patch_sample_inputs
from sgdkern.ops.registry import Cost, op


def _check(
    inputs: Tensor, output_grads: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> None:
    check_patches("patch_gram", inputs, output_grads, kernel, stride, dilation)


def _cost(
    inputs: Tensor, output_grads: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Cost:
    """Two flops a multiply-add: the gradients, and half of their symmetric products; factors read, K written, once."""
    num_samples, num_outputs, *positions = output_grads.shape
    weights = num_outputs * inputs.shape[1] * prod(kernel)
    num_bytes = inputs.element_size() * (inputs.numel() + output_grads.numel())
    flops = 2 * num_samples * weights * prod(positions) + num_samples**2 * weights
    return Cost(flops, num_bytes + num_samples**2 * max(4, inputs.element_size()))


@op(dtypes=DTYPES, check=_check, sample_inputs=patch_sample_inputs, cost=_cost)
def patch_gram(
    inputs: Tensor, output_grads: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Inner products of all pairs of per-sample gradients of a convolution's weight, without storing gradients.

    With patch_t(x) the inputs that position t sees, the gradient of sample n is Σ_t b_nt patch_t(x_n)ᵀ. A sequence
    layer is a convolution with a kernel of one: its [N, T, I] as `transpose(1, 2)[..., None]`, which is not copied.

    Args:
        inputs: x [N, C, H, W], already padded; float64, float32, bfloat16 or float16.
        output_grads: b [N, O, H', W'], the same dtype.
        kernel: Height and width of the kernel.
        stride: Along both axes.
        dilation: Along both axes.

    Returns:
        K [N, N], float64 for float64 factors, else float32.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 1.0]]).view(2, 1, 1, 2)
        >>> patch_gram(x, torch.ones(2, 1, 1, 2), (1, 1), (1, 1), (1, 1))
        tensor([[9., 3.],
                [3., 1.]])
    """
    flat = patch_gradients.reference(inputs, output_grads, kernel, stride, dilation)
    return flat @ flat.T
