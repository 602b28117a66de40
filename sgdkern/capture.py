"""capture: run a model and a loss once, give back its per-sample gradients as factors.

One forward and one backward to the outputs of the layers only: no weight gradient is computed. Before a model is captured for the first
time, a few of its samples are *studied*: the same pass with the losses weighted 1, 2, 4 tells where the samples are in every gradient (its
elements scale with the weight of the sample that they belong to), shows coupled samples (elements that scale with none), and compares what
the factors give with plain autograd, parameter by parameter. What disagrees takes the explicit route; what still disagrees is refused.
"""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sgdkern.columns import Columns, Derived, Entry, Part, Whole
from sgdkern.explicit import METHODS, Batch, Problem, explicit_gradients, taken
from sgdkern.factors import Explicit
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.layers import Call, Layout, Unsupported, Use
from sgdkern.losses import Loss, check_losses, unreduced
from sgdkern.preserve import preserve
from sgdkern.recorder import Recorder, Site

BatchLoss = Callable[[nn.Module, Batch], Tensor]
Params = Sequence[str] | Callable[[str], bool] | None

# The study's samples; their weights 1, 2, 4 are powers of two, so that weighting is exact in floating point.
STUDY_SAMPLES = 3
# Largest relative difference from autograd that still counts as agreement: rounding in a deep network in each dtype.
AGREEMENT = {torch.float64: 1e-8, torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True)
class Plan:
    """What a study found: the layout of each site, and the parameters that need explicit gradients with the reason."""

    layouts: tuple[Layout | None, ...]
    explicit: Mapping[str, str]
    method: str = METHODS[0]


@dataclass
class Pass:
    """One recorded forward pass."""

    losses: Tensor
    outputs: Any
    recorder: Recorder
    batch: Batch
    num_samples: int
    grads: list[Tensor | None] = field(default_factory=list)


_plans: weakref.WeakKeyDictionary[nn.Module, dict[Any, Plan]] = weakref.WeakKeyDictionary()


def per_sample_gradients(
    model: nn.Module,
    loss_fn: Loss | None = None,
    inputs: Any = None,
    targets: Any = None,
    *,
    params: Params = None,
    chunk_size: int | None = None,
    batch_loss: BatchLoss | None = None,
    batch: Batch = None,
    seed: int | None = None,
) -> GradientMatrix:
    """Per-sample gradients g_n = ∂l_n/∂θ of all samples at once, as factors: rows of G that are never materialised.

    Args:
        model: any module, in the mode (training or evaluation) in which it is to be measured; it comes back untouched to the bit.
        loss_fn: torch loss module or function of (outputs, targets), whose reduction is undone (see `sgdkern.losses.unreduced`), or any
            callable that returns one loss a sample, [N].
        inputs: tensors, or nested tuples, lists or dicts of tensors, whose first axis is the sample. A tuple is the model's positional
            arguments, a dict its keyword arguments.
        targets: as ``inputs``; what the loss compares with.
        params: None for all parameters that require gradients, names, or a predicate on names.
        chunk_size: samples run at a time; None runs all together. The result is the same; peak memory is lower.
        batch_loss: a second form, ``batch_loss(model, batch)`` giving losses [N], for models that compute their own loss.
        batch: what ``batch_loss`` takes: nested tensors whose first axis is the sample.
        seed: seed of random layers (dropout in training mode), the same masks at every call; without it they are refused.

    Returns:
        The gradient matrix G, [N, P], columns in ``model.named_parameters()`` order.

    Raises:
        TypeError: if the model is no module or neither form of the loss is given.
        ValueError: if samples are coupled, shapes do not fit, names are unknown, or random layers have no seed.
        RuntimeError: if a loss or gradient is not finite, or no route agrees with autograd.

    Reference:
        Goodfellow, "Efficient per-example gradient computations", 2015, for linear layers; the layers' rules are in `sgdkern.layers`.

    Example:
        >>> import torch, sgdkern as sk
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> G = sk.per_sample_gradients(model, torch.nn.CrossEntropyLoss(), torch.randn(6, 4), torch.arange(6) % 3)
        >>> G.mean().shape
        torch.Size([67])
    """
    model = unwrapped(model)
    tracked = _tracked(model, params)
    if batch_loss is not None:
        run: Callable[[nn.Module, Batch], tuple[Tensor, Any]] = lambda module, part: (batch_loss(module, part), None)  # noqa: E731
    elif loss_fn is not None:
        loss = unreduced(loss_fn)
        batch = (inputs, targets)
        run = lambda module, part: _forward(module, loss, *part)  # noqa: E731
    else:
        raise TypeError(
            "per_sample_gradients: loss_fn (with inputs and targets) or batch_loss (with batch) must be given, got neither."
        )
    loss_key = getattr(batch_loss or loss_fn, "__code__", type(batch_loss or loss_fn))
    problem = Problem(model, tracked, run, batch, _num_samples(batch), seed, loss_key)
    size = problem.num_samples if chunk_size is None else chunk_size
    if size < 1:
        raise ValueError(f"per_sample_gradients: chunk_size must be at least 1, got {size}.")
    parts = []
    for start in range(0, problem.num_samples, size):
        stop = min(start + size, problem.num_samples)
        part = problem if stop - start == problem.num_samples else _part(problem, torch.arange(start, stop))
        parts.append(_captured(part))
    return parts[0] if len(parts) == 1 else GradientMatrix.stack(parts)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's and the data-parallel wrappers: parameters and names are its own."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"per_sample_gradients: model must be a torch.nn.Module, got {type(model).__name__}.")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(inner := model.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def _tracked(model: nn.Module, params: Params) -> dict[str, nn.Parameter]:
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
                f"params: names must be parameters that require gradients, got {unknown}. The model has {list(trainable)}."
            )
        chosen = {name: parameter for name, parameter in trainable.items() if name in wanted}
    if not chosen:
        raise ValueError(
            "params: at least one parameter that requires gradients must be chosen, got none. Check requires_grad and params=."
        )
    for name, parameter in chosen.items():
        if parameter.is_complex():
            raise ValueError(
                f"per_sample_gradients: parameters must be real, got {parameter.dtype} for {name!r}. Leave it out by params=."
            )
    return chosen


