"""pooling: max pooling by an operation of our own, several times faster than torch's on the CPU, the same to the bit.

The recorded pass runs a user's model, and in small networks of convolutions a third of it is max pooling: torch's finds
the largest number of each window with a branch that no processor foresees (decision 74).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sgdkern import ops
from sgdkern.substitutes.plain import is_plain, takes

Pair = tuple[int, ...]


class _MaxPool(torch.autograd.Function):
    """The largest number of each window; what torch saves for the backward pass, and its own backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool) -> Tensor:
        """Values at the places of the largest."""
        places = ops.max_places(inputs, kernel, stride, padding, ceil_mode)
        ctx.save_for_backward(inputs, places)  # a checkpoint that runs again by torch's must find the same
        ctx.window = kernel, stride, padding, (1, 1), ceil_mode
        values = inputs.new_empty(places.shape)  # no view of another, which nobody could change in place
        torch.gather(inputs.flatten(2), 2, places.flatten(2), out=values.flatten(2))
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient at these places."""
        inputs, places = ctx.saved_tensors
        found = torch.ops.aten.max_pool2d_with_indices_backward(grad, inputs, *ctx.window, places)
        return found, None, None, None, None


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`torch.nn.functional.max_pool2d` with the same values, gradients and errors; faster for images on the CPU.

    Args:
        input: x [N, C, H, W]; only planes that lie as rows are faster: with channels last torch is fast.
        kernel_size: of the windows.
        stride: None for the size of the windows.
        padding: on every side.
        dilation: 1 to be faster.
        ceil_mode: whether a last window that reaches further counts.
        return_indices: False to be faster.

    Returns:
        The largest number of each window.
    """
    given = kernel_size, kernel_size if stride is None or _is_empty(stride) else stride, padding, dilation
    if all(map(_is_size, given)) and type(ceil_mode) is bool and not return_indices:
        kernel, step, border, apart = map(_pair, given)
        if apart == (1, 1) and _is_faster(input, kernel, step, border, ceil_mode):
            return _MaxPool.apply(input, kernel, step, border, ceil_mode)  # type: ignore[no-untyped-call]
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # type: ignore[call-overload]


def _is_empty(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and not value


def _is_size(value: Any) -> bool:
    """A plain number, or some: of anything else torch knows whether it is one."""
    return type(value) is int or (isinstance(value, (tuple, list)) and all(type(number) is int for number in value))


def _pair(value: Any) -> Pair:
    """One number for both axes, or one each."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * 2 if len(numbers) == 1 else numbers


def _is_faster(inputs: Tensor, *window: Any) -> bool:
    """Whether torch's slow way would be taken, and the operation takes these arguments."""
    plain = is_plain(inputs) and takes(ops.max_places, inputs, *window)
    return plain and inputs.is_contiguous() and inputs.numel() > 0
