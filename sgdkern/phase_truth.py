"""What the phases were, by the test error: the yardstick for phase labels, which never see it."""

from __future__ import annotations

import numpy as np

from sgdkern.history import History
from sgdkern.learning_order import running_median
from sgdkern.phase_dates import first_scored_step
from sgdkern.phases import FOUR, TWO, Phase, Phases

# Of the fall and of the rise of the test error. Definitions, not fits.
_PLATEAU, _ESCAPE = 0.10, 0.15
_TRAINED = 0.01
# A test error that rises by less than this, 3 samples in 100, is not said to rise.
_NOTICEABLE = 0.03


def phases_from_test_error(history: History) -> Phases:
    """Label a run by its test error ε: for scoring only, since it needs clean test labels.

    ε is smoothed by a running median of 5 records; ε_0 is its first value, ε_m its minimum, ε_f its final value (the
    median of the last 5). T12 is the first step with ε ≤ ε_m + .10 (ε_0 − ε_m), T23 the last with
    ε ≤ ε_m + .15 (ε_f − ε_m), T34 the first with a training error ≤ 1 %. Where ε_f − ε_m < .03 there are two phases,
    divided at T12.

    Args:
        history: Records with the metrics `test_error` and `train_error`.

    Returns:
        The phases; the first begins a tenth of an epoch after the start, where scoring begins.

    Raises:
        KeyError: The history lacks one of the metrics.
    """
    steps = history.steps
    error = running_median(history.column("test_error"), 5)
    trained = np.flatnonzero(running_median(history.column("train_error"), 5) <= _TRAINED)
    lowest, final, last = float(error.min()), float(np.median(error[-5:])), float(steps[-1])
    start = first_scored_step(history)
    t12 = float(steps[np.argmax(error <= lowest + _PLATEAU * (error[0] - lowest))])
    if final - lowest < _NOTICEABLE:
        return _phases(TWO, ("fast", "exploration"), [start, t12, last])
    t23 = float(steps[np.flatnonzero(error <= lowest + _ESCAPE * (final - lowest))[-1]])
    t34 = float(steps[trained[0]]) if len(trained) else last
    return _phases(FOUR, ("I", "II", "III", "IV"), [start, t12, t23, t34, last])


def _phases(verdict: str, names: tuple[str, ...], edges: list[float]) -> Phases:
    ordered = np.maximum.accumulate(np.minimum(edges, edges[-1])).astype(int).tolist()
    kept = [
        Phase(name, start, end, 1.0)
        for name, start, end in zip(names, ordered, ordered[1:], strict=False)
        if end > start
    ]
    changes = [step if step < ordered[-1] else None for step in ordered[1:-1]] + [None, None]
    t12, t23, t34 = changes[:3]
    return Phases(kept, verdict=verdict, reason="by the test error.", t12=t12, t23=t23, t34=t34)


def phase_agreement(phases: Phases, truth: Phases) -> float:
    """Share of log-time in which two labellings say the same.

    Args:
        phases: The labels to score.
        truth: The labels to score by; the time that they cover is scored.

    Returns:
        0 to 1; 0 where the truth covers no time.

    Example:
        >>> truth = Phases([Phase("I", 1, 10, 1.0), Phase("II", 10, 100, 1.0)], verdict=FOUR, reason="")
        >>> guess = Phases([Phase("I", 1, 100, 1.0)], verdict=FOUR, reason="")
        >>> phase_agreement(guess, truth)
        0.5
    """
    whole = same = 0.0
    for right in truth:
        low, high = np.log(max(right.start, 0.5)), np.log(max(right.end, 0.5))
        whole += high - low
        for guess in phases:
            if guess.name == right.name:
                same += max(0.0, min(high, np.log(max(guess.end, 0.5))) - max(low, np.log(max(guess.start, 0.5))))
    return float(same / whole) if whole > 0 else 0.0
