"""What the samples that a network contradicts look like: wrong labels, hard samples, or nothing learned at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sgdkern.history import History
from sgdkern.learning_order import Division, LearningOrder
from sgdkern.phase_dates import (
    Dates,
    date_by_answers,
    date_by_division,
    epoch_steps,
    first_memorising_step,
    first_scored_step,
    has_lasted,
    trained_step,
)

# What tells the verdicts apart on the development runs (docs/phases.md, "Verdicts").
_CONTRADICTION = 0.26  # strength times steadiness; clean digits and MNIST: at most .22, wrong labels: at least .32
_HARD_SHARE, _WORSE_THAN_CHANCE = 0.45, 0.335  # clean CIFAR-10: at most .32; with wrong labels: at least .35
# Evidence that the network had learned something that holds beyond its samples: steadiness, plus the excess over the
# most frequent label, plus what it fitted within half an epoch, when half of the labels had not been seen. Rate .9: at
# most .84; rates up to .7: at least .92 (docs/decisions/0037).
_AT_CENTRE, _EARLY, _LEARNED = 3.0, 5.0, 0.88
_UNSEEN = 0.5  # epochs
EXCESS = 0.05
# For the verdict t_c begins where the levels of σ_λ² place it, which is early on images that the network cannot learn.
# Placed anew by the dates that it led to, a third time gains nothing.
_REPLACED = 2
# t_c is looked for at so many places. On the development runs the place by σ_λ² was early by a factor of e^.3.
_PLACES = 32
_DISTRUST, _EARLY_BY = 0.1, 0.3
# So steadily a network answers where it has learned, whatever σ_λ² says; rate .9: at most .51, .8: .59 (decision 56).
_STEADY = 0.62


@dataclass(frozen=True)
class Judgement:
    """What the samples say around the middle of phase II.

    Attributes:
        centre: t_c in steps.
        division: The groups formed there.
        t12: Step at which phase II begins.
        t23: Step at which it ends; infinity where it lasts.
        lasted: Whether what ends there is a phase II rather than a pause in learning, in a run that goes on.
        share: Share of the labels that the network contradicts.
        wrong: Whether the contradicted labels look wrong, rather than hard to learn, or not seen yet.
        weak: Whether the network had learned too little at t_c for a phase II to speak of.
        majority: Share of the most frequent given label.
    """

    centre: float
    division: Division
    t12: float
    t23: float
    lasted: bool
    share: float
    wrong: bool
    weak: bool
    majority: float


def judge(history: History, order: LearningOrder, witness: Dates) -> Judgement:
    """Divide the samples at t_c, date phase II by them, and say what the division looks like.

    Args:
        history: The records.
        order: Their margins.
        witness: The levels of σ_λ².

    Returns:
        The judgement.
    """
    begin, seen, last = first_scored_step(history), first_memorising_step(history), float(order.steps[-1])
    majority = _majority(history, order)
    expected = witness.centre(last)
    centre = _clearest(order, expected, begin, min(trained_step(history, order), last))
    division = order.divide(centre)
    dates = date_by_answers(order, division, centre, witness, begin=begin, seen=seen)
    shown, shown_dates = _settled(order, witness, begin)
    weak = _weak(history, order, shown, majority)
    if weak and division.steadiness >= _STEADY and _excess(division, majority) >= EXCESS:
        shown, shown_dates, weak = division, dates, False
    return Judgement(
        centre=centre,
        division=division,
        t12=dates.t12,
        t23=dates.t23,
        lasted=bool(np.isfinite(dates.t23)) and has_lasted(shown_dates),
        share=float(division.contradicted.mean()),
        wrong=shown_dates.t23 >= seen and _wrong_rather_than_hard(history, order, shown),
        weak=weak,
        majority=majority,
    )


def _clearest(order: LearningOrder, expected: float, begin: float, end: float) -> float:
    """Place t_c where the margins fall into two groups most clearly, not too far from where σ_λ² expects it."""
    # t_c maximises log κη² − (log(t / t_σ) − .3)² / 10 over evenly spaced log-times, κη² averaged over neighbours.
    places = np.geomspace(begin, max(end, 2.0 * begin), _PLACES)
    clarity = np.array([order.clarity(place) for place in places])
    padded = np.pad(np.maximum(clarity, 1e-3), 1, mode="edge")
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3.0
    doubt = _DISTRUST * (np.log(places / max(expected, begin)) - _EARLY_BY) ** 2
    return float(places[(np.log(smooth) - doubt).argmax()])


def _settled(order: LearningOrder, dates: Dates, begin: float) -> tuple[Division, Dates]:
    """Divide where the levels of σ_λ² place t_c, placed anew by the dates that it leads to, and date phase II by it."""
    for _ in range(1 + _REPLACED):
        centre = dates.centre(float(order.steps[-1]))
        division = order.divide(centre)
        dates = date_by_division(order, division, centre, begin=begin)
    return division, dates


def _excess(division: Division, majority: float) -> float:
    """Share of the labels fitted over that of the most frequent label."""
    return 1.0 - float(division.contradicted.mean()) - majority


def _weak(history: History, order: LearningOrder, division: Division, majority: float) -> bool:
    """Say whether too little had been learned for a phase II to speak of."""
    excess = _excess(division, majority)
    early = _early_excess(history, order, majority)
    return excess < EXCESS or division.steadiness + _AT_CENTRE * excess + _EARLY * early < _LEARNED


def _early_excess(history: History, order: LearningOrder, majority: float) -> float:
    """Largest share of labels fitted within half an epoch, over the most frequent label: none of it is memorised."""
    early = order.steps <= _UNSEEN * epoch_steps(history)
    return max(0.0, float((1.0 - order.training_error[early]).max(initial=0.0)) - majority)


def _wrong_rather_than_hard(history: History, order: LearningOrder, division: Division) -> bool:
    """Tell labels that the network contradicts from samples that it has not learned yet."""
    # A sample that is merely hard keeps a small margin and is answered now so, now so. On data of which the network
    # learns less than half that does not tell: a hard sample's label is then still likelier than chance.
    if division.strength * division.steadiness < _CONTRADICTION:
        return False
    if division.contradicted.mean() <= _HARD_SHARE or not any(record.losses is not None for record in history):
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
