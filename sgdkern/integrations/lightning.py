"""A callback for Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from sgdkern.probe import Probe


class ProbeCallback(Callback):
    """Measures a probe at the steps that it chooses, before the first step and after each one.

    Args:
        probe: A probe of the module that is trained, or of a network inside it.

    Example:
        ``Trainer(callbacks=[ProbeCallback(probe)]).fit(module, loader)``
    """

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe = probe

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure the module as it was given, or as it was resumed."""
        self.probe(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure after the optimiser's step, where a measurement is due."""
        self.probe(trainer.global_step)
