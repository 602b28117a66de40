"""The main job: its folder, its promise to lose nothing to a kill, and what it refuses."""

import csv
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import SMALL, Killed, quick_report, run_through_kills  # noqa: F401

from sgdkern import observed_training
from sgdkern import run as run_module
from sgdkern.history import History
from sgdkern.non_finite import NonFiniteError
from sgdkern.run import RunRefusedError, run
from sgdkern.run_config import RunConfig

# --- what a run leaves ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(SMALL, folder)
    return folder


def test_the_folder_holds_everything(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.json", "history.jsonl", "phases.json", "label_issues.csv", "summary.json", "samples.npz", "report.html",
        "checkpoint.pt", "figures",
    }  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp")]


def test_the_history_holds_what_was_asked_for(finished: Path) -> None:
    history = History.load(finished / "history.jsonl")
    steps_per_epoch = 5
    assert (history.steps[0], history.steps[-1]) == (0, 12 * steps_per_epoch)
    assert history.epochs[-1] == 12.0
    for record in history:
        assert {"A", "A0", "D", "R", "sigma_lambda2", "A_c", "A0_w"} <= set(record.values)
        assert {"train_loss", "train_error", "test_loss", "test_error"} <= set(record.metrics)
        assert record.groups["given"].counts == (60, 60)
        for values in (record.losses, record.margins, record.predictions):
            assert values is not None
            assert values.shape == (120,)
    assert [index for index, record in enumerate(history) if record.spectrum is not None] == list(
        range(0, len(history), 4)
    )
    assert all("effective_dimension_hidden" in history.records[index].metrics for index in range(0, len(history), 4))


