"""recorded_pass: one forward pass under a recorder, and its calls as factors on their columns."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sgdkern.columns import Columns, Derived, Entry, Part, Whole
from sgdkern.factors import Dense
from sgdkern.full_precision import full_precision
from sgdkern.kept_memory import keep_freed_memory
from sgdkern.layers import Call, Layout, Rule, Scattered, Unsupported, Use
from sgdkern.losses import all_finite, check_losses
from sgdkern.passing_by import passing_by
from sgdkern.placement import Place, negligible, row_norms
from sgdkern.preserve import preserve, random_states
from sgdkern.problem import Problem, part_of
from sgdkern.recorder import Recorder, Site

# Largest deviation of log2 of what weights do to a gradient from a whole number.
WEIGHT_ERROR = 0.05


@dataclass
class Pass:
    """One recorded forward pass.

    Args:
        losses: l_n, [N].
        outputs: what the model returned.
        recorder: the calls in which parameters met samples.
        num_samples: N.
        problem: where to look for the samples whose gradients are not finite.
        grads: gradients at the recorded calls.
    """

    losses: Tensor
    outputs: Any
    recorder: Recorder
    num_samples: int
    problem: Problem | None = None
    grads: list[Tensor | None] = field(default_factory=list)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Dtype of the factors: the widest of the parameters and of the layers' outputs, at least float32."""
        recorder = self.recorder
        dtypes = {site.dtype for site in recorder.sites} | {tensor.dtype for tensor in recorder.parameters.values()}
        return functools.reduce(
            torch.promote_types, (dtype for dtype in dtypes if dtype.is_floating_point), torch.float32
        )

    @property
    def numbers(self) -> Tensor | None:
        """The samples' numbers in the user's batch, where they are not 0 … N − 1."""
        return None if self.problem is None else self.problem.numbers


def recorded(problem: Problem) -> Pass:
    """One forward pass under a recorder."""
    keep_freed_memory()
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
    losses = check_losses(losses, problem.num_samples, problem.numbers)
    return Pass(losses, outputs, recorder, problem.num_samples, problem)


def gradients(seen: Pass, *, retain_graph: bool) -> list[Tensor | None]:
    """Gradients of the sum of losses at all recorded outputs; None where it does not depend on one."""
    found: list[Tensor | None] = [None] * len(seen.recorder.sites)

    def keep(place: int, grad: Tensor | None) -> None:
        found[place] = None if grad is None else grad.detach()

    passing_by(seen.losses.sum(), [site.edge for site in seen.recorder.sites], keep, retain_graph=retain_graph)
    return found


def weightings(num_samples: int, like: Tensor) -> list[Tensor]:
    """Weights of the losses that tell samples apart, one set an octal digit d of their numbers: 2^(d+1), [N] each.

    A gradient that belongs to one sample grows by just its weight. Powers of two scale every floating-point format
    without rounding, so that this shows in half precision too. None is 1: what no weight changes belongs to nobody.

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
    return [2.0 ** (digit + 1).to(like.dtype) for digit in digits]


def located(seen: Pass, layouts: Sequence[Place]) -> list[Layout | Scattered | None]:
    """Where the samples are in each site's output in this very pass; None where there is nothing to place.

    Args:
        seen: the pass; its graph stays.
        layouts: what the study found.

    Returns:
        One layout a site.

    Raises:
        ValueError: if a row belongs to no one sample.
    """
    sites = seen.recorder.sites
    found: list[Layout | Scattered | None] = [
        dataclasses.replace(layout, num_samples=seen.num_samples) if isinstance(layout, Layout) else None
        for layout in layouts
    ]
    irregular = [place for place, site in enumerate(sites) if is_irregular(site, layouts[place], seen)]
    for place, owners in zip(irregular, _owners(seen, irregular), strict=True):
        found[place] = Scattered(seen.num_samples, owners) if (owners >= 0).any() else None
    return found


def _owners(seen: Pass, places: Sequence[int]) -> list[Tensor]:
    """The sample of each row of some sites' outputs, [R] each; −1 for rows without a gradient."""
    if not places:
        return []
    rows: list[Layout | None] = [None] * len(places)
    plain = norms(seen, places, rows)
    found = [torch.where(norm > 0, 0, -1) for norm in plain]
    for digit, weights in enumerate(weightings(seen.num_samples, seen.losses)):
        for owner, one, other in zip(found, plain, norms(seen, places, rows, weights), strict=True):
            present = owner >= 0
            power = (other / one)[present].log2() - 1
            if not (((power - power.round()).abs() < WEIGHT_ERROR) & (power > -WEIGHT_ERROR)).all():
                raise ValueError(
                    "per_sample_gradients: each row of a layer's output must belong to one sample, but some gradients "
                    "belong to several. Does a layer or the loss mix samples?"
                )
            owner[present] += power.round().long().clamp(0, 7) * 8**digit
    return [owner.clamp_max(seen.num_samples - 1) for owner in found]


