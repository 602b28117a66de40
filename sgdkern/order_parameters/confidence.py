"""Confidence: the order parameters of the population behind N samples, with jackknife bounds."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan, sqrt
from statistics import NormalDist

import torch
from torch import Tensor

from sgdkern.order_parameters import REGISTRY, OrderParameter
from sgdkern.order_parameters.moments import noise_factor, population_moments, sample_moments
from sgdkern.statistics import Statistics


@dataclass(frozen=True)
class Estimate:
    """An order parameter of the population that the samples were drawn from.

    Attributes:
        value: From unbiased moments; nan where the samples cannot tell it, and `reason` says why.
        standard_error: Jackknife standard error of the value.
        low: Lower confidence bound.
        high: Upper confidence bound; infinite where the samples set none.
        reason: Empty, or why value or bounds are missing.
    """

    value: float
    standard_error: float
    low: float
    high: float
    reason: str = ""


def population_estimates(
    statistics: Statistics,
    *,
    batch_size: int,
    replacement: bool = False,
    population_size: float = inf,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Every closed-form order parameter of the population, with jackknife bounds.

    θ ± t √((1 − N/n) (N−1)/N Σ (θ_(i) − θ̄)²), with θ_(i) the estimate without sample i and n the population's size.

    Args:
        statistics: Of the N samples.
        batch_size: B.
        replacement: Whether a minibatch may hold a sample twice.
        population_size: n; infinite for i.i.d. samples.
        confidence: Coverage of the interval.

    Returns:
        One estimate for each registered closed form.

    Raises:
        ValueError: If `confidence` is not between 0 and 1, or the population is smaller than the sample.

    Reference:
        Efron & Stein, "The jackknife estimate of variance" (1981): its expectation is at or above the true variance.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"order_parameters: confidence must lie between 0 and 1, got {confidence}. Pass .95, say.")
    factor = noise_factor(batch_size, population_size, replacement=replacement)
    num_samples = statistics.num_samples
    if population_size == num_samples:  # nothing to estimate, from however few samples and without K
        moments = sample_moments(statistics, factor)
    else:
        moments = population_moments(statistics, factor, population_size)
    shrink = sqrt(1 - num_samples / population_size)
    quantile = student_quantile((1 + confidence) / 2, num_samples - 1)
    no_signal = _why_no_signal(_interval(moments.directed_activity.view(-1), shrink, quantile), statistics.resolution)
    return {
        name: _judge(parameter, parameter.formula(moments).view(-1), shrink, quantile, statistics, no_signal)
        for name, parameter in REGISTRY.items()
        if not parameter.sampled
    }


def _why_no_signal(activity: Estimate, resolution: float) -> str:
    """Why nothing can be divided by A0; empty where it can."""
    if isnan(activity.low):
        return "too few samples to tell A0 from noise"
    return "" if activity.low > 0 and activity.value > resolution else "A0 is below the noise floor"


def _judge(
    parameter: OrderParameter, values: Tensor, shrink: float, quantile: float, statistics: Statistics, no_signal: str
) -> Estimate:
    """The estimate, or the reason why there is none."""
    num_samples = statistics.num_samples
    if isnan(float(values[0])):
        reason = (
            f"needs more than {num_samples} samples"
            if statistics.pairs is not None or num_samples < 2
            else "needs the Gram matrix: statistics(source, route='gram')"
        )
        return Estimate(nan, nan, nan, nan, reason)
    estimate = _interval(values, shrink, quantile, reciprocal=parameter.reciprocal)
    low, high = nan if isnan(estimate.low) else max(estimate.low, 0.0), estimate.high
    if parameter.signal and no_signal:
        return Estimate(nan, nan, low if parameter.reciprocal else nan, inf, no_signal)
    if estimate.value < 0:
        return Estimate(nan, estimate.standard_error, 0.0, max(high, 0.0), "below the noise floor: the estimate is < 0")
    reason = ""
    if isnan(estimate.standard_error):
        reason = f"no bounds from {num_samples} samples"
    elif estimate.low <= 0 < estimate.high:
        reason = "below the noise floor: zero is not excluded"
    return Estimate(estimate.value, estimate.standard_error, low, high, reason)


def _interval(values: Tensor, shrink: float, quantile: float, *, reciprocal: bool = False) -> Estimate:
    """Jackknife interval from [estimate, leave-one-out estimates], or of its reciprocal and turned back."""
    value = float(values[0])
    if reciprocal and value != 0:
        upside_down = _interval(1 / values, shrink, quantile)
        low = 1 / upside_down.high if upside_down.high > 0 else inf
        high = 1 / upside_down.low if upside_down.low > 0 else inf
        if isnan(upside_down.standard_error):
            low = high = nan
        return Estimate(value, upside_down.standard_error * value**2, low, high)
    if shrink == 0:
        return Estimate(value, 0.0, value, value)
    error = shrink * float(jackknife_error(values[1:]))
    return Estimate(value, error, value - quantile * error, value + quantile * error)


def jackknife_error(leave_one_out: Tensor) -> Tensor:
    """Jackknife standard error √((N−1)/N Σ (θ_(i) − θ̄)²).

    Args:
        leave_one_out: The estimates θ_(i) without each sample, [N].

    Returns:
        A number, []; nan where N = 1.
    """
    count = len(leave_one_out)
    length: Tensor = torch.linalg.vector_norm(leave_one_out - leave_one_out.mean())
    return length * (sqrt((count - 1) / count) if count > 1 else nan)


def student_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t, by its expansion about the normal quantile.

    Args:
        probability: Between 0 and 1.
        degrees: Degrees of freedom; below 3 the expansion is too short, and those of 3 are used.

    Returns:
        The quantile.

    Reference:
        Abramowitz & Stegun 26.7.5.

    Example:
        >>> round(student_quantile(0.975, 30), 3)
        2.042
    """
    z, n = NormalDist().inv_cdf(probability), max(degrees, 3.0)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
