"""Products with a weight: linear layers, matrix products, bilinear forms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgdkern.factors import Dense, Explicit
from sgdkern.layers import Call, Example, Unsupported, Use, layer


def _linear_examples() -> Iterator[Example]:
    yield Example(nn.Linear(3, 4), (torch.randn(5, 3),))
    yield Example(nn.Linear(3, 4, bias=False), (torch.randn(5, 3),))
    yield Example(nn.Linear(3, 4), (torch.randn(5, 2, 3),))
    yield Example(nn.Linear(3, 4), (torch.randn(5, 2, 6, 3),))


def _product(call: Call, inputs: Tensor, output_grads: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[Use]:
    """Σ_t b_nt a_ntᵀ for the weight [O, I], and a constant column for the bias where it follows along."""
    if call.tracked(weight):
        with_bias = bias is not None and call.tracked(bias) and bias.shape == output_grads.shape[2:]
        pieces = (weight, bias) if bias is not None and with_bias else (weight,)
        yield Use(Dense(inputs, output_grads, bias=with_bias), pieces)
        if with_bias:
            return
    if bias is not None and call.tracked(bias):
        yield call.reduced(call.output_grad, bias)


@layer(F.linear, examples=_linear_examples)
def linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Iterator[Use]:
    """Y = x Wᵀ + b with any leading axes."""
    if weight.ndim != 2 or call.tracked(input):
        raise Unsupported("the weight is not a matrix, or the input is a parameter")
    yield from _product(call, call.samples(input, 1), call.samples(call.output_grad, 1), weight, bias)


class _Product(nn.Module):
    """x W + b as some libraries write it, with W [I, O]."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, input: Tensor) -> Tensor:
        if self.form == "addmm":
            return torch.addmm(self.bias, input, self.weight)
        if self.form == "left":
            return self.weight.T @ input
        return input @ self.weight + self.bias


def _product_examples() -> Iterator[Example]:
    yield Example(_Product("addmm"), (torch.randn(5, 3),))
    yield Example(_Product("matmul"), (torch.randn(5, 2, 3),))
    yield Example(_Product("left"), (torch.randn(5, 3, 2),))


@layer(
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.mm,
    torch.Tensor.mm,
    torch.Tensor.__rmatmul__,
    examples=_product_examples,
)
def matmul(call: Call, input: Tensor, other: Tensor) -> Iterator[Use]:
    """Y = x W, W [I, O], whose gradient Σ_t a_nt b_ntᵀ is a linear layer's with the roles exchanged; or y = W x."""
    grad = call.output_grad
    if call.tracked(other) and not call.tracked(input):
        if other.ndim == 1:
            yield Use(Explicit((call.samples(input, 1) * call.samples(grad, 0)[..., None]).sum(1)), (other,))
        elif other.ndim == 2:
            yield Use(Dense(call.samples(grad, 1), call.samples(input, 1)), (other,))
        else:
            raise Unsupported("a stack of weights")
    elif call.tracked(input) and input.ndim == 2 and other.ndim > 2 and not call.tracked(other):
        yield Use(Dense(call.samples(other.mT, 1), call.samples(grad.mT, 1)), (input,))
    else:
        raise Unsupported("a product of parameters, or a stack of weights")


@layer(torch.addmm, torch.Tensor.addmm, examples=_product_examples)
def addmm(call: Call, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Iterator[Use]:
    """Y = β c + α x W."""
    if call.tracked(mat1):
        raise Unsupported("the samples are on the right")
    if call.tracked(mat2):
        yield Use(Dense(call.samples(call.output_grad * alpha, 1), call.samples(mat1, 1)), (mat2,))
    if call.tracked(input):
        yield call.reduced(call.output_grad * beta, input)


def _bilinear_examples() -> Iterator[Example]:
    yield Example(nn.Bilinear(3, 4, 2), (torch.randn(5, 3), torch.randn(5, 4)))
    yield Example(nn.Bilinear(3, 4, 2, bias=False), (torch.randn(5, 6, 3), torch.randn(5, 6, 4)))


@layer(F.bilinear, examples=_bilinear_examples)
def bilinear(call: Call, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Iterator[Use]:
    """y_o = x₁ᵀ W_o x₂ + b_o: a linear layer of the outer product of its inputs."""
    products = (call.samples(input1, 1)[..., :, None] * call.samples(input2, 1)[..., None, :]).flatten(2)
    yield from _product(call, products, call.samples(call.output_grad, 1), weight, bias)