def _forward(model: nn.Module, loss: Loss, inputs: Any, targets: Any) -> tuple[Tensor, Any]:
    """Losses and outputs of the ordinary form."""
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    elif isinstance(inputs, tuple):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    return loss(outputs, targets), outputs


def _leaves(value: Any) -> Iterable[Tensor]:
    """Tensors of a nested batch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)


def _num_samples(batch: Batch) -> int:
    """N: the length of the first axis, which every tensor of the batch must share."""
    lengths = {tensor.shape[0] for tensor in _leaves(batch) if tensor.ndim}
    if len(lengths) != 1:
        raise ValueError(
            f"per_sample_gradients: the first axis of all inputs and targets must be the sample, got lengths {sorted(lengths)}. "
            "Pass constants to the model by a closure instead."
        )
    (num_samples,) = lengths
    if num_samples == 0:
        raise ValueError("per_sample_gradients: at least one sample is needed, got an empty batch.")
    return num_samples


def _part(problem: Problem, indices: Tensor) -> Problem:
    """The problem for some of its samples."""
    return dataclasses.replace(problem, batch=taken(problem.batch, indices), num_samples=len(indices))


def _recorded(problem: Problem) -> Pass:
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
            f"per_sample_gradients: the model must not draw random numbers, but it does (modules in training mode: {names or 'unknown'}). "
            "Call model.eval(), or pass seed= to measure one fixed draw."
        )
    losses = check_losses(losses, problem.num_samples)
    return Pass(losses, outputs, recorder, problem.batch, problem.num_samples)


def _captured(problem: Problem) -> GradientMatrix:
    """G for one chunk of samples."""
    with preserve(problem.model, seed=problem.seed):
        recorded = _recorded(problem)
        sites = recorded.recorder.sites
        plan = _plan(problem, recorded)
        recorded.grads = _gradients(recorded.losses.sum(), [site.edge for site in sites])
        entries = _entries(recorded, plan)
        if plan.explicit:
            rows = explicit_gradients(problem, list(plan.explicit), method=plan.method)
            entries += [Entry(Explicit(row), (Whole((name,)),)) for name, row in rows.items()]
    _check_gradients(entries)
    outputs = recorded.outputs.detach() if isinstance(recorded.outputs, Tensor) else None
    return GradientMatrix(
        tuple(entries), _slices(problem.tracked), recorded.losses.detach(), outputs, _coverage(problem, sites, plan)
    )


def _gradients(loss: Tensor, edges: Sequence[Any], parameters: Sequence[Tensor] = ()) -> list[Tensor | None]:
    """∂loss at recorded outputs (and parameters, in the study); None where the loss does not depend on one."""
    targets = [*edges, *parameters]
    if not targets or not loss.requires_grad:
        return [None] * len(targets)
    return list(torch.autograd.grad(loss, targets, allow_unused=True, retain_graph=True))


def _entries(recorded: Pass, plan: Plan) -> list[Entry]:
    """Factors of all recorded calls, on the columns of the parameters that do not go the explicit route."""
    entries = []
    for site, layout, grad in zip(recorded.recorder.sites, plan.layouts, recorded.grads, strict=True):
        if grad is None or layout is None or site.parameters <= plan.explicit.keys():
            continue
        layout = dataclasses.replace(layout, num_samples=recorded.num_samples)
        for use in _uses(site, layout, grad, recorded.recorder):
            entry = _placed(use, recorded.recorder, plan.explicit.keys())
            if entry is not None:
                entries.append(entry)
    return entries


def _uses(site: Site, layout: Layout, grad: Tensor, recorder: Recorder) -> list[Use]:
    """What a site's parameters receive, in at least single precision."""
    call = Call(_single(grad), layout, recorder.tracked, recorder.unexpanded)
    args = [_single(arg) for arg in site.args]
    kwargs = {key: _single(arg) for key, arg in site.kwargs.items()}
    with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
        return list(site.layer.rule(call, *args, **kwargs))


