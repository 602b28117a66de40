"""explicit: per-sample gradients without factors, for parameters that no rule covers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from sgdkern.problem import Batch, Problem, at_least_single, dense_gradient, taken

# In the order in which they are tried; the study takes the first that agrees with autograd.
METHODS = ("module", "vmap", "loop")

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
        method: ``module`` (torch.func over the smallest modules that hold the parameters), ``vmap`` (over the whole
            model) or ``loop``.

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
    by = {"module": _by_module, "vmap": _by_vmap, "loop": _by_loop}[method]
    return by(problem, tracked)


def _by_module(problem: Problem, tracked: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """torch.func over the smallest modules that hold the parameters: g_n = ∂ Σ M(θ, x_n) · b_n / ∂θ."""
    # Arguments x and gradients b at the outputs come from one ordinary pass, which calls each of these modules once;
    # the rest of the model is not run again.
    holders = {name: _holders(name) for name in tracked}
    calls = {path: list[_Call]() for paths in holders.values() for path in paths}
    losses = _watched(problem, calls)
    names: dict[str, list[str]] = {}
    for name, paths in holders.items():
        names.setdefault(next((path for path in paths if len(calls[path]) == 1), ""), []).append(name)
    _refuse(not names.get(""), f"nothing smaller than the model holds {names.get('')} and is called once")
    edges = [edge for path in names for edge in calls[path][0].edges if edge is not None]
    found = iter(torch.autograd.grad(losses.sum(), edges, allow_unused=True))
    rows: dict[str, Tensor] = {}
    for path, held in names.items():
        (call,) = calls[path]
        weights = [None if edge is None else next(found) for edge in call.edges]
        parameters = {name.removeprefix(f"{path}."): tracked[name] for name in held}
        of_module = _of_module(problem, path, call.arguments, weights, parameters)
        rows.update({f"{path}.{name}": gradients for name, gradients in of_module.items()})
    return rows


def _refuse(holds: bool, reason: str) -> None:
    """Raise where a method cannot be taken; the study tries the next one."""
    if not holds:
        raise ValueError(f"explicit gradients: {reason}.")


def _holders(name: str) -> list[str]:
    """The modules that hold a parameter, the smallest first, without the model itself."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


@dataclass(frozen=True)
class _Call:
    """A call of a module: its arguments off the graph, and where the gradients of its outputs will be found."""

    arguments: Batch
    edges: list[GradientEdge | None]


def _watched(problem: Problem, calls: Mapping[str, list[_Call]]) -> Tensor:
    """The losses of a pass in which every call of some modules is noted."""

    def note(seen: list[_Call], module: nn.Module, args: Batch, kwargs: Batch, output: Batch) -> None:
        arguments = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        outputs = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        seen.append(_Call(arguments, [get_gradient_edge(leaf) if leaf.requires_grad else None for leaf in outputs]))

    hooks = [
        problem.model.get_submodule(path).register_forward_hook(partial(note, seen), with_kwargs=True)
        for path, seen in calls.items()
    ]
    try:
        return problem.losses(problem.model, problem.batch)[0]
    finally:
        for hook in hooks:
            hook.remove()


def _of_module(
    problem: Problem,
    path: str,
    arguments: Batch,
    weights: Sequence[Tensor | None],
    parameters: Mapping[str, nn.Parameter],
) -> dict[str, Tensor]:
    """Rows of one module's parameters, known by their names within it; weights are its outputs' gradients."""
    leaves = [leaf for leaf in tree_leaves((arguments, list(weights))) if isinstance(leaf, Tensor) and leaf.ndim]
    one_row_a_sample = all(len(leaf) == problem.num_samples for leaf in leaves)
    _refuse(one_row_a_sample, f"what goes into {path!r} and comes out of it must be one row a sample")
    module = copy.deepcopy(problem.model.get_submodule(path))

    def product(parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        ((args, kwargs), weights) = batch
        with _reparametrize_module(module, parameters):
            outputs = tree_leaves(module(*args, **kwargs))
        outputs = [leaf for leaf in outputs if isinstance(leaf, Tensor)]
        pairs = zip(outputs, weights, strict=True)
        return torch.stack([(leaf * weight).sum() for leaf, weight in pairs if weight is not None]).sum()

    return _vmapped(product, parameters, (arguments, list(weights)))


def _by_vmap(problem: Problem, tracked: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """torch.func over a copy of the model, so that the model itself never changes hands."""
    model = copy.deepcopy(problem.model)

    def loss(parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        with _reparametrize_module(model, parameters):
            losses, _ = problem.losses(model, batch)
        return losses.sum()

    return _vmapped(loss, tracked, problem.batch)


def _vmapped(
    loss: Callable[[dict[str, Tensor], Batch], Tensor], tracked: Mapping[str, nn.Parameter], batch: Batch
) -> dict[str, Tensor]:
    """Rows of ∂ loss/∂ parameters for every sample of a batch, several samples at once."""
    flat, rebuild = _flattened(batch)
    parameters = {name: parameter.detach() for name, parameter in tracked.items()}
    per_sample = sum(parameter.nbytes for parameter in tracked.values()) + 8 * sum(leaf[0:1].nbytes for leaf in flat)
    chunk = max(1, VMAP_BYTES // max(1, 16 * per_sample))

    def of_leaves(parameters: dict[str, Tensor], *leaves: Tensor) -> Tensor:
        return loss(parameters, rebuild([leaf[None] for leaf in leaves]))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        grads = torch.func.vmap(torch.func.grad(of_leaves), in_dims=(None, *[0] * len(flat)), chunk_size=chunk)(
            parameters, *flat
        )
    return {name: at_least_single(grad.detach().flatten(1)) for name, grad in grads.items()}


def _flattened(batch: Batch) -> tuple[list[Tensor], Callable[[list[Tensor]], Batch]]:
    """The batch's tensors that have a sample axis, and how to put others in their place."""
    leaves, spec = tree_flatten(batch)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.ndim]

    def rebuild(tensors: list[Tensor]) -> Batch:
        whole = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            whole[place] = tensor
        return tree_unflatten(whole, spec)

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
