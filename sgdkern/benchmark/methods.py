"""The ways to the Gram matrix that are compared: plain PyTorch, this library with and without kernels, the peers."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from unittest.mock import patch

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from sgdkern import ops
from sgdkern.benchmark.workloads import Problem
from sgdkern.capture import per_sample_gradients

# Methods that take minutes at full size are timed on this many samples; their time is then a lower bound.
FEW_SAMPLES = 16


@dataclass(frozen=True)
class Method:
    """One way to K.

    Attributes:
        name: As printed.
        run: From the problem to K [N, N]; for a method that stops short of it, to what it did compute.
        requires: The module that must be installed, if any.
        num_samples: How many samples it is run on, None for all. With fewer its time is scaled up: a lower bound on the
            time to K, since the products of the gradients are left out.
    """

    name: str
    run: Callable[[Problem], Tensor]
    requires: str | None = None
    num_samples: int | None = None

    @property
    def is_available(self) -> bool:
        """Whether what it requires is installed."""
        return self.requires is None or find_spec(self.requires) is not None


METHODS: dict[str, Method] = {}


def _method(
    name: str, *, requires: str | None = None, num_samples: int | None = None
) -> Callable[[Callable[[Problem], Tensor]], Callable[[Problem], Tensor]]:
    def register(run: Callable[[Problem], Tensor]) -> Callable[[Problem], Tensor]:
        METHODS[name] = Method(name, run, requires, num_samples)
        return run

    return register


def _parameters(problem: Problem) -> list[Tensor]:
    return [p for p in problem.model.parameters() if p.requires_grad]


def forward_backward(problem: Problem, batch_size: int) -> Tensor:
    """Run the floor: one ordinary forward and backward over the samples, in batches.

    Returns:
        The last batch's gradient of the first parameter.
    """
    for start in range(0, problem.num_samples, batch_size):
        part = slice(start, start + batch_size)
        loss = problem.loss(problem.model(problem.inputs[part]), problem.targets[part])
        gradients = torch.autograd.grad(loss, _parameters(problem))
    return gradients[0]


def loop_gradients(problem: Problem) -> Tensor:
    """Run one backward pass a sample.

    Returns:
        G [N, P].
    """
    rows = []
    for n in range(problem.num_samples):
        loss = problem.loss(problem.model(problem.inputs[n : n + 1]), problem.targets[n : n + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, _parameters(problem))]))
    return torch.stack(rows)


@_method("autograd loop", num_samples=FEW_SAMPLES)
def _loop(problem: Problem) -> Tensor:
    return loop_gradients(problem)


@_method("vmap(grad)", num_samples=FEW_SAMPLES)
def _vmap(problem: Problem) -> Tensor:
    parameters = {name: p.detach() for name, p in problem.model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = problem.loss(functional_call(problem.model, parameters, (x[None],)), y[None])
        return result

    rows = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, problem.inputs, problem.targets)
    return torch.cat([g.flatten(1) for g in rows.values()], 1)


@_method("sgdkern, reference")
def _reference(problem: Problem) -> Tensor:
    with ExitStack() as stack:
        for op in ops.OPS.values():
            stack.enter_context(patch.object(op, "overload", op.reference))
        return _compiled(problem)


@_method("sgdkern")
def _compiled(problem: Problem) -> Tensor:
    return per_sample_gradients(problem.model, problem.loss, problem.inputs, problem.targets).gram()


def _losses(problem: Problem, inputs: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(problem.model(inputs), targets, reduction="none")


@_method("nngeometry", requires="nngeometry")
def _nngeometry(problem: Problem) -> Tensor:
    from nngeometry import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(problem.inputs, problem.targets), batch_size=problem.num_samples)
    gram = GramMatrix(problem.model, loader, lambda x, y: _losses(problem, x, y)[:, None])
    result: Tensor = gram.data.reshape(problem.num_samples, problem.num_samples)
    return result


@_method("asdfghjkl", requires="asdl")
def _asdl(problem: Problem) -> Tensor:
    from asdl.core import extend
    from asdl.operations import OP_GRAM_HADAMARD

    kernel = problem.inputs.new_zeros(problem.num_samples, problem.num_samples, dtype=torch.float32)
    setattr(problem.model, "kernel", kernel)  # noqa: B010
    with extend(problem.model, OP_GRAM_HADAMARD):
        torch.autograd.grad(_losses(problem, problem.inputs, problem.targets).sum(), _parameters(problem))
    return kernel


@_method("torchjd", requires="torchjd")
def _torchjd(problem: Problem) -> Tensor:
    from torchjd.autogram import Engine

    engine = Engine(problem.model, batch_dim=0)
    result: Tensor = engine.compute_gramian(_losses(problem, problem.inputs, problem.targets))
    return result


@_method("backpack", requires="backpack", num_samples=FEW_SAMPLES)
def _backpack(problem: Problem) -> Tensor:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    model = extend(problem.model)
    with backpack(BatchGrad()):
        extend(problem.loss)(model(problem.inputs), problem.targets).backward()
    return torch.cat([p.grad_batch.flatten(1) for p in model.parameters()], 1)


@_method("opacus", requires="opacus", num_samples=FEW_SAMPLES)
def _opacus(problem: Problem) -> Tensor:
    from opacus import GradSampleModule

    model = GradSampleModule(problem.model.train(), loss_reduction="mean")
    problem.loss(model(problem.inputs), problem.targets).backward()
    rows = torch.cat([p.grad_sample.flatten(1) for p in model.parameters()], 1)
    model.to_standard_module()
    problem.model.zero_grad()
    return rows
