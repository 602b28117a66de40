"""recorded_pass: one forward pass under a recorder, and its calls as factors on their columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sgdkern.columns import Columns, Derived, Entry, Part, Whole
from sgdkern.layers import Call, Layout, Use
from sgdkern.losses import check_losses
from sgdkern.problem import Problem
from sgdkern.recorder import Recorder, Site


@dataclass
class Pass:
    """One recorded forward pass."""

    losses: Tensor
    outputs: Any
    recorder: Recorder
    num_samples: int
    grads: list[Tensor | None] = field(default_factory=list)


def recorded(problem: Problem) -> Pass:
    """One forward pass under a recorder."""
    recorder = Recorder(problem.model, problem.tracked, problem.num_samples)
    before = torch.get_rng_state()
    with recorder:
        losses, outputs = problem.losses(problem.model, problem.batch)
    if problem.seed is None and not torch.equal(before, torch.get_rng_state()):
        names = [
            name
            for name, module in problem.model.named_modules()
            if module.training and isinstance(module, nn.modules.dropout._DropoutNd)
        ]
        raise ValueError(
            f"per_sample_gradients: the model must not draw random numbers, but it does (modules in training mode: "
            f"{names or 'unknown'}). "
            "Call model.eval(), or pass seed= to measure one fixed draw."
        )
    losses = check_losses(losses, problem.num_samples)
    return Pass(losses, outputs, recorder, problem.num_samples)


def gradients(loss: Tensor, edges: Sequence[Any], parameters: Sequence[Tensor] = ()) -> list[Tensor | None]:
    """∂loss at recorded outputs (and parameters, in the study); None where the loss does not depend on one."""
    targets = [*edges, *parameters]
    if not targets or not loss.requires_grad:
        return [None] * len(targets)
    return list(torch.autograd.grad(loss, targets, allow_unused=True, retain_graph=True))


def entries(recorded: Pass, layouts: Sequence[Layout | None], explicit: Collection[str]) -> list[Entry]:
    """Factors of all recorded calls, on the columns of the parameters that do not go the explicit route."""
    placed = []
    for site, layout, grad in zip(recorded.recorder.sites, layouts, recorded.grads, strict=True):
        if grad is None or layout is None or site.parameters <= set(explicit):
            continue
        layout = dataclasses.replace(layout, num_samples=recorded.num_samples)
        for use in uses(site, layout, grad, recorded.recorder):
            entry = _placed(use, recorded.recorder, explicit)
            if entry is not None:
                placed.append(entry)
    return placed


def uses(site: Site, layout: Layout, grad: Tensor, recorder: Recorder) -> list[Use]:
    """What a site's parameters receive, in at least single precision."""
    call = Call(_single(grad, recorder), layout, recorder.tracked, recorder.unexpanded)
    args = [_single(arg, recorder) for arg in site.args]
    kwargs = {key: _single(arg, recorder) for key, arg in site.kwargs.items()}
    with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
        return list(site.layer.rule(call, *args, **kwargs))


def _single(value: Any, recorder: Recorder) -> Any:
    """Half-precision activations as float32; everything else, parameters above all, as it is."""
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half and not recorder.tracked(value) else value


def _placed(use: Use, recorder: Recorder, explicit: Iterable[str]) -> Entry | None:
    """Factors on their columns; None where all of them go the explicit route."""
    columns = [_columns(recorder.unexpanded(tensor), recorder) for tensor in use.tensors]
    kept = [not set(place.parameters) <= set(explicit) for place in columns]
    if not any(kept):
        return None
    factors = use.factors if all(kept) else use.factors.keep(kept)
    return Entry(factors, tuple(place for place, keep in zip(columns, kept, strict=True) if keep))


def _columns(tensor: Tensor, recorder: Recorder) -> Columns:
    """Where a tracked tensor lies: a parameter, elements of one, or something computed from some."""
    name = recorder.names.get(id(tensor))
    if name is not None:
        return Whole((name,))
    base = tensor._base
    if base is not None and id(base) in recorder.names and base.is_contiguous():
        places = torch.arange(base.numel(), device=base.device)
        index = places.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() - base.storage_offset())
        return Part((recorder.names[id(base)],), index.flatten())
    names = tuple(sorted(recorder.sources[id(tensor)]))
    return _derived(tensor, names, [recorder.parameters[name] for name in names])


def _derived(tensor: Tensor, names: tuple[str, ...], parameters: Sequence[Tensor]) -> Derived:
    """The linear map between a computed weight and its parameters, by autograd on the graph that computed it."""
    zeros = [torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device) for parameter in parameters]

    def pullback(vector: Tensor) -> list[Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            grads = torch.autograd.grad(
                tensor, parameters, vector.view_as(tensor).to(tensor.dtype), retain_graph=True, allow_unused=True
            )
        return [zero if grad is None else grad.flatten() for grad, zero in zip(grads, zeros, strict=True)]

    def pushforward(vectors: Sequence[Tensor | None]) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            dual = torch.zeros_like(tensor, requires_grad=True)
            grads = torch.autograd.grad(tensor, parameters, dual, create_graph=True, allow_unused=True)
            pairs = [
                (g, v)
                for g, v in zip(grads, vectors, strict=True)
                if g is not None and v is not None and g.requires_grad
            ]
            total = sum(((g.flatten() * v).sum() for g, v in pairs), start=dual.sum() * 0)
            (out,) = torch.autograd.grad(total, dual)
        return out.flatten()

    return Derived(names, pullback, pushforward)


def check_gradients(placed: Sequence[Entry]) -> None:
    """Raise where a gradient is not finite, naming the parameters and the samples."""
    for entry in placed:
        grads = entry.factors.output_grads
        finite = torch.isfinite(grads.flatten(1)).all(1)
        if not finite.all():
            bad = (~finite).nonzero()[:, 0].tolist()
            raise RuntimeError(
                f"per_sample_gradients: gradients must be finite, but those at {sorted(entry.parameters)} are not for "
                f"{len(bad)} samples "
                f"(first: {bad[:10]}). Look at these inputs, or lower the learning rate: training may have diverged."
            )
