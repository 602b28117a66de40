"""The detector: each phase of a run is announced once, soon, and without looking ahead."""

import numpy as np
import pytest
from planted import STEPS, planted

from sgdkern.phase_detector import PhaseDetector
from sgdkern.phases import label_phases


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
