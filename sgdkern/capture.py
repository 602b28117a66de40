"""capture: run a model and a loss once, give back its per-sample gradients as factors.

One forward and one backward to the outputs of the layers only: no weight gradient is computed. What makes the result
trustworthy for a model never seen before is in `sgdkern.study`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sgdkern.columns import Entry, Whole
from sgdkern.explicit import explicit_gradients
from sgdkern.factors import Explicit
from sgdkern.footprint import pass_size, samples_at_once
from sgdkern.gradient_matrix import UNUSED, GradientMatrix
from sgdkern.gram_routes import compact
from sgdkern.losses import Loss, loss_identity, unreduced
from sgdkern.one_by_one import give_away
from sgdkern.preserve import preserve
from sgdkern.problem import Batch, Problem, at_least_single, count_samples, forward, leaves, part_of, slices_of
from sgdkern.recorded_pass import Pass, check_gradients, entries, gradients, located, recorded
from sgdkern.recorder import Site
from sgdkern.study import TELLING_SAMPLES, Plan, plan_for

BatchLoss = Callable[[nn.Module, Batch], Tensor]
Params = Sequence[str] | Callable[[str], bool] | None


def per_sample_gradients(
    model: nn.Module,
    loss_fn: Loss | None = None,
    inputs: Any = None,
    targets: Any = None,
    *,
    params: Params = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    batch_loss: BatchLoss | None = None,
    batch: Batch = None,
    seed: int | None = None,
) -> GradientMatrix:
    """Per-sample gradients g_n = ∂l_n/∂θ of all samples at once, as factors: rows of G that are never materialised.

    Args:
        model: any module, in the mode (training or evaluation) in which it is to be measured; it comes back
            untouched to the bit.
        loss_fn: torch loss module or function of (outputs, targets), whose reduction is undone (see
            `sgdkern.losses.unreduced`), or any
            callable that returns one loss a sample, [N].
        inputs: tensors, or nested tuples, lists or dicts of tensors, whose first axis is the sample. A tuple is the
            model's positional
            arguments, a dict its keyword arguments.
        targets: as ``inputs``; what the loss compares with.
        params: None for all parameters that require gradients, names, or a predicate on names.
        chunk_size: samples run at a time; None runs all together, or large images on a CPU in chunks whose memory is
            there already, and keeps gradients of convolutions over images where these are fewer numbers than the
            factors. The result is the same (but for the masks of random layers, which are drawn chunk by chunk); peak
            memory is lower.
        memory_budget: bytes for the factors of all samples, which are kept, and for the pass of one chunk: chooses
            ``chunk_size``. Explicit gradients (see ``coverage``) come on top.
        batch_loss: a second form, ``batch_loss(model, batch)`` giving losses [N], for models that compute their own
            loss.
        batch: what ``batch_loss`` takes: nested tensors whose first axis is the sample.
        seed: seed of random layers (dropout in training mode), the same masks at every call; without it they are
            refused.

    Returns:
        The gradient matrix G, [N, P], columns in ``model.named_parameters()`` order.

    Raises:
        TypeError: if the model is no module or neither form of the loss is given.
        ValueError: if samples are coupled, shapes do not fit, names are unknown, or random layers have no seed.
        RuntimeError: if a loss or gradient is not finite, or no route agrees with autograd.

    Reference:
        Goodfellow, "Efficient per-example gradient computations", 2015, for linear layers; the layers' rules are in
        `sgdkern.layers`.

    Example:
        >>> import torch, sgdkern as sk
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> G = sk.per_sample_gradients(model, torch.nn.CrossEntropyLoss(), torch.randn(6, 4), torch.arange(6) % 3)
        >>> G.mean().shape
        torch.Size([67])
    """
    problem = posed(model, loss_fn, inputs, targets, params, batch_loss, batch, seed)
    if memory_budget is not None and chunk_size is not None:
        raise ValueError(
            f"per_sample_gradients: memory_budget chooses chunk_size, got both, {memory_budget} and {chunk_size}. Give "
            "one of them."
        )
    if memory_budget is not None:
        chunk_size = samples_at_once(problem, memory_budget)
    elif chunk_size is None and _has_images(problem):
        return captured_in_chunks(problem, pass_size(problem) or problem.num_samples)
    size = problem.num_samples if chunk_size is None else chunk_size
    if size < 1:
        raise ValueError(f"per_sample_gradients: chunk_size must be at least 1, got {size}.")
    few = min(TELLING_SAMPLES, problem.num_samples)
    if size < few:  # chunks of one sample cannot show that samples are coupled: a chunk that can goes first
        captured(part_of(problem, torch.arange(few)))
    parts = []
    for start in range(0, problem.num_samples, size):
        stop = min(start + size, problem.num_samples)
        parts.append(captured(chunk_of(problem, start, stop)))
    return parts[0] if len(parts) == 1 else GradientMatrix.stack(parts, consume=True)


def chunk_of(problem: Problem, start: int, stop: int) -> Problem:
    """The problem for samples start … stop − 1; chunks do not share their random numbers."""
    if stop - start == problem.num_samples:
        return problem
    seed = None if problem.seed is None else problem.seed + start
    return dataclasses.replace(part_of(problem, torch.arange(start, stop)), seed=seed)


def posed(
    model: nn.Module,
    loss_fn: Loss | None,
    inputs: Any,
    targets: Any,
    params: Params,
    batch_loss: BatchLoss | None,
    batch: Batch,
    seed: int | None,
) -> Problem:
    """What the user's arguments mean, checked; `per_sample_gradients` says what they are."""
    model = unwrapped(model)
    tracked = tracked_parameters(model, params)
    if batch_loss is not None and (loss_fn is not None or batch is None):
        raise TypeError(
            "per_sample_gradients: batch_loss goes with batch= and without loss_fn, got "
            f"{'loss_fn as well' if loss_fn is not None else 'no batch'}. Give one of the two forms, whole."
        )
    if batch_loss is not None:
        run: Callable[[nn.Module, Batch], tuple[Tensor, Any]] = lambda module, part: (batch_loss(module, part), None)  # noqa: E731
    elif loss_fn is not None:
        loss = unreduced(loss_fn)
        batch = (inputs, targets)
        run = lambda module, part: _forward(module, loss, *part)  # noqa: E731
    else:
        raise TypeError(
            "per_sample_gradients: loss_fn (with inputs and targets) or batch_loss (with batch) must be given, got "
            "neither. Give one of the two forms."
        )
    return Problem(model, tracked, run, batch, count_samples(batch), seed, loss_identity(batch_loss or loss_fn))


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's and the data-parallel wrappers: parameters and names are its own."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"per_sample_gradients: model must be a torch.nn.Module, got {type(model).__name__}.")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def tracked_parameters(model: nn.Module, params: Params) -> dict[str, nn.Parameter]:
    """Parameters of interest, in named_parameters order."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if params is None:
        chosen = trainable
    elif callable(params):
        chosen = {name: parameter for name, parameter in trainable.items() if params(name)}
    else:
        wanted = [params] if isinstance(params, str) else list(params)
        unknown = [name for name in wanted if name not in trainable]
        if unknown:
            raise ValueError(
                f"params: names must be parameters that require gradients, got {unknown}. The model has "
                f"{list(trainable)}."
            )
        chosen = {name: parameter for name, parameter in trainable.items() if name in wanted}
    if not chosen:
        raise ValueError(
            "params: at least one parameter that requires gradients must be chosen, got none. Check requires_grad and "
            "params=."
        )
    for name, parameter in chosen.items():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"per_sample_gradients: parameters must be initialised, but {name!r} is lazy. Run a forward pass first."
            )
        if parameter.is_complex():
            raise ValueError(
                f"per_sample_gradients: parameters must be real, got {parameter.dtype} for {name!r}. Leave it out by "
                f"params=."
            )
    return chosen


def _forward(model: nn.Module, loss: Loss, inputs: Any, targets: Any) -> tuple[Tensor, Any]:
    """Losses and outputs of the ordinary form."""
    outputs = forward(model, inputs)
    return loss(outputs, targets), outputs


def captured(problem: Problem) -> GradientMatrix:
    """G for one chunk of samples."""
    with preserve(problem.model, seed=problem.seed):
        seen = recorded(problem)
        plan = plan_for(problem, seen)
        places = located(seen, plan.layouts)
        seen.grads = gradients(seen, retain_graph=False)
        placed = entries(seen, places, plan.explicit) + explicit_entries(problem, plan, seen.dtype)
    check_gradients(placed, problem.numbers)
    coverage = coverage_of(problem, seen.recorder.sites, plan)
    return GradientMatrix(
        tuple(placed), slices_of(problem.tracked), at_least_single(seen.losses.detach()), outputs_of(seen), coverage
    )


def _has_images(problem: Problem) -> bool:
    """Whether there may be convolutions, which alone gain by chunks here: other models are not weighed for it."""
    return any(tensor.ndim > 3 and tensor.is_floating_point() for tensor in leaves(problem.batch))


def captured_in_chunks(problem: Problem, size: int) -> GradientMatrix:
    """G from passes over about so many samples at a time, whose gradients are kept in as few numbers as they take."""
    parts: list[GradientMatrix] = []
    count = max(1, min(-(-problem.num_samples // size), problem.num_samples // TELLING_SAMPLES))
    bounds = [problem.num_samples * number // count for number in range(count + 1)]  # none of one sample: squeeze()
    for start, stop in pairwise(bounds):
        with preserve(problem.model, seed=problem.seed):  # samples are taken inside, where inference mode is off
            chunk = chunk_of(problem, start, stop)
            seen = recorded(chunk)
            plan = plan_for(chunk, seen)
            losses, outputs = at_least_single(seen.losses.detach()), outputs_of(seen)
            coverage = coverage_of(chunk, seen.recorder.sites, plan)
            placed: list[Entry] = []
            give_away(
                seen,
                located(seen, plan.layouts),
                plan.explicit,
                lambda some, kept=placed: kept.extend(  # type: ignore[misc]
                    dataclasses.replace(entry, factors=compact(entry.factors)) for entry in some
                ),
            )
            placed += explicit_entries(chunk, plan, seen.dtype)
        check_gradients(placed, chunk.numbers)
        parts.append(GradientMatrix(tuple(placed), slices_of(problem.tracked), losses, outputs, coverage))
    return parts[0] if count == 1 else GradientMatrix.stack(parts, consume=True)


def explicit_entries(problem: Problem, plan: Plan, dtype: torch.dtype) -> list[Entry]:
    """Explicit gradients of the parameters that need them."""
    if not plan.explicit:
        return []
    rows = explicit_gradients(problem, list(plan.explicit), method=plan.method)
    return [Entry(Explicit(row.to(dtype)), (Whole((name,)),)) for name, row in rows.items()]


def outputs_of(seen: Pass) -> Tensor | None:
    """What the model returned, off the graph, where it is one tensor."""
    return seen.outputs.detach() if isinstance(seen.outputs, Tensor) else None


def coverage_of(problem: Problem, sites: Sequence[Site], plan: Plan) -> dict[str, str]:
    """The route of each parameter, in words."""
    layers: dict[str, set[str]] = {name: set() for name in problem.tracked}
    for site in sites:
        for name in site.parameters:
            layers[name].add(site.layer.name)
    routes = {
        name: f"factors: {', '.join(sorted(used))}" if used else f"{UNUSED}: not used in the loss"
        for name, used in layers.items()
    }
    return routes | {name: f"explicit ({plan.method}): {reason}" for name, reason in plan.explicit.items()}
