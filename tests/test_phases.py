"""Phase labels: planted phases are found, each verdict is given where it is due, the score is a share of log-time."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sgdkern.history import GroupRecord, History, Record
from sgdkern.learning_order import LearningOrder, agreement, running_median
from sgdkern.levels import alternating_levels
from sgdkern.phase_dates import Dates, date_by_answers, has_lasted
from sgdkern.phase_detector import PhaseDetector
from sgdkern.phase_truth import phase_agreement, phases_from_test_error
from sgdkern.phases import Phase, Phases, label_phases

STEPS = np.unique(np.concatenate([[0], np.geomspace(1, 20_000, 110).round()])).astype(int)


def planted(
    *,
    rate=0.4,
    t12=200.0,
    t23=2_000.0,
    t34=9_000.0,
    num_samples=300,
    hard=0.0,
    generalises=True,
    last=20_000,
    margins=True,
    given=False,
    wandering=0.0,
    seed=0,
):
    """A history in which right labels are learned around T12 and wrong ones memorised from T23 to T34.

    Each sample's label is fitted from a step of its own; `hard` samples are right but learned late, with small margins.
    What a network answers instead of a label is drawn anew at each record with probability `wandering`.
    """
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 10, num_samples)
    wrong = np.arange(num_samples) < rate * num_samples
    labels = np.where(wrong, (true + 1 + rng.integers(0, 9, num_samples)) % 10, true)
    learned = t12 * np.exp(rng.uniform(-2.5, 0.05, num_samples))
    if not generalises:
        learned[:] = np.inf
    late = rng.random(num_samples) < hard
    learned[late] = t12 * np.exp(rng.uniform(0, 2.0, late.sum()))
    fitted_from = np.where(wrong, np.exp(rng.uniform(np.log(t23 * 0.9), np.log(t34), num_samples)), learned)
    if not generalises:
        fitted_from = np.exp(rng.uniform(np.log(t23), np.log(t34), num_samples))
    levels = {"I": 0.1, "II": 2.0, "III": 0.2, "IV": 4.0}
    history = History({"num_samples": num_samples, "batch_size": 25, "given_labels": labels})
    for step in STEPS[last >= STEPS]:
        fitted = step >= fitted_from
        answer = np.where(step >= learned, true, rng.integers(0, 10, num_samples))
        if not generalises:
            answer = rng.integers(0, 10, num_samples)
        answer = np.where(rng.random(num_samples) < wandering, rng.integers(0, 10, num_samples), answer)
        chance = rng.integers(1, 10, num_samples)
        predictions = np.where(fitted, labels, np.where(answer == labels, (labels + chance) % 10, answer))
        size = np.where(late, 0.05, 1.0) * rng.uniform(0.5, 1.5, num_samples)
        phase = "I" if step < t12 else "II" if step < t23 else "III" if step < t34 else "IV"
        memorised = float(fitted[wrong].mean()) if wrong.any() else 0.0
        generalising = float((step >= learned).mean())
        groups = {}
        if given:
            a0_c = 9.0 if phase == "I" else 1.0
            cosine = 0.4 if phase == "III" else -0.8
            rows = ((1.0, cosine, 0.5), (cosine, 1.0, 0.5), (0.5, 0.5, 1.0))
            groups["given"] = GroupRecord(("c", "w"), (num_samples // 2, num_samples // 2), (1, 1), (a0_c, 1.0), rows)
        history.append(
            Record(
                step=int(step),
                values={
                    "sigma_lambda2": levels[phase] * float(np.exp(0.1 * rng.normal())),
                    "A": {"I": 1.0, "II": 1.0, "III": 6.0, "IV": 0.01}[phase] if rate else 1.0 / (1.0 + step),
                },
                metrics={
                    "train_error": 1.0 - float(fitted.mean()),
                    "test_error": 0.9 - 0.8 * generalising + 0.5 * memorised * rate,
                },
                groups=groups,
                losses=np.where(fitted, 0.1, 5.0).astype(np.float32) if margins else None,
                margins=np.where(fitted, size, -size).astype(np.float32) if margins else None,
                predictions=predictions if margins else None,
            )
        )
    return history


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


@pytest.mark.parametrize(
    ("groups", "verdict"), [("auto", "two phases"), ("none", "four phases"), ("given", "four phases")]
)
def test_no_label_claims_a_phase_iii_within_the_first_epoch(groups, verdict):
    history = planted(given=True, margins=groups != "none")
    slow = History({**history.header, "batch_size": 0.1})  # an epoch of 3,000 steps, and T23 at 2,000
    for one in history:
        slow.append(one)
    phases = label_phases(slow, groups=groups)
    assert phases.verdict == verdict  # labels contradicted only until they are seen are not wrong
    assert phases.t23 is None or phases.t23 >= 3_000


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


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4, 0.6, 0.7])
@pytest.mark.parametrize("seed", range(2))
def test_planted_phases_are_found(rate, seed):
    history = planted(rate=rate, seed=seed)
    phases = label_phases(history)
    assert phases.verdict == "four phases"
    assert [phase.name for phase in phases] == ["I", "II", "III", "IV"]
    for found, planted_at in ((phases.t12, 200), (phases.t23, 2_000), (phases.t34, 9_000)):
        assert abs(np.log(found / planted_at)) < 0.35
    assert phases[0].start == 0
    assert phases[-1].end == history.steps[-1]
    assert all(first.end == second.start for first, second in zip(phases, phases[1:]))
    assert all(0 <= phase.confidence <= 1 for phase in phases)
    assert phases.cleaning_step in history.steps
    assert abs(np.log(phases.cleaning_step / np.sqrt(phases.t12 * phases.t23))) < 0.1


def test_the_phases_agree_with_the_test_error():
    history = planted()
    truth = phases_from_test_error(history)
    assert truth.verdict == "four phases"
    assert phase_agreement(label_phases(history), truth) > 0.9


@pytest.mark.parametrize("options", [{"groups": "none"}, {"groups": "auto"}])
def test_order_parameters_alone_find_planted_phases(options):
    history = planted(margins=options["groups"] == "none")
    phases = label_phases(history, **options)
    assert phases.verdict == "four phases"
    assert abs(np.log(phases.t12 / 200)) < 0.2
    assert abs(np.log(phases.t23 / 2_000)) < 0.2


def test_known_groups_date_the_phases_by_their_gradients():
    phases = label_phases(planted(given=True), groups="given")
    assert phases.verdict == "four phases"
    assert abs(np.log(phases.t12 / 200)) < 0.2
    assert abs(np.log(phases.t23 / 2_000)) < 0.2


@pytest.mark.parametrize("hard", [0.0, 0.1])
@pytest.mark.parametrize("groups", ["auto", "none"])
def test_clean_data_has_two_phases(hard, groups):
    phases = label_phases(planted(rate=0.0, hard=hard), groups=groups)
    assert phases.verdict == "two phases"
    assert [phase.name for phase in phases] == ["fast", "exploration"]
    assert phases.t23 is None
    assert phases.cleaning_step is None


def test_clean_data_has_two_phases_where_the_noise_only_rises():
    history, rising = planted(rate=0.0), History(planted(rate=0.0).header)
    for one in history:
        rising.append(replace(one, values={**one.values, "sigma_lambda2": 0.01 + 0.001 * one.step}))
    for groups in ("auto", "none"):
        assert label_phases(rising, groups=groups).verdict == "two phases"


def test_a_network_that_only_memorises_has_no_phase_ii():
    phases = label_phases(planted(rate=0.9, generalises=False))
    assert phases.verdict == "no phase II"
    assert not phases
    assert "contradicts" in phases.reason


@pytest.mark.parametrize(
    ("rate", "wandering", "t12", "verdict"),
    [
        (0.75, 0.0, 200.0, "four phases"),
        (0.75, 0.33, 200.0, "no phase II"),  # nothing is fitted before it was seen: it may be memorised
        (0.75, 0.33, 15.0, "four phases"),  # within half an epoch of 24 steps more is fitted than the commonest label
        (0.5, 0.45, 200.0, "four phases"),  # answers wander more, but much more is fitted
    ],
)
def test_answers_may_wander_the_more_the_more_was_learned(rate, wandering, t12, verdict):
    history = planted(rate=rate, wandering=wandering, t12=t12, num_samples=600)
    assert label_phases(history).verdict == verdict


def test_a_run_that_stops_soon_after_memorising_began_is_in_phase_iii():
    history = planted(last=2_300)
    memorised = 1.0 - history.column("train_error")[-1] - 0.6
    assert memorised < 0.1  # of the .4 that are wrong
    phases = label_phases(history)
    assert phases.verdict == "four phases"
    assert [phase.name for phase in phases] == ["I", "II", "III"]


def test_a_run_is_too_short_until_it_is_not():
    verdicts = [label_phases(planted(last=last)).verdict for last in (0, 5, 60, 1_000, 20_000)]
    assert verdicts[:4] == ["not enough of a run"] * 4
    assert verdicts[4] == "four phases"
    so_far = label_phases(planted(last=1_500))
    assert [phase.name for phase in so_far] == ["I", "II"]
    assert so_far.t23 is None
    assert so_far.cleaning_step is not None
    assert label_phases(History()).verdict == "not enough of a run"


def test_a_run_that_stops_while_it_memorises_has_no_phase_iv():
    phases = label_phases(planted(last=6_000))
    assert phases.verdict == "four phases"
    assert [phase.name for phase in phases] == ["I", "II", "III"]
    assert phases.t34 is None


def test_labels_do_not_depend_on_the_scale_of_margins_or_order_parameters():
    history, scaled = planted(), History(planted().header)
    for one in history:
        values = {"sigma_lambda2": 7.0 * one.values["sigma_lambda2"], "A": 100.0 * one.values["A"]}
        scaled.append(replace(one, values=values, margins=9 * one.margins))
    assert list(label_phases(history)) == list(label_phases(scaled))


def test_the_test_error_is_never_looked_at():
    history, blinded = planted(), History(planted().header)
    for one in history:
        blinded.append(replace(one, metrics={}))
    assert list(label_phases(history)) == list(label_phases(blinded))


def watched(history):
    detector = PhaseDetector(history.header)
    events = [event for event in map(detector.update, history) if event is not None]
    return detector, events


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_detector_announces_each_phase_once_and_soon(rate):
    history = planted(rate=rate)
    detector, events = watched(history)
    assert [event.name for event in events] == ["II", "III", "IV"]
    assert detector.phase == "IV"
    for event, planted_at in zip(events, (200, 2_000, 9_000)):
        assert event.step <= event.seen_at
        assert abs(np.log(event.step / planted_at)) < 0.4
        assert event.seen_at < 3 * planted_at
        assert event.advice


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_an_event_comes_a_few_records_after_the_change_and_holds_within_what_it_says(rate):
    history = planted(rate=rate)
    _, events = watched(history)
    finished = label_phases(history)
    for event, label, behind in zip(events, (finished.t12, finished.t23, finished.t34), (12, 5, 5)):
        assert 1 / event.within <= event.step / label <= event.within
        assert np.searchsorted(history.steps, event.seen_at) - np.searchsorted(history.steps, event.step) <= behind


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.7])
def test_the_label_bears_the_alarm_out_from_the_record_that_raised_it(rate):
    event = next(event for event in watched(planted(rate=rate))[1] if event.name == "III")
    for last in STEPS[event.seen_at <= STEPS][::4]:
        phases = label_phases(planted(rate=rate, last=last))
        assert phases.verdict == "four phases"
        assert 1 / event.within <= phases.t23 / event.step <= event.within


def test_the_detector_waits_for_enough_of_a_run():
    assert watched(planted(last=200))[1] == []
    assert [event.name for event in watched(planted(last=1_500))[1]] == ["II"]


def test_without_margins_the_detector_announces_the_end_of_phase_ii():
    _, events = watched(planted(margins=False))
    assert [event.name for event in events] == ["III", "IV"]
    assert abs(np.log(events[0].step / 2_000)) < 0.4


def test_the_detector_does_not_look_ahead():
    history = planted()
    _, events = watched(history)
    for event in events:
        cut = planted(last=event.seen_at)
        assert watched(cut)[1][-1] == event


def test_the_detector_announces_no_memorising_on_clean_data():
    _, events = watched(planted(rate=0.0, hard=0.05))
    assert [event.name for event in events] == ["exploration"]


def test_the_detector_announces_nothing_where_there_is_no_phase_ii():
    assert watched(planted(rate=0.9, generalises=False))[1] == []


def test_truth_of_a_test_error_that_does_not_rise():
    history = History({"num_samples": 1000, "batch_size": 10})
    for step in STEPS:
        metrics = {"test_error": 0.1 + 0.8 * (step < 100), "train_error": 0.02}
        history.append(Record(step=int(step), metrics=metrics))
    truth = phases_from_test_error(history)
    assert truth.verdict == "two phases"
    assert truth[0].start == 10  # a tenth of an epoch of 100 steps
    assert abs(np.log(truth.t12 / 100)) < 0.2


def test_agreement_is_the_share_of_log_time():
    def phases(*edges):
        names = ["I", "II", "III", "IV"]
        return Phases([Phase(n, a, b, 1.0) for n, a, b in zip(names, edges, edges[1:])], verdict="", reason="")

    truth = phases(1, 10, 100, 1_000, 10_000)
    assert phase_agreement(truth, truth) == pytest.approx(1.0)
    assert phase_agreement(phases(0, 10, 100, 1_000, 99_999), truth) == pytest.approx(1.0)
    assert phase_agreement(phases(1, 100, 1_000, 10_000), truth) == pytest.approx(0.25)
    assert phase_agreement(Phases(verdict="no phase II", reason=""), truth) == 0.0
    assert phase_agreement(truth, Phases(verdict="no phase II", reason="")) == 0.0


def test_what_is_asked_for_must_be_there():
    with pytest.raises(ValueError, match="must be auto"):
        label_phases(planted(), groups="all")
    with pytest.raises(ValueError, match="margins"):
        label_phases(planted(margins=False), groups="blind")
    with pytest.raises(ValueError, match="partition 'given'"):
        label_phases(planted(), groups="given")
