"""Moments of the per-sample gradients: of the N samples themselves, and unbiased ones of the population behind them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, perm

import torch
from torch import Tensor

from sgdkern.statistics import Statistics


@dataclass(frozen=True, eq=False)
class Moments:
    """All that a formula reads; float64 tensors of one shape (one number, or one for each leave-one-out sample).

    Attributes:
        noise_factor: φ, the share of tr Σ that is left in the mean of a minibatch.
        squared_norm: q̄ = mean ‖g_n‖².
        directed_activity: A0 = ‖ḡ‖².
        directed_activity_squared: A0², a moment of its own because the square of an unbiased estimate is biased.
        squared_projection: mean s_n², s_n = g_n · ḡ.
        minibatch_cosine: R, measured over drawn minibatches; nan where not measured.
    """

    noise_factor: float
    squared_norm: Tensor
    directed_activity: Tensor
    directed_activity_squared: Tensor
    squared_projection: Tensor
    minibatch_cosine: Tensor


def noise_factor(batch_size: int, num_samples: float, *, replacement: bool = False) -> float:
    """The factor φ by which averaging a minibatch shrinks the variance of the per-sample gradients.

    φ = (N − B) / (B (N − 1)) without replacement, 1 / B with; N may be infinite.

    Args:
        batch_size: B.
        num_samples: N, or infinity.
        replacement: Whether a minibatch may hold a sample twice.

    Returns:
        φ, between 0 (B = N) and 1 (B = 1).

    Raises:
        ValueError: If no minibatch of this size exists.

    Example:
        >>> noise_factor(1, 10), noise_factor(10, 10), noise_factor(5, 10, replacement=True)
        (1.0, 0.0, 0.2)
    """
    if (
        not hasattr(batch_size, "__int__")
        or batch_size != int(batch_size)
        or batch_size < 1
        or (batch_size > num_samples and not replacement)
    ):
        raise ValueError(
            f"order_parameters: batch_size must be a whole number from 1 to the number of samples {num_samples}, got "
            f"{batch_size}. Probe more samples, or pass replacement=True."
        )
    if replacement or num_samples == inf:
        return 1 / batch_size
    if num_samples == 1:
        return 0.0  # one sample, one minibatch: there is no noise
    return (num_samples - batch_size) / (batch_size * (num_samples - 1))


def sample_moments(statistics: Statistics, factor: float, minibatch_cosine: float = nan) -> Moments:
    """The moments over the N samples, as plain averages.

    Args:
        statistics: Of the N samples.
        factor: φ.
        minibatch_cosine: R.

    Returns:
        Moments of shape [].
    """
    activity = torch.tensor(statistics.directed_activity, dtype=torch.float64)
    return Moments(
        noise_factor=factor,
        squared_norm=statistics.squared_norms.mean(),
        directed_activity=activity,
        directed_activity_squared=activity**2,
        squared_projection=statistics.projections.square().mean(),
        minibatch_cosine=torch.tensor(minibatch_cosine, dtype=torch.float64),
    )


def population_moments(statistics: Statistics, factor: float, population_size: float = inf) -> Moments:
    """Unbiased estimates of the population's moments from all N samples, then from each N − 1 of them.

    Each moment is a polynomial in inner products of gradients of *distinct* samples, and each such product is averaged
    over all ordered choices of distinct samples (a U-statistic). With r_i = Σ_{j≠i} K_ij and (n)_k = n (n−1) … (n−k+1):
    Σ_{i≠j} K_ij = W = Σ r_i;  Σ_{ijk distinct} K_ij K_ik = T3 = Σ (r_i² − Σ_{j≠i} K_ij²);  Σ_{ijkl distinct} K_ij K_kl
    = W² − 4 T3 − 2 Σ_{i≠j} K_ij². A finite population of size n adds the terms with equal indices.

    Args:
        statistics: Of the N samples, thought of as drawn from the population without replacement.
        factor: φ of a minibatch drawn from the population.
        population_size: Number of samples in the population; infinite for i.i.d. samples from a distribution.

    Returns:
        Moments of shape [1 + N]: the estimate, then the N leave-one-out estimates in closed form, O(N). Moments that
        need more samples than there are, or pair sums where the statistics have none, are nan.

    Raises:
        ValueError: If the population is smaller than the sample.

    Reference:
        Hoeffding, "A class of statistics with asymptotically normal distribution" (1948), for U-statistics.
    """
    num_samples = statistics.num_samples
    if population_size < num_samples:
        raise ValueError(
            f"order_parameters: population_size must be at least the number of samples {num_samples}, got "
            f"{population_size}. Pass the size of the whole training set."
        )
    norms = statistics.squared_norms
    sums = num_samples * statistics.projections - norms  # r
    norm_sum = _leave_one_out(norms.sum(), norms)
    pair_sum = _leave_one_out(sums.sum(), 2 * sums)
    mean_norm = norm_sum / _falling(num_samples, 1)
    mean_pair = pair_sum / _falling(num_samples, 2)
    # Shares (n)_k / n^k of ordered choices from the population that are distinct; m = 1 / n.
    m = 1 / population_size
    pairs, triples, quadruples = 1 - m, (1 - m) * (1 - 2 * m), (1 - m) * (1 - 2 * m) * (1 - 3 * m)
    unknown = torch.full_like(pair_sum, nan)
    squared_projection, activity_squared = unknown, unknown
    if statistics.pairs is not None:
        squares, products = statistics.pairs.row_squares, statistics.pairs.row_products
        triple_sum = _leave_one_out((sums**2 - squares).sum(), sums**2 - squares + 2 * products - 2 * squares)
        square_sum = _leave_one_out(squares.sum(), 2 * squares)
        norm_pair_sum = _leave_one_out((norms * sums).sum(), norms * sums + statistics.pairs.norm_products)
        norm_square_sum = _leave_one_out((norms**2).sum(), norms**2)
        chain = triple_sum / _falling(num_samples, 3)  # K_ij K_ik
        square = square_sum / _falling(num_samples, 2)  # K_ij²
        norm_pair = norm_pair_sum / _falling(num_samples, 2)  # K_ii K_ij
        norm_square = norm_square_sum / _falling(num_samples, 1)  # K_ii²
        disjoint = (pair_sum**2 - 4 * triple_sum - 2 * square_sum) / _falling(num_samples, 4)  # K_ij K_kl
        norm_apart = (pair_sum * norm_sum - 2 * norm_pair_sum) / _falling(num_samples, 3)  # K_ij K_kk
        norms_apart = (norm_sum**2 - norm_square_sum) / _falling(num_samples, 2)  # K_ii K_jj
        squared_projection = triples * chain + pairs * m * (square + 2 * norm_pair) + m**2 * norm_square
        activity_squared = (
            quadruples * disjoint
            + triples * m * (4 * chain + 2 * norm_apart)
            + pairs * m**2 * (2 * square + 4 * norm_pair + norms_apart)
            + m**3 * norm_square
        )
    return Moments(
        noise_factor=factor,
        squared_norm=mean_norm,
        directed_activity=pairs * mean_pair + m * mean_norm,
        directed_activity_squared=activity_squared,
        squared_projection=squared_projection,
        minibatch_cosine=unknown,
    )


def _leave_one_out(total: Tensor, terms: Tensor) -> Tensor:
    """The total, then the total without each sample's terms: [] and [N] → [1 + N]."""
    return torch.cat([total[None], total - terms])


def _falling(num_samples: int, order: int) -> Tensor:
    """(n)_k = n (n−1) … (n−k+1) for n = N, then for each N − 1; nan where that is zero: no such choice exists."""
    product = torch.full((1 + num_samples,), float(perm(num_samples - 1, order)) or nan, dtype=torch.float64)
    product[0] = float(perm(num_samples, order)) or nan
    return product
