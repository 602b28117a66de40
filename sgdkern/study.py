"""study: before a model is captured for the first time, a few of its samples show how.

The same pass with the losses weighted 2, 4, 8 tells where the samples are in every gradient (its elements scale with
the weight of the sample that they belong to), shows coupled samples (elements that scale with none), and gives
autograd's own answer for every parameter, with which the factors must agree. What disagrees takes the explicit route;
what still disagrees is refused.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sgdkern.columns import Entry
from sgdkern.explicit import METHODS, explicit_gradients
from sgdkern.full_precision import product
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.layers import Layout, Scattered, Unsupported
from sgdkern.passing_by import passing_by
from sgdkern.placement import Place, Placement, negligible
from sgdkern.problem import Problem, dense_gradient, part_of, slices_of
from sgdkern.recorded_pass import (
    WEIGHT_ERROR,
    Pass,
    check_finite,
    entries,
    gradients,
    is_irregular,
    located,
    norms,
    recorded,
    uses,
    weightings,
)
from sgdkern.recorder import Site
from sgdkern.speaker import speaker

# The study's samples; their weights 2, 4, 8 are powers of two, so that weighting is exact in floating point.
STUDY_SAMPLES = 3
# A pass over these at least tells whether losses depend on the size of the batch: it has another than the study's.
TELLING_SAMPLES = STUDY_SAMPLES + 1
# Rounding of a sum whose terms cancel (the bias of a difference), in units of the norm of its terms.
CANCELLATION = 32
# Largest relative difference from autograd that still counts as agreement: rounding in a deep network in each dtype. In
# half precision autograd rounds each parameter's gradient: eight roundings.
AGREEMENT = {torch.float64: 1e-8, torch.float32: 2e-3, torch.bfloat16: 2**-4, torch.float16: 2**-7}
# A gradient that nothing is left of in the parameters' products, times what inputs may add to it.
UNSEEN = 2**20


@dataclass(frozen=True)
class Plan:
    """What a study found.

    Args:
        layouts: where the samples are in the output of each site.
        explicit: parameters that need explicit gradients, with the reason.
        method: how they get them.
    """

    layouts: tuple[Place, ...]
    explicit: Mapping[str, str]
    method: str = METHODS[0]


# Plans kept a model: losses made anew for each call would otherwise pile up.
PLANS_KEPT = 32

_plans: weakref.WeakKeyDictionary[nn.Module, dict[Any, Plan]] = weakref.WeakKeyDictionary()


def plan_for(problem: Problem, seen: Pass) -> Plan:
    """The plan of a model whose calls look like these: a known one, or a new study's."""
    signatures = tuple(site.signature for site in seen.recorder.sites)
    state = state_of(problem.model, problem.tracked, seen)
    what = (signatures, tuple(problem.tracked), problem.loss_key, problem.seed is None, state)
    known = _plans.setdefault(problem.model, {})
    # More samples tell more, and a last small batch learns from them; a pass over fewer is studied again.
    studied = min(problem.num_samples, TELLING_SAMPLES)
    for count in range(TELLING_SAMPLES, studied - 1, -1):
        if (what, count) in known and holds(seen, known[what, count].layouts):
            return known[what, count]
    plan = _studied(problem, seen, signatures)
    if not holds(seen, plan.layouts):
        plan = _study(problem, seen)
    if plan.explicit and not any((what, count) in known for count in range(1, studied)):
        _tell(plan.explicit)
    known[what, studied] = plan
    while len(known) > PLANS_KEPT:
        known.pop(next(iter(known)))
    return plan


def state_of(model: nn.Module, tracked: Mapping[str, nn.Parameter], seen: Pass) -> tuple[Any, ...]:
    """Modules' modes, and the user's backward hooks by their numbers, which torch never gives twice."""
    hooked: list[Any] = [(name, one._backward_hooks) for name, one in tracked.items()]
    for name, module in model.named_modules():
        hooked += [(name, module._backward_pre_hooks), (name, module._backward_hooks)]
    training = tuple(module.training for module in model.modules())
    return training, seen.recorder.hooked, *((name, *numbers) for name, numbers in hooked if numbers)


