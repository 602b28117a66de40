"""What dates phases: levels of a curve, the order of learning, answers and their clarity."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from planted import planted

from sgdkern.history import History
from sgdkern.learning_order import LearningOrder, agreement, running_median
from sgdkern.levels import alternating_levels
from sgdkern.phase_dates import Dates, date_by_answers, has_lasted
from sgdkern.phases import label_phases


def brute_force_levels(values, shortest=3):
    """The alternating step function of least squares, by trying every choice of steps."""
    n, best = len(values), (np.inf, None)
    for first, second, third in itertools.product(range(n + 1), repeat=3):
        edges = [0, first, second, third] + ([] if third == n else [n])
        pieces = [values[a:b] for a, b in zip(edges, edges[1:])]
        if min(map(len, pieces)) < shortest or not first < second < third:
            continue
        means = [piece.mean() for piece in pieces]
        if not all(np.sign(b - a) == sign for a, b, sign in zip(means, means[1:], (1, -1, 1))):
            continue
        cost = sum(((piece - piece.mean()) ** 2).sum() for piece in pieces)
        best = min(best, (cost, (first, second, third)), key=lambda item: item[0])
    return best


@pytest.mark.parametrize("seed", range(6))
def test_levels_are_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=14) + np.repeat([0.0, 1.0, 0.0, 1.0], [4, 3, 3, 4]) * seed
    cost, cuts = brute_force_levels(values)
    found = alternating_levels(values)
    assert found.cuts == cuts
    assert found.explained == pytest.approx(1 - cost / ((values - values.mean()) ** 2).sum())
    assert found.means[0] == pytest.approx(values[: cuts[0]].mean())


def test_levels_need_nine_points_and_a_curve_that_alternates():
    assert alternating_levels(np.arange(8.0)) is None
    assert alternating_levels(np.full(20, 3.0)) is None
    assert alternating_levels(-np.arange(20.0)) is None


def test_a_curve_that_only_rises_has_two_levels():
    found = alternating_levels(np.array([0.0] * 6 + [1.0] * 5 + [2.0] * 4) + 0.01 * np.arange(15))
    assert found.cuts == (6, 15, 15)
    assert len(found.means) == 2


def test_levels_do_not_depend_on_the_units_of_the_curve():
    values = np.random.default_rng(0).normal(size=30)
    assert alternating_levels(values).cuts == alternating_levels(5.0 + 3.0 * values).cuts


def test_running_median():
    values = np.array([1.0, 9.0, 2.0, 3.0, 8.0])
    np.testing.assert_array_equal(running_median(values, 3), [1.0, 2.0, 3.0, 3.0, 8.0])
    stacked = np.stack([values, -values], axis=1)
    np.testing.assert_array_equal(running_median(stacked, 3)[:, 1], -running_median(values, 3))


def test_a_division_follows_the_signs_of_the_margins_around_its_moment():
    steps = np.array([0, 90, 100, 110, 1000])
    margins = np.array([[1, -1], [1, -1], [1, -1], [1, -1], [1, 1]], dtype=np.float32)
    order = LearningOrder(steps, margins, np.array([[0, 1]] * 4 + [[0, 2]]))
    division = order.divide(101.0)
    assert division.contradicted.tolist() == [False, True]
    assert division.memorised.tolist() == [0, 0, 0, 0, 1]
    assert division.unlearned.tolist() == [0] * 5
    assert division.window.tolist() == [1, 2, 3]
    assert division.strength == 1.0
    assert order.training_error.tolist() == [0.5] * 4 + [0.0]
    assert order.fitted_labels().tolist() == [0, 2]


def test_memorising_counts_by_how_strongly_a_label_was_contradicted():
    margins = np.full((6, 4), -1.0, dtype=np.float32)
    margins[:, 0] = 1.0  # fitted throughout
    margins[:4, 1], margins[4:, 1] = -0.1, 0.1  # hard: learned in the end, never contradicted much
    order = LearningOrder(np.geomspace(1, 1e5, 6).astype(int), margins, np.zeros((6, 4), dtype=int))
    division = order.divide(100.0)
    assert division.contradicted.tolist() == [False, True, True, True]
    np.testing.assert_allclose(division.memorised, [0, 0, 0, 0, 0.1 / 2.1, 0.1 / 2.1], rtol=1e-6)


def test_answers_are_followed_by_strength_and_constancy():
    steps = np.geomspace(1, 1e5, 6).astype(int)
    margins = np.full((6, 4), -1.0, dtype=np.float32)
    margins[:, 0] = 1.0  # fitted throughout
    margins[:, 1] = -0.5
    predictions = np.array([[0, 1, 1, 5], [0, 1, 2, 5], [0, 1, 3, 3], [0, 1, 3, 4], [0, 2, 3, 4], [0, 2, 3, 3]])
    division = LearningOrder(steps, margins, predictions).divide(300.0)  # records 2 to 4
    assert division.window.tolist() == [1, 2, 3]
    constancy = np.array([1.0, 2 / 3, 1 / 3])  # of the three contradicted samples' commonest answers, 1, 3 and 3
    weights = constancy * np.array([0.5, 1.0, 1.0])
    follows = predictions[:, 1:] == np.array([1, 3, 3])
    np.testing.assert_allclose(division.followed, running_median(follows @ weights / weights.sum(), 3))


@pytest.mark.parametrize("seed", range(3))
def test_clarity_is_the_variance_between_the_groups_times_the_steadiness_of_the_answers(seed):
    rng = np.random.default_rng(seed)
    margins = rng.normal(size=(9, 40)).astype(np.float32) + np.where(np.arange(40) < 12, -1, 1).astype(np.float32)
    predictions = np.where(rng.random((9, 40)) < 0.7, np.arange(40) % 5, rng.integers(0, 5, (9, 40)))
    order = LearningOrder(np.geomspace(1, 1e4, 9).astype(int), margins, predictions)
    window = order.divide(100.0).window
    sizes = np.median(np.abs(margins[window]), axis=1, keepdims=True)
    mean = np.clip(margins[window] / sizes, -3, 3).mean(0)
    within = sum(((mean[side] - mean[side].mean()) ** 2).sum() for side in (mean <= 0, mean > 0))
    between = 1 - within / ((mean - mean.mean()) ** 2).sum()
    assert order.clarity(100.0) == pytest.approx(between * fleiss(predictions[window][:, mean <= 0]), rel=1e-5)


def test_clarity_does_not_depend_on_the_scale_of_the_margins():
    history = planted(num_samples=60)
    margins, predictions = (np.stack([getattr(one, name) for one in history]) for name in ("margins", "predictions"))
    one, other = (LearningOrder(history.steps, scale * margins, predictions) for scale in (1.0, 50.0))
    assert one.clarity(500.0) == pytest.approx(other.clarity(500.0))
    assert one.clarity(600.0) > max(one.clarity(5.0), one.clarity(15_000.0))


def test_one_group_alone_is_not_clear():
    order = LearningOrder(np.arange(5), np.ones((5, 3), dtype=np.float32), np.zeros((5, 3), dtype=int))
    assert order.clarity(2.0) == 0.0


def test_phase_ii_lasts_while_the_contradicted_samples_keep_their_answers():
    history = planted()
    margins, predictions = (np.stack([getattr(one, name) for one in history]) for name in ("margins", "predictions"))
    order = LearningOrder(history.steps, margins, predictions)
    division = order.divide(600.0)
    alone = date_by_answers(order, division, 600.0, Dates(200.0, 2_000.0, np.inf))
    assert abs(np.log(alone.t12 / 200)) < 0.2
    assert abs(np.log(alone.t23 / 2_000)) < 0.2
    later = date_by_answers(order, division, 600.0, Dates(200.0, 8 * 2_000.0, np.inf))
    assert later.t23 / alone.t23 == pytest.approx(2.0)  # the levels have a third of the say
    never = date_by_answers(order, division, 600.0, Dates(200.0, np.inf, np.inf))
    assert never.t23 > later.t23  # of levels that have not fallen the last record is taken
    cut = planted(last=1_500)
    order = LearningOrder(cut.steps, margins[: len(cut)], predictions[: len(cut)])
    assert date_by_answers(order, order.divide(600.0), 600.0, Dates(200.0, 900.0, np.inf)).t23 == np.inf


def test_phase_ii_is_found_where_the_noise_is_high_from_the_start():
    history, misled = planted(rate=0.6), History(planted(rate=0.6).header)
    for one in history:
        early = 30.0 if 1 < one.step < 8 else 0.1
        misled.append(replace(one, values={**one.values, "sigma_lambda2": early}))
    phases = label_phases(misled)
    assert phases.verdict == "four phases"
    # Labels are learned evenly over log-time from 200 e^-2.5 to 200 e^.05: nine tenths of them by step 163. On a phase
    # II as even as this one, t_c is its place nearest to the misled levels: at its edge, where groups still overlap.
    assert abs(np.log(phases.t12 / (200 * np.exp(0.9 * 2.55 - 2.5)))) < 0.3
    # Labels are memorised evenly from 1,800 to 9,000: 12 % by 2,183. The levels, misled to epoch 1, have a third.
    assert abs(np.log(phases.t23 / (2_183 ** (2 / 3) * 12 ** (1 / 3)))) < 0.15


def test_phase_iii_is_dated_no_earlier_than_all_labels_were_seen():
    history = planted()
    margins, predictions = (np.stack([getattr(one, name) for one in history]) for name in ("margins", "predictions"))
    order = LearningOrder(history.steps, margins, predictions)
    division, levels = order.divide(600.0), Dates(200.0, 2_000.0, np.inf)
    plain = date_by_answers(order, division, 600.0, levels)
    assert date_by_answers(order, division, 600.0, levels, seen=600.0) == plain
    assert date_by_answers(order, division, 600.0, levels, seen=5_000.0).t23 == pytest.approx(5_000.0)


def fleiss(answers):
    """Chance-corrected agreement by looking at every pair of records of every sample."""
    records, samples = answers.shape
    pairs = [
        answers[i, n] == answers[j, n] for n in range(samples) for i, j in itertools.permutations(range(records), 2)
    ]
    frequencies = [np.mean(answers == answer) for answer in range(answers.max() + 1)]
    chance = sum(frequency**2 for frequency in frequencies)
    return (np.mean(pairs) - chance) / (1 - chance)


@pytest.mark.parametrize("seed", range(4))
def test_agreement_of_records_is_fleiss_kappa(seed):
    rng = np.random.default_rng(seed)
    answers = np.where(rng.random((5, 30)) < 0.2 * seed, 2, rng.integers(0, 4, (5, 30)))
    assert agreement(answers) == pytest.approx(fleiss(answers))


def test_agreement_is_one_for_always_and_nought_for_chance():
    assert agreement(np.tile(np.arange(6) % 3, (4, 1))) == pytest.approx(1.0)
    assert abs(agreement(np.random.default_rng(0).integers(0, 10, (20, 5_000)))) < 0.01
    assert agreement(np.zeros((4, 9), dtype=int)) == 0.0  # one answer for all: no better than chance
    assert agreement(np.zeros((1, 9), dtype=int)) == agreement(np.zeros((4, 1), dtype=int)) == 0.0


@pytest.mark.parametrize(
    ("dates", "lasted"),
    [
        (Dates(20, 40, np.inf), True),
        (Dates(20, 39, np.inf), False),  # not twice as long
        (Dates(20, np.inf, np.inf), False),  # has not ended
    ],
)
def test_a_pause_in_learning_is_no_phase_ii(dates, lasted):
    assert has_lasted(dates) is lasted


def test_a_single_record_that_differs_is_smoothed_away():
    margins = np.array([[1], [1], [-1], [1], [1]], dtype=np.float32)
    assert LearningOrder(np.arange(5), margins, np.zeros((5, 1), dtype=int)).fitted.all()
