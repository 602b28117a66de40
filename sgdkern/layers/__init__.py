"""How each torch function that takes parameters becomes factors: one decorated rule a function, one file a family.

A rule sees one call (its arguments, and the gradient of its output) and yields what the call's parameters receive from
each sample. Modules need no rules of their own: whatever class a layer is, however it is called or shared, its
parameters meet the samples in these functions. A parameter that meets samples elsewhere is found out by `capture`'s
check against autograd and goes the explicit route.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sgdkern.factors import Explicit, Factors


@dataclass(frozen=True)
class Layout:
    """Where the samples are in a tensor: along one axis, alone or mixed with positions.

    Args:
        num_samples: N.
        axis: the axis that holds the samples, N·k long.
        minor: whether the sample's index runs fastest along the axis (k, N) instead of slowest (N, k).
    """

    num_samples: int
    axis: int
    minor: bool = False

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape can have this layout."""
        return self.axis < len(shape) and shape[self.axis] % self.num_samples == 0

    def split(self, tensor: Tensor) -> Tensor:
        """[…, N·k, …] as [N, …, k, …]."""
        size = tensor.shape[self.axis] // self.num_samples
        sizes = (size, self.num_samples) if self.minor else (self.num_samples, size)
        split: Tensor = tensor.unflatten(self.axis, sizes)
        return split.movedim(self.axis + int(self.minor), 0)

    def moved(self, axis: int) -> Layout:
        """The same samples along another axis."""
        return dataclasses.replace(self, axis=axis)

    def samples(self: Layout | Scattered, tensor: Tensor, features: int) -> Tensor:
        """A tensor with ``features`` trailing axes of its own as [N, T, *features]."""
        if self.axis >= tensor.ndim - features:
            raise Unsupported("samples lie along a feature axis")
        split = self.split(tensor)
        return split.reshape(self.num_samples, -1, *tensor.shape[tensor.ndim - features :])


@dataclass(frozen=True)
class Scattered:
    """Samples in rows of no regular order along the first axis: packed sequences, rows routed to an expert.

    Args:
        num_samples: N.
        owners: the sample of each row, [R], int64; −1 for rows that belong to none.
    """

    num_samples: int
    owners: Tensor
    axis: int = 0

    @property
    def padding(self) -> float:
        """How many times as many rows there are when each sample has as many as the one with most."""
        counts = self.owners[self.owners >= 0].bincount(minlength=self.num_samples)
        return self.num_samples * int(counts.max()) / max(1, len(self.owners))

    def split(self, tensor: Tensor) -> Tensor:
        """[R, …] as [N, k, …], where k is the largest number of rows of a sample; missing rows are zeros."""
        order = self.owners.argsort(stable=True)
        order = order[self.owners[order] >= 0]
        counts = self.owners[order].bincount(minlength=self.num_samples)
        owners = self.owners[order]
        places = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[owners]
        out = tensor.new_zeros(self.num_samples, max(1, int(counts.max())), *tensor.shape[1:])
        out[owners, places] = tensor[order]
        return out

    samples = Layout.samples

    def moved(self, axis: int) -> Scattered:
        """Rows stay along the first axis."""
        if axis:
            raise Unsupported("scattered samples along an axis that is not the first")
        return self


class Unsupported(Exception):
    """A rule does not hold for a call; its parameters go the explicit route."""


@dataclass(frozen=True)
class Use:
    """What a call's parameters receive: factors, and the tensor behind each of their pieces."""

    factors: Factors
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Call:
    """One call of a torch function in which parameters meet samples.

    Args:
        output_grad: gradient of Σ_n l_n with respect to the call's output.
        layout: where the samples are in that gradient.
        tracked: whether a tensor is one of the parameters looked at, or computed from them alone.
        unexpanded: the tensor of which a tensor is only a repetition.
    """

    output_grad: Tensor
    layout: Layout | Scattered
    tracked: Callable[[Any], bool]
    unexpanded: Callable[[Tensor], Tensor]

    def samples(self, tensor: Tensor, features: int) -> Tensor:
        """A tensor as [N, T, *features]."""
        return self.layout.samples(tensor, features)

    def reduced(self, gradient: Tensor, parameter: Tensor) -> Use:
        """A gradient of the output's shape, summed a sample over the axes along which ``parameter`` was broadcast."""
        parameter = self.unexpanded(parameter)
        shape = (1,) * (gradient.ndim - parameter.ndim) + tuple(parameter.shape)
        if len(shape) > gradient.ndim or shape[self.layout.axis] != 1:
            raise Unsupported("the parameter has a value of its own for each sample")
        split = self.layout.split(gradient)
        axes = [1 + axis for axis, size in enumerate(shape) if size == 1]
        rows = split.sum(axes) if axes else split
        return Use(Explicit(rows.reshape(self.layout.num_samples, -1)), (parameter,))


Rule = Callable[..., Iterable[Use]]


@dataclass(frozen=True)
class Example:
    """A module that ends in the function, and inputs for it; rules are tested on these."""

    module: nn.Module
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Layer:
    """A registered rule."""

    name: str
    rule: Rule
    examples: Callable[[], Iterable[Example]]


LAYERS: dict[Callable[..., Any], Layer] = {}
DECOMPOSITIONS: dict[Callable[..., Any], Callable[..., Any]] = {}


def layer(*functions: Callable[..., Any], examples: Callable[[], Iterable[Example]]) -> Callable[[Rule], Rule]:
    """Register how some torch functions become factors.

    Args:
        *functions: the torch functions; the rule is called with a `Call` and then their arguments.
        examples: modules that use them, with inputs, for the tests.

    Returns:
        A decorator.
    """

    def register(rule: Rule) -> Rule:
        for function in functions:
            LAYERS[function] = Layer(rule.__name__, rule, examples)
        return rule

    return register


def decomposition(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register torch code equal to a fused torch function, written in functions that have rules.

    Args:
        *functions: the fused functions.

    Returns:
        A decorator.
    """

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            DECOMPOSITIONS[function] = body
        return body

    return register


from sgdkern.layers import convolution, elementwise, embedding, linear, normalization, recurrent  # noqa: E402

__all__ = [
    "DECOMPOSITIONS",
    "LAYERS",
    "Call",
    "Example",
    "Layer",
    "Layout",
    "Scattered",
    "Unsupported",
    "Use",
    "convolution",
    "decomposition",
    "elementwise",
    "embedding",
    "layer",
    "linear",
    "normalization",
    "recurrent",
]