def norms(
    seen: Pass, places: Sequence[int], layouts: Sequence[Layout | None], weights: Tensor | None = None
) -> list[Tensor]:
    """Norms of the gradients at some sites, by a pass that keeps nothing else.

    Args:
        seen: the pass; its graph stays.
        places: numbers of the sites.
        layouts: how to split each gradient; None takes rows along the first axis.
        weights: of the losses, [N]; all 1 where not given.

    Returns:
        One norm a sample, or row, of each site, float64; zero where they are negligible.

    Raises:
        RuntimeError: if a gradient is not finite.
        ValueError: if it is, but not under weights.
    """
    sites = seen.recorder.sites
    found = [seen.losses.new_zeros(sites[place].shape[:1] or (1,), dtype=torch.float64) for place in places]

    def receive(number: int, grad: Tensor | None) -> None:
        layout = layouts[number]
        if grad is not None and grad.numel():
            parts = (grad if grad.ndim else grad[None]) if layout is None else layout.split(grad)
            norm = row_norms(parts)
            found[number] = norm.where(~(norm <= negligible(grad.dtype)), 0)

    total = (seen.losses if weights is None else weights * seen.losses).sum()
    passing_by(total, [sites[place].edge for place in places], receive, retain_graph=True)
    if weights is None:
        check_finite(seen, places, found)
    elif wrong := [place for place, norm in zip(places, found, strict=True) if not all_finite(norm)]:
        raise ValueError(
            f"per_sample_gradients: gradients must leave room for weights of the losses up to {int(weights.max())}, by "
            f"which samples are told apart, but those at {sorted(sites[wrong[0]].parameters)[:3]} overflow in "
            f"{sites[wrong[0]].dtype}. Divide the loss by a power of two (K shrinks by its square), or take a wider "
            "dtype."
        )
    return found


def entries(
    seen: Pass, places: Sequence[Layout | Scattered | None], explicit: Collection[str], *, last: bool = True
) -> list[Entry]:
    """Factors of all recorded calls, on the columns of the parameters that do not go the explicit route.

    Args:
        seen: the pass; its gradients are let go one by one, so that no layer's is held twice.
        places: where the samples are in each site's output.
        explicit: names of the parameters to leave out.
        last: whether the pass is not needed any more, so that its activations are let go as well.

    Returns:
        One entry a parameter, or pair of parameters, of each call.
    """
    placed = []
    sites = seen.recorder.sites
    for number, where in enumerate(places):
        site, grad, seen.grads[number] = sites[number], seen.grads[number], None
        if last:
            sites[number] = site.without_arguments()
        if grad is not None and where is not None:
            placed += site_entries(seen, site, where, grad, explicit)
    return placed


def site_entries(
    seen: Pass, site: Site, where: Layout | Scattered, grad: Tensor, explicit: Collection[str]
) -> list[Entry]:
    """Factors of one recorded call, on the columns of the parameters that do not go the explicit route."""
    if explicit and site.parameters <= set(explicit):
        return []
    found = [_placed(use, seen.recorder, explicit) for use in uses(seen, site, where, grad)]
    return [entry for entry in found if entry is not None]


def is_irregular(site: Site, layout: Place, seen: Pass) -> bool:
    """Whether the samples of a site's rows must be found out in this very pass."""
    if isinstance(layout, Layout):
        return not dataclasses.replace(layout, num_samples=seen.num_samples).fits(site.shape)
    return layout == "scattered"


