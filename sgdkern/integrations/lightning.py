"""A callback for Lightning's Trainer."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch.callbacks import Callback

from sgdkern.probe import Probe

_logger = logging.getLogger("lightning.pytorch.sgdkern")  # below Lightning's own, which shows what is logged


class ProbeCallback(Callback):
    """Measures a probe at the steps that it chooses, before the first step and after each one.

    Changes of phase are logged as they are seen, with what they mean; each of the Trainer's loggers receives
    ``sgdkern/phase``, 1 to 4.

    Args:
        probe: A probe of the module that is trained, or of a network inside it.
        stop_at_alarm: Whether training ends where the network is seen to memorise wrong labels.

    Example:
        ``Trainer(callbacks=[ProbeCallback(probe)]).fit(module, loader)``
    """

    def __init__(self, probe: Probe, *, stop_at_alarm: bool = False) -> None:
        super().__init__()
        self.probe = probe
        self._stop_at_alarm = stop_at_alarm

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure the module as it was given, or as it was resumed."""
        self._measure(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure after the optimiser's step, where a measurement is due."""
        self._measure(trainer)

    def _measure(self, trainer: Any) -> None:
        told = len(self.probe.events)
        self.probe(trainer.global_step)
        for event in self.probe.events[told:]:
            _logger.warning("step %d: phase %s. %s", event.seen_at, event.name, event.advice)
            for logger in trainer.loggers:
                logger.log_metrics({"sgdkern/phase": _NUMBERS[event.name]}, step=event.seen_at)
        if self._stop_at_alarm and self.probe.alarm is not None:
            trainer.should_stop = True


# The exploration phase of clean data takes the place of phase II: generalising, without anything to memorise.
_NUMBERS = {"II": 2, "III": 3, "IV": 4, "exploration": 2}
