"""The ways to each quantity that are compared: plain PyTorch and this library; the peers are in a file of their own."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from sgdkern import ops
from sgdkern.benchmark.oracle import ERRORS, batch_size
from sgdkern.benchmark.workloads import Problem
from sgdkern.capture import per_sample_gradients
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.gram_pass import gram_matrix
from sgdkern.order_parameters import OrderParameters, order_parameters
from sgdkern.statistics import LARGEST_GRAM


@dataclass(frozen=True)
class Method:
    """One way to a quantity.

    Attributes:
        name: As printed.
        quantity: What it gives, a key of `ERRORS`.
        run: From the problem to it.
        requires: The module that must be installed, if any.
        holds: Which explicit gradients it has in memory at once, if any: such a method takes N P numbers, or N times
            those of the largest layer, and 2 N² P operations for their products.
    """

    name: str
    quantity: str
    run: Callable[[Problem], Any]
    requires: str | None = None
    holds: Literal["all gradients", "a layer's gradients"] | None = None

    @property
    def is_available(self) -> bool:
        """Whether what it requires is installed."""
        return self.requires is None or find_spec(self.requires) is not None

    def least_mib(self, problem: Problem) -> float:
        """The gradients that it has in memory at once, MiB."""
        sizes = [p.numel() * p.element_size() for p in problem.parameters]
        held = {None: 0, "all gradients": sum(sizes), "a layer's gradients": max(sizes)}[self.holds]
        return problem.num_samples * held / 2**20


METHODS: dict[str, Method] = {}


def method(
    name: str,
    quantity: str = "K",
    *,
    requires: str | None = None,
    holds: Literal["all gradients", "a layer's gradients"] | None = None,
) -> Callable[[Callable[[Problem], Any]], Callable[[Problem], Any]]:
    """Register a way to a quantity.

    Args:
        name: As printed.
        quantity: A key of `ERRORS`.
        requires: The module that must be installed.
        holds: Which explicit gradients it has in memory at once.

    Returns:
        The decorator.

    Raises:
        ValueError: For a quantity that is not known.
    """
    if quantity not in ERRORS:
        raise ValueError(f"method: the quantity must be one of {list(ERRORS)}, got {quantity!r}.")

    def register(run: Callable[[Problem], Any]) -> Callable[[Problem], Any]:
        METHODS[name] = Method(name, quantity, run, requires, holds)
        return run

    return register


def forward_backward(problem: Problem, batch: int) -> Tensor:
    """Run the floor: one ordinary forward and backward over the samples, in batches.

    Returns:
        The last batch's gradient of the first parameter.
    """
    parameters = problem.parameters
    for start in range(0, problem.num_samples, batch):
        part = slice(start, start + batch)
        loss = problem.loss(problem.model(problem.inputs[part]), problem.targets[part])
        gradients = torch.autograd.grad(loss, parameters)
    return gradients[0]


def gram_of_rows(rows: list[Tensor]) -> Tensor:
    """K from explicit gradients, one [N, ...] for each parameter: Σ G_p G_pᵀ, never put side by side."""
    total = torch.zeros(len(rows[0]), len(rows[0]))
    for part in rows:
        part = part.flatten(1)
        total.addmm_(part, part.T)
    return total


Rows = Callable[[Problem], list[Tensor]]

# The ways to explicit gradients: one tensor [N, ...] for each parameter.
ROWS: dict[str, Rows] = {}


def method_by_rows(name: str, *, requires: str | None = None) -> Callable[[Rows], Rows]:
    """Register a way to explicit gradients of all samples, and with it one to K.

    Args:
        name: As printed.
        requires: The module that must be installed.

    Returns:
        The decorator.
    """

    def register(rows: Rows) -> Rows:
        ROWS[name] = rows
        method(name, requires=requires, holds="all gradients")(lambda problem: gram_of_rows(rows(problem)))
        return rows

    return register


@method_by_rows("autograd loop")
def _loop(problem: Problem) -> list[Tensor]:
    parameters = problem.parameters
    rows = [p.new_empty(problem.num_samples, *p.shape) for p in parameters]
    for n in range(problem.num_samples):
        loss = problem.loss(problem.model(problem.inputs[n : n + 1]), problem.targets[n : n + 1])
        for row, gradient in zip(rows, torch.autograd.grad(loss, parameters), strict=True):
            row[n] = gradient
    return rows


# With convolutions one call of vmap takes so many samples: all 256 of the CNN at once were a fifth slower.
VMAP_CHUNK = 32


@method_by_rows("vmap(grad)")
def _vmap(problem: Problem) -> list[Tensor]:
    parameters = {name: p.detach() for name, p in problem.model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = problem.loss(functional_call(problem.model, parameters, (x[None],)), y[None])
        return result

    has_convolutions = any(isinstance(m, torch.nn.Conv2d) for m in problem.model.modules())
    chunk_size = VMAP_CHUNK if has_convolutions else None
    gradients = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=chunk_size)
    return list(gradients(parameters, problem.inputs, problem.targets).values())


def _captured(problem: Problem) -> GradientMatrix:
    return per_sample_gradients(problem.model, problem.loss, problem.inputs, problem.targets)


@method("sgdkern, factors only", "factors")
def _factors(problem: Problem) -> GradientMatrix:
    return _captured(problem)


@method("sgdkern, reference")
def _reference(problem: Problem) -> Tensor:
    with ExitStack() as stack:
        for op in ops.OPS.values():
            stack.enter_context(patch.object(op, "overload", op.reference))
        return _captured(problem).gram()


@method("sgdkern")
def _compiled(problem: Problem) -> Tensor:
    return _captured(problem).gram()


@method("sgdkern, gram_matrix")
def _gram_pass(problem: Problem) -> Tensor:
    return gram_matrix(problem.model, problem.loss, problem.inputs, problem.targets).gram()


def _by_passes(problem: Problem, num_minibatches: int) -> OrderParameters:
    size = batch_size(problem)
    return order_parameters(_captured(problem), batch_size=size, num_minibatches=num_minibatches, route="passes")


@method("sgdkern, all but R", "order parameters")
def _all_but_alignment(problem: Problem) -> OrderParameters:
    return _by_passes(problem, 0)


@method("sgdkern, with R", "order parameters and R")
def _with_alignment(problem: Problem) -> OrderParameters:
    return _by_passes(problem, 512)


@method("sgdkern, order parameters", "order parameters and R")
def _order_parameters(problem: Problem) -> OrderParameters:
    """As a user calls it, and a probe: by whichever of K and the passes is cheaper."""
    measure = gram_matrix if problem.num_samples <= LARGEST_GRAM else per_sample_gradients
    source = measure(problem.model, problem.loss, problem.inputs, problem.targets)
    return order_parameters(source, batch_size=batch_size(problem), num_minibatches=512)


@method("sgdkern, one product", "covariance product")
def _product(problem: Problem) -> Tensor:
    source = _captured(problem)
    return source.rmatvec(source.matvec(torch.ones(source.num_params))) / source.num_samples


# Whose peaks are held against the floor's: what a measurement keeps, and what it passes through.
MEMORY_METHODS = ("sgdkern, gram_matrix", "sgdkern", "sgdkern, factors only", "sgdkern, all but R")
