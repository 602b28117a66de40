"""The truth that every method is held against before it is timed: per-sample gradients one by one, in float64."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgdkern.benchmark.workloads import Problem
from sgdkern.order_parameters import OrderParameters, draw_minibatches

CHECKED_SAMPLES = 8
BATCH_SIZE = 25


def batch_size(problem: Problem) -> int:
    """The minibatch whose order parameters are asked for: of 25 samples, half of them where there are few."""
    return min(BATCH_SIZE, problem.num_samples // 2)


@dataclass(frozen=True)
class Truth:
    """What plain autograd says about the first samples of a problem.

    Attributes:
        gram: K of these samples, float64 [n, n].
        product: Gᵀ G 1/n of these samples alone, with 1 the vector of ones, float64 [P].
    """

    gram: Tensor
    product: Tensor


def truth(problem: Problem) -> Truth:
    """Run one backward pass a sample in float64.

    Args:
        problem: The model, and samples of which the first few are taken.

    Returns:
        K and a product with the second moment.
    """
    few = problem.first(CHECKED_SAMPLES)
    model = copy.deepcopy(few.model).double()
    inputs = few.inputs.double() if few.inputs.is_floating_point() else few.inputs
    rows = []
    for n in range(few.num_samples):
        loss = few.loss(model(inputs[n : n + 1]), few.targets[n : n + 1])
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        rows.append(torch.cat([g.flatten() for g in gradients]))
    stacked = torch.stack(rows)
    return Truth(stacked @ stacked.T, stacked.T @ stacked.sum(1) / few.num_samples)


def _distance(found: Tensor, true: Tensor) -> float:
    return float((found.detach().double() - true).abs().max() / true.abs().max())


def _gram_error(true: Truth, result: Tensor, few: bool) -> float:
    size = len(true.gram)
    return _distance(result[:size, :size], true.gram)


def _rows_error(true: Truth, result: Any, few: bool) -> float:
    """Of whatever is asked for the product G Gᵀ."""
    return _gram_error(true, result.select(torch.arange(len(true.gram))).gram(), few)


def _product_error(true: Truth, result: Tensor, few: bool) -> float:
    """Of the few samples' product; that of all samples is another one."""
    return _distance(result, true.product) if few else 0.0


def _order_parameter_error(true: Truth, result: OrderParameters, few: bool) -> float:
    """By the definitions: over all minibatches of the few samples, R over those drawn; else the norms only."""
    size = len(true.gram)
    norms = _distance(result.statistics.squared_norms[:size], true.gram.diagonal())
    if not few:
        return norms
    values = brute_force(true.gram, result.batch_size, with_alignment=result.alignment.num_minibatches > 0)
    return max(norms, *(abs(result.values[name] - value) / abs(value) for name, value in values.items()))


def brute_force(gram: Tensor, size: int, *, with_alignment: bool) -> dict[str, float]:
    """Order parameters from all minibatches, written out as they are defined.

    Args:
        gram: K, float64 [n, n], n small.
        size: B.
        with_alignment: Whether R is wanted, over the 512 minibatches that are drawn by default.

    Returns:
        By name.
    """
    num_samples = len(gram)

    def means(indices: Any) -> Tensor:
        weights = torch.zeros(len(indices), num_samples, dtype=torch.float64)
        return weights.scatter_(1, torch.as_tensor(indices), 1 / size)

    weights = means(list(itertools.combinations(range(num_samples), size)))
    mean = torch.full((num_samples,), 1 / num_samples, dtype=torch.float64)
    directed = float(mean @ gram @ mean)
    products = weights @ gram
    squares, along = (products * weights).sum(1), products @ mean
    activity, variance = float(squares.mean()), float(along.var(correction=0)) / directed**2
    values = {
        "A": activity,
        "A0": directed,
        "D": activity - directed,
        "D_par": variance * directed,
        "sigma_lambda2": variance,
    }
    if with_alignment:
        drawn = means(draw_minibatches(num_samples, size, 512))
        products = drawn @ gram @ drawn.T
        lengths = products.diagonal().sqrt()
        cosines = products / lengths / lengths[:, None]
        values["R"] = float((cosines.sum() - len(drawn)) / (len(drawn) * (len(drawn) - 1)))
    return values


# By quantity: how far a result is off, relative to the largest entry of the truth.
ERRORS: dict[str, Callable[[Truth, Any, bool], float]] = {
    "K": _gram_error,
    "factors": _rows_error,
    "order parameters": _order_parameter_error,
    "order parameters and R": _order_parameter_error,
    "covariance product": _product_error,
}
