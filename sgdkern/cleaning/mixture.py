"""Two groups in one score: a two-component Gaussian mixture, its thresholds, and the share of wrong labels."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdkern.cleaning.table import UPPER_BOUND, NoiseRate

Array = npt.NDArray[Any]

AGREE = 0.95  # where networks are surest, good ones agree at least so often: .98 and more on MNIST, below .89 on CIFAR


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


def wilson(rate: float, count: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval for a share observed among so many samples.

    Args:
        rate: the share observed.
        count: samples.
        confidence: coverage.

    Returns:
        Its lower and upper end.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def rate_of(p_wrong: Array, *, bound: bool = False) -> NoiseRate:
    """Return the mean of p_wrong with the 95 % interval of a share of N samples.

    Args:
        p_wrong: [N].
        bound: whether p_wrong is an upper bound only, so that the interval begins at 0.

    Returns:
        The noise rate; the interval covers the sampling of N samples, not the errors of the score.
    """
    rate = float(p_wrong.mean())
    low, high = wilson(rate, len(p_wrong))
    return NoiseRate(rate, 0.0, high, UPPER_BOUND) if bound else NoiseRate(rate, low, high)


def rate_among_sure(held_out_logits: Array, labels: Array, *, agreement: float = 1.0) -> NoiseRate:
    """Estimate the noise rate where networks that have not seen a sample are surest of its label.

    Those predictions are nearly always right, so that a given label which differs from them is wrong. Of each predicted
    class the half with the largest gap between the two best logits is asked, and classes are weighted by their size.

    Where networks do not even agree with one another on such samples (`agreement_among_sure` below .95) they are too
    weak for that. Then shares down to 1/32 are asked too, and the one whose interval ends lowest is the estimate, with
    the networks' own errors still in it. The interval goes from 0 to the upper end of the half: smaller shares may be
    the samples around which labels happen to be right.

    Args:
        held_out_logits: [N, C].
        labels: [N] integer given labels.
        agreement: what `agreement_among_sure` says of the networks.

    Returns:
        The noise rate, right as long as wrong labels are no more or less frequent among easy samples of a class than
        among hard ones; the interval covers the sampling of the samples asked, and `covers` says whether it bounds.
    """
    predicted = held_out_logits.argmax(axis=1)
    powers = range(1, 2 if agreement >= AGREE else 6)
    asked = [_surest(held_out_logits, 2.0**-power) for power in powers]
    shares = [(_disagreement(predicted, labels, places), len(places)) for places in asked]
    if agreement >= AGREE:
        rate, count = shares[0]
        return NoiseRate(rate, *wilson(rate, count), "sampling of the half of the samples that were asked")
    least, _ = min(shares, key=lambda share: wilson(*share, confidence=0.99)[1])  # of five: 95 % for all of them
    return NoiseRate(least, 0.0, wilson(*shares[0])[1], UPPER_BOUND)


def agreement_among_sure(held_out_logits: Array, trained_logits: Array) -> float:
    """Return how often networks that were trained on a sample predict what those that have not seen it are surest of.

    It needs no label, and two networks that disagree cannot both be right: below 1 the surest predictions are wrong at
    least half as often as it falls short.

    Args:
        held_out_logits: [N, C]; of each predicted class the half with the largest gap of the two best is asked.
        trained_logits: [N, C].

    Returns:
        The share of the same predictions, in [0, 1].
    """
    places = _surest(held_out_logits, 0.5)
    return float((held_out_logits[places].argmax(axis=1) == trained_logits[places].argmax(axis=1)).mean())


def _surest(logits: Array, share: float) -> Array:
    """Return the places of that share of the samples of each predicted class, those with the largest gaps."""
    top = np.sort(logits, axis=1)
    gaps = top[:, -1] - top[:, -2]
    predicted = logits.argmax(axis=1)
    chosen = []
    for name in np.unique(predicted):
        members = np.flatnonzero(predicted == name)
        chosen.append(members[np.argsort(-gaps[members], kind="stable")[: max(1, int(len(members) * share))]])
    return np.concatenate(chosen)


def _disagreement(predicted: Array, labels: Array, places: Array) -> float:
    """Return how often labels differ from predictions at those places, classes weighted by all their predictions."""
    total = 0.0
    for name, size in zip(*np.unique(predicted, return_counts=True), strict=True):
        sure = places[predicted[places] == name]
        total += int(size) * float((labels[sure] != name).mean())
    return total / len(predicted)