@full_precision
def uses(seen: Pass, site: Site, layout: Layout | Scattered, grad: Tensor) -> list[Use]:
    """What a site's parameters receive, in the pass's dtype."""
    recorder = seen.recorder
    if any(isinstance(value, Tensor) and value.is_complex() for value in (grad, *site.args, *site.kwargs.values())):
        raise Unsupported("complex numbers")
    if misfit := _misfit(site.layer.rule, len(site.args), tuple(site.kwargs)):
        raise Unsupported(f"called in a form that its rule does not know ({misfit})")
    call = Call(_widened(grad, seen), layout, recorder.tracked, recorder.unexpanded)
    args = [_widened(arg, seen) for arg in site.args]
    kwargs = {key: _widened(arg, seen) for key, arg in site.kwargs.items()}
    with torch.no_grad():
        return list(site.layer.rule(call, *args, **kwargs))


@functools.cache
def _misfit(rule: Rule, num_args: int, names: tuple[str, ...]) -> str:
    """Why a rule cannot be called with so many arguments and these names; empty where it can."""
    try:
        inspect.signature(rule).bind(None, *[None] * num_args, **dict.fromkeys(names))
    except TypeError as error:
        return str(error)
    return ""


def _widened(value: Any, seen: Pass) -> Any:
    """Activations off the autograd graph, in the pass's dtype; parameters as they are, known by identity."""
    if not isinstance(value, Tensor) or seen.recorder.tracked(value):
        return value
    return value.detach().to(seen.dtype) if value.is_floating_point() else value.detach()


def _placed(use: Use, recorder: Recorder, explicit: Collection[str]) -> Entry | None:
    """Factors on their columns; None where all of them go the explicit route."""
    columns = [_columns(recorder.unexpanded(tensor), recorder, explicit) for tensor in use.tensors]
    kept = [not set(place.parameters) <= set(explicit) for place in columns]
    if not any(kept):
        return None
    factors = use.factors if all(kept) else use.factors.keep(kept)
    if isinstance(factors, Dense):
        factors = factors.condensed()
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


def check_finite(seen: Pass, places: Sequence[int], found: Sequence[Tensor | None]) -> None:
    """Raise where something found at some sites is not finite, naming the parameters and the first samples."""
    wrong = [place for place, each in zip(places, found, strict=True) if each is not None and not all_finite(each)]
    if wrong:
        names = frozenset[str]().union(*(seen.recorder.sites[place].parameters for place in wrong))
        samples = [] if seen.problem is None else _culprits(seen.problem)
        raise _not_finite(names, samples, None if seen.problem is None else seen.problem.numbers)


# As many samples are looked for where gradients are not finite.
NAMED = 10


def _culprits(problem: Problem) -> list[int]:
    """The first samples whose gradients are not finite: halves run alone, where no other sample's can spread."""
    waiting, found = [torch.arange(problem.num_samples)], list[int]()
    while waiting and len(found) < NAMED:
        some = waiting.pop()
        with preserve(problem.model, seed=problem.seed):
            try:
                seen = recorded(part_of(problem, some))
            except Exception:  # a model made for one batch size: which of these it is cannot be told
                found += some.tolist()
                continue
            grads = gradients(seen, retain_graph=False)
        if all(grad is None or all_finite(grad) for grad in grads):
            continue
        if len(some) == 1:
            found += some.tolist()
        else:
            waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
    return found[:NAMED]


def check_gradients(placed: Sequence[Entry], numbers: Tensor | None = None) -> None:
    """Raise where a gradient is not finite, naming the parameters and the samples by their numbers in the batch."""
    for entry in placed:
        grads = entry.factors.output_grads
        if not all_finite(grads):
            finite = torch.isfinite(grads.flatten(1)).all(1)
            raise _not_finite(entry.parameters, (~finite).nonzero()[:, 0].tolist(), numbers)


def _not_finite(parameters: Collection[str], samples: Sequence[int], numbers: Tensor | None) -> RuntimeError:
    """The error for gradients that are not finite."""
    first = [place if numbers is None else int(numbers[place]) for place in samples[:NAMED]]
    which = f"some samples (first: {first})" if first else "some samples"
    return RuntimeError(
        f"per_sample_gradients: gradients must be finite, but those at {sorted(parameters)[:5]} are not for {which}. "
        "Look at these inputs, or lower the learning rate: training may have diverged."
    )
