"""The benchmark measures what it says: right before fast, a failure is a row, and the floor is the unit."""

import json

import pytest
import torch

from sgdkern.benchmark import FLOOR, METHODS, WORKLOADS, Benchmark, Measurement, benchmark, machine
from sgdkern.benchmark.measurement import measure, measure_apart, median_seconds
from sgdkern.benchmark.methods import Method
from sgdkern.benchmark.workloads import Problem, Workload


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).eval()
        return Problem(model, torch.randn(20, 5), torch.randint(3, (20,)), torch.nn.CrossEntropyLoss())

    monkeypatch.setitem(WORKLOADS, "tiny", Workload("tiny", "MLP 5-4-3, N = 20", make))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.requires is None])
def test_every_method_of_ours_is_right(method):
    measured = measure("tiny", method)
    assert measured.failure is None
    assert measured.error <= 1e-5
    assert measured.seconds > 0
    assert measured.is_lower_bound == (METHODS[method].num_samples is not None)


def test_a_wrong_method_has_no_time(monkeypatch):
    monkeypatch.setitem(METHODS, "wrong", Method("wrong", lambda problem: torch.zeros(20, 20)))
    measured = measure("tiny", "wrong")
    assert measured.seconds is None
    assert measured.failure == "wrong by 100.0%"


def test_a_method_that_raises_is_a_row(monkeypatch):
    def fail(problem):
        raise RuntimeError("not for this layer\nand more")

    monkeypatch.setitem(METHODS, "fails", Method("fails", fail))
    assert measure("tiny", "fails").failure == "RuntimeError: not for this layer"


def test_a_peer_that_is_not_installed_is_not_available():
    assert not Method("peer", lambda problem: problem.inputs, requires="no_such_module").is_available


def test_ratios_are_in_units_of_the_floor():
    found = Benchmark(1, (Measurement("tiny", FLOOR, 2.0, 1), Measurement("tiny", "sgdkern", 3.0, 1)))
    assert [found.ratio(m) for m in found.measurements] == [1.0, 1.5]
    document = json.loads(json.dumps(found.as_dict()))
    assert document["measurements"][1]["ratio_to_floor"] == 1.5
    assert "/" not in json.dumps(machine())


def test_median_counts_long_runs_once():
    seconds, repeats = median_seconds(lambda: torch.ones(3).sum(), budget=0.01)
    assert seconds > 0
    assert repeats >= 3


def test_an_unknown_name_is_a_value_error():
    with pytest.raises(ValueError, match="workload must be one of"):
        benchmark(["huge"])
    with pytest.raises(ValueError, match="got 'magic'"):
        benchmark(["narrow"], methods=["magic"])


@pytest.mark.slow
def test_a_process_of_its_own():
    measured = measure_apart("medium", "sgdkern", threads=1)
    assert measured.failure is None
    assert measured.error <= 1e-5
    assert measured.peak_mib < 200
