"""The benchmark measures what it says: right before fast, a failure is a row, and the floor is the unit."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from sgdkern.benchmark import FLOOR, METHODS, WORKLOADS, Benchmark, Effort, Measurement, benchmark, machine
from sgdkern.benchmark.growth import Axis, exponent, growth
from sgdkern.benchmark.measurement import measure, measure_apart
from sgdkern.benchmark.methods import Method, forward_backward, gram_of_rows, method
from sgdkern.benchmark.operations import operation_speeds
from sgdkern.benchmark.oracle import ERRORS, brute_force, truth
from sgdkern.benchmark.timing import PeakMemory, available_mib, median_seconds, medians_in_turns
from sgdkern.benchmark.work import layer_shapes, useful_flops
from sgdkern.benchmark.workloads import Problem, Workload, mlp

QUICK = Effort(limit=30.0, budget=0.01)


def tiny_network(*layers: nn.Module) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(5)).eval()
    inputs = torch.randn(20, 3, 6, 6)
    model(inputs)
    return Problem(model, inputs, torch.randint(5, (20,)), nn.CrossEntropyLoss())


TINY = {
    "tiny": lambda: mlp(20, 5, 4, 3),
    "tiny cnn": lambda: tiny_network(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name, make in TINY.items():
        monkeypatch.setitem(WORKLOADS, name, Workload(name, name, make))
    monkeypatch.setattr("sgdkern.benchmark.measurement.ceiling_gflops", lambda: 50.0)


@pytest.mark.parametrize("workload", TINY)
@pytest.mark.parametrize("name", [name for name, found in METHODS.items() if found.requires is None])
def test_every_method_of_ours_is_right(workload, name):
    measured = measure(workload, name, QUICK)
    assert measured.failure is None
    assert measured.error <= 1e-5
    assert measured.seconds > 0
    assert measured.first_seconds > 0
    assert not measured.is_lower_bound
    assert (measured.share_of_ceiling is None) == (measured.useful_flops is None)


@pytest.mark.parametrize("name", [name for name, found in METHODS.items() if found.requires is not None])
def test_an_installed_peer_is_right_on_a_perceptron(name):
    if not METHODS[name].is_available:
        pytest.skip(f"{METHODS[name].requires} is not installed (pip install 'sgdkern[peers]')")
    measured = measure("tiny", name, QUICK)
    assert measured.failure is None
    assert measured.error <= 1e-5


@pytest.mark.parametrize("found", [torch.zeros(20, 20), torch.full((20, 20), math.nan)])
def test_a_wrong_method_has_no_time(monkeypatch, found):
    monkeypatch.setitem(METHODS, "wrong", Method("wrong", "K", lambda problem: found))
    measured = measure("tiny", "wrong", QUICK)
    assert measured.seconds is None
    assert measured.failure.startswith("wrong by")


def test_a_method_that_is_wrong_with_all_samples_only_has_no_time(monkeypatch):
    def run(problem):
        return METHODS["sgdkern"].run(problem) * (1 + (problem.num_samples > 8))

    monkeypatch.setitem(METHODS, "wrong", Method("wrong", "K", run))
    assert measure("tiny", "wrong", QUICK).failure == "wrong by 100.0%"


def test_a_method_that_raises_is_a_row(monkeypatch):
    def fail(problem):
        raise RuntimeError("not for this layer\nand more")

    monkeypatch.setitem(METHODS, "fails", Method("fails", "K", fail))
    assert measure("tiny", "fails").failure == "RuntimeError: not for this layer"


def test_what_takes_too_long_is_bounded_from_below():
    """Some samples in proportion, and the missing products: less than a full run, and more than nothing."""
    measured = measure("tiny", "autograd loop", Effort(limit=0.0, budget=0.01))
    assert measured.is_lower_bound
    assert measured.seconds > 0
    problem = WORKLOADS["tiny"].make()
    assert measured.peak_mib == 20 * problem.num_params * 4 / 2**20
    layerwise = METHODS["torchjd"].least_mib(problem)
    assert layerwise == 20 * 5 * 4 * 4 / 2**20


def test_a_method_has_a_known_quantity():
    with pytest.raises(ValueError, match="the quantity must be one of"):
        method("new", "beauty")


def test_a_peer_that_is_not_installed_is_not_available():
    assert not Method("peer", "K", lambda problem: problem.inputs, requires="no_such_module").is_available


# --- the oracle -------------------------------------------------------------------------------------------------------


def test_the_truth_is_float64_and_leaves_the_model_alone():
    problem = WORKLOADS["tiny"].make()
    true = truth(problem)
    assert true.gram.dtype == true.product.dtype == torch.float64
    assert true.gram.shape == (8, 8)
    assert problem.model[0].weight.dtype == torch.float32
    assert all(parameter.grad is None for parameter in problem.model.parameters())


@pytest.mark.parametrize("quantity", [quantity for quantity in ERRORS if quantity not in ("K", "factors")])
def test_every_quantity_tells_right_from_wrong(quantity):
    problem = WORKLOADS["tiny"].make()
    true = truth(problem)
    run = next(found.run for found in METHODS.values() if found.quantity == quantity)
    assert ERRORS[quantity](true, run(problem.first(8)), True) <= 1e-5
    other = dataclasses.replace(problem, targets=(problem.targets + 1) % 3)
    assert ERRORS[quantity](true, run(other.first(8)), True) > 1e-3


def test_brute_force_of_orthogonal_gradients():
    """Unit gradients at right angles, B = 1: A = 1, A0 = 1/n, every λ is the mean's, draws agree or not."""
    values = brute_force(torch.eye(4, dtype=torch.float64), 1, with_alignment=True)
    assert values["A"] == pytest.approx(1)
    assert values["A0"] == pytest.approx(1 / 4)
    assert values["D_par"] == pytest.approx(0, abs=1e-15)
    assert 0.15 < values["R"] < 0.35  # the share of pairs of draws that are the same sample


