"""The measurement: every registered order parameter of one gradient matrix, with bounds, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

from sgdkern.order_parameters import REGISTRY
from sgdkern.order_parameters.alignment import Alignment, measured_minibatches, minibatch_alignment
from sgdkern.order_parameters.confidence import Estimate, population_estimates
from sgdkern.order_parameters.groups import GroupStatistics, group_statistics
from sgdkern.order_parameters.moments import noise_factor, sample_moments
from sgdkern.statistics import GradientSource, GramSource, Groups, Route, Statistics, chosen_route
from sgdkern.statistics import statistics as measure_statistics


@dataclass(frozen=True, eq=False, repr=False)
class OrderParameters:
    """The order parameters of N samples at one batch size.

    Attributes:
        values: By name, over these N samples and the full ensemble of minibatches (R: over those drawn).
        unbiased: By name, those of the population that the samples were drawn from.
        alignment: R with its error.
        groups: What each group contributes; None without groups.
        batch_size: B.
        replacement: Whether a minibatch may hold a sample twice.
        num_samples: N.
        notes: By key of `scalars`, why a number is missing or is below the noise floor.
        statistics: What they were read from; serves further partitions of the same samples.
    """

    values: Mapping[str, float]
    unbiased: Mapping[str, Estimate]
    alignment: Alignment
    groups: GroupStatistics | None
    batch_size: int
    replacement: bool
    num_samples: int
    notes: Mapping[str, str]
    statistics: Statistics

    @property
    def cosines(self) -> Tensor | None:
        """Cosines of the groups' mean gradients, [groups + 1, groups + 1], the mean of all samples last."""
        return None if self.groups is None else torch.tensor(self.groups.cosines, dtype=torch.float64)

    def __getattr__(self, name: str) -> float:
        """An order parameter by its name, as in ``measured.A0``."""
        if name in REGISTRY:
            return self.values[name]
        raise AttributeError(f"OrderParameters has no attribute {name!r}; it measured {', '.join(REGISTRY)}.")

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={value:.4g}" for name, value in self.values.items())
        return f"OrderParameters(num_samples={self.num_samples}, batch_size={self.batch_size}, {numbers})"

    def __getitem__(self, key: str) -> float:
        """One number by its key in `scalars`."""
        return self.scalars()[key]

    def as_dict(self) -> dict[str, Any]:
        """Everything measured: the `scalars`, and with groups the matrix of their ``cosines``.

        Returns:
            Values by name; ``cosines`` is a tuple of rows, groups and then the mean of all samples.
        """
        matrix = {} if self.groups is None else {"cosines": self.groups.cosines}
        return {**self.scalars(), **matrix}

    def scalars(self) -> dict[str, float]:
        """All numbers, flat.

        Returns:
            Floats by name: each order parameter, then `R_se`, `<key>_unbiased`, `<key>_low`, `<key>_high`; for groups
            those of `GroupStatistics.scalars` (`A_<g>`, `A0_<g>`, `R_<g><h>`, `R_a<g>`). A number that cannot be known
            is nan, and `notes` says why; a missing upper bound is inf.
        """
        flat = {**self.values, "R_se": self.alignment.standard_error}
        for name, estimate in self.unbiased.items():
            flat |= {f"{name}_unbiased": estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        flat |= {"R_low": self.alignment.low, "R_high": self.alignment.high}
        if self.groups is not None:
            flat |= self.groups.scalars()
        return flat


def order_parameters(
    source: GradientSource,
    *,
    batch_size: int,
    groups: Groups | None = None,
    num_minibatches: int = 512,
    generator: torch.Generator | None = None,
    replacement: bool = False,
    population_size: float = inf,
    confidence: float = 0.95,
    statistics: Statistics | None = None,
    route: Route = "auto",
) -> OrderParameters:
    """Activity, alignment, noise: how SGD with minibatches of B samples would move on these samples.

    Args:
        source: A `GradientMatrix` [N, P], or `StreamingGradients`.
        batch_size: B.
        groups: A partition of the samples: integers [N], or {name: boolean mask [N]}.
        num_minibatches: M, drawn to measure R; 0 leaves R out.
        generator: Randomness for the draw; None is a fresh generator of seed 0, so that repeated calls draw the same
            minibatches and the global generator stays untouched.
        replacement: Whether a minibatch may hold a sample twice.
        population_size: Size of the training set that the samples were drawn from, for the unbiased estimates;
            infinite where they are i.i.d. Where the samples *are* the training set, pass N: the estimates are then the
            values.
        confidence: Coverage of the bounds.
        statistics: Those of the same samples, where they are known already; their groups serve where `groups` is None.
        route: Where they are not known: "gram" takes them from K, "passes" from products with G, "auto" from what
            costs less; see `sgdkern.statistics.statistics`.

    Returns:
        The order parameters.

    Raises:
        ValueError: If no such minibatch exists, the groups are not a partition, the statistics are of other samples,
            the route is unknown, or a group's name would give two numbers the same key.

    Reference:
        Feng & Tu, "Phases of learning dynamics in artificial neural networks" (2021); docs/order_parameters.md for
        every formula.

    Example:
        >>> import torch, sgdkern as sk
        >>> G = sk.GradientMatrix.from_dense(torch.tensor([[1.0, 2.0], [3.0, -2.0], [2.0, 0.0]]))
        >>> measured = sk.order_parameters(G, batch_size=1, groups=[0, 0, 1])
        >>> round(measured["A0"], 6), round(measured["D"], 6), measured.groups.names
        (4.0, 3.333333, ('0', '1'))
    """
    minibatches = None
    if statistics is None:
        weights = None
        if num_minibatches > 2 and isinstance(source, GramSource) and chosen_route(source, route) == "passes":
            minibatches = measured_minibatches(
                source,
                batch_size=batch_size,
                num_minibatches=num_minibatches,
                generator=generator,
                replacement=replacement,
            )
            weights = minibatches.weights(source.num_samples)[:, None]
        statistics = measure_statistics(source, groups=groups, route=route, weights=weights)
    elif statistics.num_samples != source.num_samples:
        raise ValueError(
            f"order_parameters: statistics must be of the same {source.num_samples} samples, got "
            f"{statistics.num_samples}. Measure them again."
        )
    elif groups is not None:
        statistics = statistics.with_groups(source, groups)
    factor = noise_factor(batch_size, statistics.num_samples, replacement=replacement)
    estimates = population_estimates(
        statistics,
        batch_size=batch_size,
        replacement=replacement,
        population_size=population_size,
        confidence=confidence,
    )
    alignment = minibatch_alignment(
        source,
        statistics,
        batch_size=batch_size,
        num_minibatches=num_minibatches,
        generator=generator,
        replacement=replacement,
        confidence=confidence,
        minibatches=minibatches,
    )
    of_groups = None
    if statistics.groups is not None:
        of_groups = group_statistics(statistics, batch_size=batch_size, replacement=replacement)
        _refuse_taken_names(of_groups.names)
    values, notes = _values(statistics, factor, alignment)
    notes |= {f"{name}_unbiased": estimate.reason for name, estimate in estimates.items() if estimate.reason}
    return OrderParameters(
        values=values,
        unbiased=estimates,
        alignment=alignment,
        groups=of_groups,
        batch_size=batch_size,
        replacement=replacement,
        num_samples=statistics.num_samples,
        notes=notes,
        statistics=statistics,
    )


def _values(statistics: Statistics, factor: float, alignment: Alignment) -> tuple[dict[str, float], dict[str, str]]:
    """Every registered formula at the samples' own moments, and why some have no value."""
    moments = sample_moments(statistics, factor, alignment.value)
    has_direction = statistics.directed_activity > statistics.resolution
    values, notes = {}, {}
    for name, parameter in REGISTRY.items():
        if parameter.signal and not has_direction:
            values[name] = nan
            notes[name] = "the mean gradient is zero within rounding: it has no direction"
        else:
            values[name] = float(parameter.formula(moments))
    if alignment.reason:
        notes["R"] = alignment.reason
    return values, notes


def _refuse_taken_names(names: tuple[str, ...]) -> None:
    taken = {f"{name}{end}" for name in REGISTRY for end in ("", "_unbiased", "_low", "_high", "_se")}
    for name in names:
        if taken & {f"A_{name}", f"A0_{name}"}:
            raise ValueError(
                f"order_parameters: a group may not be called {name!r}, because A_{name} or A0_{name} already has a "
                "meaning. Rename the group."
            )
