"""Low, high, low, high: the step function of alternating levels that fits a curve best, found by trying them all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A level of fewer points could be a single outlier with a neighbour.
_SHORTEST = 3


@dataclass(frozen=True)
class Levels:
    """A step function.

    Attributes:
        cuts: Index of the first point of levels two to four; n for a level that there is not.
        means: Means of the two to four levels.
        explained: Share of the curve's variance that the step function explains.
    """

    cuts: tuple[int, int, int]
    means: tuple[float, ...]
    explained: float


def alternating_levels(values: NDArray[np.float64], *, fourth_from: int = 0) -> Levels | None:
    """Fit min Σ_i (y_i − m_{level(i)})² over all step functions with m_1 < m_2 > m_3 < m_4, the fourth level optional.

    Where no third level lies below a second, as when the curve only rises, the best two levels m_1 < m_2 are returned.

    The minimum is exact: all O(n³) choices of the three steps are compared (n = 80: a few ms).

    Args:
        values: The curve at evenly spaced points, float64 [n].
        fourth_from: First point at which the fourth level may begin.

    Returns:
        The best step function; None where the curve has too few points, or never rises.

    Example:
        >>> alternating_levels(np.array([0.0, 0, 0, 5, 5, 5, 5, 1, 1, 1, 6, 6, 6])).cuts
        (3, 7, 10)
    """
    n = len(values)
    if n < 3 * _SHORTEST:
        return None
    sums = np.concatenate([[0.0], np.cumsum(values - values.mean())])
    points = np.arange(n + 1)
    lengths = points[None, :] - points[:, None]
    usable = lengths >= _SHORTEST
    totals = sums[None, :] - sums[:, None]
    means = np.where(usable, totals / np.maximum(lengths, 1), np.nan)  # of points i … j-1, [n+1, n+1]
    gains = np.where(usable, totals * means, -np.inf)  # what a level there takes off the sum of squares
    first = gains[0][:, None] + np.where(means[0][:, None] < means, gains, -np.inf)  # [first cut, second cut]
    last_rises = (means < means[:, n][None, :]) & (points >= fourth_from)[None, :]
    tail = np.where(last_rises, gains + gains[:, n][None, :], -np.inf)  # [second cut, third cut]
    tail[:, n] = gains[:, n]
    highest, cuts = -np.inf, (0, 0, 0)
    for second in range(n + 1):
        falls = means[:, second][:, None] > means[second][None, :]  # [first cut, third cut]
        gain = np.where(falls, first[:, second][:, None] + tail[second][None, :], -np.inf)
        best = int(gain.argmax())
        if gain.flat[best] > highest:
            highest, cuts = float(gain.flat[best]), (best // (n + 1), second, best % (n + 1))
    if not np.isfinite(highest):
        rise = int(first[:, n].argmax())
        highest, cuts = float(first[rise, n]), (rise, n, n)
    if not np.isfinite(highest):
        return None
    edges = sorted({0, *cuts, n})
    scale = float(((values - values.mean()) ** 2).sum())
    return Levels(
        cuts=cuts,
        means=tuple(float(values[start:stop].mean()) for start, stop in zip(edges, edges[1:])),
        explained=highest / scale if scale > 0 else 0.0,
    )
