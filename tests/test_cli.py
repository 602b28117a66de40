"""The command line: every command's help, its JSON, its exit codes, and errors without tracebacks."""

import csv
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import sgdkern
from sgdkern.benchmark import FLOOR, METHODS, Measurement
from sgdkern.cli import app
from sgdkern.cli.run import _alarm, _widths
from sgdkern.cli.run import run as run_command
from sgdkern.run_config import RunConfig

RUNNER = CliRunner()
COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]
QUICK = ["--train-samples", "120", "--test-samples", "60", "--hidden", "8,8", "--epochs", "2", "--measurements", "3"]


def call(*arguments: object) -> tuple[int, str, str]:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(folder: Path, **options: object) -> Path:
        (folder / "report.html").touch()
        return folder / "report.html"

    monkeypatch.setattr("sgdkern.run.write_report", touch)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_json_and_exit_codes(command: str) -> None:
    code, output, _ = call(command, "--help")
    assert code == 0
    assert "--json" in output
    assert "Exit codes" in output


def test_all_commands_are_there() -> None:
    assert set(COMMANDS) >= {"run", "clean", "report", "reproduce", "verify", "bench", "doctor"}
    code, output, _ = call("--help")
    assert code == 0
    assert all(command in output for command in COMMANDS)


def test_the_version_is_told() -> None:
    code, output, _ = call("--version")
    assert (code, output.split()) == (0, ["sgdkern", sgdkern.__version__])


# --- run --------------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_settings() -> None:
    """The options repeat the defaults of RunConfig, which is not imported to print the help."""
    parameters = inspect.signature(run_command).parameters
    settings = RunConfig().as_dict()
    assert set(settings) < set(parameters)
    given = {name: parameters[name].default for name in settings}
    given["hidden"] = [int(width) for width in given["hidden"].split(",")]
    given["noise"] = given["noise"] or "symmetric"
    assert given == settings


def test_run_prints_one_json_document(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output, errors = call("run", *QUICK, "--out", folder, "--json")
    assert code == 0, errors
    assert json.loads(output) == json.loads((folder / "summary.json").read_text())


def test_run_prints_its_findings_and_where_the_report_is(tmp_path: Path) -> None:
    code, output, _ = call("run", *QUICK, "--out", tmp_path / "run")
    assert code == 0
    for word in ("phases", "wrong labels", "samples found", "test error", "report.html"):
        assert word in output


def test_an_occupied_folder_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, errors = call("run", *QUICK, "--out", tmp_path)
    assert code == 2
    assert "--resume" in errors
    assert "--overwrite" in errors


def test_resuming_needs_no_settings_and_takes_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert call("run", *QUICK, "--out", folder)[0] == 0
    before = (folder / "history.jsonl").read_bytes()
    assert call("run", "--resume", "--out", folder)[0] == 0
    assert (folder / "history.jsonl").read_bytes() == before
    code, _, errors = call("run", "--resume", "--out", folder, "--lr", 0.2)
    assert code == 2
    assert "lr=0.2 (was 0.05)" in errors


@pytest.mark.parametrize("options", [["--device", "nonsense"], ["--resume"], ["--resume", "--overwrite"]])
def test_what_does_not_fit_the_machine_or_the_folder_is_wrong_usage(tmp_path: Path, options: list[str]) -> None:
    code, _, errors = call("run", *QUICK, "--out", tmp_path / "run", *options)
    assert code == 2
    assert errors.startswith("error: run: ")
    assert not (tmp_path / "run").exists()


def test_without_a_place_each_run_gets_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits-2"):
        assert call("run", *QUICK)[0] == 0
        assert (tmp_path / "runs" / name / "report.html").exists()
    assert call("run", "--resume")[0] == 0
    assert not (tmp_path / "runs" / "digits-3").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", "0"], "lr must be above 0"),
        (["--hidden", "a,b"], "--hidden takes whole numbers"),
        (["--noise", "flip"], "noise must be one of"),
        (["--dataset", "imagenet"], "dataset must be one of"),
        (["--frobnicate"], "No such option"),
    ],
)
def test_wrong_options_are_wrong_usage(options: list[str], words: str, tmp_path: Path) -> None:
    code, _, errors = call("run", "--out", tmp_path / "run", *options)
    assert code == 2
    assert words in re.sub(r"[\s│]+", " ", errors)
    assert not (tmp_path / "run").exists()


