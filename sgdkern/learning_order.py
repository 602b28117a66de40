"""Which samples a network came to fit, and when: margins over a run, divided into two groups at one moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Groups are formed by the mean margin over this range of the logarithm of the step to either side: a few records decide
# better than one (docs/phases.md).
_BLUR = 0.3
# Margins are divided by their median size, then clipped here: one record with huge margins must not decide alone.
_CLIP = 3.0


@dataclass(frozen=True)
class Division:
    """The samples divided by what the network makes of their labels at one moment.

    Attributes:
        contradicted: The samples whose given label the network contradicts at that moment, boolean [N].
        contradiction: Median size of the contradicted samples' margins over that of the others': far below 1 where the
            contradicted samples are merely not learned yet.
        constancy: Share of the contradicted samples' predictions around that moment that are the same as at it; None
            without predictions.
        unlearned: Share of the samples that are not contradicted whose label is not fitted, at each record, [T].
        memorised: Share of the contradicted samples whose given label is fitted, at each record, [T].
    """

    contradicted: NDArray[np.bool_]
    contradiction: float
    constancy: float | None
    unlearned: NDArray[np.float64]
    memorised: NDArray[np.float64]


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
        predictions: Predicted classes, [T, N], where they were kept.

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
        predictions: NDArray[np.int64] | None = None,
    ) -> None:
        self.steps = steps
        positive = margins > 0
        before = np.concatenate([positive[:1], positive[:-1]])
        after = np.concatenate([positive[1:], positive[-1:]])
        self.fitted = (positive & (before | after)) | (before & after)
        self.training_error = 1.0 - positive.mean(1, dtype=np.float64)
        self._margins = margins
        self._predictions = predictions

    def fitted_labels(self) -> NDArray[np.int64] | None:
        """Read the given labels of all samples that were ever fitted off the predictions; None without these."""
        if self._predictions is None:
            return None
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
        clock = np.log(np.maximum(self.steps, 0.5))
        distance = np.abs(clock - np.log(max(step, 0.5)))
        centre = int(distance.argmin())
        window = np.union1d(np.flatnonzero(distance <= _BLUR), np.arange(max(centre - 1, 0), centre + 2))
        window = window[window < len(clock)]
        margins = self._margins[window].astype(np.float64)
        size = np.maximum(np.median(np.abs(margins), axis=1, keepdims=True), np.finfo(np.float64).tiny)
        mean = np.clip(margins / size, -_CLIP, _CLIP).mean(0)
        contradicted = mean <= 0
        constancy = None
        if self._predictions is not None and contradicted.any():
            around = self._predictions[window][:, contradicted]
            constancy = float((around == self._predictions[centre][contradicted]).mean())
        return Division(
            contradicted=contradicted,
            contradiction=_median(-mean[contradicted]) / max(_median(mean[~contradicted]), 1e-12),
            constancy=constancy,
            unlearned=1.0 - _share(self.fitted, ~contradicted),
            memorised=_share(self.fitted, contradicted),
        )


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _share(fitted: NDArray[np.bool_], group: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of a group's samples that are fitted, at each record; of an empty group none."""
    return fitted[:, group].mean(1, dtype=np.float64) if group.any() else np.zeros(len(fitted))
