"""The command line: parse, call the public API, print. Exit codes: 0 done, 1 a failure or a finding, 2 wrong usage.

What needs torch is imported inside the commands, so that a wrong option is told at once.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from sgdkern.cli.bench import bench
from sgdkern.cli.checks import doctor, verify
from sgdkern.cli.clean import clean
from sgdkern.cli.report import report
from sgdkern.cli.reproduce import reproduce
from sgdkern.cli.run import run

EPILOG = "Exit codes: 0 done, 1 a failure or a finding, 2 wrong usage."

app = typer.Typer(
    name="sgdkern",
    help="Order parameters, phases and noise spectrum of SGD; wrong labels found on the way.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run, clean, report, reproduce, verify, bench, doctor):
    app.command(epilog=EPILOG)(command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sgdkern {version('sgdkern')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that belong to no command."""


def main() -> None:
    """Run the command line."""
    app()