def test_data_that_are_missing_are_a_failure(tmp_path: Path) -> None:
    code, _, errors = call("run", "--dataset", "folder", "--data-root", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert code == 1
    assert "--data-root" in errors


def test_divergence_is_a_failure_with_step_and_layer(tmp_path: Path) -> None:
    code, _, errors = call("run", *QUICK, "--lr", "1e20", "--out", tmp_path / "run")
    assert code == 1
    assert re.search(r"error: Probe: .* at step \d+ for samples", errors)


def test_widths_may_be_written_with_dashes() -> None:
    assert _widths("64-32") == [64, 32]


# --- clean ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled_csv(tmp_path: Path) -> tuple[Path, set[int]]:
    """Two clouds of 100 samples in a table, ten labels of which are wrong."""
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    features = generator.normal(size=(200, 4)) + 4.0 * labels[:, None]
    wrong = set(generator.permutation(200)[:10].tolist())
    given = ["ab"[1 - label if index in wrong else label] for index, label in enumerate(labels)]
    path = tmp_path / "table.csv"
    rows = [",".join([*(f"{value:.4f}" for value in row), label]) for row, label in zip(features, given)]
    path.write_text("\n".join(["one,two,three,four,label", *rows]) + "\n")
    return path, wrong


def test_clean_a_table(labelled_csv: tuple[Path, set[int]], tmp_path: Path) -> None:
    path, wrong = labelled_csv
    before = path.read_bytes()
    code, output, errors = call("clean", path, "--fast", "--budget", 10, "--out", tmp_path / "found", "--json")
    assert code == 0, errors
    found = json.loads(output)
    assert (found["num_samples"], found["budget"]) == (200, 10)
    rows = list(csv.DictReader((tmp_path / "found" / "label_issues.csv").read_text().splitlines()))
    assert len({int(row["index"]) for row in rows[:10]} & wrong) >= 9
    assert path.read_bytes() == before
    code, output, _ = call("clean", path, "--fast", "--out", tmp_path / "again")
    assert code == 0
    for word in ("suspicious", "wrong labels", "worst", "label_issues.csv"):
        assert word in output
    code, _, errors = call("clean", path, "--out", tmp_path / "found")
    assert code == 2
    assert "holds something already" in errors


def test_clean_what_is_not_there(tmp_path: Path) -> None:
    code, _, errors = call("clean", tmp_path / "nothing.csv")
    assert code == 1
    assert "nothing.csv" in errors


# --- verify -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_own_model.py").write_text(
        textwrap.dedent(
            """
            import torch

            def example():
                torch.manual_seed(0)
                inputs, targets = torch.randn(10, 4), torch.arange(10) % 2
                return torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss(), inputs, targets

            def incomplete():
                return torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss()
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return "users_own_model"


def test_verify_a_users_model(user_module: str) -> None:
    code, output, _ = call("verify", f"{user_module}:example")
    assert code == 0
    assert "agree with autograd" in output
    code, output, _ = call("verify", f"{user_module}:example", "--json")
    assert code == 0
    assert json.loads(output)["agrees"] is True


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("users_own_model", "must be module:function"),
        ("users_own_model:nothing", "has no 'nothing'"),
        ("users_own_model:incomplete", "must return (model, loss_fn, inputs, targets), got tuple of 2"),
        ("no_such_module:example", "cannot be imported"),
    ],
)
def test_a_wrong_target_is_wrong_usage(user_module: str, target: str, words: str) -> None:
    code, _, errors = call("verify", target)
    assert code == 2
    assert words in re.sub(r"[\s│]+", " ", errors)


def test_a_disagreement_is_a_finding(user_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgdkern.verification.MARGIN", 0.0)
    monkeypatch.setattr("sgdkern.verification.ROUNDINGS", 0.0)
    assert call("verify", f"{user_module}:example")[0] == 1


# --- bench ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "failure"), [(0.25, None), (None, "out of memory")])
def test_bench(monkeypatch: pytest.MonkeyPatch, seconds: float | None, failure: str | None) -> None:
    def measured(workload: str, method: str, **options: object) -> Measurement:
        if method == FLOOR:
            return Measurement(workload, method, "gradient", num_samples=4, seconds=0.1, peak_mib=1.0)
        return Measurement(workload, method, num_samples=4, seconds=seconds, peak_mib=2.0, failure=failure)

    monkeypatch.setattr("sgdkern.benchmark.measure_apart", measured)
    name = next(iter(METHODS))
    code, output, _ = call("bench", "--workload", "narrow", "--method", name, "--no-operations", "--json")
    rows = json.loads(output)["measurements"]
    assert code == 0
    assert [row["method"] for row in rows] == [FLOOR, name]
    assert rows[1]["ratio_to_floor"] == (None if seconds is None else 2.5)
    assert call("bench", "--workload", "narrow", "--method", name, "--no-operations")[0] == 0
    assert "allowed" in call("bench", "--workload", "narrow", "--method", name, "--memory")[1]


@pytest.mark.parametrize("option", ["--workload", "--method"])
def test_bench_of_what_is_not_known_is_wrong_usage(option: str) -> None:
    code, _, errors = call("bench", option, "enormous")
    assert code == 2
    assert f"{option} must be one of" in re.sub(r"[\s│]+", " ", errors)


# --- report, doctor ---------------------------------------------------------------------------------------------------


def test_report_of_a_folder_that_is_none(tmp_path: Path) -> None:
    code, _, errors = call("report", tmp_path)
    assert code == 1
    assert "history.jsonl" in errors


def test_doctor_tells_every_operation() -> None:
    code, output, _ = call("doctor", "--json")
    assert code == 0
    assert "gram" in json.loads(output)["operations"]
    assert "gram" in call("doctor")[1]


def test_the_module_is_the_command() -> None:
    """In a process of its own: standard output holds the document and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "sgdkern", "doctor", "--json"], capture_output=True, env=os.environ, check=True
    )
    assert json.loads(done.stdout)["versions"]["python"]


def test_an_alarm_that_the_finished_run_does_not_bear_out_is_told_with_that():
    alarm = {
        "seen_at": 9, "step": 7, "best_step": 3, "checkpoint": None, "test_error": 0.2, "test_error_at_best_step": 0.1
    }  # fmt: skip
    told = [_alarm(alarm, borne_out=borne_out) for borne_out in (True, False)]
    assert told[1] == told[0] + "; the finished run does not bear it out (see phases)"
