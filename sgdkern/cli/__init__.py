"""The command line: parse, call the public API, print. Exit codes: 0 done, 1 a failure or a finding, 2 wrong usage.

What needs torch is imported inside the commands, so that a wrong option is told at once.
"""

from __future__ import annotations

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


def main() -> None:
    """Run the command line."""
    app()
