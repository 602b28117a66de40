"""``sgdkern verify`` and ``sgdkern doctor``: is it right for this model, and what does this machine run on?"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer

from sgdkern.cli.console import FAILURE, JsonOption, messages, plain_errors, print_json, results


def verify(
    target: Annotated[str, typer.Argument(help="module:function that returns (model, loss_fn, inputs, targets).")],
    num_samples: Annotated[int, typer.Option(help="Samples to compare with plain autograd.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Compare a model's per-sample gradients with plain autograd, parameter by parameter, and time them.

    The module is looked for in the current folder first. Exit code 1 where a parameter disagrees.
    """
    module_name, separator, function_name = target.partition(":")
    if not (module_name and separator and function_name):
        raise typer.BadParameter(f"TARGET must be module:function, such as train:example, got {target!r}.")
    with plain_errors():
        model, loss_fn, inputs, targets = _problem(module_name, function_name)
        from sgdkern.verification import verify as compare

        report = compare(model, loss_fn, inputs, targets, num_samples=num_samples)
        if as_json:
            print_json(report.as_dict())
        else:
            results().print(str(report), markup=False)
        for warning in report.warnings:
            messages().print(f"note: {warning}", style="yellow", markup=False)
        if not report.agrees:
            raise typer.Exit(FAILURE)


def _problem(module_name: str, function_name: str) -> tuple[Any, Any, Any, Any]:
    """What the user's function returns, checked."""
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise typer.BadParameter(f"module {module_name!r} cannot be imported: {error}.") from error
    except AttributeError as error:
        raise typer.BadParameter(f"module {module_name!r} has no {function_name!r}.") from error
    problem = function()
    if not isinstance(problem, tuple) or len(problem) != 4:
        raise typer.BadParameter(
            f"{module_name}:{function_name} must return (model, loss_fn, inputs, targets), got {type(problem).__name__}"
            f"{f' of {len(problem)}' if isinstance(problem, tuple) else ''}."
        )
    return problem


def doctor(as_json: JsonOption = False) -> None:
    """Tell what this installation runs on: each operation compiled or reference, and how to build what is missing.

    Exit code 0 also where something runs on the reference: it is slower, not wrong.
    """
    with plain_errors():
        from sgdkern.doctor import diagnose

        diagnosis = diagnose()
        if as_json:
            print_json(diagnosis.as_dict())
        else:
            results().print(str(diagnosis), markup=False)
