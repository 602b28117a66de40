"""Two groups of samples, presumably right and presumably wrong, from their losses alone: no label's truth is asked."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

_ITERATIONS = 200
# Changes of the mean log-likelihood below this are past what a threshold between two groups can notice.
_TOLERANCE = 1e-7
# A group of fewer samples has no mean gradient to speak of.
SMALLEST_GROUP = 2


def presumed_wrong(scores: Array) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """The samples that belong to the upper component of a mixture of two Gaussians fitted to the scores.

    Expectation-maximisation from a fixed start (the halves below and above the middle of the 5 % and 95 % quantiles),
    so that the same scores give the same groups; the boundary is where the two posteriors are equal, once, between the
    two means.

    Args:
        scores: One number a sample, larger is more suspicious: losses, or their mean over a run so far. Float64 [N].

    Returns:
        Boolean [N]; None where the scores do not split into two groups of at least two samples each.
    """
    low, high = np.quantile(scores, [0.05, 0.95])
    upper = scores > (low + high) / 2
    if not np.isfinite(scores).all() or not SMALLEST_GROUP <= int(upper.sum()) <= len(scores) - SMALLEST_GROUP:
        return None
    responsibility = upper.astype(np.float64)
    # A component narrower than this would be a single repeated value.
    floor = 1e-6 * float(scores.var()) + np.finfo(np.float64).tiny
    previous = -np.inf
    for _ in range(_ITERATIONS):
        weights = np.stack([1 - responsibility, responsibility])
        totals = weights.sum(1)
        if totals.min() < SMALLEST_GROUP:
            return None
        means = weights @ scores / totals
        variances = (weights * (scores - means[:, None]) ** 2).sum(1) / totals + floor
        densities = (
            np.log(totals / len(scores))[:, None]
            - 0.5 * np.log(2 * np.pi * variances)[:, None]
            - 0.5 * (scores - means[:, None]) ** 2 / variances[:, None]
        )
        evidence = np.logaddexp(densities[0], densities[1])
        responsibility = np.exp(densities[1] - evidence)
        likelihood = float(evidence.mean())
        if likelihood - previous < _TOLERANCE:
            break
        previous = likelihood
    if means[1] <= means[0]:
        return None
    wrong: np.ndarray[Any, np.dtype[np.bool_]] = (scores > means[1]) | ((responsibility > 0.5) & (scores > means[0]))
    return wrong if SMALLEST_GROUP <= int(wrong.sum()) <= len(scores) - SMALLEST_GROUP else None
