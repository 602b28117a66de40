"""narrow: linear layers with few outputs by an operation of our own, up to twice as fast as torch's on the CPU.

Small perceptrons spend most of their forward pass in the first layer, whose many inputs meet few outputs: a general
matrix product copies the samples into an order of its own, which then costs as much as multiplying them (decision 75).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sgdkern import ops
from sgdkern.substitutes.plain import is_plain, saves_are_hooked, takes

# Inputs for each output, and multiply-adds, from which on the operation is faster: sums over lanes, a call from Python.
INPUTS_AN_OUTPUT, FEWEST_INPUTS, FEWEST_PRODUCTS = 4, 64, 2**22


class _Linear(torch.autograd.Function):
    """Y = X Wᵀ + b of inputs that need no gradient.

    Others are left to torch: a node written in Python is not told which gradients a backward pass is for, and would
    form the weight's on the way to the inputs'.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Outputs."""
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None)  # as torch does
        return ops.narrow_linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the weight and the bias."""
        (inputs,) = ctx.saved_tensors
        _, of_weight, of_bias = ctx.needs_input_grad
        return None, grad.T @ inputs if of_weight else None, grad.sum(0) if of_bias else None


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` with the same values within rounding; faster for few outputs on the CPU.

    Args:
        input: x [N, I] without a gradient to be faster: samples as they came.
        weight: W [O, I]; at least four inputs for each output to be faster.
        bias: b [O], or None.

    Returns:
        x Wᵀ + b, [N, O].
    """
    if _is_faster(input, weight, bias):
        return _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call, no-any-return]
    return F.linear(input, weight, bias)


def _is_faster(inputs: Any, weight: Any, bias: Any) -> bool:
    """Whether the operation takes these arguments and less time; hooks on saved tensors expect torch's own."""
    tensors = [inputs, weight] if bias is None else [inputs, weight, bias]
    if not all(isinstance(tensor, Tensor) for tensor in tensors) or weight.ndim != 2 or inputs.ndim != 2:
        return False
    out_features, in_features = weight.shape
    narrow = in_features >= max(FEWEST_INPUTS, INPUTS_AN_OUTPUT * out_features)
    if not narrow or inputs.requires_grad or inputs.numel() * out_features < FEWEST_PRODUCTS:
        return False
    if not is_plain(*tensors) or not inputs.is_contiguous() or saves_are_hooked():
        return False
    return takes(ops.narrow_linear, inputs, weight, bias)
