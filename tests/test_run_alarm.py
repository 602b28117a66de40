"""The main job's alarm: the weights of the best moment, and a training that ends there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import SMALL, Killed, quick_report, run_through_kills  # noqa: F401

from sgdkern import observed_training
from sgdkern import run as run_module
from sgdkern.history import History
from sgdkern.observed_training import new_trainer
from sgdkern.run import run
from sgdkern.run_config import RunConfig
from sgdkern.training import evaluate

# Memorises its wrong labels within two seconds.
MEMORISING = RunConfig(
    train_samples=300, test_samples=100, hidden=(40,), noise_rate=0.4, lr=0.1, epochs=60, measurements=40,
    spectrum_every=100, keep_best=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def alarmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alarmed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_report", lambda folder, **options: (folder / "report.html").touch())
        run(MEMORISING, folder)
    return folder


def test_the_weights_of_the_best_moment_are_kept_and_their_error_is_told(alarmed: Path) -> None:
    alarm = json.loads((alarmed / "summary.json").read_text())["alarm"]
    phases = json.loads((alarmed / "phases.json").read_text())
    assert phases["t12"] < alarm["best_step"] < alarm["step"] <= alarm["seen_at"]
    assert alarm["checkpoint"] == "best_phase_II.pt"
    data = run_module.run_data(MEMORISING)
    model = new_trainer(MEMORISING, data, order_seed=0).model
    model.load_state_dict(torch.load(alarmed / alarm["checkpoint"], weights_only=True))
    assert evaluate(model, data.test_inputs, data.test_labels).error == alarm["test_error_at_best_step"]
    assert not (alarmed / "best_phase_II.pt.candidates").exists()
    final = json.loads((alarmed / "summary.json").read_text())["test_error"]["final"]
    assert alarm["test_error_at_best_step"] < alarm["test_error"] < final


def test_the_kept_weights_are_the_same_after_stops(
    alarmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop at every seventh checkpoint; the candidates are saved by the same function and are not counted."""
    save, calls = torch.save, 0

    def sometimes(content: object, file: object) -> None:
        nonlocal calls
        calls += "trainer" in content  # type: ignore[operator]
        if calls % 7 == 6 and "trainer" in content:  # type: ignore[operator]
            raise Killed
        save(content, file)

    monkeypatch.setattr(observed_training.torch, "save", sometimes)
    folder = tmp_path / "run"
    assert run_through_kills(MEMORISING, folder) > 3
    for name in ("history.jsonl", "best_phase_II.pt"):
        assert (folder / name).read_bytes() == (alarmed / name).read_bytes()
    assert not (folder / "best_phase_II.pt.candidates").exists()


def test_training_may_end_at_the_alarm(alarmed: Path, tmp_path: Path) -> None:
    config = replace(MEMORISING, keep_best=False, stop_at_alarm=True)
    summary = run(config, tmp_path / "run")
    whole = History.load(alarmed / "history.jsonl")
    stopped = History.load(tmp_path / "run" / "history.jsonl")
    assert stopped.steps[-1] == summary["alarm"]["seen_at"] < whole.steps[-1]
    assert stopped.steps.tolist() == whole.steps[: len(stopped)].tolist()
    assert summary["alarm"]["checkpoint"] is None
    assert not (tmp_path / "run" / "best_phase_II.pt").exists()
    again = run(config, tmp_path / "run", resume=True)
    assert again["alarm"] == summary["alarm"]
    assert len(History.load(tmp_path / "run" / "history.jsonl")) == len(stopped)


def test_without_an_alarm_no_weights_are_left(tmp_path: Path) -> None:
    summary = run(replace(SMALL, noise="none", epochs=4, keep_best=True), tmp_path / "run")
    assert summary["alarm"] is None
    assert not list((tmp_path / "run").glob("best_phase_II*"))
