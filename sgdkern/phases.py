"""Phases of learning from a history: when the network generalises, when it begins to memorise, when it is done.

The rule (docs/phases.md tells how it was chosen, on which runs, and how it fares on others):

1. The four levels low, high, low, high of log σ_λ² over the logarithm of the step tell about where phase II lies,
   without any threshold. t_c is where, not too far from there, the samples' margins fall most clearly and most
   steadily into two groups: those whose given label the network contradicts, and the others.
2. What the network answers the contradicted samples at t_c is mostly right. Followed over the run, the share that is
   given this answer rises and falls as the accuracy on new data does. T12 is where it has risen, and the others' error
   has fallen, but for a tenth; T23 where it has fallen by 12 %, averaged with the fall of σ_λ².
3. T34 is where the training error falls to 1 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sgdkern.history import History
from sgdkern.learning_order import LearningOrder, running_median
from sgdkern.phase_dates import (
    LASTING,
    LEARNED,
    NEARLY_TRAINED,
    Dates,
    first_memorising_step,
    given_dates,
    level_dates,
    trained_step,
)
from sgdkern.phase_judgement import EXCESS, judge, learning_order_of

Array = NDArray[np.float64]
Groups = Literal["auto", "blind", "none", "given"]

FOUR, TWO, NO_PHASE_II, NOT_ENOUGH = "four phases", "two phases", "no phase II", "not enough of a run"
_NAMES = {FOUR: ("I", "II", "III", "IV"), NOT_ENOUGH: ("I", "II"), TWO: ("fast", "exploration"), NO_PHASE_II: ()}

_FITTED = 0.2  # training error under which a network that has not generalised has memorised
_SETTLED = 3.0  # the exploration phase has shown itself after as many times the steps of the fast phase
_RISE = 1.15  # of A from phase II to III; clean data: at most 1.0


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
        name: `I` … `IV`, or `fast` and `exploration`.
        start: First step.
        end: First step of the next phase, or the last step measured.
        confidence: Share of the phase's log-time in which the order parameters alone say the same, 0 to 1.
    """

    name: str
    start: int
    end: int
    confidence: float


class Phases(list[Phase]):
    """The phases of a run, in order; empty where there are none to tell.

    Attributes:
        verdict: `four phases`, `two phases`, `no phase II` or `not enough of a run`.
        reason: Why, in a sentence.
        t12: Step at which phase II begins (for two phases: the exploration phase); None where it does not.
        t23: Step at which phase III begins; None where it does not.
        t34: Step at which phase IV begins; None where it does not.
        cleaning_step: The measured step nearest to √(T12 T23), where the losses tell wrong labels best; None without
            a phase II.
    """

    def __init__(
        self,
        phases: Iterable[Phase] = (),
        *,
        verdict: str,
        reason: str,
        t12: int | None = None,
        t23: int | None = None,
        t34: int | None = None,
        cleaning_step: int | None = None,
    ) -> None:
        super().__init__(phases)
        self.verdict, self.reason = verdict, reason
        self.t12, self.t23, self.t34, self.cleaning_step = t12, t23, t34, cleaning_step


def label_phases(history: History, *, groups: Groups = "auto") -> Phases:
    """Find the phases of a run.

    Args:
        history: Records with `sigma_lambda2` and `A`; with `margins` (and `predictions`, `losses`) the phases are dated
            by blind groups of samples, which is more accurate.
        groups: `auto` uses blind groups where margins were kept and order parameters alone elsewhere; `blind` insists
            on margins; `none` uses order parameters alone; `given` uses the partition `given` with groups `c` (correct)
            and `w` (wrong): A0_c / A0_w < 2 for T12, R_cw > −1/2 for T23.

    Returns:
        The phases, with the verdict.

    Raises:
        ValueError: `groups` is none of these, or the history lacks what it asks for.

    Reference:
        Feng and Tu, "Phases of learning dynamics in artificial neural networks" (2021), sections on learning with
        mislabelled data, for the phases and the criteria with known groups.
    """
    if groups not in ("auto", "blind", "none", "given"):
        raise ValueError(f"label_phases: groups must be auto, blind, none or given, got {groups!r}.")
    order = learning_order_of(history)
    if groups == "blind" and order is None:
        raise ValueError(
            "label_phases: blind groups need margins, got records without. Keep them, or use groups='auto'."
        )
    if groups == "given" and not history.has("R_cw", "given"):
        raise ValueError(
            "label_phases: groups='given' needs a partition 'given' with groups c and w, got none. Probe with groups."
        )
    last = int(history.steps[-1]) if len(history) else 0
    witness = level_dates(history, order) if history.has("sigma_lambda2") else None
    if witness is None:
        return Phases(verdict=NOT_ENOUGH, reason=f"{len(history)} records up to step {last} show no rise of σ_λ².")
    if groups == "given":
        return _assemble(history, given_dates(history, order), FOUR, "the groups are known.", witness)
    if groups == "none" or order is None:
        return _by_order_parameters(history, witness)
    return _by_blind_groups(history, order, witness)


