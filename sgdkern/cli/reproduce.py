"""``sgdkern reproduce``: the paper's figures."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sgdkern.cli.console import JsonOption, explicit, messages, plain_errors, print_json, results

if TYPE_CHECKING:
    from sgdkern.reproduce.page import Reproduced
    from sgdkern.reproduce.plan import Plan
    from sgdkern.reproduce.sweep import OnProgress
    from sgdkern.reproduce.sweep import Progress as Stage

_NAMES = ("fig1", "fig2", "fig3", "fig4", "fig5", "fig6")
Number = TypeVar("Number", int, float)


def _option(panel: str, text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


def _data(text: str, *names: str) -> Any:
    return _option("Data", text, *names)


def _train(text: str, *names: str) -> Any:
    return _option("Training [as the figure has it]", text, *names)


def _sweep(text: str, *names: str) -> Any:
    return _option("Sweep", text, *names)


def reproduce(
    context: typer.Context,
    figures: Annotated[list[str], typer.Argument(help="fig1, fig2, fig3, fig4, fig5, fig6 or all.")],
    dataset: Annotated[str, _data("mnist, cifar10 or digits.")] = "mnist",
    data_root: Annotated[Path | None, _data("Folder that holds the data; digits need none.")] = None,
    per_class: Annotated[int, _data("Training samples of each class.")] = 400,
    test_samples: Annotated[int | None, _data("Test samples to keep [all].")] = None,
    epochs: Annotated[int | None, _train("Epochs of every training.")] = None,
    lr: Annotated[float | None, _train("Learning rate of every training.")] = None,
    hidden: Annotated[str | None, _train("Widths of every network, such as 50,50.")] = None,
    batch_size: Annotated[int, _train("Samples a minibatch.")] = 25,
    measurements: Annotated[int, _train("Of the order parameters in a run, spaced in the log of the step.")] = 80,
    spectra: Annotated[int, _train("Noise spectra in a run of Figs. 2 and 5.")] = 16,
    seeds: Annotated[str, _sweep("One run each; error bars are over these.")] = "0,1,2",
    noise_rates: Annotated[str, _sweep("Shares of wrong labels.")] = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    shown_rate: Annotated[float, _sweep("The one that Figs. 3A, 4, 5 and 6A-F show.")] = 0.5,
    jobs: Annotated[int | None, _sweep("Runs at once, each on one thread [one a core].")] = None,
    out: Annotated[Path | None, _sweep("Where to write [runs/paper-DATASET, with a number if that is taken].")] = None,
    resume: Annotated[bool, _sweep("Go on with a folder; runs that are there are kept.", "--resume")] = False,
    as_json: JsonOption = False,
) -> None:
    """Reproduce figures of Feng and Tu (2021): data, a drawing, and a table of the paper's numbers beside those here.

    Runs are made once and shared between the figures; a sweep that was stopped goes on with --resume.
    """
    with plain_errors():
        names = _chosen(figures)
        if jobs is not None and jobs < 1:
            raise typer.BadParameter(f"--jobs must be at least 1, got {jobs}.")
        place = out or _default_folder(Path("runs"), dataset, resume=resume)
        plan = _plan(explicit(context), place, resume=resume)
        from sgdkern.reproduce.paper import reproduce as main_job

        with _progress_bars() as on_progress:
            done = main_job(names, plan, place, processes=jobs or _cores(), resume=resume, on_progress=on_progress)
        if as_json:
            print_json({each.figure.name: each.as_dict() for each in done})
        else:
            _print(done, place)


def _chosen(figures: list[str]) -> list[str]:
    """The figures' names, each once, `all` for all of them."""
    unknown = [name for name in figures if name not in (*_NAMES, "all")]
    if unknown:
        raise typer.BadParameter(f"there are {', '.join(_NAMES)} and all, not {', '.join(unknown)}.")
    return list(_NAMES) if "all" in figures else list(dict.fromkeys(figures))


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_folder(runs: Path, dataset: str, *, resume: bool) -> Path:
    """runs/paper-DATASET, or with a number after it where that is taken; the latest of them to go on with."""
    taken = None
    for number in itertools.count(1):
        folder = runs / (f"paper-{dataset}" if number == 1 else f"paper-{dataset}-{number}")
        if not folder.exists():
            return taken if resume and taken is not None else folder
        taken = folder
    raise AssertionError


def _plan(given: Mapping[str, Any], folder: Path, *, resume: bool) -> Plan:
    """The settings that the user gave, over the folder's own where it is resumed, over the defaults."""
    from sgdkern.reproduce.plan import Plan

    kept = folder / "plan.json"
    settings: dict[str, Any] = {}
    if resume and kept.exists():
        settings = {name: tuple(value) if isinstance(value, list) else value
                    for name, value in json.loads(kept.read_text(encoding="utf-8")).items()}  # fmt: skip
    readers: dict[str, Callable[[Any], Any]] = {
        "seeds": lambda text: _numbers("--seeds", text, int),
        "noise_rates": lambda text: _numbers("--noise-rates", text, float),
        "hidden": lambda text: _numbers("--hidden", text, int),
        "data_root": lambda path: str(Path(path).resolve()),
    }
    known = Plan.__dataclass_fields__
    settings |= {name: readers.get(name, lambda value: value)(value) for name, value in given.items() if name in known}
    try:
        return Plan(**settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _numbers(option: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{option} takes numbers with commas between, not {text!r}.") from error


@contextmanager
def _progress_bars() -> Iterator[OnProgress]:
    """One bar a figure; a line for each run that is done where nobody is watching."""
    console = messages()
    if not console.is_terminal:
        yield lambda stage: console.print(
            f"{stage.stage}: {stage.done} of {stage.total} {stage.latest}".rstrip(), markup=False
        )
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[latest]}"),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: Stage) -> None:
            if stage.stage not in tasks:
                tasks[stage.stage] = bars.add_task(stage.stage, total=stage.total, latest="")
            bars.update(tasks[stage.stage], completed=stage.done, latest=stage.latest)

        yield show


def _print(done: list[Reproduced], folder: Path) -> None:
    """A table a figure, its wall time, and where the page is."""
    from sgdkern.reproduce.page import cells_of, columns_of, times

    for each in done:
        table = Table(title=f"{each.figure.name}: {each.figure.title}", title_justify="left", caption=times(each))
        for column in columns_of(each.rows):
            table.add_column(column)
        for cells in cells_of(each.rows):
            table.add_row(*cells)
        results().print(table, markup=False)
    results().print(str(folder / "paper.html"), markup=False)
