"""study: before a model is captured for the first time, a few of its samples show how.

The same pass with the losses weighted 1, 2, 4 tells where the samples are in every gradient (its elements scale with
the weight of the sample that they belong to), shows coupled samples (elements that scale with none), and gives
autograd's own answer for every parameter, with which the factors must agree. What disagrees takes the explicit route;
what still disagrees is refused.
"""

from __future__ import annotations

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
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.layers import Layout, Unsupported
from sgdkern.problem import Problem, dense_gradient, part_of, slices_of
from sgdkern.recorded_pass import (
    Pass,
    Place,
    check_finite,
    entries,
    gradients,
    has_finite_gradients,
    located,
    recorded,
    uses,
    weightings,
)
from sgdkern.recorder import Recorder, Site

# The study's samples; their weights 1, 2, 4 are powers of two, so that weighting is exact in floating point.
STUDY_SAMPLES = 3
# Rounding of a sum whose terms cancel (the bias of a difference), in units of the norm of its terms.
CANCELLATION = 32
# Largest relative difference from autograd that still counts as agreement: rounding in a deep network in each dtype.
AGREEMENT = {torch.float64: 1e-8, torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True)
class Plan:
    """What a study found.

    Args:
        layouts: where the samples are in the output of each site.
        explicit: parameters that need explicit gradients, with the reason.
        method: how they get them.
        conclusive: whether every site had a gradient to learn from; if not, the next pass is studied again.
    """

    layouts: tuple[Place, ...]
    explicit: Mapping[str, str]
    method: str = METHODS[0]
    conclusive: bool = True


# A gradient under each weighting of the losses, with the weights.
Told = Sequence[tuple[Tensor, Tensor | None]]
# Plans kept a model: losses made anew for each call would otherwise pile up.
PLANS_KEPT = 32

_plans: weakref.WeakKeyDictionary[nn.Module, dict[Any, Plan]] = weakref.WeakKeyDictionary()


def plan_for(problem: Problem, seen: Pass) -> Plan:
    """The plan of a model whose calls look like these: a known one, or a new study's."""
    signatures = tuple(site.signature for site in seen.recorder.sites)
    training = tuple(module.training for module in problem.model.modules())
    what = (signatures, tuple(problem.tracked), problem.loss_key, problem.seed is None, training)
    known = _plans.setdefault(problem.model, {})
    studied = min(problem.num_samples, STUDY_SAMPLES)
    for count in range(STUDY_SAMPLES, studied - 1, -1):  # more samples tell more: a last small batch learns from them
        if (what, count) in known:
            return known[what, count]
    plan = _studied(problem, seen, signatures)
    if plan.conclusive:
        known[what, studied] = plan
        while len(known) > PLANS_KEPT:
            known.pop(next(iter(known)))
    return plan


def _studied(problem: Problem, seen: Pass, signatures: tuple[Any, ...]) -> Plan:
    """The plan from a few samples; from all of them where the model takes other paths for a few."""
    if problem.num_samples == 1 and any(map(_uses_batch_statistics, problem.model.modules())):
        raise _coupled(problem.model, "one sample cannot show it")
    indices = torch.linspace(0, problem.num_samples - 1, min(STUDY_SAMPLES, problem.num_samples)).round().long()
    part = part_of(problem, indices)
    try:
        few = recorded(part)
    except Exception:  # a model made for one batch size; what is wrong with it otherwise has shown itself before
        return _study(problem, _with_finite_gradients(problem))
    if tuple(site.signature for site in few.recorder.sites) != signatures:
        return _study(problem, _with_finite_gradients(problem))
    few.grads = gradients(few.losses.sum(), [site.edge for site in few.recorder.sites])
    if not has_finite_gradients(few):
        _with_finite_gradients(problem)  # names the samples by their numbers among all
    if problem.seed is None:
        _refuse_batch_dependence(
            problem.model, seen.losses.detach()[indices.to(seen.losses.device)], few.losses.detach()
        )
    return _study(part, few)