def _studied(problem: Problem, seen: Pass, signatures: tuple[Any, ...]) -> Plan:
    """The plan from a few samples; from all of them where the model takes other paths for a few."""
    if problem.num_samples == 1 and any(map(_uses_batch_statistics, problem.model.modules())):
        raise _coupled(problem.model, "one sample cannot show it")
    indices = torch.linspace(0, problem.num_samples - 1, min(STUDY_SAMPLES, problem.num_samples)).round().long()
    part = part_of(problem, indices)
    try:
        few = recorded(part)
    except Exception:  # a model made for one batch size; what is wrong with it otherwise has shown itself before
        return _study(problem, seen)
    few.problem = problem  # all samples are looked at where some gradient is not finite
    if tuple(site.signature for site in few.recorder.sites) != signatures:
        return _study(problem, seen)
    if problem.seed is None:
        _refuse_batch_dependence(
            problem.model, seen.losses.detach()[indices.to(seen.losses.device)], few.losses.detach()
        )
    return _study(part, few)


def holds(seen: Pass, layouts: Sequence[Place]) -> bool:
    """Whether what other samples taught is so in this pass, wherever it may be otherwise.

    Layers that no gradient reached may have one now; and where the model orders its samples by what they are (sorts
    them, routes them), a few of them may have been in order by chance. There each sample's gradient must grow as the
    weight of its loss does.

    Args:
        seen: the pass; its graph stays.
        layouts: where the samples are, as far as is known.

    Returns:
        Whether the layouts hold.
    """
    sites = seen.recorder.sites
    silent = [place for place, layout in enumerate(layouts) if layout == "silent"]
    if silent and any(norm.any() for norm in norms(seen, silent, [None] * len(silent))):
        return False
    told = {
        place: dataclasses.replace(layout, num_samples=seen.num_samples)
        for place, (site, layout) in enumerate(zip(sites, layouts, strict=True))
        if site.reordered and isinstance(layout, Layout) and not is_irregular(site, layout, seen)
    }
    if not told:
        return True
    plain = norms(seen, list(told), list(told.values()))
    return all(
        (((other / one).log2() - weights.log2()).abs() < WEIGHT_ERROR)[one > 0].all()
        for weights in weightings(seen.num_samples, seen.losses)  # no two samples have the same in all of them
        for one, other in zip(plain, norms(seen, list(told), list(told.values()), weights), strict=True)
    )


def _refuse_batch_dependence(model: nn.Module, among_all: Tensor, among_few: Tensor) -> None:
    """Raise where a sample's loss is another one in another batch."""
    tolerance = AGREEMENT.get(among_all.dtype, 2e-3) * among_all.abs().max().clamp_min(1)
    if (among_all - among_few).abs().max() > tolerance:
        one, other = float(among_all[0]), float(among_few[0])
        raise _coupled(model, f"the first sample's loss is {one:.4g} among all samples and {other:.4g} among a few")


def _coupled(model: nn.Module, seen: str) -> ValueError:
    """The error for samples that are coupled, which names the modules that do it."""
    names = [name for name, module in model.named_modules() if _uses_batch_statistics(module)]
    blame = f"modules that use batch statistics: {names}" if names else seen
    return ValueError(
        f"per_sample_gradients: samples must not be coupled, but a sample's loss depends on other samples ({blame}). "
        "No per-sample gradient exists there. Put these modules into evaluation mode (model.eval()), replace them by "
        "GroupNorm, or use a loss that neither mixes samples nor divides by their number."
    )


@dataclass(frozen=True)
class Findings:
    """What one pass tells: layouts, parameters that no factors explain, and the sums that explicit rows must give."""

    layouts: tuple[Place, ...]
    unexplained: Mapping[str, str]
    weights: Tensor
    truth: Mapping[str, Tensor]
    rounding: Mapping[str, float]


