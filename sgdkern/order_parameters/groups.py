"""Groups of samples: each one's share of the activity, and the angles between their mean gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.order_parameters.moments import noise_factor
from sgdkern.statistics import GradientSource, GroupMeans, Statistics, weighted_gram

# Random splits whose weights are held at once, in float64 numbers: 2²² · 8 bytes = 32 MiB.
_WEIGHTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class GroupStatistics:
    """What each group contributes.

    Attributes:
        names: The groups' names.
        counts: N_g.
        A: ⟨‖g_µ‖²⟩ over the ensemble, g_µ being the group's part of the minibatch gradient (its sum divided by B).
        A0: ρ_g² ‖g_g‖².
        cosines: Between the groups' mean gradients, with the mean of all as the last row and column; nan where one is
            zero.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    A: tuple[float, ...]
    A0: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]

    def scalars(self) -> dict[str, float]:
        """Name every number: `A_<g>`, `A0_<g>`, `R_<g><h>`, and `R_a<g>` for the cosine with the mean gradient.

        Groups with longer names are joined with an underscore: `R_left_right`, `R_a_left`.

        Returns:
            Name to value.
        """
        join = "" if all(len(name) == 1 for name in self.names) else "_"
        flat = {f"A_{name}": value for name, value in zip(self.names, self.A, strict=True)}
        flat |= {f"A0_{name}": value for name, value in zip(self.names, self.A0, strict=True)}
        for row, first in enumerate(self.names):
            for column in range(row + 1, len(self.names)):
                flat[f"R_{first}{join}{self.names[column]}"] = self.cosines[row][column]
            flat[f"R_a{join}{first}"] = self.cosines[-1][row]
        return flat


@dataclass(frozen=True, eq=False)
class CosineNull:
    """What the cosines would be, were the groups random splits of the same sizes.

    Attributes:
        counts: N_g.
        mean: Over the splits, the mean of all samples last, [groups + 1, groups + 1].
        quantiles: One matrix for each level, [levels, groups + 1, groups + 1].
        levels: The quantiles' probabilities.
        expected: Cosines of the expected inner products, in closed form.
        num_splits: Number of random splits.
    """

    counts: tuple[int, ...]
    mean: Tensor
    quantiles: Tensor
    levels: tuple[float, ...]
    expected: Tensor
    num_splits: int


def group_statistics(statistics: Statistics, *, batch_size: int, replacement: bool = False) -> GroupStatistics:
    """Each group's activity, directed activity and cosines.

    A_g = B⁻² [f1 N_g q̄_g + f2 (N_g² ‖g_g‖² − N_g q̄_g)], exactly, with f1 = B / N and f2 = B (B−1) / (N (N−1)) the
    chances that a sample, and a pair of samples, is in the minibatch. With replacement the two of a pair may be one
    sample: A_g = B⁻² [f1 N_g q̄_g + f2 N_g² ‖g_g‖²], f2 = B (B−1) / N².

    Args:
        statistics: With groups.
        batch_size: B.
        replacement: Whether a minibatch may hold a sample twice.

    Returns:
        One entry for each group.

    Raises:
        ValueError: If the statistics have no groups.
    """
    means = _means(statistics)
    shares = _counts(means) / statistics.num_samples
    own = means.gram.diagonal()[:-1].clamp(min=0)
    single, pair = _inclusion(statistics.num_samples, batch_size, replacement=replacement)
    counts = _counts(means)
    activity = single * counts * means.mean_squared_norms + pair * counts**2 * own
    return GroupStatistics(
        names=means.names,
        counts=means.counts,
        A=tuple(activity.tolist()),
        A0=tuple((shares**2 * own).tolist()),
        cosines=tuple(tuple(row) for row in cosines(means.gram, statistics.resolution).tolist()),
    )


def activity_exact(statistics: Statistics, *, batch_size: int, replacement: bool = False) -> float:
    """The activity put together from the groups, over the full ensemble of minibatches.

    A = Σ_g A_g + 2 Σ_{g<h} B⁻² f2 N_g N_h g_g·g_h; equal to A0 + D whatever the groups are.

    Args:
        statistics: With groups.
        batch_size: B.
        replacement: Whether a minibatch may hold a sample twice.

    Returns:
        A.
    """
    means = _means(statistics)
    counts = _counts(means)
    _, pair = _inclusion(statistics.num_samples, batch_size, replacement=replacement)
    parts = group_statistics(statistics, batch_size=batch_size, replacement=replacement).A
    return sum(parts) + float(pair * _cross(counts, means.gram))


def activity_stratified(statistics: Statistics, *, batch_size: int) -> float:
    """The activity where every minibatch holds its share B_g = ρ_g B of each group, drawn without replacement.

    A = Σ_g ρ_g² [‖g_g‖² + φ_g (q̄_g − ‖g_g‖²)] + 2 Σ_{g<h} √(A0_g A0_h) R_gh, φ_g = (N_g − B_g) / (B_g (N_g − 1)): the
    paper's form, which is exact for such batches only. Where B_g is not whole it interpolates between those that are.

    Args:
        statistics: With groups.
        batch_size: B.

    Returns:
        A.

    Raises:
        ValueError: If a group's share of the batch is less than one sample.

    Reference:
        Feng & Tu 2021, Eq. 15, with each group's sum divided by B as in the paper's text.
    """
    means = _means(statistics)
    noise_factor(batch_size, statistics.num_samples)  # refuses sizes that do not exist
    counts = _counts(means)
    shares = counts / statistics.num_samples
    batch_counts = shares * batch_size
    if bool((batch_counts < 1).any()):
        raise ValueError(
            f"activity_stratified: every group needs a sample in the batch, got {batch_counts.tolist()} of "
            f"{batch_size}. Take a larger batch, or activity_exact."
        )
    factors = (counts - batch_counts) / (batch_counts * (counts - 1).clamp(min=1))
    own = means.gram.diagonal()[:-1]
    parts = shares**2 * (own + factors * (means.mean_squared_norms - own))
    return float(parts.sum() + _cross(shares, means.gram))


