"""``sgdkern bench``: what the Gram matrix costs on this machine, against plain autograd and the installed peers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sgdkern.cli.console import JsonOption, messages, plain_errors, print_json, results

# Of the time for everything; the rest is for the operations.
_SHARE_OF_METHODS = 0.8
# By quantity, the title of its section.
_TITLES = {
    "gradient": "ordinary training step",
    "K": "K = G Gᵀ",
    "factors": "factors of G",
    "order parameters": "order parameters, no K",
    "order parameters and R": "the same and R",
    "covariance product": "Gᵀ G v",
}


def bench(
    workloads: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            help="narrow, medium, medium-2048, wide, wide-2048, cnn, transformer or resnet18; may be repeated.",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="As named in the table; all that are installed by default.")
    ] = None,
    peers: Annotated[bool, typer.Option(help="Whether the installed peers are measured.")] = True,
    threads: Annotated[int, typer.Option(min=1, help="PyTorch's number of threads.")] = 1,
    memory: Annotated[bool, typer.Option("--memory", help="Peaks of memory only: every method runs once.")] = False,
    limit: Annotated[
        float, typer.Option(min=0.0, help="A run that is known to take more seconds is bounded from below instead.")
    ] = 2.0,
    within: Annotated[float, typer.Option(min=1.0, help="Seconds for everything; what is left out is said.")] = 100.0,
    operations: Annotated[bool, typer.Option(help="Also time the compiled operations by themselves.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write the measurements here, as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time methods on workloads, each in a process of its own, correct first; one forward + backward is the unit.

    "≥" marks a method that would take longer than --limit, or more memory than there is: it was run on some of the
    samples, its time scaled up, and the missing products of gradients counted at the rate of a matrix product.
    """
    with plain_errors():
        import torch

        from sgdkern.benchmark import MEMORY_METHODS, METHODS, QUICK, WORKLOADS, Effort, benchmark, operation_speeds

        for option, names, known in (("--workload", workloads, WORKLOADS), ("--method", methods, METHODS)):
            if unknown := [name for name in names or () if name not in known]:
                raise typer.BadParameter(f"{option} must be one of {', '.join(known)}, got {unknown[0]!r}.")
        chosen = methods or [name for name, method in METHODS.items() if method.is_available]
        if memory and not methods:
            chosen = list(MEMORY_METHODS)
        chosen = [name for name in chosen if peers or METHODS[name].requires is None]
        end = time.monotonic() + within
        with _progress_bar() as progress:
            found = benchmark(
                workloads or (list(WORKLOADS) if memory else QUICK),
                methods=chosen,
                threads=threads,
                effort=Effort(limit, 0.0 if memory else 0.4),
                within=within * _SHARE_OF_METHODS,
                progress=progress,
            )
            document, speeds = found.as_dict(), []
            if operations and not memory:
                left = end - time.monotonic()
                speeds = list(operation_speeds(torch.float32, threads=threads, budget=0.4, within=left))
            document["operations"] = [vars(speed) | {"share_of_ceiling": speed.share_of_ceiling} for speed in speeds]
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(document, indent=1) + "\n")
        if as_json:
            print_json(document)
        else:
            (_print_memory if memory else _print_tables)(document)


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, float], None] | None]:
    """One bar; nothing where nobody is watching."""
    console = messages()
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=1.0)
        yield lambda text, share: bars.update(task, completed=share, description=text)


def _print_memory(document: dict[str, Any]) -> None:
    """Peaks by workload, and how much is allowed: the floor's, K, and one layer's chunk."""
    from rich.table import Table

    from sgdkern.benchmark import FLOOR
    from sgdkern.factors import CHUNK_BYTES

    methods = list(dict.fromkeys(row["method"] for row in document["measurements"]))
    table = Table("workload", title="peak memory, MiB", title_justify="left")
    for column in (*methods, "N² numbers", "allowed"):
        table.add_column(column, justify="right")
    for workload in dict.fromkeys(row["workload"] for row in document["measurements"]):
        rows = {row["method"]: row for row in document["measurements"] if row["workload"] == workload}
        peaks = ["-" if rows[method]["failure"] else f"{rows[method]['peak_mib']:,.0f}" for method in methods]
        floor = rows[FLOOR]
        gram = 4 * floor["num_samples"] ** 2 / 2**20
        allowed = "-" if floor["failure"] else f"{floor['peak_mib'] + gram + CHUNK_BYTES / 2**20:,.0f}"
        table.add_row(workload, *peaks, f"{gram:,.0f}", allowed)
    results().print(table)


def _print_tables(document: dict[str, Any]) -> None:
    """One table a workload, a section for each quantity; then what there is no number for, and why."""
    from rich import box
    from rich.table import Table

    from sgdkern.benchmark import WORKLOADS

    console, machine, threads = results(), document["machine"], document["threads"]
    on = f"{machine['processor']}, {machine['capability']}, PyTorch {machine['torch']}"
    console.print(f"{on}, {threads} thread{'s' if threads > 1 else ''}", markup=False)
    rows = sorted(document["measurements"], key=lambda row: [*_TITLES].index(row["quantity"]))
    for workload in dict.fromkeys(row["workload"] for row in document["measurements"]):
        here = [row for row in rows if row["workload"] == workload and not row["failure"]]
        table = Table("", title=f"{workload}: {WORKLOADS[workload].text}", title_justify="left", box=box.SIMPLE)
        for column in ("ms", "x fwd+bwd", "% of GEMM", "MiB", "error"):
            table.add_column(column, justify="right", no_wrap=True)
        quantity = ""
        for row in here:
            if row["quantity"] != quantity:
                quantity = row["quantity"]
                table.add_row(f"[bold]{_TITLES[quantity]}")
            table.add_row(f"  {row['method']}", *_cells(row))
        if here:
            console.print(table)
    failures: dict[str, list[str]] = {}
    for row in document["measurements"]:
        if row["failure"]:
            failures.setdefault(row["failure"], []).append(f"{row['workload']}: {row['method']}")
    for failure, where in failures.items():
        console.print(f"{'; '.join(where)}: {failure}", markup=False)
    if document["operations"]:
        console.print(_operations_table(document["operations"]))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Time, ratio, rate, memory, error of one measurement."""
    at_least, at_most = ("≥ ", "≤ ") if row["is_lower_bound"] else ("", "")
    ratio, share, error = row["ratio_to_floor"], row["share_of_ceiling"], row["error"]
    return (
        f"{at_least}{1e3 * row['seconds']:,.1f}",
        "" if ratio is None else f"{at_least}{ratio:,.2f}",
        "" if share is None else f"{at_most}{100 * share:.1f}",
        f"{at_least}{row['peak_mib']:,.0f}",
        "" if error is None else f"{error:.0e}",
    )


def _operations_table(rows: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table

    title = "operations alone, useful flops against a square matrix product (GEMM)"
    table = Table("operation", "shape", title=title, title_justify="left", box=box.SIMPLE)
    for column in ("ms", "GFLOP/s", "% of GEMM", "x reference"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        times = f"{1e3 * row['seconds']:.1f}", f"{row['gflops']:.0f}", f"{100 * row['share_of_ceiling']:.0f}"
        table.add_row(row["operation"], row["shape"], *times, f"{row['reference_seconds'] / row['seconds']:.1f}")
    return table