def examine(model: nn.Module, tracked: Mapping[str, nn.Parameter], seen: Pass) -> Findings:
    """Find each site's layout in a pass, and compare its factors with autograd for every parameter.

    Args:
        model: the model, to name what couples the samples.
        tracked: name → parameter of interest.
        seen: the recorded pass; its gradients are filled in.

    Returns:
        The findings.

    Raises:
        ValueError: if samples are coupled.
    """
    _refuse_hidden(seen.losses)
    sites = seen.recorder.sites
    plain = gradients(seen, retain_graph=True)
    check_finite(seen, range(len(sites)), plain)
    told, sums = _told(seen, plain, list(tracked.values()))
    weights = weightings(seen.num_samples, seen.losses)[0]
    truth = {
        name: dense_gradient(grad, parameter) for (name, parameter), grad in zip(tracked.items(), sums, strict=True)
    }
    _refuse_coupled(model, seen, told)
    layouts = [each.place for each in told]
    rounding = dict.fromkeys(tracked, 0.0)
    for site, one in zip(sites, told, strict=True):
        noise = CANCELLATION * torch.finfo(site.dtype).eps * one.norm
        noise += UNSEEN * negligible(site.dtype) if one.place == "silent" else 0.0
        rounding.update({name: max(noise, rounding[name]) for name in site.parameters})
    del told
    unexplained: dict[str, str] = {}
    places = located(seen, layouts)
    for place, (site, where, grad) in enumerate(zip(sites, places, plain, strict=True)):
        refusal = _refusal(seen, site, layouts[place], where, grad)
        if refusal is not None:
            unexplained.update(dict.fromkeys(site.parameters, f"{site.layer.name}: {refusal}"))
            layouts[place] = places[place] = None
    seen.grads = plain
    placed = entries(seen, places, unexplained, last=False)
    for name, reason in _disagreeing(tracked, placed, weights, truth, rounding, seen.recorder.unruled).items():
        unexplained.setdefault(name, reason)
    in_order = {name: unexplained[name] for name in tracked if name in unexplained}
    return Findings(tuple(layouts), in_order, weights, truth, rounding)


def _told(
    seen: Pass, plain: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> tuple[list[Placement], list[Tensor | None]]:
    """What weights of the losses do to each gradient, and the parameters' gradients under the first weights."""
    told = [Placement(grad, seen.num_samples) for grad in plain]
    sums: list[list[Tensor | None]] = []
    for weights in weightings(seen.num_samples, seen.losses):

        def see(place: int, grad: Tensor | None, weights: Tensor = weights) -> None:
            if grad is not None:
                told[place].see(grad, weights)

        total, leaves = (weights * seen.losses).sum(), () if sums else parameters
        edges = [site.edge for site in seen.recorder.sites]
        sums.append(passing_by(total, edges, see, leaves=leaves, retain_graph=True))
    return told, sums[0]


def _study(problem: Problem, seen: Pass) -> Plan:
    """The plan from a pass over a few samples, explicit routes tried out on the same samples."""
    found = examine(problem.model, problem.tracked, seen)
    if not found.unexplained:
        return Plan(found.layouts, {})
    return Plan(found.layouts, found.unexplained, _explicit_method(problem, found))


def _tell(explicit: Mapping[str, str]) -> None:
    """Warn of parameters with explicit gradients."""
    listed = ", ".join(f"{name} ({reason})" for name, reason in list(explicit.items())[:8])
    warnings.warn(
        f"{speaker()}: explicit per-sample gradients for {len(explicit)} parameters without a fast route: {listed}. "
        "The result is exact; it takes more time and memory.",
        stacklevel=_level_outside(),
    )


def _refusal(
    seen: Pass, site: Site, layout: Place, where: Layout | Scattered | None, grad: Tensor | None
) -> str | None:
    """Why a site's rule does not hold for it; None where it does."""
    if layout is None:
        return "samples could not be told apart in its output"
    try:
        if grad is not None and where is not None:
            uses(seen, site, where, grad)
    except Unsupported as reason:
        return str(reason)
    return None


def _refuse_coupled(model: nn.Module, seen: Pass, told: Sequence[Placement]) -> None:
    """Raise where some element's gradient belongs to no one sample, or is out of order beside batch statistics."""
    names = [name for name, module in model.named_modules() if _uses_batch_statistics(module)]
    hooks = _hooks(model, seen)
    for site, one in zip(seen.recorder.sites, told, strict=True):
        disordered = bool(names) and one.place in ("scattered", None)
        if not one.mixed and not disordered:
            continue
        if one.underflows:
            raise ValueError(
                f"per_sample_gradients: gradients must be numbers of their dtype, but those at "
                f"{sorted(site.parameters)[:3]} underflow in float16. Multiply the loss by a power of two, as gradient "
                "scalers do (K grows by its square), or take bfloat16 or float32."
            )
        if hooks and not names:
            raise ValueError(
                f"per_sample_gradients: backward hooks must change a gradient by a fixed factor, but those of {hooks} "
                f"do something else, or samples are coupled (seen at {sorted(site.parameters)[:3]}). Remove the hooks "
                "while measuring."
            )
        raise _coupled(model, f"seen at {sorted(site.parameters)[:3]}")


def _hooks(model: nn.Module, seen: Pass) -> list[str]:
    """What has backward hooks of the user: parameters, modules, tensors of this forward pass."""
    parameters = [name for name, parameter in model.named_parameters() if parameter._backward_hooks]
    modules = [name for name, module in model.named_modules() if module._backward_hooks or module._backward_pre_hooks]
    return parameters + modules + ["a tensor in forward"] * seen.recorder.hooked


def _refuse_hidden(losses: Tensor) -> None:
    """Raise where a reentrant checkpoint hides its layers from autograd's graph."""
    nodes, known = [losses.grad_fn], {losses.grad_fn}
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "per_sample_gradients: layers must be part of the autograd graph, but a reentrant checkpoint hides "
                "its own. Call torch.utils.checkpoint.checkpoint with use_reentrant=False."
            )
        following = {further for further, _ in node.next_functions} - known
        known |= following
        nodes.extend(following)


