"""``sgdkern bench``: what the Gram matrix costs on this machine, against plain autograd and the installed peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sgdkern.cli.console import JsonOption, messages, plain_errors, print_json, results


def bench(
    workloads: Annotated[
        list[str] | None, typer.Option("--workload", help="narrow, medium, wide, cnn, transformer or resnet18.")
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="As named in the table; all by default.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="PyTorch's number of threads.")] = 1,
    operations: Annotated[bool, typer.Option(help="Also time the compiled operations by themselves.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write the measurements here, as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time methods on workloads, each in a process of its own, correct first; one forward + backward is the unit.

    "≥" marks methods that were run on 16 samples and scaled up, without the products of the gradients.
    """
    with plain_errors():
        import torch

        from sgdkern.benchmark import METHODS, QUICK, WORKLOADS, benchmark, operation_speeds

        for option, names, known in (("--workload", workloads, WORKLOADS), ("--method", methods, METHODS)):
            if unknown := [name for name in names or () if name not in known]:
                raise typer.BadParameter(f"{option} must be one of {', '.join(known)}, got {unknown[0]!r}.")

        def progress(workload: str, method: str) -> None:
            messages().print(f"{workload}: {method}", style="dim", markup=False)

        found = benchmark(workloads or QUICK, methods=methods, threads=threads, progress=progress)
        document = found.as_dict()
        speeds = list(operation_speeds(torch.float32, threads=threads)) if operations else []
        document["operations"] = [vars(speed) | {"share_of_ceiling": speed.share_of_ceiling} for speed in speeds]
        if out is not None:
            import json

            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(document, indent=1) + "\n")
        if as_json:
            print_json(document)
        else:
            _print_tables(document)


def _print_tables(document: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        "workload", "method", title=f"K = G Gᵀ, {document['threads']} thread(s), {document['machine']['processor']}"
    )
    for column in ("ms", "x fwd + bwd", "peak MiB", "error"):
        table.add_column(column, justify="right")
    for row in document["measurements"]:
        if row["failure"]:
            table.add_row(row["workload"], row["method"], "-", "-", "-", row["failure"])
            continue
        sign = "≥ " if row["is_lower_bound"] else ""
        error = "" if row["error"] is None else f"{row['error']:.0e}"
        ratio = "" if row["ratio_to_floor"] is None else f"{sign}{row['ratio_to_floor']:.2f}"
        cells = (f"{sign}{1e3 * row['seconds']:.1f}", ratio, f"{row['peak_mib']:.0f}", error)
        table.add_row(row["workload"], row["method"], *cells, end_section=row["method"] == "sgdkern")
    results().print(table)
    if document["operations"]:
        table = Table("operation", "shape", title="Operations against this machine's matrix product, useful flops only")
        for column in ("ms", "GFLOP/s", "of the product's rate", "x reference"):
            table.add_column(column, justify="right")
        for row in document["operations"]:
            times = f"{1e3 * row['seconds']:.1f}", f"{row['gflops']:.0f}", f"{row['share_of_ceiling']:.0%}"
            table.add_row(row["operation"], row["shape"], *times, f"{row['reference_seconds'] / row['seconds']:.1f}")
        results().print(table)
