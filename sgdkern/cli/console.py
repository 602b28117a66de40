"""What all commands share: where text goes, and how an error ends a command."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]


def messages() -> Console:
    """The console for progress, notes and errors: standard error, so that standard output holds results only."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def results() -> Console:
    """The console for results: standard output."""
    return Console(highlight=False, soft_wrap=True)


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON document on standard output.

    Args:
        content: What it holds; numbers that are not finite become null.
    """
    from sgdkern.atomic import strict_json

    sys.stdout.write(strict_json(content))


def explicit(context: typer.Context) -> dict[str, Any]:
    """The options that the user gave on the command line, by name.

    Args:
        context: Of the command.

    Returns:
        Their values, without the defaults.
    """
    return {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the command with one sentence instead of a traceback, and say warnings in the same way."""
    console = messages()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        console.print(f"note: {message}", style="yellow", markup=False)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except typer.Exit:  # a RuntimeError too, but not an error
            raise
        except KeyboardInterrupt:
            console.print("stopped", style="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except FileExistsError as error:
            console.print(f"error: {error}", style="red", markup=False)
            raise typer.Exit(USAGE) from error
        except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
            console.print(f"error: {error}", style="red", markup=False)
            raise typer.Exit(FAILURE) from error