def _uses_batch_statistics(module: nn.Module) -> bool:
    """Whether a batch norm takes its statistics from the batch."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)


def _disagreeing(
    tracked: Mapping[str, nn.Parameter],
    placed: Sequence[Entry],
    weights: Tensor,
    truth: Mapping[str, Tensor],
    rounding: Mapping[str, float],
    unruled: Mapping[str, str],
) -> dict[str, str]:
    """Parameters whose weighted gradient from factors is not autograd's, with the reason as far as it is known."""
    slices = slices_of(tracked)
    found = GradientMatrix(tuple(placed), slices, weights).rmatvec(weights)
    reasons = {}
    for name, parameter in tracked.items():
        if not _agrees(found[slices[name]], truth[name], parameter.dtype, rounding[name]):
            unseen = "a hook changes its gradient" if parameter._backward_hooks else "used where no rule sees it"
            reasons[name] = f"used in {unruled[name]}" if name in unruled else unseen
    return reasons


def _agrees(found: Tensor, expected: Tensor, dtype: torch.dtype, rounding: float) -> bool:
    """Whether two flat gradients are equal up to the rounding of a dtype and of cancelling terms."""
    expected = expected.to(found.dtype)
    tolerance = AGREEMENT.get(dtype, 2e-3) * max(expected.norm(dtype=torch.float64), found.norm(dtype=torch.float64))
    return bool((found - expected).norm(dtype=torch.float64) <= tolerance + rounding)


def _explicit_method(problem: Problem, study: Findings) -> str:
    """The first explicit route that agrees with autograd on the study's samples."""
    names, errors = list(study.unexplained), []
    for method in METHODS:
        try:
            rows = explicit_gradients(problem, names, method=method)
        except Exception as error:  # whatever a transform cannot do, the next method may
            errors.append(f"{method}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        found = {name: product(study.weights.to(rows[name].dtype), rows[name]) for name in names}
        wrong = [
            name
            for name in names
            if not _agrees(found[name], study.truth[name], problem.tracked[name].dtype, study.rounding[name])
        ]
        if not wrong:
            return method
        errors.append(f"{method}: disagrees for {wrong[:5]}")
    hooks = [name for name in names if problem.tracked[name]._backward_hooks]
    hooked = f"Hooks on {hooks} change their gradients: remove them while measuring. " if hooks else ""
    raise RuntimeError(
        f"per_sample_gradients: explicit gradients must agree with autograd, but none of {list(METHODS)} does "
        f"({'; '.join(errors)}). {hooked}"
        "Does the model give other results for a batch of one, or change its state from call to call? Leave these "
        "parameters out by params=."
    )


def _level_outside() -> int:
    """The stack level of the first caller outside this package, for a warning that points at the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("sgdkern."):
        level, frame = level + 1, frame.f_back
    return level
