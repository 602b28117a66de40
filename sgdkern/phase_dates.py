"""When the changes between phases happened: by the levels of σ_λ², by known groups, by the samples' own margins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgdkern.history import History
from sgdkern.learning_order import Division, LearningOrder, running_median
from sgdkern.levels import alternating_levels

# Of the fall of the others' error, and of the rise of the contradicted samples' memorised share. The first is the
# truth's own; of the second .05 and .06 differ by .001 on the development runs.
LEARNED, MEMORISED = 0.10, 0.06
# Of what the network answers the contradicted samples in phase II; .85 to .90 differ by .002.
_LEFT = 0.12
# Weight of the levels of σ_λ² in the logarithm of T23: their errors are twice as large as those of the answers, and
# independent of them.
_BY_LEVELS = 1.0 / 3.0
_TRAINED = 0.01  # training error that ends phase III, the truth's own definition
NEARLY_TRAINED = 0.05  # σ_λ² that rises earlier than this is not phase IV
# Before a run is nearly trained, a pause in learning can look like a phase II. Pauses on the development runs lasted at
# most a factor of 1.8 in steps after the first epoch; phases II at least 2.2 (pair noise: 1.3).
LASTING = 2.0
_FALLEN = 0.30  # of the maximum of A: finds the same moment where no training error was kept
_BALANCE, _OPPOSED = 2.0, -0.5  # of A0_c / A0_w and of R_cw, for known groups
_GRID = 80  # points over which log σ_λ² is laid, evenly in the logarithm of the step
_FEWEST = 12  # records; fewer cannot show four levels of three each
_EPOCH_SHARE = 0.1  # the first tenth of an epoch is left out: the network has not seen enough samples for a phase


@dataclass(frozen=True)
class Dates:
    """Steps of the changes; infinity where a change has not happened."""

    t12: float
    t23: float
    t34: float

    def centre(self, last: float) -> float:
        """Return t_c = √(T12 T23), with the last step for a T23 that has not happened."""
        return float(np.sqrt(self.t12 * min(self.t23, float(last))))


def level_dates(history: History, order: LearningOrder | None) -> Dates | None:
    """Fit four levels to log σ_λ² over log-time; the fourth only where most of the training error is gone.

    Args:
        history: Records with `sigma_lambda2`.
        order: Their margins, where they were kept.

    Returns:
        The changes of level; None where there are too few records, or σ_λ² never rises.
    """
    steps, sigma = history.steps.astype(np.float64), history.column("sigma_lambda2")
    usable = (steps >= first_scored_step(history)) & np.isfinite(sigma) & (sigma > 0)
    if usable.sum() < _FEWEST:
        return None
    clock = np.log(steps[usable])
    grid = np.linspace(clock[0], clock[-1], _GRID)
    curve = np.interp(grid, clock, running_median(np.log(sigma[usable]), 3))
    late = np.flatnonzero(grid >= np.log(max(_first_below(history, order, NEARLY_TRAINED), 1.0)))
    levels = alternating_levels(curve, fourth_from=int(late[0]) if len(late) else _GRID)
    if levels is None:
        return None
    t12, t23, t34 = (float(np.exp(grid[cut])) if cut < _GRID else np.inf for cut in levels.cuts)
    return Dates(t12, t23, t34)


def given_dates(history: History, order: LearningOrder | None) -> Dates:
    """Date the phases by the paper's criteria for known groups, with the thresholds that were seen to hold.

    Args:
        history: Records with a partition `given` into c (correct) and w (wrong).
        order: Their margins, where they were kept.

    Returns:
        T12 at A0_c / A0_w < 2, T23 at R_cw > −1/2, T34 as `trained_step`.
    """
    steps = history.steps
    ratio = running_median(history.column("A0_c", "given") / history.column("A0_w", "given"), 5)
    cosine = running_median(history.column("R_cw", "given"), 5)
    balanced = np.flatnonzero((ratio < _BALANCE) & (steps >= first_scored_step(history)))
    t12 = float(steps[balanced[0]]) if len(balanced) else np.inf
    aligned = np.flatnonzero((cosine > _OPPOSED) & (steps > t12) & (steps >= first_memorising_step(history)))
    return Dates(t12, float(steps[aligned[0]]) if len(aligned) else np.inf, trained_step(history, order))


def has_lasted(dates: Dates) -> bool:
    """Say whether what ends at T23 is a phase II rather than a pause in learning, in a run that goes on.

    Args:
        dates: T12 and T23.

    Returns:
        Whether it has ended, and lasted for a factor of 2 in steps.
    """
    return bool(np.isfinite(dates.t23) and dates.t23 >= LASTING * max(dates.t12, 1.0))


def trained_step(history: History, order: LearningOrder | None) -> float:
    """Date the end of memorising: training error ≤ 1 %, or A below 30 % of its maximum where no error was kept.

    Args:
        history: Records.
        order: Their margins, where they were kept.

    Returns:
        The step; infinity where it has not happened.
    """
    if order is not None or history.has("train_error"):
        return _first_below(history, order, _TRAINED)
    steps, activity = history.steps, running_median(history.column("A"), 5)
    peak = int(activity.argmax())
    done = peak + np.flatnonzero(activity[peak:] <= _FALLEN * activity[peak])
    return float(steps[done[0]]) if len(done) else np.inf


def _first_below(history: History, order: LearningOrder | None, threshold: float) -> float:
    """Find the first step at which the training error is at most the threshold; 0 where no error was kept."""
    if order is None and not history.has("train_error"):
        return 0.0
    steps, error = (
        (history.steps, history.column("train_error")) if order is None else (order.steps, order.training_error)
    )
    done = np.flatnonzero(running_median(error, 5) <= threshold)
    return float(steps[done[0]]) if len(done) else np.inf


def first_scored_step(history: History) -> float:
    """Return the end of the first tenth of an epoch, in steps; 1 where the length of an epoch is unknown.

    Args:
        history: A run.

    Returns:
        At least 1.
    """
    return max(1.0, _EPOCH_SHARE * epoch_steps(history))


def first_memorising_step(history: History) -> float:
    """Return the end of the first epoch, in steps; no phase III begins before, for a label never seen is not memorised.

    Args:
        history: A run.

    Returns:
        At least 1; 1 where the length of an epoch is unknown.
    """
    return max(1.0, epoch_steps(history))


def epoch_steps(history: History) -> float:
    """Return the steps of an epoch; 0 where they are unknown.

    Args:
        history: A run.

    Returns:
        By the epochs of the records, or by the header's `num_samples` and `batch_size`.
    """
    known = [record for record in history if record.epoch]
    if known:
        return known[-1].step / float(known[-1].epoch or 1.0)
    return float(history.header.get("num_samples", 0)) / float(history.header.get("batch_size", 1))


def date_by_division(order: LearningOrder, division: Division, centre: float, *, begin: float = 1.0) -> Dates:
    """Date phase II by the samples that the network contradicts within it, and by the others.

    T12 is the first of the records before t_c from which the others' error stays below e + .10 (e_0 − e), with e its
    smallest value up to t_c; T23 the last after t_c up to which the memorised share stays below m + .06 (1 − m).

    Args:
        order: The margins.
        division: The groups.
        centre: t_c, in steps.
        begin: Step before which no phase begins.

    Returns:
        T12 and T23, in steps; T23 is infinite where the memorised share never rises. T34 is not dated.
    """
    steps = order.steps
    middle = _nearest(steps, centre)
    error, memorised = division.unlearned, division.memorised
    lowest = float(error[: middle + 1].min())
    learned = error <= max(lowest + LEARNED * max(float(error[0]) - lowest, 0.0), float(error[middle]))
    base = float(memorised[max(middle - 2, 0) : middle + 3].min())
    free = memorised <= max(base + MEMORISED * (1.0 - base), float(memorised[middle]))
    before = np.flatnonzero(~learned[:middle])
    after = np.flatnonzero(~free[middle:])
    t12 = float(steps[before[-1] + 1]) if len(before) else 0.0
    t23 = float(steps[middle + after[0] - 1]) if len(after) else np.inf
    return Dates(max(t12, begin), max(t23, begin), np.inf)


def date_by_answers(
    order: LearningOrder, division: Division, centre: float, witness: Dates, *, begin: float = 1.0, seen: float = 1.0
) -> Dates:
    """Date phase II by what the network answers the contradicted samples.

    With f the share of them that is given the answer of phase II, f_0 its first value and f_c its median around t_c:
    before t_c, f stays above f_0 + .90 (f_c − f_0) from some record on. T12 is the geometric mean of its step and of
    the T12 of `date_by_division`. After t_c, f stays above .88 f_c up to some record. T23 is the weighted geometric
    mean of its step, two thirds, and of the T23 by the levels of σ_λ².

    Args:
        order: The margins.
        division: The groups.
        centre: t_c, in steps.
        witness: The levels of σ_λ².
        begin: Step before which no phase begins.
        seen: Step before which no phase III begins, of `first_memorising_step`.

    Returns:
        T12 and T23, in steps; T23 is infinite where the answers stay. T34 is not dated.
    """
    steps, followed = order.steps, division.followed
    last, middle = float(steps[-1]), _nearest(steps, centre)
    plateau = float(np.median(followed[division.window]))
    first = float(followed[0])
    reached = followed >= min(first + (1.0 - LEARNED) * (plateau - first), float(followed[middle]))
    kept = followed >= min((1.0 - _LEFT) * plateau, float(followed[middle]))
    before, after = np.flatnonzero(~reached[:middle]), np.flatnonzero(~kept[middle:])
    answered = max(float(steps[before[-1] + 1]) if len(before) else 0.0, begin)
    t12 = float(np.sqrt(answered * date_by_division(order, division, centre, begin=begin).t12))
    if not len(after):
        return Dates(t12, np.inf, np.inf)
    left = max(float(steps[middle + after[0] - 1]), seen)
    fallen = min(max(witness.t23, seen), last)
    return Dates(t12, max(float(left ** (1.0 - _BY_LEVELS) * fallen**_BY_LEVELS), t12), np.inf)


def _nearest(steps: NDArray[np.int64], step: float) -> int:
    """Index of the record nearest to a step in log-time."""
    return int(np.abs(np.log(np.maximum(steps, 0.5)) - np.log(max(step, 0.5))).argmin())