def _single(value: Any) -> Any:
    """Half-precision activations as float32; everything else as it is (parameters keep their identity)."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.is_leaf | value.requires_grad:
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    return value


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
    parameters = [parameter for name in names for parameter in [_by_name(recorder, name)]]
    return _derived(tensor, names, parameters)


def _by_name(recorder: Recorder, name: str) -> Tensor:
    """The tracked parameter of a name."""
    key = next(key for key, known in recorder.names.items() if known == name)
    return recorder.constants[key]


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


def _plan(problem: Problem, recorded: Pass) -> Plan:
    """The plan of a model whose calls look like these: a known one, or a new study's."""
    signatures = tuple(site.signature for site in recorded.recorder.sites)
    training = tuple(module.training for module in problem.model.modules())
    key = (
        signatures,
        tuple(problem.tracked),
        problem.loss_key,
        min(problem.num_samples, STUDY_SAMPLES),
        problem.seed is None,
        training,
    )
    known = _plans.setdefault(problem.model, {})
    if key not in known:
        known[key] = _studied(problem, recorded, signatures)
    return known[key]


def _studied(problem: Problem, recorded: Pass, signatures: tuple[Any, ...]) -> Plan:
    """The plan from a few samples; from all of them where the model takes other paths for a few."""
    indices = torch.linspace(0, problem.num_samples - 1, min(STUDY_SAMPLES, problem.num_samples)).round().long()
    part = _part(problem, indices)
    try:
        few = _recorded(part)
    except Exception:  # a model made for one batch size; what is wrong with it otherwise has shown itself before
        return _study(problem, _recorded(problem))
    if tuple(site.signature for site in few.recorder.sites) != signatures:
        return _study(problem, _recorded(problem))
    if problem.seed is None:
        _refuse_batch_dependence(recorded.losses.detach()[indices.to(recorded.losses.device)], few.losses.detach())
    return _study(part, few)


def _refuse_batch_dependence(among_all: Tensor, among_few: Tensor) -> None:
    """Raise where a sample's loss is another one in another batch."""
    tolerance = AGREEMENT.get(among_all.dtype, 2e-3) * among_all.abs().max().clamp_min(1)
    if (among_all - among_few).abs().max() > tolerance:
        raise ValueError(
            "per_sample_gradients: a sample's loss must not depend on the batch it is in, but it does: "
            f"{among_all.tolist()} among all samples, {among_few.tolist()} among {len(among_few)}. "
            "Put batch normalisation into evaluation mode (model.eval()), and let the loss neither mix samples nor divide by their number."
        )


