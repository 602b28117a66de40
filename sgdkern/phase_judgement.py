"""What the samples that a network contradicts look like: wrong labels, hard samples, or nothing learned at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sgdkern.history import History
from sgdkern.learning_order import Division, LearningOrder
from sgdkern.phase_dates import Dates, date_by_division, epoch_steps, first_scored_step

# What tells the verdicts apart on the development runs (docs/phases.md, "Verdicts").
_CONTRADICTION = 0.26  # strength times steadiness; clean digits and MNIST: at most .22, wrong labels: at least .32
_HARD_SHARE, _WORSE_THAN_CHANCE = 0.45, 0.335  # clean CIFAR-10: at most .32; with wrong labels: at least .35
# Evidence that the network had learned something that holds beyond its samples: steadiness, plus the excess over the
# most frequent label, plus what it fitted within half an epoch, when half of the labels had not been seen. Rate .9: at
# most .84; rates up to .7: at least .92 (docs/decisions/0037).
_AT_CENTRE, _EARLY, _LEARNED = 3.0, 5.0, 0.88
_UNSEEN = 0.5  # epochs
EXCESS = 0.05
# How often t_c is placed anew by the dates that it led to. The first, by the levels of σ_λ², is early on images that
# the network cannot learn; a third time gains nothing.
_REPLACED = 2


@dataclass(frozen=True)
class Judgement:
    """What the samples say around the middle of phase II, first as the levels of σ_λ² place it, then as they do.

    Attributes:
        centre: t_c in steps.
        division: The groups formed there.
        t12: Step at which they date the begin of phase II.
        t23: Step at which they date its end; infinity where it lasts.
        share: Share of the labels that the network contradicts.
        wrong: Whether the contradicted labels look wrong, rather than hard to learn.
        weak: Whether the network had learned too little at t_c for a phase II to speak of.
        majority: Share of the most frequent given label.
    """

    centre: float
    division: Division
    t12: float
    t23: float
    share: float
    wrong: bool
    weak: bool
    majority: float


def judge(history: History, order: LearningOrder, witness: Dates) -> Judgement:
    """Divide the samples at t_c, date phase II by them, and say what the division looks like.

    Args:
        history: The records.
        order: Their margins.
        witness: The levels of σ_λ², which place t_c first.

    Returns:
        The judgement.
    """
    last = float(order.steps[-1])
    dates = witness
    for _ in range(1 + _REPLACED):
        centre = dates.centre(last)
        division = order.divide(centre)
        dates = date_by_division(order, division, centre, begin=first_scored_step(history))
    share = float(division.contradicted.mean())
    majority = _majority(history, order)
    excess = 1.0 - share - majority
    return Judgement(
        centre=centre,
        division=division,
        t12=dates.t12,
        t23=dates.t23,
        share=share,
        wrong=_wrong_rather_than_hard(history, order, division, share),
        weak=excess < EXCESS
        or division.steadiness + _AT_CENTRE * excess + _EARLY * _early_excess(history, order, majority) < _LEARNED,
        majority=majority,
    )


def _early_excess(history: History, order: LearningOrder, majority: float) -> float:
    """Largest share of labels fitted within half an epoch, over the most frequent label: none of it is memorised."""
    early = order.steps <= _UNSEEN * epoch_steps(history)
    return max(0.0, float((1.0 - order.training_error[early]).max(initial=0.0)) - majority)


def _wrong_rather_than_hard(history: History, order: LearningOrder, division: Division, share: float) -> bool:
    """Tell labels that the network contradicts from samples that it has not learned yet."""
    # A sample that is merely hard keeps a small margin and is answered now so, now so. On data of which the network
    # learns less than half that does not tell: a hard sample's label is then still likelier than chance.
    if division.strength * division.steadiness < _CONTRADICTION:
        return False
    if share <= _HARD_SHARE or not any(record.losses is not None for record in history):
        return True
    rows, losses = history.per_sample("losses")
    near = np.isin(history.steps[rows], order.steps[division.window])
    if not near.any():
        return True
    mean = losses[near][:, division.contradicted].astype(np.float64).mean(0)
    return bool((mean > np.log(_num_classes(history))).mean() >= _WORSE_THAN_CHANCE)


def learning_order_of(history: History) -> LearningOrder | None:
    """Gather the margins and predictions of a history; None where none were kept."""
    if not any(record.margins is not None for record in history):
        return None
    rows, margins = history.per_sample("margins")
    predictions = [history.records[row].predictions for row in rows]
    if any(answers is None for answers in predictions):
        return None
    return LearningOrder(history.steps[rows], margins, np.stack(predictions))


def _majority(history: History, order: LearningOrder) -> float:
    """Share of the most frequent given label, which a network fits that has learned nothing else."""
    labels = np.asarray(history.header.get("given_labels", order.fitted_labels()), dtype=np.int64)
    return float(np.bincount(labels).max()) / len(labels) if len(labels) else 0.0


def _num_classes(history: History) -> int:
    known = history.header.get("given_labels")
    if known is not None:
        return int(np.max(known)) + 1
    return max(int(np.max(record.predictions)) + 1 for record in history if record.predictions is not None)
