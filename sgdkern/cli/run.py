"""``sgdkern run``: the main job."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sgdkern.cli.console import USAGE, JsonOption, explicit, messages, plain_errors, print_json, results

if TYPE_CHECKING:
    from sgdkern.observed_training import OnProgress
    from sgdkern.observed_training import Progress as Stage
    from sgdkern.run_config import RunConfig


def _option(panel: str, text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


def _data(text: str, *names: str) -> Any:
    return _option("Data", text, *names)


def _train(text: str, *names: str) -> Any:
    return _option("Training", text, *names)


def _measure(text: str, *names: str) -> Any:
    return _option("Measurement", text, *names)


def _folder(text: str, *names: str) -> Any:
    return _option("Run folder", text, *names)


def run(
    context: typer.Context,
    dataset: Annotated[str, _data("digits, mnist, fashion-mnist, cifar10 or folder.")] = "digits",
    data_root: Annotated[Path | None, _data("Folder that holds the data.")] = None,
    download: Annotated[bool, _data("Fetch the data where they are missing.", "--download")] = False,
    train_samples: Annotated[
        int | None, _data("Training samples to keep [all of digits and folder, else 4000].")
    ] = None,
    test_samples: Annotated[int | None, _data("Test samples to keep [all].")] = None,
    image_size: Annotated[int, _data("Side to which the images of a folder are resized.")] = 32,
    scaling: Annotated[str, _data("standard (mean 0, deviation 1) or unit (0 … 1).")] = "standard",
    noise: Annotated[str | None, _data("symmetric, incl, pair or none [symmetric; none for folder].")] = None,
    noise_rate: Annotated[float, _data("Share of the training labels to replace by wrong ones.")] = 0.5,
    model: Annotated[str, _train("mlp or cnn.")] = "mlp",
    hidden: Annotated[str, _train("Widths or channels, first layer first.")] = "64,64",
    activation: Annotated[str, _train("relu or tanh.")] = "relu",
    lr: Annotated[float, _train("Learning rate.")] = 0.05,
    batch_size: Annotated[int, _train("Samples a minibatch.")] = 25,
    epochs: Annotated[int, _train("How often every sample is visited.")] = 400,
    momentum: Annotated[float, _train("Momentum of SGD.")] = 0.0,
    weight_decay: Annotated[float, _train("Weight decay of SGD.")] = 0.0,
    seed: Annotated[int, _train("Draws all that is drawn: split, noise, weights, order.")] = 0,
    device: Annotated[str, _train("cpu, cuda, cuda:1 …")] = "cpu",
    threads: Annotated[int, _train("CPU threads; with 1 the results are the same on any number of cores.")] = 1,
    measurements: Annotated[int, _measure("About how many, evenly spaced in the logarithm of the step.")] = 100,
    spectrum_every: Annotated[int, _measure("Take the noise spectrum at every so many measurements.")] = 5,
    groups: Annotated[
        str, _measure("Follow how groups' gradients align: classes, or a file with one group an image; or none.")
    ] = "none",
    keep_best: Annotated[
        bool, _measure("Keep the weights of phase II's best moment, best_phase_II.pt.", "--keep-best")
    ] = False,
    stop_at_alarm: Annotated[
        bool, _measure("End training where the network is seen to memorise wrong labels.", "--stop-at-alarm")
    ] = False,
    out: Annotated[Path | None, _folder("Where to write [runs/DATASET, with a number if that is taken].")] = None,
    resume: Annotated[bool, _folder("Go on with a run that was stopped; it keeps its settings.", "--resume")] = False,
    overwrite: Annotated[bool, _folder("Replace an earlier run.", "--overwrite")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train on data with wrong labels: measure, tell the phases, find the wrong labels, train without them, report.

    Without options: scikit-learn's digits with half of the training labels wrong, in about a minute.
    """
    with plain_errors():
        place = out or _default_folder(Path("runs"), dataset, resume=resume or overwrite)
        config = _config(explicit(context), place, resume=resume)
        from sgdkern.run import RunRefusedError
        from sgdkern.run import run as main_job

        try:
            with _progress_bars() as on_progress:
                summary = main_job(config, place, resume=resume, overwrite=overwrite, on_progress=on_progress)
        except RunRefusedError as error:
            messages().print(f"error: {error}", style="red", markup=False)
            raise typer.Exit(USAGE) from error
        if as_json:
            print_json(summary)
        else:
            _print_summary(summary, place)


