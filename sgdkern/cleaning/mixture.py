"""Two groups in one score: a two-component Gaussian mixture, its thresholds, and the share of wrong labels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdkern.cleaning.table import NoiseRate

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians on a line; ``low`` has the smaller mean.

    Attributes:
        means: (low, high).
        variances: (low, high).
        weights: (low, high), sum 1.
    """

    means: tuple[float, float]
    variances: tuple[float, float]
    weights: tuple[float, float]

    @property
    def gap(self) -> float:
        """The distance of the means, the paper's Delta L."""
        return self.means[1] - self.means[0]

    @property
    def midpoint(self) -> float:
        """The point half-way between the means, the paper's l_c."""
        return (self.means[0] + self.means[1]) / 2

    @property
    def equal_density(self) -> float:
        """The point between the means where both weighted densities are equal; the midpoint where there is none."""
        grid = np.linspace(self.means[0], self.means[1], 2049)
        belongs_high = self.posterior_high(grid) >= 0.5
        if belongs_high[0] or not belongs_high[-1]:
            return self.midpoint
        return float(grid[int(np.argmax(belongs_high))])

    def posterior_high(self, values: Array) -> Array:
        """Return the probability that each value belongs to the component with the larger mean, [N]."""
        low, high = (
            np.log(weight) - 0.5 * np.log(variance) - (values - mean) ** 2 / (2 * variance)
            for mean, variance, weight in zip(self.means, self.variances, self.weights, strict=True)
        )
        posterior: Array = 1 / (1 + np.exp(np.clip(low - high, -500, 500)))
        return posterior


def fit_mixture(values: Array) -> Mixture:
    """Fit two Gaussians to the values by expectation maximisation, started from two-means.

    Args:
        values: [N], at least two different ones.

    Returns:
        The fitted mixture.

    Raises:
        ValueError: if the values are all the same.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    column = np.asarray(values, dtype=np.float64)[:, None]
    if np.ptp(column) == 0:
        raise ValueError("fit_mixture: the scores must differ, got one value for all samples. Was anything trained?")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # far from two Gaussians it creeps; the fit is usable
        model = GaussianMixture(2, max_iter=200, random_state=0).fit(column)
    low, high = np.argsort(model.means_[:, 0])
    means, variances, weights = model.means_[:, 0], model.covariances_[:, 0, 0], model.weights_
    return Mixture(
        (float(means[low]), float(means[high])),
        (float(variances[low]), float(variances[high])),
        (float(weights[low]), float(weights[high])),
    )


def split_mixture(scores: Array, threshold: float) -> Mixture | None:
    """Describe the two sides of a threshold as two Gaussians; None where a side has fewer than two samples.

    Unlike `fit_mixture` this does not invent a second group where the threshold finds none.

    Args:
        scores: [N].
        threshold: samples below it form the low component.

    Returns:
        The mixture, or None.
    """
    below = scores < threshold
    if min(below.sum(), (~below).sum()) < 2:
        return None
    floor = 1e-12 + 1e-6 * float(scores.var())
    low, high = scores[below], scores[~below]
    share = float(below.mean())
    return Mixture(
        (float(low.mean()), float(high.mean())),
        (float(low.var()) + floor, float(high.var()) + floor),
        (share, 1 - share),
    )


def probability_wrong(scores: Array, threshold: float) -> Array:
    """Estimate the probability that a label is wrong from its score, non-increasing in the score.

    The posterior of the low side of the threshold (`split_mixture`), made monotone by isotonic regression.

    Args:
        scores: [N], higher is better.
        threshold: samples below it are taken for wrong.

    Returns:
        [N] in [0, 1].
    """
    from sklearn.isotonic import IsotonicRegression

    mixture = split_mixture(scores, threshold)
    if mixture is None:
        return (scores < threshold).astype(np.float64)
    posterior = 1 - mixture.posterior_high(scores)
    monotone: Array = IsotonicRegression(increasing=False, out_of_bounds="clip").fit_transform(scores, posterior)
    return np.clip(monotone, 0.0, 1.0)


def rate_of(p_wrong: Array, *, confidence: float = 0.95) -> NoiseRate:
    """Return the mean of p_wrong with the binomial (Wilson) interval of a share of N samples.

    Args:
        p_wrong: [N].
        confidence: coverage of the interval.

    Returns:
        The noise rate; the interval covers the sampling of N samples, not the errors of the score.
    """
    from scipy.stats import norm

    count, rate = len(p_wrong), float(p_wrong.mean())
    z = float(norm.ppf(0.5 + confidence / 2))
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return NoiseRate(rate, max(0.0, centre - half), min(1.0, centre + half))
