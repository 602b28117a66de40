"""The numbers of a run as tables of text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sgdkern.history import Record
from sgdkern.order_parameters import REGISTRY
from sgdkern.report.figures.panel import when
from sgdkern.report.run_folder import RunFolder

_METRICS = {
    "train_loss": "training loss, nats",
    "train_error": "training error",
    "test_loss": "test loss, nats",
    "test_error": "test error",
}
_HIDDEN = "hidden weights alone"
_GROUPS = ("given", "blind", "random")
_PARTITIONS = {"blind": "blind groups", "random": "random split"}


@dataclass(frozen=True)
class Table:
    """A table of text: the first cell of each row is its heading."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(value: float | None) -> str:
    """Write a number with three significant digits, and a power of ten where that reads better.

    Args:
        value: The number; None or NaN where it is unknown.

    Returns:
        `0.123`, `1,234`, `1.2·10⁻⁵` or `–`.

    Example:
        >>> number(0.1234), number(1234.5), number(0.0000123), number(None)
        ('0.123', '1,234', '1.23·10⁻⁵', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e6):
        digits, power = f"{value:.2e}".split("e")
        raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{digits}·10{raised}".replace("-", "−")
    text = f"{value:,.0f}" if size >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def by_phase(run: RunFolder) -> Table | None:
    """All order parameters at one measurement a phase, and at the last one.

    Args:
        run: The run.

    Returns:
        The table, None for an empty history.
    """
    if not len(run.history):
        return None
    chosen = run.representative()
    columns = {f"{name}, {when(run, record.step)}": record for name, record in chosen.items()}
    columns["last, " + when(run, float(run.history.steps[-1]))] = run.history.records[-1]
    rows: list[tuple[str, ...]] = []
    records = list(columns.values())
    for key, entry in REGISTRY.items():
        label = entry.symbol if entry.unit == "1" else f"{entry.symbol}, {entry.unit}"
        _add(rows, label, [record.values.get(key) for record in records])
    spectra = run.representative(lambda record: record.spectrum is not None)  # not every record has one
    measured = [r if r.spectrum else spectra.get(name) for name, r in zip([*chosen, ""], records)]
    _add(rows, "D_s, directions", [r.spectrum.effective_dimension if r and r.spectrum else None for r in measured])
    _add(rows, f"D_s, {_HIDDEN}", [r.metrics.get("effective_dimension_hidden") if r else None for r in measured])
    for partition in _GROUPS:
        scalars = [record.scalars(partition) for record in records]
        for key in dict.fromkeys(key for row in scalars for key in row):
            if partition == "given" or not key.startswith(("A", "R_a")):
                _add(
                    rows,
                    f"{_symbol(key)}, {_PARTITIONS.get(partition, run.given_groups)}",
                    [row.get(key) for row in scalars],
                )
    for key, label in _METRICS.items():
        _add(rows, label, [record.metrics.get(key) for record in records])
    return Table(("", *columns), tuple(rows))


def outcome(run: RunFolder) -> Table | None:
    """The numbers of summary.json that are not order parameters.

    Args:
        run: The run.

    Returns:
        The table, None where there are none.
    """
    named: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("test error, last step", ("test_error", "final")),
        ("test error, lowest of the run*", ("test_error", "best")),
        ("test error at the cleaning time", ("test_error", "at_cleaning_step")),
        ("alarm raised at step", ("alarm", "seen_at")),
        ("test error at the alarm", ("alarm", "test_error")),
        ("best moment as known at the alarm, step", ("alarm", "best_step")),
        ("test error at that moment", ("alarm", "test_error_at_best_step")),
        ("test error, retrained after cleaning", ("test_error", "cleaned")),
        ("test error, retrained on right labels only*", ("test_error", "perfect")),
        ("noise rate, estimated", ("noise_rate", "estimate")),
        ("noise rate, lower bound", ("noise_rate", "low")),
        ("noise rate, upper bound", ("noise_rate", "high")),
        ("noise rate, true*", ("noise_rate", "true")),
        ("label issues found", ("cleaning", "num_issues")),
        ("cleaning time, step", ("cleaning", "step")),
        ("area under the ROC curve, losses at the cleaning time*", ("cleaning", "auroc")),
        ("the same at the best measurement*", ("cleaning", "auroc_best")),
        ("area under the ROC curve, label quality*", ("cleaning", "auroc_quality")),
        ("precision of the issues*", ("cleaning", "precision")),
        ("recall of the issues*", ("cleaning", "recall")),
        ("seconds of training", ("seconds", "train")),
        ("seconds of measuring", ("seconds", "probe")),
        ("seconds of retraining", ("seconds", "retrain")),
        ("seconds in all", ("seconds", "total")),
    )
    rows = [(label, number(value)) for label, keys in named if (value := run.number(*keys)) is not None]
    return Table(("", "value"), tuple(rows)) if rows else None


def everything(run: RunFolder) -> Table | None:
    """Every scalar of every record.

    Args:
        run: The run.

    Returns:
        The table, None for an empty history.
    """
    records = run.history.records
    if not records:
        return None
    metrics = _keys(record.metrics for record in records)
    values = [key for key in REGISTRY if any(key in record.values for record in records)]
    others = [key for key in _keys(record.values for record in records) if key not in REGISTRY and _tells(records, key)]
    grouped = [(name, key) for name in _GROUPS for key in _keys(record.scalars(name) for record in records)]
    columns = (
        ("step",)
        + (("epoch",) if run.in_epochs else ())
        + tuple(_METRICS.get(key, f"D_s, {_HIDDEN}" if key == "effective_dimension_hidden" else key) for key in metrics)
        + tuple(REGISTRY[key].symbol for key in values)
        + tuple(others)
        + ("D_s",)
        + tuple(f"{_symbol(key)} ({name})" for name, key in grouped)
    )
    rows = []
    for record in records:
        scalars = {name: record.scalars(name) for name in _GROUPS}
        cells = [f"{record.step:,}"] + ([f"{record.epoch:.3g}"] if run.in_epochs else [])
        cells += [number(record.metrics.get(key)) for key in metrics]
        cells += [number(record.values.get(key)) for key in (*values, *others)]
        cells.append(number(record.spectrum.effective_dimension if record.spectrum else None))
        cells += [number(scalars[name].get(key)) for name, key in grouped]
        rows.append(tuple(cells))
    return Table(columns, tuple(rows))


def settings(run: RunFolder) -> Table | None:
    """The settings and the versions of what computed the run.

    Args:
        run: The run.

    Returns:
        The table, None where neither is known.
    """
    rows = [(str(key).replace("_", " "), _plain(value)) for key, value in run.config.items()]
    rows += [(f"{key} (version)", _plain(value)) for key, value in (run.summary.get("versions") or {}).items()]
    return Table(("", "value"), tuple(rows)) if rows else None


def definitions() -> Table:
    """One line for each quantity, from the registry of order parameters.

    Returns:
        Symbol, meaning and reference.
    """
    rows = [(entry.symbol, entry.meaning, entry.unit if entry.unit != "1" else "–") for entry in REGISTRY.values()]
    rows += [
        ("D_s", "effective dimension: the fewest leading eigenvalues of C that hold 90 % of D", "directions"),
        ("A_c, A_w", "activity of the correctly and of the wrongly labelled samples’ share of a minibatch", rows[0][2]),
        ("R_cw", "cosine between the mean gradients of the two groups; R_ac, R_aw: of each with that of all", "–"),
        ("ΔL", "distance between the means of the two Gaussians fitted to the samples’ losses", "loss"),
    ]
    return Table(("symbol", "meaning", "unit"), tuple(rows))


def _tells(records: list[Record], key: str) -> bool:
    """Whether a column differs from the value it bounds: where all samples were measured, the bounds are the value."""
    value = key.removesuffix("_low").removesuffix("_high").removesuffix("_unbiased")
    return value == key or any(
        not math.isclose(r.values.get(key, math.nan), r.values.get(value, math.nan), rel_tol=1e-9) for r in records
    )


def _add(rows: list[tuple[str, ...]], label: str, values: list[float | None]) -> None:
    if any(value is not None for value in values):
        rows.append((label, *map(number, values)))


def _symbol(key: str) -> str:
    """`A0_c` as `A₀_c`; everything else as it is."""
    return key.replace("A0_", "A₀_")


def _keys(rows: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _plain(value: Any) -> str:
    """A setting as a reader would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)
