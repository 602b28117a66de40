"""recorded_pass: one forward pass under a recorder, and its calls as factors on their columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sgdkern.columns import Columns, Derived, Entry, Part, Whole
from sgdkern.layers import Call, Layout, Scattered, Use
from sgdkern.losses import check_losses
from sgdkern.problem import Problem
from sgdkern.recorder import Recorder, Site

# Where the samples are in a site's output: regularly, in rows to be found out pass by pass, or nowhere to be told.
Place = Layout | Literal["scattered"] | None


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


def owners(recorded: Pass, sites: Sequence[Site]) -> list[Tensor]:
    """The sample of each row of some sites' outputs, [R] each.

    The losses are weighted 1 + d/256 with the digits d of the samples' numbers to the base 256, one backward pass a
    digit: a row's gradient grows by just the weight of its sample. Rows without a gradient may belong to any sample.

    Args:
        recorded: the pass; its gradients are those of the plain sum of losses.
        sites: the sites wanted.

    Returns:
        One tensor of sample numbers a site.
    """
    if not sites:
        return []
    plain = [grad for site, grad in zip(recorded.recorder.sites, recorded.grads, strict=True) if site in sites]
    found = [torch.zeros(site.shape[0], dtype=torch.int64, device=recorded.losses.device) for site in sites]
    samples = torch.arange(recorded.num_samples, device=recorded.losses.device)
    scale = 1
    while scale < recorded.num_samples:
        weights = 1 + (samples // scale % 256).to(recorded.losses.dtype) / 256
        weighted = gradients((weights * recorded.losses).sum(), [site.edge for site in sites])
        for owner, one, other in zip(found, plain, weighted, strict=True):
            if one is not None and other is not None:
                one, other = one.double().flatten(1), other.double().flatten(1)
                ratio = (one * other).sum(1) / one.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
                owner += ((ratio - 1) * 256).round().clamp(0, 255).long() * scale
        scale *= 256
    return [owner.clamp_max(recorded.num_samples - 1) for owner in found]


def entries(recorded: Pass, layouts: Sequence[Place], explicit: Collection[str]) -> list[Entry]:
    """Factors of all recorded calls, on the columns of the parameters that do not go the explicit route.

    Args:
        recorded: the pass; its gradients are let go one by one, so that no layer's is held twice.
        layouts: where the samples are in each site's output.
        explicit: names of the parameters to leave out.

    Returns:
        One entry a parameter, or pair of parameters, of each call.
    """
    sites = recorded.recorder.sites
    irregular = [_irregular(site, layout, recorded) for site, layout in zip(sites, layouts, strict=True)]
    rows = iter(owners(recorded, [site for site, told in zip(sites, irregular, strict=True) if told]))
    placed = []
    for place, (site, layout, told) in enumerate(zip(sites, layouts, irregular, strict=True)):
        grad, recorded.grads[place] = recorded.grads[place], None
        where = Scattered(recorded.num_samples, next(rows)) if told else layout
        if grad is None or where is None or where == "scattered" or site.parameters <= set(explicit):
            continue
        if isinstance(where, Layout):
            where = dataclasses.replace(where, num_samples=recorded.num_samples)
        for use in uses(site, where, grad, recorded.recorder):
            entry = _placed(use, recorded.recorder, explicit)
            if entry is not None:
                placed.append(entry)
    return placed


def _irregular(site: Site, layout: Place, recorded: Pass) -> bool:
    """Whether the samples of a site's rows must be found out in this very pass."""
    if isinstance(layout, Layout):
        return not dataclasses.replace(layout, num_samples=recorded.num_samples).fits(site.shape)
    return layout == "scattered"


def uses(site: Site, layout: Layout | Scattered, grad: Tensor, recorder: Recorder) -> list[Use]:
    """What a site's parameters receive, in at least single precision."""
    call = Call(_single(grad, recorder), layout, recorder.tracked, recorder.unexpanded)
    args = [_single(arg, recorder) for arg in site.args]
    kwargs = {key: _single(arg, recorder) for key, arg in site.kwargs.items()}
    with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
        return list(site.layer.rule(call, *args, **kwargs))


