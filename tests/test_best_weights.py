"""BestWeights: what is wanted is there or near, in bounded space, whenever the process is killed."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sgdkern.best_weights import BestWeights
from sgdkern.schedule import log_spaced_steps


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is not switched off here; syncing every file would be most of the time."""
    monkeypatch.setattr("sgdkern.atomic.os.fsync", lambda descriptor: None)


def model_of(step: int) -> nn.Module:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(step)
    return model


def step_in(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["weight"][0, 0])


def files(path: Path) -> list[int]:
    return sorted(int(file.stem) for file in path.with_name(path.name + ".candidates").glob("*.pt"))


def test_the_wanted_weights_are_kept_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    weights = BestWeights(path, keep=20)
    for step in (0, 1, 10, 100):
        weights.add(step, model_of(step))
    assert weights.take(14) == 10
    assert step_in(path) == 10
    assert list(tmp_path.iterdir()) == [path]
    assert weights.take(14) is None  # nothing is held any more


def test_the_file_is_what_load_state_dict_takes_and_holds_buffers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model(torch.randn(5, 3))
    weights = BestWeights(tmp_path / "best.pt")
    weights.add(7, model)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.zero_()
    assert weights.take(7) == 7
    loaded = torch.load(tmp_path / "best.pt", weights_only=True)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    assert all(value.device.type == "cpu" and not value.requires_grad for value in loaded.values())
    model.load_state_dict(loaded)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=150), st.integers(3, 40))
def test_every_record_is_near_one_that_is_held(steps: set[int], keep: int) -> None:
    """The bound of the docstring, after every step; here without files, which the list of steps decides."""
    weights, passed = BestWeights(Path("nowhere/best.pt"), keep=keep), []
    for step in sorted(steps):
        weights.add(step, None)
        passed.append(step)
        assert len(weights.steps) <= keep
        bound = (math.log1p(step) - math.log1p(passed[0])) / (keep - 1)
        held = [math.log1p(candidate) for candidate in weights.steps]
        far = max(min(abs(math.log1p(wanted) - one) for one in held) for wanted in passed)
        assert far <= bound * (1 + 1e-12)  # rounding of the logarithms


def test_thirty_two_of_a_usual_run_are_within_a_few_percent() -> None:
    steps = log_spaced_steps(10_000)
    weights = BestWeights(Path("nowhere/best.pt"))
    for step in steps:
        weights.add(step, None)
    wanted = [step for step in steps if step >= 100]
    assert max(min(abs(math.log(step / max(one, 1))) for one in weights.steps) for step in wanted) < math.log(1.25)


def test_the_folder_holds_what_the_list_says(tmp_path: Path) -> None:
    weights = BestWeights(tmp_path / "best.pt", keep=5)
    for step in range(0, 300, 7):
        weights.add(step, model_of(step))
        assert files(tmp_path / "best.pt") == weights.steps
        assert len(weights.steps) <= 5
    weights.drop_before(150)
    assert files(tmp_path / "best.pt") == weights.steps
    assert min(weights.steps) >= 150
    weights.drop_before(10**6)
    assert weights.steps == [294]  # the last one always stays: the run is there now


@pytest.mark.parametrize("killed_at", [6, 14, 16, 21, 25, 26, 27, 30])
def test_a_run_gone_on_with_holds_what_an_unbroken_one_holds(tmp_path: Path, killed_at: int) -> None:
    """The checkpoint is a few steps behind the kill: those steps come again, over the files of the killed process."""
    path, steps, alarm = tmp_path / "best.pt", log_spaced_steps(3000, count=40), 25
    checkpoint = killed_at - 5
    whole = BestWeights(tmp_path / "whole" / "best.pt", keep=6)
    for number, step in enumerate(steps[: alarm + 1]):
        whole.add(step, model_of(step))
        if number == 15:
            whole.drop_before(20)
    wanted = whole.steps[2]
    assert whole.take(wanted + 1) == wanted

    def go_on(start: int, end: int) -> None:
        weights = BestWeights(path, keep=6)
        for number, step in enumerate(steps[:end]):
            if number <= alarm:
                weights.add(step, None if number < start else model_of(step))
            if number == 15:
                weights.drop_before(20)
            if number == alarm:
                assert weights.take(wanted + 1) == wanted

    go_on(0, killed_at)
    go_on(checkpoint, 30)
    assert path.read_bytes() == (tmp_path / "whole" / "best.pt").read_bytes()
    assert not path.with_name("best.pt.candidates").exists()


def test_without_the_wanted_file_the_next_nearest_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    weights = BestWeights(path)
    for step in (1, 10, 100):
        weights.add(step, model_of(step))
    (tmp_path / "best.pt.candidates" / "10.pt").unlink()
    assert weights.take(20) == 100
    assert step_in(path) == 100


def test_too_few_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 3"):
        BestWeights(tmp_path / "best.pt", keep=2)
