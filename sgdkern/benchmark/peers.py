"""The installed peers, each used the way that is fastest for it; none of them is needed to run the rest."""

import torch
from torch import Tensor

from sgdkern.benchmark.methods import method, method_by_rows
from sgdkern.benchmark.workloads import Problem

# The module that is imported, by the name under which the peer is installed.
PEERS = {
    "nngeometry": "nngeometry",
    "asdfghjkl": "asdl",
    "torchjd": "torchjd",
    "backpack-for-pytorch": "backpack",
    "opacus": "opacus",
    "curvlinops-for-pytorch": "curvlinops",
}


def _losses(problem: Problem, inputs: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(problem.model(inputs), targets, reduction="none")


@method("nngeometry", requires="nngeometry")
def _nngeometry(problem: Problem) -> Tensor:
    from nngeometry import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(problem.inputs, problem.targets), batch_size=problem.num_samples)
    gram = GramMatrix(problem.model, loader, lambda x, y: _losses(problem, x, y)[:, None])
    result: Tensor = gram.data.reshape(problem.num_samples, problem.num_samples)
    return result


def _asdl(problem: Problem, operation: str) -> Tensor:
    from asdl.core import extend

    kernel = torch.zeros(problem.num_samples, problem.num_samples)
    setattr(problem.model, "kernel", kernel)  # noqa: B010  (where its operations add what they find)
    with extend(problem.model, operation):
        torch.autograd.grad(_losses(problem, problem.inputs, problem.targets).sum(), problem.parameters)
    return kernel


@method("asdfghjkl, hadamard", requires="asdl")
def _asdl_hadamard(problem: Problem) -> Tensor:
    return _asdl(problem, "gram_hada")


@method("asdfghjkl, direct", requires="asdl", holds="a layer's gradients")
def _asdl_direct(problem: Problem) -> Tensor:
    return _asdl(problem, "gram_direct")


@method("torchjd", requires="torchjd", holds="a layer's gradients")
def _torchjd(problem: Problem) -> Tensor:
    from torchjd.autogram import Engine

    engine = Engine(problem.model, batch_dim=0)
    result: Tensor = engine.compute_gramian(_losses(problem, problem.inputs, problem.targets))
    return result


@method_by_rows("backpack", requires="backpack")
def _backpack(problem: Problem) -> list[Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    model = extend(problem.model)
    with backpack(BatchGrad()):
        extend(torch.nn.CrossEntropyLoss(reduction="sum"))(model(problem.inputs), problem.targets).backward()
    rows = [p.grad_batch for p in model.parameters()]
    for parameter in model.parameters():
        del parameter.grad_batch
        parameter.grad = None
    return rows


@method_by_rows("opacus", requires="opacus")
def _opacus(problem: Problem) -> list[Tensor]:
    from opacus import GradSampleModule

    model = GradSampleModule(problem.model.train(), loss_reduction="sum")
    try:
        torch.nn.functional.cross_entropy(model(problem.inputs), problem.targets, reduction="sum").backward()
        rows = [p.grad_sample for p in model.parameters()]
    finally:
        model.to_standard_module()
        problem.model.eval().zero_grad()
    return rows


@method("curvlinops", "covariance product", requires="curvlinops")
def _curvlinops(problem: Problem) -> Tensor:
    from curvlinops import EFLinearOperator

    data = [(problem.inputs, problem.targets)]
    operator = EFLinearOperator(problem.model, problem.loss, problem.parameters, data, check_deterministic=False)
    result: Tensor = operator @ torch.ones(problem.num_params)
    return result
