"""Which label is given for which: the noise matrix, and noise rates by class and by source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdkern.cleaning.mixture import rate_of
from sgdkern.cleaning.table import LabelIssues, NoiseRate

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class NoiseMatrix:
    """How often each true label is given as each other label, as far as the issues found tell.

    Attributes:
        classes: [C] the labels, in the order of both axes.
        counts: [C, C] samples, rows by estimated true label, columns by given label; they add up to N.
    """

    classes: Array
    counts: Array

    @property
    def probabilities(self) -> Array:
        """[C, C], row i is P(given label | true label i); NaN where no sample is estimated to be of class i."""
        totals = self.counts.sum(axis=1, keepdims=True)
        shares: Array = np.divide(self.counts, totals, out=np.full(self.counts.shape, np.nan), where=totals > 0)
        return shares

    def confused_pairs(self, limit: int = 10) -> list[tuple[Any, Any, float]]:
        """Return the pairs (true label, given label, samples) mistaken most often, most first."""
        off_diagonal = np.where(np.eye(len(self.classes), dtype=bool), 0.0, self.counts)
        order = np.argsort(-off_diagonal, axis=None, kind="stable")[:limit]
        rows, columns = np.unravel_index(order, self.counts.shape)
        return [
            (self.classes[row], self.classes[column], float(self.counts[row, column]))
            for row, column in zip(rows, columns, strict=True)
            if off_diagonal[row, column] > 0
        ]


def noise_matrix(issues: LabelIssues, *, classes: Array | None = None) -> NoiseMatrix:
    """Count the true label against the given one; the true label is the predicted one where there is an issue.

    Args:
        issues: the table of issues, with predicted labels.
        classes: [C] all labels; default those that occur.

    Returns:
        The noise matrix.

    Raises:
        ValueError: if nothing was predicted.
    """
    given, predicted = issues["given_label"], issues["predicted_label"]
    if (
        given.dtype.kind != predicted.dtype.kind
        or np.isin(predicted, (-1, "") if given.dtype.kind in "UO" else -1).all()
    ):
        raise ValueError("noise_matrix: issues must come with predicted labels, got none. Pass predictions or logits.")
    truth = np.where(issues["is_label_issue"], predicted, given)
    names = np.unique(np.concatenate([given, truth])) if classes is None else np.asarray(classes)
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (np.searchsorted(names, truth), np.searchsorted(names, given)), 1.0)
    return NoiseMatrix(names, counts)


def noise_rates_by(issues: LabelIssues, groups: Array) -> Mapping[Any, NoiseRate]:
    """Estimate the share of wrong labels in each group: by given class, by source, by annotator.

    Args:
        issues: the table of issues.
        groups: [N] names of the groups, ``issues["given_label"]`` for classes.

    Returns:
        Name to noise rate with its interval, in sorted order; upper bounds where the overall rate is one.

    Raises:
        ValueError: if there is not one name a sample.
    """
    names = np.asarray(groups)
    if names.shape != (issues.num_samples,):
        raise ValueError(f"noise_rates_by: groups must be [{issues.num_samples}], got {list(names.shape)}.")
    bound = issues.noise_rate.is_upper_bound
    return {name: rate_of(issues["p_wrong"][names == name], bound=bound) for name in np.unique(names).tolist()}
