"""What is measured at one step, written as one line of strict JSON."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdkern.order_parameters.groups import GroupStatistics

SCHEMA_VERSION = 1
_ARRAY_KEYS = {"dtype", "shape", "base64"}
PER_SAMPLE = ("losses", "margins", "predictions")


# What a record keeps of one partition is what was measured of it.
GroupRecord = GroupStatistics


@dataclass(frozen=True)
class NullRecord:
    """Where the cosines of a partition's groups would lie, were the groups random splits of the same sizes.

    Attributes:
        lower: Lower bound of each cosine, the mean of all samples last, [groups + 1][groups + 1].
        upper: Upper bound.
        levels: Quantiles that the bounds are.
        num_splits: Random splits drawn.
    """

    lower: tuple[tuple[float, ...], ...]
    upper: tuple[tuple[float, ...], ...]
    levels: tuple[float, float]
    num_splits: int


@dataclass(frozen=True)
class SpectrumRecord:
    """The noise spectrum at one step.

    Attributes:
        eigenvalues: Leading eigenvalues of the noise covariance, descending.
        trace: Trace of the noise covariance.
        effective_dimension: D_s, the fewest leading eigenvalues that hold 90 % of the trace.
        method: How the eigenvalues were found.
        converged: Whether every eigenvalue that D_s rests on converged.
        params: In words, which parameters the gradient was restricted to.
    """

    eigenvalues: tuple[float, ...]
    trace: float
    effective_dimension: float
    method: str
    converged: bool
    params: str = "all"


@dataclass(frozen=True, eq=False)
class Record:
    """All that was measured at one step.

    Attributes:
        step: Optimiser steps taken before the measurement.
        epoch: The same in epochs, where that is known.
        values: Order parameters of the whole set.
        metrics: The user's own scalars, such as `train_error` or `test_error`.
        groups: Partition name (`given`, `blind`, `random`, ...) to what was measured on its groups.
        nulls: Partition name to what chance alone would give, where it was drawn.
        spectrum: The noise spectrum, where it was measured.
        losses: Loss of each sample, float32 [N].
        margins: Logit of the given label minus the largest other logit, float32 [N].
        predictions: Predicted class of each sample, integers [N].
    """

    step: int
    epoch: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, GroupRecord] = field(default_factory=dict)
    nulls: Mapping[str, NullRecord] = field(default_factory=dict)
    spectrum: SpectrumRecord | None = None
    losses: NDArray[np.float32] | None = None
    margins: NDArray[np.float32] | None = None
    predictions: NDArray[Any] | None = None

    def scalars(self, partition: str | None = None) -> dict[str, float]:
        """Return every scalar by name.

        Args:
            partition: Name of a partition of the samples; None for the whole set's order parameters and the metrics.

        Returns:
            Name to value; an order parameter hides a metric of the same name.
        """
        if partition is None:
            return {**self.metrics, **self.values}
        return self.groups[partition].scalars() if partition in self.groups else {}


class NewerSchemaError(ValueError):
    """The file was written by a later version, whose lines this version cannot know how to read."""


def _encode(value: Any) -> Any:
    """Turn a value into what strict JSON can hold: arrays as little-endian base64, NaN and infinities as strings."""
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(
                f"history: arrays must hold numbers or booleans, got dtype {value.dtype}. Convert it first."
            )
        little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        text = base64.b64encode(little.tobytes()).decode("ascii")
        return {"dtype": little.dtype.str, "shape": list(value.shape), "base64": text}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _decode_array(value: Any) -> NDArray[Any]:
    dtype = np.dtype(value["dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"arrays hold numbers or booleans, got dtype {dtype}")
    data = base64.b64decode(value["base64"], validate=True)
    values: NDArray[Any] = np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="), copy=True)
    shaped: NDArray[Any] = values.reshape(value["shape"])
    return shaped


def _decode(value: Any) -> Any:
    """Undo `_encode` in a header: arrays come back as arrays (strings stay strings)."""
    if isinstance(value, dict):
        return _decode_array(value) if set(value) == _ARRAY_KEYS else {k: _decode(v) for k, v in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value


def _line(kind: str, content: Mapping[str, Any]) -> bytes:
    body = {"schema_version": SCHEMA_VERSION, "kind": kind, **_encode(content)}
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def header_line(header: Mapping[str, Any]) -> bytes:
    """Write what holds for the whole run."""
    return _line("header", {"header": header})


def record_line(record: Record) -> bytes:
    """Write one record."""
    content: dict[str, Any] = {"step": int(record.step), "epoch": record.epoch}
    content["values"] = {name: float(value) for name, value in record.values.items()}
    content["metrics"] = {name: float(value) for name, value in record.metrics.items()}
    content["groups"] = {name: vars(group) for name, group in record.groups.items()}
    if record.nulls:
        content["nulls"] = {name: vars(null) for name, null in record.nulls.items()}
    content["spectrum"] = None if record.spectrum is None else vars(record.spectrum)
    content |= {name: getattr(record, name) for name in PER_SAMPLE}
    return _line("record", content)


def _parse(line: bytes, kind: str) -> dict[str, Any]:
    """Read one line, which counts only with its newline: without it the write was cut short."""
    if not line.endswith(b"\n"):
        raise ValueError("the line is cut short")
    body = json.loads(line)
    if not isinstance(body, dict) or not isinstance(body.get("schema_version"), int):
        raise ValueError("the line carries no schema_version")
    if body["schema_version"] > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"history: schema_version must be at most {SCHEMA_VERSION}, got {body['schema_version']}. "
            "The file was written by a newer version of sgdkern: upgrade to read it."
        )
    if body.get("kind") != kind:
        raise ValueError(f"the line must be of kind {kind!r}, got {body.get('kind')!r}")
    return body


def read_header(line: bytes) -> dict[str, Any]:
    """Read the first line of a history."""
    header: dict[str, Any] = _decode(_parse(line, "header")["header"])
    return header


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _matrix(rows: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(_floats(row) for row in rows)


def read_record(line: bytes) -> Record:
    """Read one record; any damage is a ValueError, KeyError, TypeError or AttributeError."""
    body = _parse(line, "record")
    groups = {
        name: GroupRecord(
            names=tuple(group["names"]),
            counts=tuple(int(count) for count in group["counts"]),
            A=_floats(group["A"]),
            A0=_floats(group["A0"]),
            cosines=_matrix(group["cosines"]),
        )
        for name, group in body["groups"].items()
    }
    nulls = {
        name: NullRecord(
            lower=_matrix(null["lower"]),
            upper=_matrix(null["upper"]),
            levels=(float(null["levels"][0]), float(null["levels"][1])),
            num_splits=int(null["num_splits"]),
        )
        for name, null in body.get("nulls", {}).items()
    }
    found = body["spectrum"]
    spectrum = found and SpectrumRecord(
        eigenvalues=_floats(found["eigenvalues"]),
        trace=float(found["trace"]),
        effective_dimension=float(found["effective_dimension"]),
        method=found["method"],
        converged=bool(found["converged"]),
        params=found["params"],
    )
    return Record(
        step=int(body["step"]),
        epoch=None if body["epoch"] is None else float(body["epoch"]),
        values={name: float(value) for name, value in body["values"].items()},
        metrics={name: float(value) for name, value in body["metrics"].items()},
        groups=groups,
        nulls=nulls,
        spectrum=spectrum,
        **{name: None if body[name] is None else _decode_array(body[name]) for name in PER_SAMPLE},
    )
