"""The probe's alarm: when it comes, the weights that it keeps, and what a kill leaves of both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probing import a_probe
from torch import Tensor, nn
from torch.nn import functional

from sgdkern.alarm import Alarm
from sgdkern.history import History
from sgdkern.phase_detector import PhaseEvent
from sgdkern.probe import Probe
from sgdkern.schedule import log_spaced_steps


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is not switched off here; syncing every file would be most of the time."""
    monkeypatch.setattr("sgdkern.atomic.os.fsync", lambda descriptor: None)


def train_on_wrong_labels(
    folder: Path, *, steps: list[int], start: int = 0, stop: int | None = None, **options: Any
) -> tuple[Probe, nn.Module]:
    """Digits with two fifths of the labels wrong, by full-batch descent, so that a step decides all that follows."""
    inputs, targets = wrong_digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))
    history = None
    if start:
        model.load_state_dict(torch.load(folder / f"checkpoint{start}.pt", weights_only=True))
        history = History.load(folder / "history.jsonl")
        history.records = [record for record in history if record.step <= start]
    with Probe(
        model, functional.cross_entropy, inputs, targets, batch_size=20, blind=False, num_minibatches=0,
        path=folder / "history.jsonl", history=history, checkpoint=folder / "best_phase_II.pt", **options,
    ) as probe:  # fmt: skip
        for step in range(start, steps[-1] + 1):
            if step in steps and step > (start or -1):
                probe.measure(step)
                torch.save(model.state_dict(), folder / f"checkpoint{step}.pt")
            if step == stop:
                break
            model.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.5 * parameter.grad
    return probe, model


def wrong_digits() -> tuple[Tensor, Tensor]:
    from sgdkern.data import load_data, with_label_noise

    data = with_label_noise(load_data("digits", train_samples=300, seed=0), rate=0.4, kind="symmetric", seed=0)
    return data.train_inputs.flatten(1), data.train_labels


STEPS = log_spaced_steps(600, count=45)


@pytest.fixture(scope="module")
def alarmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Probe, list[PhaseEvent]]:
    folder, events = tmp_path_factory.mktemp("alarm"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sgdkern.atomic.os.fsync", lambda descriptor: None)
        probe, _ = train_on_wrong_labels(folder, steps=STEPS, on_event=events.append)
    return folder, probe, events


def test_the_alarm_says_where_to_go_back_to(alarmed: tuple[Path, Probe, list[PhaseEvent]]) -> None:
    folder, probe, events = alarmed
    assert [event.name for event in events] == ["II", "III", "IV"]
    assert list(probe.events) == events
    assert probe.phase == "IV"
    second, third = events[:2]
    assert probe.alarm is third
    assert isinstance(third, Alarm)
    assert third.checkpoint == folder / "best_phase_II.pt"
    assert second.step < third.best_step < third.step <= third.seen_at
    middle = np.sqrt(second.step * third.step)
    nearest = min(probe.history.steps, key=lambda step: abs(np.log((step + 1) / (middle + 1))))
    assert third.best_step == nearest
    for words in ("begins to memorise wrong labels", f"step {third.best_step}", str(third.checkpoint)):
        assert words in third.advice


def test_the_checkpoint_is_of_the_best_moment(alarmed: tuple[Path, Probe, list[PhaseEvent]]) -> None:
    folder, probe, _ = alarmed
    assert probe.alarm is not None
    found = torch.load(folder / "best_phase_II.pt", weights_only=True)
    then = torch.load(folder / f"checkpoint{probe.alarm.best_step}.pt", weights_only=True)
    assert found.keys() == then.keys()
    assert all(torch.equal(value, then[name]) for name, value in found.items())
    assert not (folder / "best_phase_II.pt.candidates").exists()


@pytest.mark.usefixtures("no_waiting_for_the_disk")
@pytest.mark.parametrize(("where", "behind"), [("before", 4), ("at", 0), ("at", 4), ("after", 4)])
def test_going_on_after_a_kill_gives_the_same_bytes(
    alarmed: tuple[Path, Probe, list[PhaseEvent]], tmp_path: Path, where: str, behind: int
) -> None:
    """Killed around the alarm; the checkpoint that training goes on from is the last one, or some records older."""
    folder, whole, _ = alarmed
    assert whole.alarm is not None
    seen = STEPS.index(whole.alarm.seen_at)
    last = seen + {"before": -1, "at": 0, "after": 3}[where]
    train_on_wrong_labels(tmp_path, steps=STEPS, stop=STEPS[last])
    events: list[PhaseEvent] = []
    probe, _ = train_on_wrong_labels(tmp_path, steps=STEPS, start=STEPS[last - behind], on_event=events.append)
    assert (tmp_path / "history.jsonl").read_bytes() == (folder / "history.jsonl").read_bytes()
    assert (tmp_path / "best_phase_II.pt").read_bytes() == (folder / "best_phase_II.pt").read_bytes()
    assert not (tmp_path / "best_phase_II.pt.candidates").exists()
    assert [event.step for event in probe.events] == [event.step for event in whole.events]
    assert probe.alarm is not None
    assert probe.alarm.best_step == whole.alarm.best_step
    assert all(event.seen_at > STEPS[last - behind] for event in events)  # what was told before is not told again


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_few_candidates_take_little_space(alarmed: tuple[Path, Probe, list[PhaseEvent]], tmp_path: Path) -> None:
    _, whole, _ = alarmed
    held: list[int] = []
    candidates = tmp_path / "best_phase_II.pt.candidates"
    probe, _ = train_on_wrong_labels(
        tmp_path, steps=STEPS, keep=6, on_record=lambda _: held.append(files_in(candidates))
    )
    assert max(held) == 6
    assert probe.alarm is not None
    assert whole.alarm is not None
    factor = (1 + probe.alarm.seen_at) ** (1 / (6 - 1))
    assert abs(np.log((1 + probe.alarm.best_step) / (1 + whole.alarm.best_step))) <= np.log(factor)
    then = torch.load(tmp_path / f"checkpoint{probe.alarm.best_step}.pt", weights_only=True)
    found = torch.load(tmp_path / "best_phase_II.pt", weights_only=True)
    assert all(torch.equal(value, then[name]) for name, value in found.items())


def files_in(folder: Path) -> int:
    return len(list(folder.glob("*.pt"))) if folder.exists() else 0


def test_a_new_run_does_not_mix_with_an_earlier_ones_weights(tmp_path: Path) -> None:
    (tmp_path / "best_phase_II.pt").touch()
    with pytest.raises(FileExistsError, match=r"best_phase_II\.pt or its candidates exist"):
        a_probe(checkpoint=tmp_path / "best_phase_II.pt")
    a_probe(checkpoint=tmp_path / "best_phase_II.pt", history=History())


def test_without_labels_there_is_no_alarm() -> None:
    probe = Probe(nn.Linear(3, 2), nn.MSELoss(), torch.randn(12, 3), torch.randn(12, 2), batch_size=4, blind=False)
    for step in range(20):
        probe.measure(step)
    assert (probe.phase, probe.events, probe.alarm) == ("I", (), None)
