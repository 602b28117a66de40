"""A callback for Hugging Face's Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from sgdkern.probe import Probe


class ProbeCallback(TrainerCallback):
    """Measures a probe at the steps that it chooses, before the first step and after each one.

    Args:
        probe: A probe of the model that the Trainer trains.

    Example:
        ``Trainer(model, args, callbacks=[ProbeCallback(probe)], …)``
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model as it was given, or as it was resumed."""
        self.probe(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure after the optimiser's step, where a measurement is due."""
        self.probe(state.global_step)