def _with_finite_gradients(problem: Problem) -> Pass:
    """A pass whose gradients are finite, and still its own to ask for others."""
    seen = recorded(problem)
    seen.grads = gradients(seen.losses.sum(), [site.edge for site in seen.recorder.sites])
    check_finite(problem, seen)
    return seen


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
    conclusive: bool
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
    edges = [site.edge for site in sites]
    weights, *further = weightings(seen.num_samples, seen.losses)
    plain = gradients(seen.losses.sum(), edges)
    weighted = gradients((weights * seen.losses).sum(), edges, list(tracked.values()))
    by_digit = [(weights, weighted)] + [(digit, gradients((digit * seen.losses).sum(), edges)) for digit in further]
    truth = {
        name: dense_gradient(grad, parameter)
        for (name, parameter), grad in zip(tracked.items(), weighted[len(edges) :], strict=True)
    }
    told = [[(weight, grads[place]) for weight, grads in by_digit] for place in range(len(sites))]
    layouts = [_layout(one, others, seen.num_samples) for one, others in zip(plain, told, strict=True)]
    _refuse_coupled(model, sites, layouts, plain, told)
    rounding = dict.fromkeys(tracked, 0.0)
    for site, grad in zip(sites, weighted, strict=False):
        if grad is not None:
            noise = CANCELLATION * torch.finfo(grad.dtype).eps * float(grad.norm())
            rounding.update({name: max(noise, rounding[name]) for name in site.parameters})
    conclusive = all(grad is None or bool(grad.any()) for grad in plain)
    unexplained: dict[str, str] = {}
    for place, (site, layout, grad) in enumerate(zip(sites, layouts, plain, strict=True)):
        refusal = _refusal(site, layout, grad, seen.recorder)
        if refusal is not None:
            unexplained.update(dict.fromkeys(site.parameters, f"{site.layer.name}: {refusal}"))
            layouts[place] = None
    seen.grads = plain
    placed = entries(seen, located(seen, layouts), unexplained)
    for name, reason in _disagreeing(tracked, placed, weights, truth, rounding, seen.recorder.unruled).items():
        unexplained.setdefault(name, reason)
    in_order = {name: unexplained[name] for name in tracked if name in unexplained}
    return Findings(tuple(layouts), in_order, conclusive, weights, truth, rounding)


def _study(problem: Problem, seen: Pass) -> Plan:
    """The plan from a pass over a few samples, explicit routes tried out on the same samples."""
    found = examine(problem.model, problem.tracked, seen)
    if not found.unexplained:
        return Plan(found.layouts, {}, conclusive=found.conclusive)
    method = _explicit_method(problem, found)
    listed = ", ".join(f"{name} ({reason})" for name, reason in list(found.unexplained.items())[:8])
    warnings.warn(
        f"per_sample_gradients: explicit per-sample gradients for {len(found.unexplained)} parameters without a fast "
        f"route: {listed}. The result is exact; it takes more time and memory.",
        stacklevel=_level_outside(),
    )
    return Plan(found.layouts, found.unexplained, method, found.conclusive)


def _refusal(site: Site, layout: Place, grad: Tensor | None, recorder: Recorder) -> str | None:
    """Why a site's rule does not hold for it; None where it does."""
    if layout is None:
        return "samples could not be told apart in its output"
    try:
        if grad is not None and isinstance(layout, Layout):
            uses(site, layout, grad, recorder)
    except Unsupported as reason:
        return str(reason)
    return None


def _ratio_agrees(plain: Tensor, weighted: Tensor, weights: Tensor) -> bool:
    """Whether a weighted gradient is the plain one times ``weights``, up to rounding."""
    tolerance = AGREEMENT.get(plain.dtype, 2e-3)
    return bool((weighted - plain * weights).norm() <= tolerance * weighted.norm())