def _single(value: Any, recorder: Recorder) -> Any:
    """Activations off the autograd graph, half precision as float32; parameters as they are, known by identity."""
    if not isinstance(value, Tensor) or recorder.tracked(value):
        return value
    return value.detach().float() if value.dtype in (torch.bfloat16, torch.float16) else value.detach()


def _placed(use: Use, recorder: Recorder, explicit: Collection[str]) -> Entry | None:
    """Factors on their columns; None where all of them go the explicit route."""
    columns = [_columns(recorder.unexpanded(tensor), recorder, explicit) for tensor in use.tensors]
    kept = [not set(place.parameters) <= set(explicit) for place in columns]
    if not any(kept):
        return None
    factors = use.factors if all(kept) else use.factors.keep(kept)
    return Entry(factors, tuple(place for place, keep in zip(columns, kept, strict=True) if keep))


def _columns(tensor: Tensor, recorder: Recorder, explicit: Collection[str]) -> Columns:
    """Where a tracked tensor lies: a parameter, elements of one, or something computed from some."""
    name = recorder.names.get(id(tensor))
    if name is not None:
        return Whole((name,))
    base = tensor._base
    if base is not None and id(base) in recorder.names and base.is_contiguous():
        places = torch.arange(base.numel(), device=base.device)
        index = places.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() - base.storage_offset())
        return Part((recorder.names[id(base)],), index.flatten())
    names = tuple(sorted(recorder.sources[id(tensor)] - set(explicit)))
    return _derived(tensor, names, [recorder.parameters[name] for name in names])


def _derived(tensor: Tensor, names: tuple[str, ...], parameters: Sequence[Tensor]) -> Derived:
    """The linear map between a computed weight and its parameters, by autograd on the graph that computed it."""
    zeros = [torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device) for parameter in parameters]

    def pullback(vector: Tensor) -> list[Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            product = (tensor * vector.view_as(tensor)).sum()
            grads = torch.autograd.grad(product, parameters, retain_graph=True, allow_unused=True)
        return [zero if grad is None else grad.flatten() for grad, zero in zip(grads, zeros, strict=True)]

    def pushforward(vectors: Sequence[Tensor | None]) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            dual = torch.zeros_like(tensor, requires_grad=True)
            grads = torch.autograd.grad((tensor * dual).sum(), parameters, create_graph=True, allow_unused=True)
            pairs = [
                (g, v)
                for g, v in zip(grads, vectors, strict=True)
                if g is not None and v is not None and g.requires_grad
            ]
            total = sum(((g.flatten() * v).sum() for g, v in pairs), start=dual.sum() * 0)
            (out,) = torch.autograd.grad(total, dual)
        return out.flatten()

    return Derived(names, pullback, pushforward)


def check_finite(seen: Pass) -> None:
    """Raise where a gradient of a pass is not finite, naming the parameters and, by a pass for each, the samples."""
    pairs = zip(seen.recorder.sites, seen.grads, strict=True)
    sites = [site for site, grad in pairs if grad is not None and not _is_finite(grad)]
    if sites:
        edges = [site.edge for site in sites]
        found = [
            sample
            for sample, loss in enumerate(seen.losses)
            if any(grad is not None and not _is_finite(grad) for grad in gradients(loss, edges))
        ]
        raise _not_finite(frozenset[str]().union(*(site.parameters for site in sites)), found)


def check_gradients(placed: Sequence[Entry]) -> None:
    """Raise where a gradient is not finite, naming the parameters and the samples."""
    for entry in placed:
        grads = entry.factors.output_grads
        if not _is_finite(grads):
            finite = torch.isfinite(grads.flatten(1)).all(1)
            raise _not_finite(entry.parameters, (~finite).nonzero()[:, 0].tolist())


def _is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite: their sum tells in one pass, and only a sum that overflows asks for each."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _not_finite(parameters: Collection[str], samples: Sequence[int]) -> RuntimeError:
    """The error for gradients that are not finite."""
    return RuntimeError(
        f"per_sample_gradients: gradients must be finite, but those at {sorted(parameters)[:5]} are not for "
        f"{len(samples)} samples (first: {list(samples[:10])}). Look at these inputs, or lower the learning rate: "
        "training may have diverged."
    )
