"""Explicit per-sample gradients of a convolution's weight."""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from sgdkern.ops.gram import DTYPES
from sgdkern.ops.registry import Arguments, Cost, op


def check_patches(
    op: str,
    inputs: Tensor,
    output_grads: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Raise what a user can get wrong about a convolution's factors.

    Args:
        op: Whose error it is.
        inputs: x [N, C, H, W].
        output_grads: b [N, O, H', W'].
        kernel: Height and width of the kernel.
        stride: Along both axes.
        dilation: Along both axes.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit together, or patches reach beyond the inputs.
        NotImplementedError: If there is no arithmetic for the dtype.
    """
    shapes = f"{list(inputs.shape)} and {list(output_grads.shape)}"
    if inputs.dim() != 4 or output_grads.dim() != 4:
        raise ValueError(f"{op}: factors must be [N, C, H, W] and [N, O, H', W'], got {shapes}.")
    if inputs.shape[0] != output_grads.shape[0]:
        raise ValueError(f"{op}: factors must share N, got {shapes}.")
    if inputs.dtype not in DTYPES:
        raise NotImplementedError(f"{op}: dtype must be one of {[str(d) for d in DTYPES]}, got {inputs.dtype}.")
    if inputs.dtype != output_grads.dtype or inputs.device != output_grads.device:
        kinds = f"{inputs.dtype} on {inputs.device} and {output_grads.dtype} on {output_grads.device}"
        raise ValueError(f"{op}: factors must share dtype and device, got {kinds}. Convert them first.")
    for name, values in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        if len(values) != 2 or min(values) < 1:
            raise ValueError(f"{op}: {name} must be two positive numbers, got {list(values)}.")
    for axis in range(2):
        outputs, size = output_grads.shape[2 + axis], inputs.shape[2 + axis]
        reach = (outputs - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        if outputs and reach > size:
            raise ValueError(f"{op}: patches reach to {reach} of an axis of {size}. Pad the inputs first.")


def _check(
    inputs: Tensor, output_grads: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> None:
    check_patches("patch_gradients", inputs, output_grads, kernel, stride, dilation)


def _cost(
    inputs: Tensor, output_grads: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Cost:
    """Two flops a multiply-add; factors read and gradients written once."""
    num_samples, num_outputs, *positions = output_grads.shape
    weights = num_outputs * inputs.shape[1] * prod(kernel)
    num_bytes = inputs.element_size() * (inputs.numel() + output_grads.numel())
    return Cost(
        2 * num_samples * weights * prod(positions), num_bytes + num_samples * weights * max(4, inputs.element_size())
    )


def patch_sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Odd sizes, empty axes, strides and dilations, channels first and last, sequence layers' transposed views."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    for num_samples, channels, (height, width), outputs, (rows, columns), kernel, stride, dilation in [
        (3, 1, (1, 1), 1, (1, 1), (1, 1), (1, 1), (1, 1)),
        (35, 3, (9, 8), 5, (7, 6), (3, 3), (1, 1), (1, 1)),
        (97, 2, (7, 11), 6, (3, 3), (2, 3), (2, 4), (1, 1)),
        (20, 5, (10, 9), 7, (3, 5), (3, 2), (2, 1), (2, 3)),
        (0, 2, (4, 4), 3, (2, 2), (3, 3), (1, 1), (1, 1)),
        (6, 0, (4, 4), 3, (2, 2), (3, 3), (1, 1), (1, 1)),
        (6, 2, (4, 4), 3, (0, 2), (3, 3), (1, 1), (1, 1)),
        (33, 70, (4, 4), 10, (2, 2), (3, 3), (1, 1), (1, 1)),
    ]:
        inputs, grads = normal(num_samples, channels, height, width), normal(num_samples, outputs, rows, columns)
        yield inputs, grads, kernel, stride, dilation
    last = normal(40, 6, 6, 4).movedim(3, 1)
    yield last, normal(40, 5, 4, 3).permute(0, 3, 1, 2)[:, :, :, :4], (2, 3), (1, 1), (1, 1)
    yield normal(50, 9, 21).transpose(1, 2)[..., None], normal(50, 9, 13).transpose(1, 2)[..., None], *[(1, 1)] * 3
    yield normal(34, 160, 4).transpose(1, 2)[..., None], normal(34, 160, 9).transpose(1, 2)[..., None], *[(1, 1)] * 3
    yield normal(3, 2, 256, 1), normal(3, 17, 256, 1), *[(1, 1)] * 3
    yield normal(40, 3, 8, 8)[::2, :, 1:, ::2], normal(20, 4, 6, 3), (2, 2), (1, 1), (1, 1)


@op(dtypes=DTYPES, check=_check, sample_inputs=patch_sample_inputs, cost=_cost)
def patch_gradients(
    inputs: Tensor, output_grads: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Per-sample gradients of a convolution's weight, g_n = Σ_t b_nt patch_t(x_n)ᵀ, without storing patches.

    Args:
        inputs: x [N, C, H, W], already padded; float64, float32, bfloat16 or float16.
        output_grads: b [N, O, H', W'], the same dtype.
        kernel: Height and width of the kernel.
        stride: Along both axes.
        dilation: Along both axes.

    Returns:
        G [N, O·C·kernel], in the order of the weight [O, C, *kernel], float64 for float64 factors, else float32.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 1.0]]).view(2, 1, 1, 2)
        >>> patch_gradients(x, torch.ones(2, 1, 1, 2), (1, 1), (1, 1), (1, 1))
        tensor([[3.],
                [1.]])
    """
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    patches, grads = inputs.to(dtype), output_grads.to(dtype)
    num_samples, channels = inputs.shape[:2]
    rows, columns = (torch.arange(n, device=inputs.device) for n in grads.shape[2:])
    gradient = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            seen = patches[:, :, rows * stride[0] + i * dilation[0]][..., columns * stride[1] + j * dilation[1]]
            gradient.append(torch.bmm(grads.flatten(2), seen.flatten(2).transpose(1, 2)))
    return torch.stack(gradient, 3).view(num_samples, grads.shape[1] * channels * len(gradient))
