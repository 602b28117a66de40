"""``sgdkern report``: the report of a run folder, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgdkern.cli.console import JsonOption, plain_errors, print_json, results


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `sgdkern run` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Write the figures and the report of a run again, from the files in its folder."""
    with plain_errors():
        from sgdkern.report import write_report

        page = write_report(folder)
        if as_json:
            print_json({"report": str(page)})
        else:
            results().print(str(page))
