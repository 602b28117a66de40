"""Times and levels that are read off the curves of a training: t_m, t_f, and the phases by the test error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sgdkern.learning_order import running_median
from sgdkern.reproduce.job import Array, Result

# Of the fall and of the rise of the test error, as in `phase_truth`: definitions, not fits.
_PLATEAU, _ESCAPE, _TRAINED = 0.10, 0.15, 0.01
_SMOOTHED = 5
START = 0.1  # epoch at which the first phase is said to begin


@dataclass(frozen=True)
class Landmarks:
    """Where a noisy training turns, in epochs; NaN where it does not come so far.

    Attributes:
        t_m: Of the lowest test error.
        t_f: The first with a training error ≤ 1 % (the paper does not define it).
        t_half: The test error has fallen half-way to its lowest.
        t12: Phase II begins: the test error has fallen but for a tenth.
        t23: Phase III begins: it has risen by 15 % of what it will rise.
        lowest: ε_m, the test error at t_m.
        final: ε_f, the test error at the end.
        end: The last epoch.
    """

    t_m: float
    t_f: float
    t_half: float
    t12: float
    t23: float
    lowest: float
    final: float
    end: float

    @property
    def phases(self) -> dict[str, tuple[float, float]]:
        """Start and end of the phases that there are, in epochs; phase I from `START` on."""
        edges = [START, self.t12, self.t23, self.t_f if np.isfinite(self.t_f) else self.end, self.end]
        ordered = np.maximum.accumulate(np.minimum(edges, self.end)).tolist()
        named = zip(("I", "II", "III", "IV"), zip(ordered, ordered[1:], strict=False), strict=True)
        return {name: (start, end) for name, (start, end) in named if end > start}

    def middle(self, phase: str) -> float:
        """The middle of a phase in the logarithm of time; NaN where it does not exist."""
        start, end = self.phases.get(phase, (np.nan, np.nan))
        return float(np.sqrt(start * end))


def landmarks(trained: Result) -> Landmarks:
    """Read the landmarks off a training's errors, the test error smoothed by a running median of five measurements.

    Args:
        trained: A noisy training.

    Returns:
        Them.
    """
    epochs, test = trained["epochs"], running_median(trained["test_error"], _SMOOTHED)
    lowest, final = float(test.min()), float(np.median(trained["test_error"][-_SMOOTHED:]))
    learned = np.flatnonzero(trained["train_error"] <= _TRAINED)
    return Landmarks(
        t_m=float(epochs[test.argmin()]),
        t_f=float(epochs[learned[0]]) if len(learned) else np.nan,
        t_half=float(epochs[np.argmax(test <= (lowest + test[0]) / 2)]),
        t12=float(epochs[np.argmax(test <= lowest + _PLATEAU * (test[0] - lowest))]),
        t23=float(epochs[np.flatnonzero(test <= lowest + _ESCAPE * (final - lowest))[-1]]),
        lowest=lowest,
        final=final,
        end=float(epochs[-1]),
    )


def at(times: Array, values: Array, time: float) -> float:
    """The value measured nearest to a time, in the logarithm.

    Args:
        times: When was measured, [T].
        values: What, [T].
        time: The time.

    Returns:
        The value; NaN where the time is.
    """
    if not np.isfinite(time):
        return float("nan")
    return float(values[nearest(times, time)])


def nearest(times: Array, time: float) -> int:
    """The row measured nearest to a time, in the logarithm.

    Args:
        times: When was measured, [T].
        time: The time, positive.

    Returns:
        The row.
    """
    return int(np.argmin(np.abs(np.log(np.maximum(times, 1e-9)) - np.log(time))))


def within(times: Array, values: Array, span: tuple[float, float]) -> Array:
    """The values measured in a span of time.

    Args:
        times: When was measured, [T].
        values: What, [T].
        span: Start and end.

    Returns:
        The values of it.
    """
    inside: Array = values[(times >= span[0]) & (times <= span[1])]
    return inside
