"""explicit: per-sample gradients without factors, for parameters that no rule covers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from sgdkern.problem import Batch, Problem, at_least_single, dense_gradient, taken

METHODS = ("vmap", "loop")

# Explicit rows are the one thing here that is samples x parameters; larger ones are refused.
LIMIT_BYTES = 4 * 2**30
# vmap holds every activation of a chunk of samples, and a copy of each weight's gradient: about this many bytes at a
# time.
VMAP_BYTES = 256 * 2**20


def explicit_gradients(problem: Problem, names: Sequence[str], *, method: str) -> dict[str, Tensor]:
    """Per-sample gradients of some parameters, one backward pass a sample.

    Args:
        problem: the model and its batch.
        names: parameters wanted.
        method: ``vmap`` (torch.func over the whole model) or ``loop``.

    Returns:
        Name → rows, [N, p].

    Raises:
        ValueError: if the rows would not fit a stated bound, or random layers are on.
    """
    tracked = {name: problem.tracked[name] for name in names}
    size = problem.num_samples * sum(parameter.nbytes for parameter in tracked.values())
    if size > LIMIT_BYTES:
        raise ValueError(
            f"per_sample_gradients: explicit gradients must fit {LIMIT_BYTES:,} bytes, got {size:,} for "
            f"{problem.num_samples} samples of {list(tracked)[:5]}. "
            "Take fewer samples at a time (StreamingGradients does), or leave these parameters out by params=."
        )
    if problem.seed is not None:
        raise ValueError(
            f"per_sample_gradients: random layers cannot be repeated for explicit gradients, which "
            f"{list(tracked)[:5]} need. Call model.eval()."
        )
    return _by_vmap(problem, tracked) if method == "vmap" else _by_loop(problem, tracked)


def _by_vmap(problem: Problem, tracked: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """torch.func over a copy of the model, so that the model itself never changes hands."""
    model = copy.deepcopy(problem.model)
    flat, rebuild = _flattened(problem.batch)

    def loss(parameters: dict[str, Tensor], *leaves: Tensor) -> Tensor:
        with _reparametrize_module(model, parameters):
            losses, _ = problem.losses(model, rebuild([leaf[None] for leaf in leaves]))
        return losses.sum()

    parameters = {name: parameter.detach() for name, parameter in tracked.items()}
    per_sample = sum(parameter.nbytes for parameter in tracked.values()) + 8 * sum(leaf[0:1].nbytes for leaf in flat)
    chunk = max(1, VMAP_BYTES // max(1, 16 * per_sample))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *[0] * len(flat)), chunk_size=chunk)(
            parameters, *flat
        )
    return {name: at_least_single(grad.detach().flatten(1)) for name, grad in grads.items()}


def _flattened(batch: Batch) -> tuple[list[Tensor], Callable[[list[Tensor]], Batch]]:
    """The batch's tensors that have a sample axis, and how to put others in their place."""
    leaves, spec = torch.utils._pytree.tree_flatten(batch)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.ndim]

    def rebuild(tensors: list[Tensor]) -> Batch:
        whole = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            whole[place] = tensor
        return torch.utils._pytree.tree_unflatten(whole, spec)

    return [leaves[place] for place in places], rebuild


def _by_loop(problem: Problem, tracked: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """One forward and backward a sample, on the model itself: always possible."""
    rows: dict[str, list[Tensor]] = {name: [] for name in tracked}
    for sample in range(problem.num_samples):
        losses, _ = problem.losses(problem.model, taken(problem.batch, torch.tensor([sample])))
        grads = torch.autograd.grad(losses.sum(), list(tracked.values()), allow_unused=True)
        for (name, parameter), grad in zip(tracked.items(), grads, strict=True):
            rows[name].append(at_least_single(dense_gradient(grad, parameter)))
    return {name: torch.stack(row) for name, row in rows.items()}