def _study(problem: Problem, recorded: Pass) -> Plan:
    """Find each site's layout on a few samples, and compare factors with autograd for every parameter."""
    sites = recorded.recorder.sites
    edges = [site.edge for site in sites]
    weights = 2.0 ** torch.arange(
        problem.num_samples, dtype=recorded.losses.dtype, device=recorded.losses.device
    ).remainder(8)
    plain = _gradients(recorded.losses.sum(), edges)
    weighted = _gradients((weights * recorded.losses).sum(), edges, list(problem.tracked.values()))
    truth = {
        name: torch.zeros_like(parameter).flatten()
        if grad is None
        else (grad.to_dense() if grad.is_sparse else grad).flatten()
        for (name, parameter), grad in zip(problem.tracked.items(), weighted[len(edges) :], strict=True)
    }
    _refuse_coupled(problem, sites, plain, weighted, weights)
    layouts = [_layout(one, other, weights) for one, other in zip(plain, weighted, strict=False)]
    explicit: dict[str, str] = {}
    for place, (site, layout, grad) in enumerate(zip(sites, layouts, plain, strict=True)):
        try:
            if layout is None:
                raise Unsupported("samples could not be told apart in its output")
            if grad is not None:
                _uses(site, layout, grad, recorded.recorder)
        except Unsupported as reason:
            explicit.update(dict.fromkeys(site.parameters, f"{site.layer.name}: {reason}"))
            layouts[place] = None
    recorded.grads = plain
    plan = Plan(tuple(layouts), explicit)
    entries = _entries(recorded, plan)
    for name, reason in _disagreeing(problem, entries, weights, truth, recorded.recorder.unruled).items():
        explicit.setdefault(name, reason)
    if not explicit:
        return plan
    explicit = {name: explicit[name] for name in problem.tracked if name in explicit}
    method = _explicit_method(problem, list(explicit), weights, truth)
    listed = ", ".join(f"{name} ({reason})" for name, reason in list(explicit.items())[:8])
    warnings.warn(
        f"per_sample_gradients: explicit per-sample gradients for {len(explicit)} parameters without a fast route: {listed}. "
        "The result is exact; it takes more time and memory.",
        stacklevel=7,
    )
    return Plan(tuple(layouts), explicit, method)


def _ratio_agrees(plain: Tensor, weighted: Tensor, weights: Tensor) -> bool:
    """Whether a weighted gradient is the plain one times ``weights``, up to rounding."""
    tolerance = AGREEMENT.get(plain.dtype, 2e-3)
    return bool((weighted - plain * weights).norm() <= tolerance * weighted.norm())


def _layout(plain: Tensor | None, weighted: Tensor | None, weights: Tensor) -> Layout | None:
    """The axis along which a gradient's elements carry the weights of their samples; the first that fits."""
    num_samples = len(weights)
    if plain is None or weighted is None:
        return Layout(num_samples, 0)
    for axis in range(plain.ndim):
        for minor in (False, True):
            layout = Layout(num_samples, axis, minor)
            if layout.fits(plain.shape):
                one, other = layout.split(plain), layout.split(weighted)
                if _ratio_agrees(one, other, weights.view(-1, *[1] * (one.ndim - 1)).to(one.dtype)):
                    return layout
    return None


def _refuse_coupled(
    problem: Problem,
    sites: Sequence[Site],
    plain: Sequence[Tensor | None],
    weighted: Sequence[Tensor | None],
    weights: Tensor,
) -> None:
    """Raise where some element's gradient belongs to no one sample."""
    for site, one, other in zip(sites, plain, weighted, strict=False):
        if one is None or other is None or _elementwise_mixture(one, other, weights) is False:
            continue
        names = [name for name, module in problem.model.named_modules() if _uses_batch_statistics(module)]
        blame = f"modules that use batch statistics: {names}" if names else f"seen at {sorted(site.parameters)[:3]}"
        raise ValueError(
            f"per_sample_gradients: samples must not be coupled, but a sample's loss depends on other samples ({blame}). "
            "No per-sample gradient exists there. Put these modules into evaluation mode (model.eval()), replace them by GroupNorm, "
            "or use a loss that does not mix samples."
        )


