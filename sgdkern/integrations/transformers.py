"""A callback for Hugging Face's Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from sgdkern.probe import Probe

_logger = logging.get_logger(__name__)


class ProbeCallback(TrainerCallback):
    """Measures a probe at the steps that it chooses, before the first step and after each one.

    Changes of phase are logged as they are seen, with what they mean, and kept in the Trainer's ``state.log_history``.

    Args:
        probe: A probe of the model that the Trainer trains.
        stop_at_alarm: Whether training ends where the network is seen to memorise wrong labels.

    Example:
        ``Trainer(model, args, callbacks=[ProbeCallback(probe)], …)``
    """

    def __init__(self, probe: Probe, *, stop_at_alarm: bool = False) -> None:
        self.probe = probe
        self._stop_at_alarm = stop_at_alarm

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model as it was given, or as it was resumed."""
        self._measure(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure after the optimiser's step, where a measurement is due."""
        self._measure(state, control)

    def _measure(self, state: Any, control: Any) -> None:
        told = len(self.probe.events)
        self.probe(state.global_step)
        for event in self.probe.events[told:]:
            _logger.warning("step %d: phase %s. %s", event.seen_at, event.name, event.advice)
            state.log_history.append({"step": event.seen_at, "sgdkern/phase": event.name, "sgdkern/since": event.step})
        if self._stop_at_alarm and self.probe.alarm is not None:
            control.should_training_stop = True