def test_the_summary_agrees_with_the_other_files(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    phases = json.loads((finished / "phases.json").read_text())
    history = History.load(finished / "history.jsonl")
    assert summary["schema_version"] == phases["schema_version"] == 1
    assert summary["phases"] == phases
    assert set(phases["truth"]) == {"verdict", "t12", "t23", "t34", "score"}
    assert RunConfig.from_dict(summary["config"]) == SMALL
    assert json.loads((finished / "config.json").read_text()) == summary["config"]
    assert summary["noise_rate"]["true"] == 0.5
    assert summary["test_error"]["final"] == history.records[-1].metrics["test_error"]
    assert summary["final"]["A"] == history.records[-1].values["A"]
    assert summary["model"]["num_params"] == 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert set(summary["seconds"]) == {"train", "probe", "retrain", "total"}
    rows = list(csv.DictReader((finished / "label_issues.csv").read_text().splitlines()))
    assert sorted(int(row["index"]) for row in rows) == list(range(120))
    assert summary["cleaning"]["num_issues"] == sum(row["is_label_issue"] == "True" for row in rows)
    assert all("true_label" in row for row in rows)
    qualities = [float(row["label_quality"]) for row in rows]
    assert qualities == sorted(qualities)


def test_the_pictures_are_those_of_the_samples(finished: Path) -> None:
    samples = np.load(finished / "samples.npz", allow_pickle=False)
    data = run_module.run_data(SMALL)
    assert np.array_equal(samples["images"], data.train_images[samples["indices"]])
    assert samples["class_names"].tolist() == list(data.class_names)
    worst = next(csv.DictReader((finished / "label_issues.csv").read_text().splitlines()))
    assert int(worst["index"]) in samples["indices"].tolist()


def test_without_known_truth_nothing_is_scored(tmp_path: Path) -> None:
    summary = run(replace(SMALL, noise="none", epochs=4), tmp_path / "run")
    assert summary["noise_rate"]["true"] is None
    assert summary["cleaning"]["auroc"] is None
    assert summary["test_error"]["perfect"] is None
    history = History.load(tmp_path / "run" / "history.jsonl")
    assert all("given" not in record.groups for record in history)


# --- the same result, whatever happens --------------------------------------------------------------------------------


def test_a_stop_at_any_write_loses_nothing(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop before every third checkpoint, that is after its record was written, then go on."""
    save, calls = torch.save, 0

    def sometimes(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise Killed
        save(*args)

    monkeypatch.setattr(observed_training.torch, "save", sometimes)
    folder = tmp_path / "run"
    assert run_through_kills(SMALL, folder) > 3
    assert (folder / "history.jsonl").read_bytes() == (finished / "history.jsonl").read_bytes()
    assert (folder / "label_issues.csv").read_bytes() == (finished / "label_issues.csv").read_bytes()


@pytest.mark.filterwarnings("ignore:history. dropped the damaged last line")
@pytest.mark.parametrize("kept_bytes", [1, 1000])
def test_a_line_cut_short_is_measured_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    save, calls = torch.save, 0

    def five_times(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Killed
        save(*args)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(observed_training.torch, "save", five_times)
        with pytest.raises(Killed):
            run(SMALL, folder)
    path = folder / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept_bytes])
    run(SMALL, folder, resume=True)
    assert path.read_bytes() == (finished / "history.jsonl").read_bytes()


KILLER = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from sklearn.datasets import load_digits
import sgdkern.run
from sgdkern.run import run, run_data
from sgdkern.run_config import RunConfig

sgdkern.run.write_report = lambda folder, **options: None  # tested elsewhere, and slow
config, folder = RunConfig.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2])
path = folder / "history.jsonl"
run_data(config)  # what is imported now need not be imported by every child
for number, lines in enumerate([1, 2, 5, 5, 8, 12, 14]):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1 + number % 2)
        run(config, folder, resume=(folder / "config.json").exists())
        os._exit(0)
    while not path.exists() or path.read_bytes().count(b"\\n") < lines:
        time.sleep(0.0005)
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("the run ended before it could be killed")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
run(config, folder, resume=True)
"""


def test_kill_minus_nine_and_resume(finished: Path, tmp_path: Path) -> None:
    """Real processes, killed when the history has reached some lengths, on one and on two threads."""
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps(SMALL.as_dict()), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (folder / "history.jsonl").read_bytes() == (finished / "history.jsonl").read_bytes()
    assert (folder / "label_issues.csv").read_bytes() == (finished / "label_issues.csv").read_bytes()


def test_a_finished_run_resumed_is_the_same(finished: Path) -> None:
    before = (finished / "history.jsonl").read_bytes()
    run(SMALL, finished, resume=True)
    assert (finished / "history.jsonl").read_bytes() == before


# --- groups that the user knows ---------------------------------------------------------------------------------------


# --- the alarm --------------------------------------------------------------------------------------------------------


# --- the demonstration ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 7])
def test_the_demonstration_keeps_its_promises(tmp_path: Path, seed: int) -> None:
    """docs/demo.md has six seeds; the bounds are those that were asked for."""
    summary = run(RunConfig(seed=seed), tmp_path / "run")
    assert summary["phases"]["verdict"] == "four phases"
    assert summary["phases"]["truth"]["score"] >= 0.8
    assert summary["cleaning"]["auroc"] >= summary["cleaning"]["auroc_best"] - 0.02
    assert summary["test_error"]["cleaned"] < 0.5 * summary["test_error"]["final"]
    assert [spectrum["phase"] for spectrum in summary["spectra"]] == ["I", "II", "III", "IV"]


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_an_earlier_run_is_not_overwritten_by_accident(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"--resume.*--overwrite"):
        run(SMALL, finished)
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(FileExistsError):
        run(SMALL, tmp_path, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_overwriting_begins_anew_and_leaves_other_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = replace(SMALL, epochs=2, measurements=3)
    run(first, folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="either resumed or overwritten"):
        run(first, folder, overwrite=True, resume=True)
    run(replace(first, seed=1), folder, overwrite=True)
    assert json.loads((folder / "config.json").read_text())["seed"] == 1
    assert (folder / "notes.txt").read_text() == "mine"


def test_data_that_are_missing_leave_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(replace(SMALL, dataset="mnist", data_root=str(tmp_path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_with_its_own_settings(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"lr=0\.1 \(was 0\.05\)"):
        run(replace(SMALL, lr=0.1), finished, resume=True)


def test_no_pickle_is_loaded_from_a_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(replace(SMALL, epochs=2, measurements=3), folder)

    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"trainer": Harmful()}, folder / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError):
        run(replace(SMALL, epochs=2, measurements=3), folder, resume=True)
    assert not (tmp_path / "harm").exists()


def test_divergence_is_reported_with_the_step(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"at step \d+ for samples"):
        run(replace(SMALL, lr=1e20, epochs=3), tmp_path / "run")


def test_impossible_settings_are_refused() -> None:
    for name, value in {
        "dataset": "imagenet", "noise": "flip", "noise_rate": 1.5, "model": "rnn", "hidden": (), "lr": 0.0,
        "batch_size": 0, "epochs": 0, "measurements": 1, "momentum": 1.0, "seed": -1, "threads": 0,
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"run: .*{name}"):
            RunConfig(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another version"):
        RunConfig.from_dict({"depth": 3})


def test_seeds_are_apart() -> None:
    purposes = ("split", "noise", "weights", "order", "probe", "retraining")
    seeds = {RunConfig(seed=seed).seed_for(purpose) for seed in range(50) for purpose in purposes}
    assert len(seeds) == 50 * len(purposes)


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunRefusedError, match=r"none in .*Leave out --resume"):
        run(SMALL, tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_device_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(RunRefusedError, match="--device cpu"):
        run(replace(SMALL, device="nonsense"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