def test_gram_of_rows_is_the_sum_over_parameters():
    rows = [torch.randn(3, 2, 4), torch.randn(3, 5)]
    whole = torch.cat([part.flatten(1) for part in rows], 1)
    torch.testing.assert_close(gram_of_rows(rows), whole @ whole.T)


# --- work, time and memory --------------------------------------------------------------------------------------------


def test_useful_flops_of_a_perceptron_by_hand():
    """5-4-3, N = 20: no gradient of the inputs, K by products of positions."""
    problem = WORKLOADS["tiny"].make()
    assert layer_shapes(problem) == [(1, 5, 4, False), (1, 4, 3, True)]
    once = 2 * 20 * (5 * 4 + 4 * 3)
    capture = once + 2 * 20 * 4 * 3
    assert useful_flops(problem, "gradient") == capture + once
    assert useful_flops(problem, "order parameters") == capture + 2 * once
    assert useful_flops(problem, "K") == capture + 20 * 20 * (5 + 4 + 4 + 3)
    assert useful_flops(problem, "factors") is None


def test_useful_flops_of_a_convolution_take_the_cheaper_form():
    problem = WORKLOADS["tiny cnn"].make()
    positions, inputs, outputs = 36, 27, 4
    assert layer_shapes(problem)[0] == (positions, inputs, outputs, False)
    once = 2 * 20 * positions * inputs * outputs
    linear = 2 * 20 * 144 * 5
    explicit = 20 * 20 * inputs * outputs + once
    assert useful_flops(problem, "K") == once + explicit + 2 * linear + 20 * 20 * (144 + 5)


def test_the_floor_is_an_ordinary_backward_pass_in_batches():
    problem = WORKLOADS["tiny"].make()
    loss = problem.loss(problem.model(problem.inputs[16:]), problem.targets[16:])
    expected = torch.autograd.grad(loss, problem.parameters)[0]
    torch.testing.assert_close(forward_backward(problem, 8), expected)
    measured = measure("tiny", FLOOR, QUICK)
    assert measured.seconds > 0
    assert measured.quantity == "gradient"


def test_peak_memory_forgets_what_was_before():
    before = torch.ones(2**25)
    del before
    memory = PeakMemory()
    assert memory.mib() < 20
    kept = torch.ones(2**24)
    assert 50 < memory.mib() < 100
    del kept
    assert memory.mib() > 50
    assert available_mib() > 0


def test_median_counts_long_runs_once():
    seconds, repeats = median_seconds(lambda: torch.ones(3).sum(), budget=0.01)
    assert seconds > 0
    assert repeats >= 3
    assert median_seconds(lambda: torch.ones(3).sum(), budget=0.0)[1] == 1


# --- growth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_exponent_of_a_power_law(power):
    assert exponent([(x, 3 * x**power) for x in (1.0, 2.0, 5.0, 10.0, 30.0)]) == pytest.approx(power)


def test_exponent_looks_at_the_end():
    assert exponent([(x, max(100.0, x**2)) for x in (1.0, 2.0, 4.0, 20.0, 40.0, 80.0, 160.0)]) == pytest.approx(2)
    with pytest.raises(ValueError, match="at least two points"):
        exponent([(1.0, 1.0)])


