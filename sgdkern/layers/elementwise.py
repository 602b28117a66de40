"""Parameters that meet samples element by element: sums, products, learned tokens, learned slopes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgdkern.layers import Call, Example, Unsupported, Use, layer


class _Affine(nn.Module):
    """x · scale + shift, in one of several ways to write it."""

    def __init__(self, form: str, *shape: int) -> None:
        super().__init__()
        self.form = form
        self.scale = nn.Parameter(torch.randn(shape))
        self.shift = nn.Parameter(torch.randn(shape))

    def forward(self, input: Tensor) -> Tensor:
        if self.form == "in place":
            return input.mul(self.scale).add_(self.shift)
        if self.form == "reversed":
            return self.shift - self.scale * input
        if self.form == "divided":
            return (input - self.shift) / (2 + self.scale.abs())
        if self.form == "expanded":
            return input * self.scale + self.shift.expand(len(input), *self.shift.shape[1:])
        return input * self.scale + self.shift


def _affine_examples() -> Iterator[Example]:
    yield Example(_Affine("plain", 4), (torch.randn(5, 3, 4),))
    yield Example(_Affine("plain", 1, 3, 4), (torch.randn(5, 3, 4),))
    yield Example(_Affine("plain"), (torch.randn(5, 4),))
    yield Example(_Affine("in place", 3, 1), (torch.randn(5, 3, 4),))
    yield Example(_Affine("reversed", 4), (torch.randn(5, 4),))
    yield Example(_Affine("divided", 4), (torch.randn(5, 4),))
    yield Example(_Affine("expanded", 1, 3, 4), (torch.randn(5, 3, 4),))


_ADD = (
    torch.add,
    torch.Tensor.add,
    torch.Tensor.add_,
    torch.Tensor.__add__,
    torch.Tensor.__radd__,
    torch.Tensor.__iadd__,
)


@layer(*_ADD, examples=_affine_examples)
def add(call: Call, input: Tensor, other: Tensor, *, alpha: float = 1) -> Iterator[Use]:
    """Y = x + α p."""
    for operand, factor in ((input, 1), (other, alpha)):
        if call.tracked(operand):
            yield call.reduced(call.output_grad * factor if factor != 1 else call.output_grad, operand)


_SUBTRACT = (torch.sub, torch.Tensor.sub, torch.Tensor.sub_, torch.Tensor.__sub__, torch.Tensor.__isub__)


@layer(*_SUBTRACT, examples=_affine_examples)
def subtract(call: Call, input: Tensor, other: Tensor, *, alpha: float = 1) -> Iterator[Use]:
    """Y = x − α p."""
    yield from add(call, input, other, alpha=-alpha)


@layer(torch.Tensor.__rsub__, torch.rsub, examples=_affine_examples)
def subtract_from(call: Call, input: Tensor, other: Tensor, *, alpha: float = 1) -> Iterator[Use]:
    """Y = p − α x."""
    yield from add(call, other, input, alpha=-alpha)


_MULTIPLY = (
    torch.mul,
    torch.Tensor.mul,
    torch.Tensor.mul_,
    torch.Tensor.__mul__,
    torch.Tensor.__rmul__,
    torch.Tensor.__imul__,
)


@layer(*_MULTIPLY, examples=_affine_examples)
def multiply(call: Call, input: Tensor, other: Tensor) -> Iterator[Use]:
    """Y = x · p."""
    operand, partner = (other, input) if call.tracked(other) else (input, other)
    if call.tracked(partner):
        raise Unsupported("a product of parameters")
    yield call.reduced(call.output_grad * partner, operand)


@layer(
    torch.div,
    torch.Tensor.div,
    torch.Tensor.div_,
    torch.Tensor.__truediv__,
    torch.Tensor.__itruediv__,
    examples=_affine_examples,
)
def divide(call: Call, input: Tensor, other: Tensor) -> Iterator[Use]:
    """Y = x / p, or y = p / x."""
    if call.tracked(other):
        yield call.reduced(-call.output_grad * input / other.detach().square(), other)
    else:
        yield call.reduced(call.output_grad / other, input)


class _Tokens(nn.Module):
    """A learned token in front of a sequence, and learned values where a mask says so."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.masked = nn.Parameter(torch.randn(4))

    def forward(self, input: Tensor) -> Tensor:
        input = torch.where(input[..., :1] > 0.5, self.masked, input)
        return torch.cat([self.token.expand(len(input), -1, -1), input], 1)


def _token_examples() -> Iterator[Example]:
    yield Example(_Tokens(), (torch.randn(5, 3, 4),))


@layer(torch.cat, torch.concat, torch.concatenate, examples=_token_examples)
def concatenate(call: Call, tensors: Sequence[Tensor], dim: int = 0) -> Iterator[Use]:
    """Y = [x, p]: a parameter receives its part of the gradient."""
    dim %= call.output_grad.ndim
    if dim == call.layout.axis:
        raise Unsupported("samples are concatenated")
    start = 0
    for tensor in tensors:
        if call.tracked(tensor):
            yield call.reduced(call.output_grad.narrow(dim, start, tensor.shape[dim]), tensor)
        start += tensor.shape[dim]


@layer(torch.Tensor.where, examples=_token_examples)
def where_method(call: Call, input: Tensor, condition: Tensor, other: Tensor) -> Iterator[Use]:
    """The same as a method of x."""
    yield from where(call, condition, input, other)


@layer(torch.where, examples=_token_examples)
def where(call: Call, condition: Tensor, input: Tensor, other: Tensor) -> Iterator[Use]:
    """Y = p where a condition holds, x elsewhere."""
    for operand, chosen in ((input, condition), (other, ~condition)):
        if call.tracked(operand):
            yield call.reduced(call.output_grad * chosen, operand)


def _prelu_examples() -> Iterator[Example]:
    yield Example(nn.PReLU(), (torch.randn(5, 4),))
    yield Example(nn.PReLU(4), (torch.randn(5, 4, 3),))


@layer(F.prelu, torch.prelu, torch.Tensor.prelu, examples=_prelu_examples)
def prelu(call: Call, input: Tensor, weight: Tensor) -> Iterator[Use]:
    """Y = max(x, 0) + w min(x, 0), channels along axis 1."""
    gradient = call.output_grad * input.clamp_max(0)
    shape = [-1, *[1] * (input.ndim - 2)] if weight.numel() > 1 else [1]
    yield Use(call.reduced(gradient, weight.view(shape)).factors, (weight,))
