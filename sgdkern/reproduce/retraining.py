"""Retraining: the same network trained anew on the samples that a cleaning kept, for the paper's Fig. 6E."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from sgdkern.reproduce.job import Array, Job, Result
from sgdkern.reproduce.training import Training
from sgdkern.training import evaluate

Kept = Literal["largest gap", "phase II", "right labels"]


@dataclass(frozen=True, kw_only=True)
class Retraining(Job):
    """Training on what is left.

    Attributes:
        training: The training whose samples are cleaned, and whose settings are used again.
        kept: Samples whose loss lies below the midpoint of the two fitted means, at the epoch with the largest gap of
            the two (``largest gap``, the paper) or inside of the blindly found phase II (``phase II``); or
            ``right labels``, which only the experimenter knows.
    """

    training: Training
    kept: Kept

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return f"{self.training.title}, again on: {self.kept}"

    @property
    def needs(self) -> tuple[Job, ...]:
        """The data and the first training."""
        return (self.training.samples, self.training)

    def make(self, needed: Sequence[Result]) -> Result:
        """Choose the samples and train.

        Args:
            needed: The data and the first training.

        Returns:
            The test accuracy at the end, how many samples were kept, and how many of those are wrong; the accuracy is
            None where nothing could be chosen.
        """
        samples, trained = needed
        chosen = self._chosen(trained)
        if chosen is None or chosen.sum() < self.training.batch_size:
            return Result(facts={"accuracy": None})
        data = self.training.data(samples)
        mask = torch.from_numpy(chosen)
        trainer = self.training.trainer(data, data.inputs[mask], data.given[mask])
        trainer.advance(self.training.epochs * trainer.steps_per_epoch)
        error = evaluate(trainer.model, data.test_inputs, data.test_labels).error
        wrong = int((chosen & trained["wrong"]).sum())
        return Result(facts={"accuracy": 1 - error, "kept": int(chosen.sum()), "wrong": wrong})

    def _chosen(self, trained: Result) -> Array | None:
        """Which samples are trained on, boolean [N]."""
        if self.kept == "right labels":
            return ~trained["wrong"]
        row = cleaning_row(trained, self.kept)
        if row is None:
            return None
        chosen: Array = trained["losses"][row] < trained["mixture_means"][row].mean()
        return chosen


def cleaning_row(trained: Result, kept: Kept) -> int | None:
    """The measurement at which the samples are told apart.

    Args:
        trained: A noisy training.
        kept: ``largest gap`` or ``phase II``.

    Returns:
        Its row; None without a phase II.
    """
    if kept == "largest gap":
        means = trained["mixture_means"]
        return int(np.argmax(means[:, 1] - means[:, 0]))
    cleaning = trained.facts["phases"]["cleaning"]
    return None if cleaning is None else int(np.argmin(np.abs(trained["probe_epochs"] - cleaning)))
