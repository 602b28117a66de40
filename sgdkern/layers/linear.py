"""Products with a weight: linear layers, matrix products, bilinear forms."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Sequence

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
            yield from einsum(call, "...hti,hio->...hto", input, other)
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


class _Einsum(nn.Module):
    """A product over named axes with a weight."""

    def __init__(self, equation: str, *shape: int) -> None:
        super().__init__()
        self.equation = equation
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, input: Tensor) -> Tensor:
        return torch.einsum(self.equation, input, self.weight)


def _einsum_examples() -> Iterator[Example]:
    yield Example(_Einsum("ni,ij->nj", 3, 4), (torch.randn(5, 3),))
    yield Example(_Einsum("ntd,dhk->nhtk", 4, 2, 3), (torch.randn(5, 6, 4),))
    yield Example(_Einsum("nhi,hij->nhj", 2, 3, 4), (torch.randn(5, 2, 3),))
    yield Example(_Einsum("...i,oi->...o", 4, 3), (torch.randn(5, 2, 3),))


# A product that keeps the heads of its weight apart is a linear layer a head; more of them go the explicit route.
MAX_HEADS = 64


@layer(torch.einsum, examples=_einsum_examples)
def einsum(call: Call, equation: str, *operands: Tensor) -> Iterator[Use]:
    """Y = Σ x · W over named axes: a linear layer for each value of the axes that x, W and y share (heads)."""
    if len(operands) != 2 or not isinstance(equation, str):
        raise Unsupported("more or less than two operands")
    (x, w), y = _axes(equation, operands)
    samples, weight = operands
    if call.tracked(samples):
        (x, w), (samples, weight) = (w, x), (weight, samples)
    heads = [axis for axis in w if axis in x and axis in y]
    ins = [axis for axis in w if axis in x and axis not in y]
    outs = [axis for axis in w if axis not in x and axis in y]
    shared = [axis for axis in y if axis in x and axis not in w]
    root = weight if weight._base is None else weight._base
    if call.tracked(samples) or not root.is_leaf or len({*heads, *ins, *outs}) < weight.ndim:
        raise Unsupported("a product of parameters, of computed weights, or a sum over one operand alone")
    if y[call.layout.axis] not in shared or len(shared) + len(heads) + len(outs) < call.output_grad.ndim:
        raise Unsupported("samples lie along an axis of the weight")
    inputs = torch.einsum(f"{x}->{''.join([*heads, *shared, *ins])}", samples)
    grads = call.output_grad.permute([y.index(axis) for axis in [*heads, *shared, *outs]])
    pieces = weight.permute([w.index(axis) for axis in [*heads, *outs, *ins]])
    sizes = inputs.shape[: len(heads)]
    if sizes.numel() > MAX_HEADS:
        raise Unsupported(f"more than {MAX_HEADS} heads")
    move = call.layout.moved(shared.index(y[call.layout.axis]))
    for head in itertools.product(*map(range, sizes)):
        factors = Dense(
            move.samples(inputs[head], len(ins)).flatten(2) if ins else move.samples(inputs[head], 0)[..., None],
            move.samples(grads[head], len(outs)).flatten(2) if outs else move.samples(grads[head], 0)[..., None],
        )
        yield Use(factors, (pieces[head],))


def _axes(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """One letter an axis, for the operands and the output."""
    terms, arrow, out = equation.replace(" ", "").partition("->")
    names = terms.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    hidden = [tensor.ndim - len(name) + 3 if "..." in name else 0 for name, tensor in zip(names, operands, strict=True)]
    most = max(hidden)
    names = [
        name.replace("...", "".join(spare[most - count : most])) for name, count in zip(names, hidden, strict=True)
    ]
    sizes = {
        pair for name, tensor in zip(names, operands, strict=True) for pair in zip(name, tensor.shape, strict=True)
    }
    if not arrow or any(len(set(name)) < len(name) for name in names) or len(sizes) > len(set("".join(names))):
        raise Unsupported("an implicit output, a diagonal, or broadcast axes")
    return names, out.replace("...", "".join(spare[:most]))
