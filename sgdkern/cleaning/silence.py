"""When scores cannot tell right labels from wrong ones: nothing has been learned, or there is only one group."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdkern.cleaning.mixture import fit_mixture

Array = npt.NDArray[Any]

SEPARATED = 2.0  # Ashman's D from which two Gaussians count as two groups


def nothing_to_tell(scores: Array, labels: Array, *, margins: bool) -> str | None:
    """Say why the scores cannot tell right labels from wrong ones.

    Margins: nothing has been learned where the given labels are preferred no more often than if always the most
    frequent label were predicted, within two standard errors. Losses: there is one group where two Gaussians fitted to
    the losses have

        D = sqrt(2) |m1 - m2| / sqrt(v1 + v2) < 2.

    What the labels alone explain is taken out first, since a network that ignores its inputs gives each label a loss of
    its own: the lower quartile of its losses, which belongs to right labels as long as one in four is right.

    Args:
        scores: [N] margins, or losses with the sign changed.
        labels: [N] given labels.
        margins: which of the two the scores are.

    Returns:
        The reason in words; None where they can tell.

    Reference:
        Ashman, Bird and Zepf 1994, "Detecting bimodality in astronomical datasets", Eq. 5.

    Example:
        >>> labels = np.arange(8) % 2
        >>> nothing_to_tell(-np.array([2.3, 2.4, 2.3, 2.4, 2.3, 2.4, 2.3, 2.4]), labels, margins=False)
        'the losses form one group'
        >>> nothing_to_tell(-np.array([0.2, 0.1, 0.2, 2.4, 0.1, 0.1, 3.0, 0.2]), labels, margins=False)
    """
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if margins:
        share, usual = float((scores > 0).mean()), float(counts.max() / len(labels))
        learned = share - usual > 2 * math.sqrt(usual * (1 - usual) / len(labels))
        return None if learned else "the margins show nothing learned yet"
    levels = np.array([np.quantile(-scores[places == place], 0.25) for place in range(len(counts))])
    rest = -scores - levels[places]
    if float(np.ptp(rest)) <= 1e-9 * float(np.abs(scores).max()):
        return "the losses form one group"
    mixture = fit_mixture(rest)
    separated = math.sqrt(2) * mixture.gap >= SEPARATED * math.sqrt(sum(mixture.variances))
    return None if separated else "the losses form one group"
