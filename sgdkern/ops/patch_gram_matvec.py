"""The same for a layer whose weight is used at several positions: its gradients are formed once, and never stored."""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from sgdkern.ops.gram import DTYPES
from sgdkern.ops.gram_matvec import check_weights
from sgdkern.ops.patch_gradients import check_patches, patch_gradients, patch_sample_inputs
from sgdkern.ops.registry import Arguments, Cost, op


def _check(
    inputs: Tensor,
    output_grads: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    weights: Tensor,
) -> None:
    check_patches("patch_gram_matvec", inputs, output_grads, kernel, stride, dilation)
    check_weights("patch_gram_matvec", weights, inputs)


def _cost(
    inputs: Tensor,
    output_grads: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    weights: Tensor,
) -> Cost:
    """Two flops a multiply-add: the gradients, their squares, Gᵀ W and G (Gᵀ W); all read, the result written, once."""
    num_samples, num_outputs, *positions = output_grads.shape
    numbers = num_samples * num_outputs * inputs.shape[1] * prod(kernel)
    read = inputs.element_size() * (inputs.numel() + output_grads.numel())
    num_columns = weights.shape[1]
    return Cost(
        2 * numbers * (prod(positions) + 1 + 2 * num_columns),
        read + num_samples * (2 * num_columns + 1) * weights.itemsize,
    )


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Those of `patch_gradients`, each with no, one or some weights, in rows with a stride."""
    generator = torch.Generator().manual_seed(1)
    for place, args in enumerate(patch_sample_inputs(dtype, device)):
        weights = torch.randn(args[0].shape[0], 5, generator=generator)
        yield *args, weights.to(device, torch.promote_types(dtype, torch.float32))[:, : (1, 3, 0, 2)[place % 4]]


@op(dtypes=DTYPES, check=_check, sample_inputs=_sample_inputs, cost=_cost)
def patch_gram_matvec(
    inputs: Tensor,
    output_grads: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    weights: Tensor,
) -> Tensor:
    """Squared norms of a convolution's per-sample gradients, and K W = G (Gᵀ W) with each gradient formed once.

    A sequence layer is a convolution with a kernel of one, as in `patch_gram`.

    Args:
        inputs: x [N, C, H, W], already padded; float64, float32, bfloat16 or float16.
        output_grads: b [N, O, H', W'], the same dtype.
        kernel: Height and width of the kernel.
        stride: Along both axes.
        dilation: Along both axes.
        weights: W [N, k], float64 for float64 factors, else float32.

    Returns:
        [N, 1 + k]: the diagonal of K, then K W; in the dtype of W.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 1.0]]).view(2, 1, 1, 2)
        >>> patch_gram_matvec(x, torch.ones(2, 1, 1, 2), (1, 1), (1, 1), (1, 1), torch.ones(2, 1))
        tensor([[ 9., 12.],
                [ 1.,  4.]])
    """
    rows = patch_gradients.reference(inputs, output_grads, kernel, stride, dilation)
    return torch.cat([rows.square().sum(1, keepdim=True), rows @ (rows.T @ weights)], 1)
