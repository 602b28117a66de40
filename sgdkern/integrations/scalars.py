"""A record as names and numbers for loggers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sgdkern.record import Record


def scalars(record: Record, *, prefix: str = "sgdkern") -> dict[str, float]:
    """The numbers of a record under stable names, ``prefix/scope/quantity``.

    Args:
        record: What a probe or a watch measured.
        prefix: First part of every name.

    Returns:
        Finite numbers by name: ``sgdkern/all/A0``, ``sgdkern/blind/R_cw``, ``sgdkern/metrics/test_error``, …

    Example:
        >>> scalars(Record(step=3, values={"A0": 0.5}))
        {'sgdkern/all/A0': 0.5}
    """
    named = {f"all/{key}": value for key, value in record.values.items()}
    named |= {f"metrics/{key}": value for key, value in record.metrics.items()}
    for partition, groups in record.groups.items():
        named |= {f"{partition}/{key}": value for key, value in groups.scalars().items()}
    if record.spectrum is not None:
        named["spectrum/effective_dimension"] = record.spectrum.effective_dimension
    return {f"{prefix}/{name}": float(value) for name, value in named.items() if math.isfinite(value)}


def to_summary_writer(writer: Any, *, prefix: str = "sgdkern") -> Callable[[Record], None]:
    """A function for ``Probe(on_record=…)`` that writes every record to a TensorBoard SummaryWriter.

    Args:
        writer: Anything with ``add_scalar(name, value, step)``.
        prefix: First part of every name.

    Returns:
        A function of a record.
    """

    def write(record: Record) -> None:
        for name, value in scalars(record, prefix=prefix).items():
            writer.add_scalar(name, value, record.step)

    return write


def to_log(log: Callable[..., Any], *, prefix: str = "sgdkern") -> Callable[[Record], None]:
    """A function for ``Probe(on_record=…)`` that calls ``wandb.log`` or ``trackio.log``, or anything with their form.

    Args:
        log: Called as ``log({name: value, …}, step=…)``.
        prefix: First part of every name.

    Returns:
        A function of a record.
    """
    return lambda record: log(scalars(record, prefix=prefix), step=record.step)
