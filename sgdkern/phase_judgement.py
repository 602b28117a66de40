"""What the samples that a network contradicts look like: wrong labels, hard samples, or nothing learned at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgdkern.history import History
from sgdkern.learning_order import Division, LearningOrder

# What tells the verdicts apart on the development half of the runs (docs/phases.md, "Verdicts").
_CONTRADICTION = 0.33  # clean data: at most .28; wrong labels: at least .38
_HARD_SHARE, _WORSE_THAN_CHANCE = 0.45, 0.36  # hard clean data: at most .35; wrong labels: at least .37
EXCESS, _WEAK_EXCESS, _CONSTANCY = 0.05, 0.11, 0.7  # noise rate .9: excess at most .04, or .09 and constancy .66
# Losses are averaged over records within this factor of t_c, as margins are.
_AROUND = 1.35


@dataclass(frozen=True)
class Judgement:
    """What the samples say around the middle of phase II, as the levels of σ_λ² place it.

    Attributes:
        centre: t_c in steps.
        division: The groups formed there.
        share: Share of the labels that the network contradicts.
        wrong: Whether the contradicted labels look wrong, rather than hard to learn.
        weak: Whether the network had learned too little at t_c for a phase II to speak of.
        majority: Share of the most frequent given label.
    """

    centre: float
    division: Division
    share: float
    wrong: bool
    weak: bool
    majority: float


def judge(history: History, order: LearningOrder, centre: float) -> Judgement:
    """Divide the samples at t_c and say what the division looks like.

    Args:
        history: The records.
        order: Their margins.
        centre: t_c, in steps.

    Returns:
        The judgement.
    """
    division = order.divide(centre)
    share = float(division.contradicted.mean())
    majority = _majority(history, order)
    excess = 1.0 - share - majority
    return Judgement(
        centre=centre,
        division=division,
        share=share,
        wrong=_wrong_rather_than_hard(history, division, share, centre),
        weak=excess < EXCESS or (excess < _WEAK_EXCESS and (division.constancy or 0.0) < _CONSTANCY),
        majority=majority,
    )


def _wrong_rather_than_hard(history: History, division: Division, share: float, centre: float) -> bool:
    """Tell labels that the network contradicts from samples that it has not learned yet."""
    # A sample that is merely hard keeps a small margin. On data of which the network learns less than half, margins
    # alone do not tell: a hard sample's label is then still likelier than chance, a wrong label is not.
    if division.contradiction < _CONTRADICTION:
        return False
    num_classes = _num_classes(history)
    if share <= _HARD_SHARE or num_classes is None or not any(record.losses is not None for record in history):
        return True
    rows, losses = history.per_sample("losses")
    nearest = np.abs(np.log(np.maximum(history.steps[rows], 0.5) / max(centre, 0.5))) <= np.log(_AROUND)
    if not nearest.any():
        return True
    mean = losses[nearest][:, division.contradicted].astype(np.float64).mean(0)
    return bool((mean > np.log(num_classes)).mean() >= _WORSE_THAN_CHANCE)


def learning_order_of(history: History) -> LearningOrder | None:
    """Gather the margins (and predictions) of a history; None where none were kept."""
    if not any(record.margins is not None for record in history):
        return None
    rows, margins = history.per_sample("margins")
    kept = all(history.records[row].predictions is not None for row in rows)
    predictions = np.stack([history.records[row].predictions for row in rows]) if kept else None
    return LearningOrder(history.steps[rows], margins, predictions)


def _labels(history: History, order: LearningOrder) -> NDArray[np.int64] | None:
    """Given labels: from the header, or the predictions at each sample's last positive margin."""
    if "given_labels" in history.header:
        return np.asarray(history.header["given_labels"], dtype=np.int64)
    return order.fitted_labels()


def _majority(history: History, order: LearningOrder) -> float:
    """Share of the most frequent given label, which a network fits that has learned nothing else."""
    labels = _labels(history, order)
    return 0.0 if labels is None or not len(labels) else float(np.bincount(labels).max()) / len(labels)


def _num_classes(history: History) -> int | None:
    if "given_labels" in history.header:
        return int(np.max(history.header["given_labels"])) + 1
    return max((int(np.max(r.predictions)) + 1 for r in history if r.predictions is not None), default=None)