@torch.no_grad()
def cosine_null(
    source: GradientSource,
    statistics: Statistics,
    counts: tuple[int, ...],
    *,
    num_splits: int = 256,
    generator: torch.Generator | None = None,
    levels: tuple[float, ...] = (0.025, 0.5, 0.975),
) -> CosineNull:
    """The cosines' distribution over random splits of the samples into groups of the same sizes.

    Outside this distribution two groups differ by more than chance; which groups they are it does not tell, since
    A0 ≈ 0 drives the cosine of any two that differ towards −1. `expected` needs no draw: with U = mean_{i≠j} K_ij,
    E g_g·g_h = U and E‖g_g‖² = U + (q̄ − U) / N_g.

    Args:
        source: The gradients.
        statistics: Of the same samples.
        counts: N_g, summing to N.
        num_splits: Number of random splits.
        generator: Randomness; None is a fresh generator of seed 0.
        levels: Probabilities of the quantiles.

    Returns:
        Mean and quantiles of the matrix of cosines.

    Raises:
        ValueError: If the counts are not positive or do not sum to N, or there are no splits.
    """
    num_samples = statistics.num_samples
    if min(counts, default=0) < 1 or sum(counts) != num_samples or num_splits < 1:
        raise ValueError(
            f"cosine_null: counts must be positive and sum to {num_samples}, with at least one split, got {counts} and "
            f"{num_splits} splits. Take GroupStatistics.counts."
        )
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    members = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    weights_of = torch.eye(len(counts), dtype=torch.float64) / torch.tensor(counts, dtype=torch.float64)
    at_once = max(1, _WEIGHTS_AT_ONCE // (num_samples * len(counts)))
    found: list[Tensor] = []
    for start in range(0, num_splits, at_once):
        splits = [
            members[torch.randperm(num_samples, generator=generator, device=generator.device).cpu()]
            for _ in range(min(at_once, num_splits - start))
        ]
        grams = weighted_gram(source, weights_of[torch.stack(splits)], through_gram=statistics.route == "gram")
        found.append(torch.stack([cosines(_with_mean(gram, counts), statistics.resolution) for gram in grams]))
    drawn = torch.cat(found)
    probabilities = torch.tensor(levels, dtype=torch.float64)
    return CosineNull(
        counts=tuple(counts),
        mean=drawn.nanmean(0),
        quantiles=drawn.nanquantile(probabilities, dim=0),
        levels=tuple(levels),
        expected=cosines(_with_mean(_expected_gram(statistics, counts), counts), statistics.resolution),
        num_splits=num_splits,
    )


def cosines(gram: Tensor, resolution: float) -> Tensor:
    """Cosines from inner products; nan in the rows and columns of a vector that is zero within rounding.

    Args:
        gram: Inner products, [C, C].
        resolution: Squared length below which a vector has no direction.

    Returns:
        [C, C], between −1 and 1.
    """
    squares = gram.diagonal()
    lengths = torch.where(squares > resolution, squares, torch.full_like(squares, torch.nan)).sqrt()
    return (gram / lengths[:, None] / lengths).clamp(-1, 1)


def _means(statistics: Statistics) -> GroupMeans:
    if statistics.groups is None:
        raise ValueError("group_statistics: the statistics must have groups, got none. Pass groups= to statistics().")
    return statistics.groups


def _counts(means: GroupMeans) -> Tensor:
    return torch.tensor(means.counts, dtype=torch.float64)


def _inclusion(num_samples: int, batch_size: int, *, replacement: bool) -> tuple[float, float]:
    """Weights of Σ q_n and of N_g² ‖g_g‖² in A_g: B⁻² (f1 − f2), or B⁻² f1 with replacement, and B⁻² f2."""
    noise_factor(batch_size, num_samples, replacement=replacement)  # refuses sizes that do not exist
    alone = 1 / (num_samples * batch_size)
    if replacement:
        return alone, alone * (batch_size - 1) / num_samples
    pair = alone * (batch_size - 1) / max(num_samples - 1, 1)
    return alone - pair, pair


def _cross(scales: Tensor, gram: Tensor) -> Tensor:
    """Σ_{g≠h} scale_g scale_h g_g·g_h."""
    products = scales[:, None] * gram[:-1, :-1] * scales
    return products.sum() - products.diagonal().sum()


def _with_mean(gram: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Add the mean of all samples as the last row and column."""
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    to_mean = torch.cat([torch.eye(len(counts), dtype=torch.float64), shares[None]])
    return to_mean @ gram @ to_mean.T


def _expected_gram(statistics: Statistics, counts: tuple[int, ...]) -> Tensor:
    """Expected inner products of the means of random groups, [C, C]."""
    num_samples, norm = statistics.num_samples, statistics.mean_squared_norm
    pair = (num_samples * statistics.directed_activity - norm) / max(num_samples - 1, 1)
    sizes = torch.tensor(counts, dtype=torch.float64)
    return torch.full((len(counts), len(counts)), pair, dtype=torch.float64) + torch.diag((norm - pair) / sizes)
