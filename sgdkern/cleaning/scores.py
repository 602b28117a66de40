"""Per-sample scores from what a run recorded: losses, averages over training, when memorisation begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return the losses log sum_c exp(z_c) - z_label.

    Args:
        logits: [..., N, C].
        labels: [N] integers in 0 ... C-1.

    Returns:
        [..., N] float64.
    """
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1)
    own = np.take_along_axis(wide, _column(logits, labels), axis=-1)[..., 0]
    losses: Array = np.log(np.exp(wide - top[..., None]).sum(axis=-1)) + top - own
    return losses


def time_average(values: Array, steps: Array, *, until: float | None = None, log_time: bool = False) -> Array:
    """Average over training time by the trapezoidal rule, from the first recorded step on.

    mean = sum_t w_t v_t / sum_t w_t, where w_t is half the distance of the neighbouring steps (of their logarithms if
    ``log_time``), so that unevenly spaced records count by the time that they stand for.

    Args:
        values: [T, N].
        steps: [T] increasing.
        until: last step to use; None for all of them. The first record is always used.
        log_time: measure time as log(1 + step), which gives the few early records of a run the weight of the many late
            ones.

    Returns:
        [N] float64.

    Example:
        >>> time_average(np.array([[0.0], [1.0], [1.0]]), np.array([0, 1, 10]))
        array([0.95])
    """
    keep = np.ones(len(steps), dtype=bool) if until is None else steps <= until
    keep[0] = True
    times = steps[keep].astype(np.float64)
    if log_time:
        times = np.log1p(times)
    if len(times) == 1:
        first: Array = values[keep][0].astype(np.float64)
        return first
    gaps = np.diff(times)
    weights = (np.append(gaps, 0.0) + np.insert(gaps, 0, 0.0)) / 2
    average: Array = np.tensordot(weights / weights.sum(), values[keep].astype(np.float64), axes=1)
    return average


def memorisation_onset(margins: Array, steps: Array) -> float | None:
    """Find when a run begins to memorise, from the margins alone.

    The share of samples whose margin now has another sign than its average so far is large while the network learns,
    small in phase II, and large again when labels that were contradicted so far are memorised. The onset is the last
    step at which it has risen by less than a quarter from that valley to the later peak.

    Args:
        margins: [T, N].
        steps: [T] increasing.

    Returns:
        The step; None where there is no such rise (clean labels, or too short a run).
    """
    averages = np.stack([time_average(margins, steps, until=float(step)) for step in steps])
    flips = ((margins > 0) != (averages > 0)).mean(axis=1)
    falls = np.flatnonzero(np.diff(flips[1:]) < 0)
    if len(falls) == 0:
        return None
    learned = 1 + int(falls[0])
    valley = learned + int(flips[learned:].argmin())
    if flips[learned:].argmax() > 0:  # the late peak is the higher one: its valley lies before it
        peak = learned + int(flips[learned:].argmax())
        valley = learned + int(flips[learned : peak + 1].argmin())
    peak = valley + int(flips[valley:].argmax())
    rise = flips[peak] - flips[valley]
    # less than a few samples in a hundred, or no valley to speak of, is no sign of memorisation
    if rise < 0.03 or flips[valley] > 0.7 * flips[peak]:
        return None
    low = np.flatnonzero(flips[valley : peak + 1] <= flips[valley] + rise / 4)
    return float(steps[valley + low[-1]])


def quality(scores: Array, threshold: float) -> Array:
    """Map scores, higher is better, to qualities in (0, 1) that are below 0.5 exactly where score < threshold.

    quality = 1 / (1 + exp(-(score - threshold) / spread)), the spread being the scores' standard deviation: strictly
    increasing, so that the ranking is the score's.

    Args:
        scores: [N].
        threshold: the score of quality 0.5.

    Returns:
        [N] float64.
    """
    spread = float(scores.std()) or 1.0
    values: Array = 1 / (1 + np.exp(-np.clip((scores.astype(np.float64) - threshold) / spread, -500, 500)))
    return values


def _column(logits: Array, labels: Array) -> Array:
    """Broadcast labels [N] to [..., N, 1], the index of the given label in the last axis."""
    return np.broadcast_to(labels[:, None], (*logits.shape[:-1], 1))