def _default_folder(runs: Path, dataset: str, *, resume: bool) -> Path:
    """runs/DATASET, or with a number after it where that is taken; the latest of them to go on with or to replace."""
    taken = None
    for number in itertools.count(1):
        folder = runs / (dataset if number == 1 else f"{dataset}-{number}")
        if not folder.exists():
            return taken if resume and taken is not None else folder
        taken = folder
    raise AssertionError


def _config(given: Mapping[str, Any], folder: Path, *, resume: bool) -> RunConfig:
    """The settings that the user gave, over the folder's own where a run is resumed, over the defaults."""
    from sgdkern.run_config import RunConfig

    settings: dict[str, Any] = {"noise": "none"} if given.get("dataset") == "folder" else {}
    kept = folder / "config.json"
    if resume and kept.exists():
        settings = json.loads(kept.read_text(encoding="utf-8"))
    known = RunConfig().as_dict()
    settings |= {name: value for name, value in given.items() if name in known}
    if "hidden" in given:
        settings["hidden"] = _widths(given["hidden"])
    if settings.get("data_root") is not None:
        settings["data_root"] = str(settings["data_root"])
    try:
        return RunConfig.from_dict(settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _widths(text: str) -> list[int]:
    try:
        return [int(width) for width in text.replace("-", ",").split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"--hidden takes whole numbers with commas between, such as 64,64, not {text!r}."
        ) from error


@contextmanager
def _progress_bars() -> Iterator[OnProgress | None]:
    """One bar a stage, with the phase, the steps and the time left; nothing where nobody is watching."""
    console = messages()
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[bold]{task.fields[phase]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: Stage) -> None:
            if stage.stage not in tasks:
                tasks[stage.stage] = bars.add_task(stage.stage, total=stage.total, phase="")
            bars.update(tasks[stage.stage], completed=stage.done, phase=stage.phase)

        yield show


def _print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """The findings in a few lines, and where the report is."""
    phases, rate, errors = summary["phases"], summary["noise_rate"], summary["test_error"]
    cleaning = summary["cleaning"]
    truth = "" if rate["true"] is None else f" (true: {rate['true']:.1%})"
    scored = ""
    if cleaning["precision"] is not None:
        scored = f", precision {cleaning['precision']:.1%}, recall {cleaning['recall']:.1%}"
    named = {"final": "as trained", "cleaned": "trained without them", "perfect": "trained on right labels only"}
    lines = {
        "phases": f"{phases['verdict']}: {phases['reason']}",
        "alarm": _alarm(summary["alarm"], borne_out=phases["t23"] is not None),
        "wrong labels": f"{rate['estimate']:.1%}, {rate['low']:.1%} … {rate['high']:.1%}{truth}",
        "samples found": f"{cleaning['num_issues']} of {summary['dataset']['num_train']}{scored}",
        "test error": ", ".join(
            f"{errors[key]:.1%} {words}" for key, words in named.items() if errors[key] is not None
        ),
        "time": f"{summary['seconds']['total']:.0f} s",
        "report": str(folder / "report.html"),
    }
    if cleaning["step"] is None:
        lines["caution"] = "without a phase II in the run, the wrong labels and the samples found are a guess"
    for name, text in lines.items():
        results().print(f"{name:<15}{text}", markup=False)


def _alarm(alarm: Mapping[str, Any] | None, *, borne_out: bool) -> str:
    """When the network was seen to memorise, and where to go back to."""
    if alarm is None:
        return "none: the network was not seen to begin to memorise wrong labels"
    weights = f", weights in {alarm['checkpoint']}" if alarm["checkpoint"] else ""
    doubt = "" if borne_out else "; the finished run does not bear it out (see phases)"
    return (
        f"step {alarm['seen_at']}: wrong labels are memorised since step {alarm['step']}, test error "
        f"{alarm['test_error']:.1%}; best moment step {alarm['best_step']}{weights}, test error "
        f"{alarm['test_error_at_best_step']:.1%}{doubt}"
    )
