"""Phase labels: planted phases are found, each verdict is given where it is due, the score is a share of log-time."""

from dataclasses import replace

import numpy as np
import pytest
from planted import STEPS, planted

from sgdkern.history import History, Record
from sgdkern.phase_truth import phase_agreement, phases_from_test_error
from sgdkern.phases import Phase, Phases, label_phases


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
