"""Phases live: an event a few records after a change, never taken back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdkern.history import History, Record
from sgdkern.phase_dates import trained_step
from sgdkern.phase_judgement import learning_order_of
from sgdkern.phases import FOUR, TWO, label_phases

# How far the label of the finished run may lie from an event's date, as a factor in steps: nine of ten events kept to
# it in every list of runs seen so far, the hardest included (docs/phases.md, "The alarm").
_WITHIN = {"II": 4.0, "III": 2.25, "IV": 1.25, "exploration": 2.0}

# A change is announced when so many records in a row show it: one record alone is often noise. A pause in learning can
# look like the beginning of phase II for longer, and nothing is lost by telling that one later.
_IN_A_ROW = {"I": 4, "II": 2, "III": 1}

_ADVICE = {
    "II": "The network has learned what it can of the right labels: losses tell wrong labels from right ones best now.",
    "III": "The network begins to memorise wrong labels: stop here, or go back to a checkpoint of phase II.",
    "IV": "All labels are memorised: training on brings nothing.",
    "exploration": "The network has learned its data, without signs of wrong labels.",
}


@dataclass(frozen=True)
class PhaseEvent:
    """A change of phase.

    Attributes:
        name: The phase that has begun: `II`, `III`, `IV` or `exploration`.
        step: The step at which it is dated to have begun.
        seen_at: The step of the record that showed it.
        advice: What that means for the run, in a sentence.
        within: Factor in steps within which `label_phases` puts the change once the run is finished, nine times of ten.
    """

    name: str
    step: int
    seen_at: int
    advice: str
    within: float


class PhaseDetector:
    """Watches the records of a run and tells changes of phase as they happen.

    With margins in the records all changes are told; without them phase II is passed over, and phase III is the first
    event. Each event is final: a phase is announced once, in order, and its date is not revised; the event says how far
    the label of the finished run may lie from it (`within`). How late events come is measured in docs/phases.md.

    Args:
        header: What holds for the whole run, as of `History`: `num_samples` and `batch_size` tell how long an epoch is,
            `given_labels` how frequent the most frequent label is.

    Attributes:
        phase: The phase that the run is in, as far as announced: `I`, `II`, `III`, `IV` or `exploration`.

    Example:
        >>> detector = PhaseDetector()
        >>> detector.update(Record(step=0, values={"sigma_lambda2": 1.0, "A": 1.0})) is None
        True
        >>> detector.phase
        'I'
    """

    def __init__(self, header: Mapping[str, Any] | None = None) -> None:
        self.phase = "I"
        self._history = History(header)
        self._seen = 0

    def update(self, record: Record) -> PhaseEvent | None:
        """Take in one more record.

        Args:
            record: A record whose step is larger than the last one's.

        Returns:
            The change that it shows, or None.

        Raises:
            ValueError: The step does not increase.
        """
        self._history.append(record)
        change = {"I": self._leaves_first, "II": self._leaves_second, "III": self._leaves_third}.get(self.phase)
        found = change() if change else None
        self._seen = self._seen + 1 if found else 0
        if found is None or self._seen < _IN_A_ROW[self.phase]:
            return None
        self._seen = 0
        self.phase, step = found
        return PhaseEvent(self.phase, int(step), record.step, _ADVICE[self.phase], _WITHIN[self.phase])

    def _leaves_first(self) -> tuple[str, float] | None:
        if learning_order_of(self._history) is None:
            # Order parameters alone tell phase II from exploration only when phase III has ended it.
            return self._leaves_second()
        phases = label_phases(self._history)
        if phases.t12 is None:
            return None
        return ("exploration" if phases.verdict == TWO else "II"), phases.t12

    def _leaves_second(self) -> tuple[str, float] | None:
        phases = label_phases(self._history)
        return ("III", phases.t23) if phases.verdict == FOUR and phases.t23 is not None else None

    def _leaves_third(self) -> tuple[str, float] | None:
        step = trained_step(self._history, learning_order_of(self._history))
        return ("IV", step) if np.isfinite(step) else None
