"""``sgdkern clean``: the suspicious labels of a data set on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sgdkern.cli.console import JsonOption, messages, plain_errors, print_json, results

if TYPE_CHECKING:
    from sgdkern.label_files import CleaningReport

_SHOWN = 10


def clean(
    data: Annotated[
        Path,
        typer.Argument(help="A folder, a sub-folder of images a class, or .csv, .tsv, .parquet, .npz."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write to, new or empty [beside the data].")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the labels [a usual name].")] = None,
    source_column: Annotated[str | None, typer.Option(help="Column that says who gave each label.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Column that is no feature; may be repeated.")] = None,
    image_size: Annotated[int, typer.Option(help="Side in pixels to which images are resized.")] = 32,
    fast: Annotated[bool, typer.Option("--fast", help="One run instead of several: quicker, less sharp.")] = False,
    budget: Annotated[int | None, typer.Option(help="How many samples a person can review.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Also write a cleaned copy of the data.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    seed: Annotated[int, typer.Option(help="Draws all that is drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Find suspicious labels in a data set; the data are only read, what is found goes to a folder of its own.

    Writes label_issues.csv (worst first, with the suggested label), keep.txt, summary.json, report.html, a gallery of
    the worst images and, with a budget, review.csv. Exit code 0 whether or not labels were found.
    """
    with plain_errors():
        from sgdkern.label_files import clean_data_set

        with _progress_bar() as progress:
            report = clean_data_set(
                data,
                out=out,
                label_column=label_column,
                source_column=source_column,
                ignore=ignore or (),
                image_size=image_size,
                mode="fast" if fast else "default",
                budget=budget,
                copy=copy,
                device=device,
                random_state=seed,
                progress=progress,
            )
        if as_json:
            folder = next(iter(report.files.values())).parent
            print_json({**report.as_dict(), "folder": str(folder), "seconds": report.seconds})
        else:
            _print_report(report)


@contextmanager
def _progress_bar() -> Iterator[Callable[[float, str], None] | None]:
    """One bar; nothing where nobody is watching."""
    console = messages()
    if not console.is_terminal:
        yield None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task("", total=1.0)
        yield lambda share, text: bars.update(task, completed=share, description=text)


def _print_report(report: CleaningReport) -> None:
    """The findings in a few lines, the worst samples, and where the files are."""
    console, rate, issues = results(), report.noise_rate, report.issues
    bound = "at most " if rate.is_upper_bound else ""
    lines = [
        f"suspicious     {issues.num_issues} of {issues.num_samples} labels",
        f"wrong labels   at most {rate.high:.1%}"
        if bound
        else f"wrong labels   {rate.estimate:.1%}, {rate.low:.1%} … {rate.high:.1%}",
    ]
    if bound:
        lines.append(
            "               cannot be told: the networks err even where they are surest, and many of the suspicious "
            "labels will be right. Review the worst (--budget), or pass embeddings or more samples"
        )
    lines += [
        f"confused       {given} for {true}: about {n:.0f}" for true, given, n in report.noise_matrix.confused_pairs(3)
    ]
    if report.expected_precision is not None:
        lines.append(
            f"review         {bound}{report.expected_precision:.0%} of the worst {report.budget} "
            "are expected to be wrong"
        )
    worst = [index for index in issues.ranking[:_SHOWN] if issues.is_label_issue[index]]
    lines += ["worst          quality  given -> predicted" if worst else "worst          none"]
    lines += [
        f"               {issues.label_quality[i]:.3f}    {issues.given_label[i]} -> {issues.predicted_label[i]}  "
        f"{report.names[i]}"
        for i in worst
    ]
    lines += [f"{kind:<15}{path}" for kind, path in report.files.items()]
    if "report" not in report.files:
        lines.append("report         not written: it needs matplotlib and jinja2, pip install 'sgdkern[report]'")
    lines.append(f"time           {report.seconds:.0f} s")
    for line in lines:
        console.print(line, markup=False)