def _elementwise_mixture(plain: Tensor, weighted: Tensor, weights: Tensor) -> bool:
    """Whether gradients' elements scale with no single sample's weight, in a share too large for rounding."""
    error = torch.full_like(plain, torch.inf)
    for weight in weights.unique().to(plain.dtype):
        error = torch.minimum(error, (weighted - plain * weight).abs())
    tolerance = max(AGREEMENT.get(plain.dtype, 2e-3), 1e-5)
    return bool(error.norm() > tolerance * weighted.norm())


def _uses_batch_statistics(module: nn.Module) -> bool:
    """Whether a batch norm takes its statistics from the batch."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)


def _disagreeing(
    problem: Problem, entries: Sequence[Entry], weights: Tensor, truth: Mapping[str, Tensor], unruled: Mapping[str, str]
) -> dict[str, str]:
    """Parameters whose weighted gradient from factors is not autograd's, with the reason as far as it is known."""
    slices = _slices(problem.tracked)
    found = GradientMatrix(tuple(entries), slices, weights).rmatvec(weights)
    reasons = {}
    for name, parameter in problem.tracked.items():
        if not _agrees(found[slices[name]], truth[name], parameter.dtype):
            reasons[name] = f"used in {unruled[name]}" if name in unruled else "used where no rule sees it"
    return reasons


def _agrees(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether two flat gradients are equal up to the rounding of a dtype."""
    expected = expected.to(found.dtype)
    return bool((found - expected).norm() <= AGREEMENT.get(dtype, 2e-3) * torch.maximum(expected.norm(), found.norm()))


def _slices(tracked: Mapping[str, Tensor]) -> dict[str, slice]:
    """Flat columns of the parameters, in order."""
    slices, start = {}, 0
    for name, parameter in tracked.items():
        slices[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return slices


def _explicit_method(problem: Problem, names: Sequence[str], weights: Tensor, truth: Mapping[str, Tensor]) -> str:
    """The first explicit route that agrees with autograd on the study's samples."""
    errors = []
    for method in METHODS:
        try:
            rows = explicit_gradients(problem, names, method=method)
        except Exception as error:  # whatever a transform cannot do, the next method may
            errors.append(f"{method}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        wrong = [
            name
            for name in names
            if not _agrees(weights.to(rows[name].dtype) @ rows[name], truth[name], problem.tracked[name].dtype)
        ]
        if not wrong:
            return method
        errors.append(f"{method}: disagrees for {wrong[:5]}")
    raise RuntimeError(
        f"per_sample_gradients: explicit gradients must agree with autograd, but none of {list(METHODS)} does ({'; '.join(errors)}). "
        "Does the model give other results for a batch of one, or change its state from call to call? Leave these parameters out by params=."
    )


def _check_gradients(entries: Sequence[Entry]) -> None:
    """Raise where a gradient is not finite, naming the parameters and the samples."""
    for entry in entries:
        grads = entry.factors.output_grads
        finite = torch.isfinite(grads.flatten(1)).all(1)
        if not finite.all():
            bad = (~finite).nonzero()[:, 0].tolist()
            raise RuntimeError(
                f"per_sample_gradients: gradients must be finite, but those at {sorted(entry.parameters)} are not for {len(bad)} samples "
                f"(first: {bad[:10]}). Look at these inputs, or lower the learning rate: training may have diverged."
            )


def _coverage(problem: Problem, sites: Sequence[Site], plan: Plan) -> dict[str, str]:
    """The route of each parameter, in words."""
    routes = {}
    for name in problem.tracked:
        if name in plan.explicit:
            routes[name] = f"explicit ({plan.method}): {plan.explicit[name]}"
        else:
            layers = sorted({site.layer.name for site in sites if name in site.parameters})
            routes[name] = f"factors: {', '.join(layers)}" if layers else "no gradient: not used in the loss"
    return routes
