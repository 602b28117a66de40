"""verify: are the per-sample gradients of this very model right, which route do they take, and what do they cost?"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sgdkern.capture import Params, per_sample_gradients, tracked_parameters, unwrapped
from sgdkern.gradient_matrix import UNUSED
from sgdkern.losses import unreduced
from sgdkern.preserve import preserve
from sgdkern.problem import count_samples, dense_gradient, forward, slices_of, taken
from sgdkern.speaker import speaking_as

# How much worse than plain autograd in the same dtype a route may be, both against float64: it sums in another order.
MARGIN = 10.0
# Errors below so many roundings of the dtype are agreement whatever autograd's own error is.
ROUNDINGS = 16.0
# Repetitions of each timing; the fastest counts.
REPETITIONS = 3


@dataclass(frozen=True)
class ParameterCheck:
    """One parameter's verdict.

    Args:
        name: The parameter.
        shape: Its shape.
        route: How its per-sample gradients were computed.
        error: Largest relative error over the samples, ‖g − g*‖/‖g*‖, against float64.
        autograd_error: The same of plain autograd in the model's own dtype.
        agrees: Whether the error is autograd's own, up to a small factor.
    """

    name: str
    shape: tuple[int, ...]
    route: str
    error: float
    autograd_error: float
    agrees: bool


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Args:
        checks: One verdict a parameter.
        num_samples: Samples compared.
        num_params: P.
        truth: What was compared with: float64, or the model's own dtype where it cannot be converted.
        capture_seconds: Time of per-sample gradients of all given samples, the study of a new model not counted.
        gram_seconds: Time of K on top.
        step_seconds: Time of an ordinary forward and backward pass over the same samples.
        warnings: What was said on the way.
    """

    checks: tuple[ParameterCheck, ...]
    num_samples: int
    num_params: int
    truth: str
    capture_seconds: float
    gram_seconds: float
    step_seconds: float
    warnings: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether every parameter agrees."""
        return all(check.agrees for check in self.checks)

    @property
    def overhead(self) -> float:
        """Cost of capture and K in ordinary forward and backward passes over the same samples."""
        return (self.capture_seconds + self.gram_seconds) / self.step_seconds

    @property
    def verdict(self) -> str:
        """The findings in words."""
        explicit = [check.name for check in self.checks if check.route.startswith("explicit")]
        unused = [check.name for check in self.checks if check.route.startswith(UNUSED)]
        wrong = [check.name for check in self.checks if not check.agrees]
        if wrong:
            words = (
                f"WRONG for {len(wrong)} of {len(self.checks)} parameters: {', '.join(wrong[:5])}. Please report this."
            )
        else:
            worst = max((check.error for check in self.checks), default=0.0)
            words = (
                f"Right: all {len(self.checks)} parameters agree with autograd (largest relative error {worst:.1e})."
            )
        if explicit:
            words += f" {len(explicit)} take the explicit route, which costs more: {', '.join(explicit[:5])}."
        if unused:
            words += f" {len(unused)} are not used in the loss: {', '.join(unused[:5])}."
        return f"{words} A measurement with K costs {self.overhead:.2f} ordinary forward and backward passes."

    def as_dict(self) -> dict[str, Any]:
        """The report as plain numbers and text, for JSON."""
        words = {"agrees": self.agrees, "overhead": self.overhead, "verdict": self.verdict}
        return {**asdict(self), **words}

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=4)
        lines = [f"{'parameter':<{width}}  {'error':>8}  {'autograd':>8}  route"]
        for check in self.checks:
            mark = "" if check.agrees else "  <- disagrees"
            numbers = f"{check.error:8.1e}  {check.autograd_error:8.1e}"
            lines.append(f"{check.name:<{width}}  {numbers}  {check.route}{mark}")
        return "\n".join([*lines, "", self.verdict])


def verify(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    inputs: Any,
    targets: Any,
    *,
    params: Params = None,
    num_samples: int = 8,
) -> Report:
    """Compare a model's per-sample gradients with a plain autograd loop in float64, and time them.

    Args:
        model: Any module, in the mode in which it is to be measured.
        loss_fn: As for `sgdkern.per_sample_gradients`.
        inputs: Samples; all of them are timed.
        targets: Their targets.
        params: As for `sgdkern.per_sample_gradients`.
        num_samples: How many of the samples are compared.

    Returns:
        The report; ``print`` it, or ask its ``verdict``.

    Raises:
        ValueError: Where `sgdkern.per_sample_gradients` refuses the model (coupled samples, say).

    Example:
        >>> import torch, sgdkern as sk
        >>> report = sk.verify(torch.nn.Linear(3, 2), torch.nn.MSELoss(), torch.randn(4, 3), torch.randn(4, 2))
        >>> report.agrees
        True
    """
    with speaking_as("verify"):
        return _verified(model, loss_fn, inputs, targets, params, num_samples)


def _verified(
    model: nn.Module, loss_fn: Callable[..., Tensor], inputs: Any, targets: Any, params: Params, num_samples: int
) -> Report:
    """The report of `verify`."""
    if num_samples < 1:
        raise ValueError(f"verify: num_samples must be at least 1, got {num_samples}.")
    module = unwrapped(model)
    tracked = tracked_parameters(module, params)
    total = count_samples((inputs, targets))
    some = torch.arange(min(num_samples, total))
    few_inputs, few_targets = taken(inputs, some), taken(targets, some)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        matrix = per_sample_gradients(module, loss_fn, few_inputs, few_targets, params=list(tracked))
    plain = _loop(module, loss_fn, few_inputs, few_targets, list(tracked))
    truth, kind = _truth(module, loss_fn, few_inputs, few_targets, list(tracked), plain)
    rows = matrix.dense().double()
    columns = slices_of(tracked)
    checks = tuple(
        _check(name, tracked[name], matrix.coverage[name], rows[:, columns[name]], plain[name], truth[name])
        for name in tracked
    )
    capture, gram, step = _timings(module, loss_fn, inputs, targets, list(tracked))
    said = tuple(str(warning.message) for warning in caught)
    return Report(checks, len(some), matrix.num_params, kind, capture, gram, step, said)


def _check(name: str, parameter: Tensor, route: str, found: Tensor, plain: Tensor, truth: Tensor) -> ParameterCheck:
    """Compare one parameter's rows with the truth, and with what autograd makes of it in the model's own dtype."""
    error, autograd = _relative(found, truth), _relative(plain.double(), truth)
    allowed = max(MARGIN * autograd, ROUNDINGS * torch.finfo(parameter.dtype).eps)
    return ParameterCheck(name, tuple(parameter.shape), route, error, autograd, error <= allowed)


def _relative(found: Tensor, truth: Tensor) -> float:
    """Largest ‖g − g*‖ over samples, relative to the largest ‖g*‖ (a sample may have no gradient at all)."""
    scale = truth.norm(dim=1).max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found - truth).norm(dim=1).max() / scale)


def _loop(
    model: nn.Module, loss_fn: Callable[..., Tensor], inputs: Any, targets: Any, names: list[str]
) -> dict[str, Tensor]:
    """Per-sample gradients by one ordinary forward and backward a sample: slow, and obvious."""
    loss = unreduced(loss_fn)
    parameters = dict(model.named_parameters())
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with preserve(model):
        for sample in range(count_samples((inputs, targets))):
            one = torch.tensor([sample])
            outputs = forward(model, taken(inputs, one))
            wanted = [parameters[name] for name in names]
            grads = torch.autograd.grad(loss(outputs, taken(targets, one)).sum(), wanted, allow_unused=True)
            for name, grad in zip(names, grads, strict=True):
                rows[name].append(dense_gradient(grad, parameters[name]))
    return {name: torch.stack(row) for name, row in rows.items()}


def _truth(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    inputs: Any,
    targets: Any,
    names: list[str],
    plain: dict[str, Tensor],
) -> tuple[dict[str, Tensor], str]:
    """The loop in float64 on a copy of the model; its own dtype where that cannot be."""
    try:
        double = copy.deepcopy(model).double()
        loss = copy.deepcopy(loss_fn).double() if isinstance(loss_fn, nn.Module) else loss_fn
        return _loop(double, loss, _double(inputs), _double(targets), names), "a plain autograd loop in float64"
    except Exception as error:  # whatever a model does that a copy in another dtype cannot
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        exact = {name: rows.double() for name, rows in plain.items()}
        return exact, f"a plain autograd loop in the model's own dtype (no float64: {reason})"


def _double(value: Any) -> Any:
    """Floating-point tensors of a nested batch as float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _double(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_double(item) for item in value)
    return value


def _timings(
    model: nn.Module, loss_fn: Callable[..., Tensor], inputs: Any, targets: Any, names: list[str]
) -> tuple[float, float, float]:
    """Seconds of a capture, of K, and of an ordinary forward and backward over the same samples, in turns."""
    loss = unreduced(loss_fn)
    wanted = [parameter for name, parameter in model.named_parameters() if name in names]
    captures, grams, steps = [], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        per_sample_gradients(model, loss_fn, inputs, targets, params=names)  # the study of a new model is not counted
        for _ in range(REPETITIONS):
            began = _now(wanted)
            matrix = per_sample_gradients(model, loss_fn, inputs, targets, params=names)
            captured = _now(wanted)
            matrix.gram()
            done = _now(wanted)
            with preserve(model):
                outputs = forward(model, inputs)
                torch.autograd.grad(loss(outputs, targets).mean(), wanted, allow_unused=True)
            captures.append(captured - began)
            grams.append(done - captured)
            steps.append(_now(wanted) - done)
    return min(captures), min(grams), min(steps)


def _now(parameters: list[nn.Parameter]) -> float:
    """The time, when the device has done what it was asked for."""
    if any(parameter.is_cuda for parameter in parameters):
        torch.cuda.synchronize()
    return time.perf_counter()
