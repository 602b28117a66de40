"""Alarm: phase III has begun; which moment of phase II to go back to, and its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sgdkern.best_weights import BestWeights
from sgdkern.history import History, Record
from sgdkern.phase_detector import PhaseDetector, PhaseEvent
from sgdkern.phases import label_phases


@dataclass(frozen=True, kw_only=True)
class Alarm(PhaseEvent):
    """Phase III has begun: the network memorises wrong labels from here on.

    Attributes:
        best_step: The measured step nearest to √(T12 T23), the middle of phase II as known at the alarm; with a
            checkpoint the nearest one whose weights were still held.
        checkpoint: The file with the weights of `best_step`, where it was asked for.
    """

    best_step: int
    checkpoint: Path | None


class Lookout:
    """Follows the phases of a run as it goes, raises the alarm, and keeps the weights to go back to.

    Args:
        header: What holds for the whole run, as of `History`.
        weights: Receives the weights; None keeps none.

    Attributes:
        events: All changes of phase so far; that to phase III is an `Alarm`.
        alarm: The alarm, once raised.
    """

    def __init__(self, header: Mapping[str, Any], *, weights: BestWeights | None = None) -> None:
        self.events: list[PhaseEvent] = []
        self.alarm: Alarm | None = None
        self._detector = PhaseDetector(header)
        self._weights = weights

    @property
    def phase(self) -> str:
        """The phase that the run is in, as far as told."""
        return self._detector.phase

    def hold(self, step: int, model: nn.Module | None) -> None:
        """Hold the weights of a step that is about to be recorded, as long as they may be asked for.

        Args:
            step: The step.
            model: The model; None where its weights were saved already.
        """
        if self._weights is not None and self.alarm is None:
            self._weights.add(step, model)

    def update(self, history: History) -> PhaseEvent | None:
        """Take in the last record of a history.

        Args:
            history: All records so far.

        Returns:
            The change of phase that it shows, or None.
        """
        event = self._detector.update(history.records[-1])
        if event is None:
            return None
        if event.name == "II" and self._weights is not None:
            self._weights.drop_before(event.step)
        if event.name == "III":
            event = self.alarm = self._raised(event, history)
        self.events.append(event)
        return event

    def _raised(self, event: PhaseEvent, history: History) -> Alarm:
        """The alarm with the moment to go back to."""
        second = next((past.step for past in self.events if past.name == "II"), None)
        if second is None:  # without margins the two changes are told at once
            second = label_phases(history).t12
        middle = math.sqrt(max(second or 1, 1) * max(event.step, 1))
        best = nearest_record(history, middle).step
        taken = None if self._weights is None else self._weights.take(best)
        checkpoint = None if self._weights is None or taken is None else self._weights.path
        best = best if taken is None else taken
        where = "." if checkpoint is None else f", whose weights are in {checkpoint}."
        advice = f"{event.advice} The middle of phase II was step {best}{where}"
        return Alarm(**{**vars(event), "advice": advice}, best_step=best, checkpoint=checkpoint)


def nearest_record(history: History, step: float) -> Record:
    """Find the record nearest to a step in the ratio of steps.

    Args:
        history: At least one record.
        step: The step.

    Returns:
        The record.
    """
    return min(history, key=lambda record: abs(math.log((record.step + 1) / (step + 1))))