def _by_blind_groups(history: History, order: LearningOrder, witness: Dates) -> Phases:
    """Divide the samples at the t_c of σ_λ², judge the division, date the phases by it."""
    found = judge(history, order, witness)
    left = float(running_median(order.training_error, 5).min())
    if 1.0 - left - found.majority < EXCESS:
        return Phases(verdict=NOT_ENOUGH, reason="the network has not yet learned more than the most frequent label.")
    if found.weak and left > _FITTED:
        return Phases(verdict=NOT_ENOUGH, reason="the network has learned little and memorised little so far.")
    if found.weak:
        reason = (
            f"where phase II should be, around step {found.centre:.0f}, the network contradicts {found.share:.0%} of "
            "the labels and fits hardly more than the most frequent one: it memorises without having generalised."
        )
        return Phases(verdict=NO_PHASE_II, reason=reason)
    if not found.wrong:
        return _two_phases(history, order.training_error, order.steps, witness)
    dates = Dates(found.t12, found.t23, np.inf)
    if np.isfinite(found.t23) and (left <= NEARLY_TRAINED or found.lasted):
        reason = f"the network contradicts {found.share:.0%} of the labels for a time and then memorises them."
        return _assemble(history, Dates(found.t12, found.t23, trained_step(history, order)), FOUR, reason, witness)
    if np.isinf(found.t23) and order.steps[-1] >= LASTING * max(found.t12, 1.0):
        memorised = float(found.division.memorised[-1])
        reason = f"phase II lasts since step {found.t12:.0f}; {memorised:.0%} of the contradicted labels are memorised."
        return _assemble(history, dates, NOT_ENOUGH, reason, witness)
    return Phases(verdict=NOT_ENOUGH, reason="the network has only just learned the samples that it can.")


def _by_order_parameters(history: History, witness: Dates) -> Phases:
    """Label a run of which no margins were kept: by the levels of σ_λ² and by whether A rises after phase II."""
    activity, steps = running_median(history.column("A"), 5), history.steps
    t23 = max(witness.t23, first_memorising_step(history))
    second = activity[(steps >= witness.t12) & (steps <= t23)]
    third = activity[steps >= min(t23, float(steps[-1]))]
    trained = trained_step(history, None)
    if len(second) and third.max() >= _RISE * float(np.median(second)):
        dates = Dates(witness.t12, t23, trained if trained > t23 else np.inf)
        return _assemble(history, dates, FOUR, "σ_λ² rises, falls and rises, and A rises as σ_λ² falls.", witness)
    if history.has("train_error"):
        return _two_phases(history, history.column("train_error"), steps, witness)
    reason = "A does not rise after the fast phase: no label is memorised against what was learned."
    return _assemble(history, Dates(witness.t12, np.inf, np.inf), TWO, reason, witness)


def _two_phases(history: History, training_error: Array, steps: NDArray[np.int64], witness: Dates) -> Phases:
    """Label a run on clean data: the fast phase ends when the training error has fallen but for a tenth."""
    error = running_median(training_error, 5)
    lowest = float(error.min())
    fast = float(steps[np.flatnonzero(error <= lowest + LEARNED * (float(error[0]) - lowest))[0]])
    if lowest > NEARLY_TRAINED and steps[-1] < _SETTLED * max(fast, 1.0):
        return Phases(verdict=NOT_ENOUGH, reason=f"the training error still falls at step {steps[-1]}.")
    reason = "the network does not contradict labels for long: what it has not fitted is hard rather than wrong."
    return _assemble(history, Dates(fast, np.inf, np.inf), TWO, reason, witness)


def _assemble(history: History, dates: Dates, verdict: str, reason: str, witness: Dates) -> Phases:
    """Make the list of phases from the dates, in order; a change outside the run has not happened."""
    steps = history.steps
    first, last = int(steps[0]), int(steps[-1])
    names = _NAMES[verdict]
    changes = (dates.t12, dates.t23, dates.t34)[: len(names) - 1]
    starts = [float(first)]
    for change in changes:
        starts.append(max(change, starts[-1]))
    kept = [start for start in starts if start < last or start == first]
    edges = [*kept, float(last)]
    told = [int(start) if start < last else None for start in [*starts[1:], np.inf, np.inf][:3]]
    phases = [
        Phase(names[index], int(start), int(end), _confidence(index, start, end, names, witness))
        for index, (start, end) in enumerate(zip(edges, edges[1:]))
        if end > start
    ]
    cleaning = None
    if verdict != TWO and told[0] is not None:
        middle = np.sqrt(max(told[0], 1.0) * (told[1] or last))
        cleaning = int(steps[np.abs(np.log(np.maximum(steps, 0.5)) - np.log(middle)).argmin()])
    t12, t23, t34 = told
    return Phases(phases, verdict=verdict, reason=reason, t12=t12, t23=t23, t34=t34, cleaning_step=cleaning)


def _confidence(index: int, start: float, end: float, names: Sequence[str], witness: Dates) -> float:
    """Share of the log-time from `start` to `end` in which the levels of σ_λ² give the same phase."""
    edges = [0.0, witness.t12, witness.t23, witness.t34]
    same_start = edges[index]
    same_end = edges[index + 1] if index + 1 < len(names) and index < 3 else np.inf
    low, high = max(start, same_start, 0.5), min(end, same_end)
    return float(np.clip(np.log(max(high, low) / low) / np.log(end / max(start, 0.5)), 0.0, 1.0))