def test_growth_ends_a_line_that_takes_too_long():
    axis = Axis("samples", "5-4-3", (4, 8, 16), lambda n: mlp(n, 5, 4, 3))
    points = list(growth(methods=[FLOOR, "sgdkern"], budget=0.0, axes=[axis]))
    assert [(point.value, point.method) for point in points] == [
        (value, name) for value in (4, 8, 16) for name in (FLOOR, "sgdkern")
    ]
    assert len(list(growth(methods=[FLOOR], limit=0.0, axes=[axis]))) == 1


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_ratios_are_in_units_of_the_floor():
    found = Benchmark(1, (Measurement("tiny", FLOOR, seconds=2.0), Measurement("tiny", "sgdkern", seconds=3.0)))
    assert [found.ratio(m) for m in found.measurements] == [1.0, 1.5]
    document = json.loads(json.dumps(found.as_dict()))
    assert document["measurements"][1]["ratio_to_floor"] == 1.5
    assert "/" not in json.dumps(machine())


def test_turns():
    """One after the other, so that what slows one down slows all."""
    calls, now = [], iter(range(1000))
    runs = [lambda: calls.append("a"), lambda: calls.append("b")]
    medians, rounds = medians_in_turns(runs, budget=8.0, clock=lambda: next(now))
    assert calls == ["a", "b"] * rounds
    assert (medians, rounds) == ([1, 1], 4)
    assert medians_in_turns(runs, budget=0.0)[1] == 3


def test_the_floor_beside_a_method_is_its_unit():
    floor = measure("tiny", FLOOR, QUICK)
    assert floor.floor_batch in (20, 32)
    beside = measure("tiny", "sgdkern", dataclasses.replace(QUICK, floor_batch=floor.floor_batch))
    assert beside.repeats >= 3
    assert beside.floor_seconds > 0
    found = Benchmark(1, (floor, beside))
    assert found.ratio(beside) == beside.seconds / beside.floor_seconds


def test_share_of_ceiling():
    measured = Measurement("tiny", "sgdkern", seconds=2.0, useful_flops=60 * 10**9, ceiling_gflops=60.0)
    assert measured.share_of_ceiling == 0.5


def test_when_the_time_is_up_the_rest_is_said(monkeypatch):
    monkeypatch.setattr("sgdkern.benchmark.measure_apart", lambda *args, **kwargs: pytest.fail("there is no time"))
    done = []
    found = benchmark(["narrow"], methods=["sgdkern"], within=0.5, progress=lambda *now: done.append(now))
    assert [m.failure for m in found.measurements] == ["not run: the time is up"] * 2
    assert done == [(f"narrow: {FLOOR}", 0.0), ("narrow: sgdkern", 0.5)]


def test_ours_come_before_the_others_on_all_workloads(monkeypatch):
    def found(workload, method, *, effort, **options):
        return Measurement(workload, method, seconds=1.0, ceiling_gflops=effort.ceiling or 50.0)

    monkeypatch.setattr("sgdkern.benchmark.measure_apart", found)
    rows = benchmark(["narrow", "cnn"], methods=["autograd loop", "sgdkern"]).measurements
    names = [(row.workload, row.method) for row in rows]
    assert names[:4] == [("narrow", FLOOR), ("narrow", "sgdkern"), ("cnn", FLOOR), ("cnn", "sgdkern")]
    assert names[4:] == [("narrow", "autograd loop"), ("cnn", "autograd loop")]


def test_an_unknown_name_is_a_value_error():
    with pytest.raises(ValueError, match="workload must be one of"):
        benchmark(["huge"])
    with pytest.raises(ValueError, match="got 'magic'"):
        benchmark(["narrow"], methods=["magic"])


def test_operations_stop_in_time():
    assert list(operation_speeds(torch.float32, threads=1, within=-1.0)) == []


@pytest.mark.slow
def test_a_process_of_its_own():
    measured = measure_apart("medium", "sgdkern", threads=1, effort=QUICK)
    assert measured.failure is None
    assert measured.error <= 1e-5
    assert measured.peak_mib < 100
    assert measure_apart("wide", "sgdkern", threads=1, seconds=0.01).failure == "over 0 s"


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_is_what_its_text_says(name):
    if name == "resnet18":
        pytest.importorskip("torchvision")
    problem = WORKLOADS[name].make()
    assert WORKLOADS[name].text.count(f"N = {problem.num_samples}") == 1
    assert problem.model(problem.inputs[:2]).shape == (2, 10)
    assert not problem.model.training
