"""Samples: the part of a data set that the experiments use, chosen once and read by every training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sgdkern.data import load_data
from sgdkern.reproduce.job import Job, Result


@dataclass(frozen=True, kw_only=True)
class Samples(Job):
    """So many training samples of each class, and the test set, as pixels in [0, 1].

    Attributes:
        dataset: As ``load_data`` knows it.
        data_root: Folder that holds the data.
        per_class: Training samples of each class; all, where there are fewer.
        test_samples: Test samples to keep; None for all.
        seed: Draws them, and the split where the data have none.
    """

    dataset: str
    data_root: str | None
    per_class: int
    test_samples: int | None
    seed: int

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return f"{self.dataset}: {self.per_class} samples a class, seed {self.seed}"

    def make(self, needed: Sequence[Result]) -> Result:
        """Load the data set and keep the part.

        Args:
            needed: Nothing.

        Returns:
            ``train_inputs`` [N, channels, height, width] and ``test_inputs``, float32; ``train_labels`` [N] and
            ``test_labels``, int64.
        """
        data = load_data(
            self.dataset,
            root=None if self.data_root is None else Path(self.data_root),
            test_samples=self.test_samples,
            scaling="unit",
            seed=self.seed,
        )
        labels = data.train_labels.numpy()
        kept = _per_class(labels, self.per_class, np.random.default_rng(self.seed))
        return Result(
            {
                "train_inputs": data.train_inputs.numpy()[kept],
                "train_labels": labels[kept],
                "test_inputs": data.test_inputs.numpy(),
                "test_labels": data.test_labels.numpy(),
            },
            {"classes": data.num_classes},
        )


def _per_class(labels: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Indices of at most so many samples of each class, in their order."""
    members = [np.flatnonzero(labels == name) for name in np.unique(labels)]
    return np.sort(np.concatenate([generator.permutation(each)[:count] for each in members]))
