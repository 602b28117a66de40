"""recorded_pass: one forward pass under a recorder, and its calls as factors on their columns."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sgdkern.columns import Columns, Derived, Entry, Part, Whole
from sgdkern.layers import Call, Layout, Scattered, Unsupported, Use
from sgdkern.losses import check_losses
from sgdkern.preserve import preserve, random_states
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
    before = random_states()
    with recorder:
        losses, outputs = problem.losses(problem.model, problem.batch)
    if problem.seed is None and not all(map(torch.equal, before, random_states())):
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


def gradients(
    loss: Tensor, edges: Sequence[Any], parameters: Sequence[Tensor] = (), *, retain_graph: bool = True
) -> list[Tensor | None]:
    """∂loss at recorded outputs (and parameters, in the study); None where the loss does not depend on one."""
    targets = [*edges, *parameters]
    if not targets or not loss.requires_grad:
        return [None] * len(targets)
    return list(torch.autograd.grad(loss, targets, allow_unused=True, retain_graph=retain_graph))


def weightings(num_samples: int, like: Tensor) -> list[Tensor]:
    """Weights of the losses that tell samples apart, one set an octal digit d of their numbers: 2^d, [N] each.

    A gradient that belongs to one sample grows by just its weight. Powers of two scale every floating-point format
    without rounding, so that this shows in half precision too.

    Args:
        num_samples: N.
        like: the losses, for dtype and device.

    Returns:
        ⌈log₈ N⌉ sets of weights, one at least.
    """
    samples = torch.arange(num_samples, device=like.device)
    digits = [samples.remainder(8)]
    while (samples := samples // 8).any():
        digits.append(samples.remainder(8))
    return [2.0 ** digit.to(like.dtype) for digit in digits]


def located(seen: Pass, layouts: Sequence[Place]) -> list[Layout | Scattered | None]:
    """Where the samples are in each site's output in this very pass; None where there is nothing to place.

    Args:
        seen: the pass with the gradients of the plain sum of losses; its graph must still be there.
        layouts: what the study found.

    Returns:
        One layout a site.

    Raises:
        ValueError: if a row belongs to no one sample.
    """
    sites = seen.recorder.sites
    irregular = [
        is_irregular(site, layout, seen) and grad is not None and bool(grad.any())
        for site, layout, grad in zip(sites, layouts, seen.grads, strict=True)
    ]
    places = iter(_owners(seen, [place for place, told in enumerate(irregular) if told]))
    regular = [
        dataclasses.replace(layout, num_samples=seen.num_samples) if isinstance(layout, Layout) else None
        for layout in layouts
    ]
    return [
        Scattered(seen.num_samples, next(places)) if told else None if is_irregular(site, layout, seen) else where
        for site, layout, where, told in zip(sites, layouts, regular, irregular, strict=True)
    ]


def _owners(seen: Pass, places: Sequence[int]) -> list[Tensor]:
    """The sample of each row of some sites' outputs, [R] each; −1 for rows without a gradient."""
    if not places:
        return []
    edges = [seen.recorder.sites[place].edge for place in places]
    plain = [_rows(seen.grads[place]) for place in places]
    found = [torch.where(one.any(1), 0, -1) for one in plain]
    for digit, weights in enumerate(weightings(seen.num_samples, seen.losses)):
        weighted = gradients((weights * seen.losses).sum(), edges)
        for owner, one, other in zip(found, plain, map(_rows, weighted), strict=True):
            present = owner >= 0
            power = ((one * other).sum(1) / one.square().sum(1))[present].log2()
            if not ((power - power.round()).abs() < 0.25).all():
                raise ValueError(
                    "per_sample_gradients: each row of a layer's output must belong to one sample, but some gradients "
                    "belong to several. Does a layer or the loss mix samples?"
                )
            owner[present] += power.round().long().clamp(0, 7) * 8**digit
    return [owner.clamp_max(seen.num_samples - 1) for owner in found]


def _rows(grad: Tensor | None) -> Tensor:
    """A gradient as float64 rows along its first axis; there is one, since irregular sites without any are left out."""
    return torch.zeros(0, 1, dtype=torch.float64) if grad is None else grad.double().flatten(1)


def entries(seen: Pass, places: Sequence[Layout | Scattered | None], explicit: Collection[str]) -> list[Entry]:
    """Factors of all recorded calls, on the columns of the parameters that do not go the explicit route.

    Args:
        seen: the pass; its gradients are let go one by one, so that no layer's is held twice.
        places: where the samples are in each site's output.
        explicit: names of the parameters to leave out.

    Returns:
        One entry a parameter, or pair of parameters, of each call.
    """
    placed = []
    for number, (site, where) in enumerate(zip(seen.recorder.sites, places, strict=True)):
        grad, seen.grads[number] = seen.grads[number], None
        if grad is not None and where is not None:
            placed += site_entries(site, where, grad, seen.recorder, explicit)
    return placed


def site_entries(
    site: Site, where: Layout | Scattered, grad: Tensor, recorder: Recorder, explicit: Collection[str]
) -> list[Entry]:
    """Factors of one recorded call, on the columns of the parameters that do not go the explicit route."""
    if site.parameters <= set(explicit):
        return []
    found = [_placed(use, recorder, explicit) for use in uses(site, where, grad, recorder)]
    return [entry for entry in found if entry is not None]


def is_irregular(site: Site, layout: Place, seen: Pass) -> bool:
    """Whether the samples of a site's rows must be found out in this very pass."""
    if isinstance(layout, Layout):
        return not dataclasses.replace(layout, num_samples=seen.num_samples).fits(site.shape)
    return layout == "scattered"


def has_irregular(seen: Pass, layouts: Sequence[Place]) -> bool:
    """Whether a further backward pass over the same graph must find the samples of some site's rows."""
    return any(is_irregular(site, layout, seen) for site, layout in zip(seen.recorder.sites, layouts, strict=True))


def uses(site: Site, layout: Layout | Scattered, grad: Tensor, recorder: Recorder) -> list[Use]:
    """What a site's parameters receive, in at least single precision."""
    call = Call(_single(grad, recorder), layout, recorder.tracked, recorder.unexpanded)
    args = [_single(arg, recorder) for arg in site.args]
    kwargs = {key: _single(arg, recorder) for key, arg in site.kwargs.items()}
    with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
        try:
            inspect.signature(site.layer.rule).bind(call, *args, **kwargs)
        except TypeError as error:
            raise Unsupported(f"called in a form that its rule does not know ({error})") from error
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


def check_finite(problem: Problem, seen: Pass) -> None:
    """Raise where a gradient of a pass is not finite, naming the parameters and, by a pass for each, the samples."""
    if not has_finite_gradients(seen):
        places = [place for place, grad in enumerate(seen.grads) if grad is not None and not _is_finite(grad)]
        with preserve(problem.model, seed=problem.seed):
            again = recorded(problem)  # the pass's own graph may be used up
        edges = [again.recorder.sites[place].edge for place in places]
        found = [
            sample
            for sample, loss in enumerate(again.losses)
            if any(grad is not None and not _is_finite(grad) for grad in gradients(loss, edges))
        ]
        raise _not_finite(frozenset[str]().union(*(seen.recorder.sites[place].parameters for place in places)), found)


def has_finite_gradients(seen: Pass) -> bool:
    """Whether all gradients of a pass are finite."""
    return all(grad is None or _is_finite(grad) for grad in seen.grads)


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