def _layout(plain: Tensor | None, told: Told, num_samples: int) -> Place:
    """The first axis along which a gradient's elements carry the weights of their samples; or rows that do."""
    weighted = [(weights, other) for weights, other in told if other is not None]
    if plain is None or not weighted:
        return Layout(num_samples, 0)
    if not plain.any():  # nothing to learn from here; rows are told apart when there is a gradient
        return "scattered"
    for axis in range(plain.ndim):
        for minor in (False, True):
            layout = Layout(num_samples, axis, minor)
            if layout.fits(plain.shape) and all(_carries(layout, plain, other, weights) for weights, other in weighted):
                return layout
    in_rows = plain.ndim and all(_each_row_scales(plain, other, weights) for weights, other in weighted)
    return "scattered" if in_rows else None


def _carries(layout: Layout, plain: Tensor, weighted: Tensor, weights: Tensor) -> bool:
    """Whether the samples' weights show along a layout's axis."""
    one, other = layout.split(plain), layout.split(weighted)
    return _ratio_agrees(one, other, weights.view(-1, *[1] * (one.ndim - 1)).to(one.dtype))


def _each_row_scales(plain: Tensor, weighted: Tensor, weights: Tensor) -> bool:
    """Whether every row along the first axis scales by some sample's weight."""
    rows = zip(plain.flatten(1), weighted.flatten(1), strict=True)
    return all(any(_ratio_agrees(one, other, weight) for weight in weights.unique()) for one, other in rows)


def _refuse_coupled(
    model: nn.Module,
    sites: Sequence[Site],
    layouts: Sequence[Place],
    plain: Sequence[Tensor | None],
    told: Sequence[Told],
) -> None:
    """Raise where some element's gradient belongs to no one sample, or is out of order beside batch statistics."""
    names = [name for name, module in model.named_modules() if _uses_batch_statistics(module)]
    for site, layout, one, others in zip(sites, layouts, plain, told, strict=True):
        if one is None:
            continue
        mixed = any(other is not None and _elementwise_mixture(one, other, weights) for weights, other in others)
        if not mixed and not (names and not isinstance(layout, Layout)):
            continue
        raise _coupled(model, f"seen at {sorted(site.parameters)[:3]}")


def _elementwise_mixture(plain: Tensor, weighted: Tensor, weights: Tensor) -> bool:
    """Whether gradients' elements scale with no single sample's weight, in a share too large for rounding."""
    error = torch.full_like(plain, torch.inf)
    for weight in weights.unique().to(plain.dtype):
        error = torch.minimum(error, (weighted - plain * weight).abs())
    tolerance = max(AGREEMENT.get(plain.dtype, 2e-3), 1e-5)
    return bool(error.norm() > tolerance * weighted.norm())


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
            reasons[name] = f"used in {unruled[name]}" if name in unruled else "used where no rule sees it"
    return reasons


def _agrees(found: Tensor, expected: Tensor, dtype: torch.dtype, rounding: float) -> bool:
    """Whether two flat gradients are equal up to the rounding of a dtype and of cancelling terms."""
    expected = expected.to(found.dtype)
    tolerance = AGREEMENT.get(dtype, 2e-3) * torch.maximum(expected.norm(), found.norm())
    return bool((found - expected).norm() <= tolerance + rounding)


def _explicit_method(problem: Problem, study: Findings) -> str:
    """The first explicit route that agrees with autograd on the study's samples."""
    names, errors = list(study.unexplained), []
    for method in METHODS:
        try:
            rows = explicit_gradients(problem, names, method=method)
        except Exception as error:  # whatever a transform cannot do, the next method may
            errors.append(f"{method}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        found = {name: study.weights.to(rows[name].dtype) @ rows[name] for name in names}
        wrong = [
            name
            for name in names
            if not _agrees(found[name], study.truth[name], problem.tracked[name].dtype, study.rounding[name])
        ]
        if not wrong:
            return method
        errors.append(f"{method}: disagrees for {wrong[:5]}")
    raise RuntimeError(
        f"per_sample_gradients: explicit gradients must agree with autograd, but none of {list(METHODS)} does "
        f"({'; '.join(errors)}). "
        "Does the model give other results for a batch of one, or change its state from call to call? Leave these "
        "parameters out by params=."
    )


def _level_outside() -> int:
    """The stack level of the first caller outside this package, for a warning that points at the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("sgdkern."):
        level, frame = level + 1, frame.f_back
    return level
