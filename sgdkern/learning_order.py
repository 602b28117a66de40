"""Which samples a network came to fit, and when: margins over a run, divided into two groups at one moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Groups are formed by the mean margin over this range of the logarithm of the step to either side: what a network holds
# of a label at one record alone comes and goes, above all where it cannot learn much (docs/decisions/0035).
_AROUND = 0.6
# Margins are divided by their median size, then clipped here: one record with huge margins must not decide alone.
_CLIP = 3.0


@dataclass(frozen=True)
class Division:
    """The samples divided by what the network makes of their labels at one moment.

    Attributes:
        contradicted: The samples whose given label the network contradicts at that moment, boolean [N].
        window: Index of the records around that moment, [W].
        strength: Median size of the contradicted samples' margins over that of the others': far below 1 where the
            contradicted samples are merely not learned yet.
        steadiness: How much oftener than by chance a contradicted sample is given the same answer at two of these
            records, 1 for always, 0 for by chance.
        unlearned: Share of the samples that are not contradicted whose label is not fitted, at each record, [T].
        memorised: Share of the contradicted samples whose given label is fitted, at each record, [T]; each counts by
            how strongly it is contradicted, so that samples that are merely hard count little.
        followed: Share of the contradicted samples that are given the answer that these records give them most often,
            at each record, [T]; each counts by how strongly and how steadily it is contradicted. It rises as the
            network learns what the right labels have in common and falls as it memorises the wrong ones, as the
            accuracy on new data does.
    """

    contradicted: NDArray[np.bool_]
    window: NDArray[np.int64]
    strength: float
    steadiness: float
    unlearned: NDArray[np.float64]
    memorised: NDArray[np.float64]
    followed: NDArray[np.float64]


def running_median(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Median over `width` neighbours along the first axis; the ends are repeated.

    Args:
        values: Numbers [T] or [T, N].
        width: An odd number of neighbours.

    Returns:
        As many numbers.
    """
    half = width // 2
    padded = np.concatenate([values[:1].repeat(half, 0), values, values[-1:].repeat(half, 0)])
    smooth: NDArray[np.float64] = np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=0), axis=-1)
    return smooth


class LearningOrder:
    """Margins of all samples over a run.

    Args:
        steps: Steps of the records, [T].
        margins: Logit of the given label minus the largest other logit, [T, N].
        predictions: Predicted classes, [T, N].

    Attributes:
        steps: As given.
        fitted: Whether each sample's given label is the network's answer, with single records that differ from both
            neighbours smoothed away, boolean [T, N].
        training_error: Share of the samples whose label is not fitted, not smoothed, [T].
    """

    def __init__(
        self,
        steps: NDArray[np.int64],
        margins: NDArray[np.float32],
        predictions: NDArray[np.int64],
    ) -> None:
        self.steps = steps
        positive = margins > 0
        before = np.concatenate([positive[:1], positive[:-1]])
        after = np.concatenate([positive[1:], positive[-1:]])
        self.fitted = (positive & (before | after)) | (before & after)
        self.training_error = 1.0 - positive.mean(1, dtype=np.float64)
        size = np.maximum(np.median(np.abs(margins), axis=1, keepdims=True), np.finfo(np.float32).tiny)
        self._margins = np.clip(margins / size, -_CLIP, _CLIP).astype(np.float64)
        self._predictions = predictions

    def fitted_labels(self) -> NDArray[np.int64]:
        """Read the given labels of all samples that were ever fitted off the predictions."""
        positive = self._margins > 0
        ever = np.flatnonzero(positive.any(0))
        labels: NDArray[np.int64] = self._predictions[positive.argmax(0)[ever], ever].astype(np.int64)
        return labels

    def divide(self, step: float) -> Division:
        """Divide the samples by the sign of their mean margin around one step.

        Args:
            step: The moment.

        Returns:
            The division.
        """
        window, mean = self._around(step)
        contradicted = mean <= 0
        answers = self._predictions[window][:, contradicted]
        usual, constancy = _usual(answers)
        weights = -mean[contradicted] * constancy
        follows = self._predictions[:, contradicted] == usual
        return Division(
            contradicted=contradicted,
            window=window,
            strength=_median(-mean[contradicted]) / max(_median(mean[~contradicted]), 1e-12),
            steadiness=agreement(answers),
            unlearned=1.0 - _share(self.fitted, (~contradicted).astype(np.float64)),
            memorised=_share(self.fitted, np.maximum(-mean, 0.0)),
            followed=running_median(_share(follows, weights), 3),
        )

    def clarity(self, step: float) -> float:
        """Say how clearly the margins around one step fall into two groups that keep apart, κ η².

        η² is the share of the mean margins' variance that lies between the samples that are contradicted and the others
        (Otsu's criterion), κ the steadiness of what the contradicted samples are answered.

        Args:
            step: The moment.

        Returns:
            At most 1.
        """
        window, mean = self._around(step)
        contradicted = mean <= 0
        share, spread = float(contradicted.mean()), float(mean.var())
        if not 0.0 < share < 1.0 or spread == 0.0:
            return 0.0
        apart = float(mean[~contradicted].mean() - mean[contradicted].mean())
        between = share * (1.0 - share) * apart**2 / spread
        return between * agreement(self._predictions[window][:, contradicted])

    def _around(self, step: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the records around a step and the mean margins over them."""
        clock = np.log(np.maximum(self.steps, 0.5))
        distance = np.abs(clock - np.log(max(step, 0.5)))
        centre = int(distance.argmin())
        window = np.union1d(np.flatnonzero(distance <= _AROUND), np.arange(max(centre - 1, 0), centre + 2))
        window = window[window < len(clock)]
        return window, self._margins[window].mean(0)


def agreement(answers: NDArray[np.int64]) -> float:
    """Chance-corrected agreement of several records on the samples' classes, Fleiss' κ = (P̄ − P_e) / (1 − P_e).

    P̄ is the share of pairs of records that agree on a sample, P_e the sum of the classes' squared frequencies.

    Args:
        answers: Predicted classes, [W, n].

    Returns:
        At most 1; 0 where the records agree no more than by chance, or there are fewer than two records or samples.

    Reference:
        Fleiss, "Measuring nominal scale agreement among many raters" (1971), equations 3 to 7.
    """
    records, samples = answers.shape
    if records < 2 or samples < 2:
        return 0.0
    counts = np.stack([(answers == answer).sum(0) for answer in np.unique(answers)]).astype(np.float64)
    agree = float(((counts**2).sum(0) - records).mean()) / (records * (records - 1))
    chance = float(((counts.mean(1) / records) ** 2).sum())
    return (agree - chance) / (1.0 - chance) if chance < 1.0 else 0.0


def _usual(answers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the commonest of each sample's answers [W, n], and how often it is given."""
    classes = np.unique(answers)
    if not len(classes):
        return np.zeros(answers.shape[1], dtype=np.int64), np.zeros(answers.shape[1])
    counts = np.stack([(answers == answer).sum(0) for answer in classes])
    return classes[counts.argmax(0)], counts.max(0) / len(answers)


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _share(fitted: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted share of the samples that are fitted, at each record; of an empty group none."""
    share: NDArray[np.float64] = fitted @ (weights / max(float(weights.sum()), np.finfo(np.float64).tiny))
    return share
