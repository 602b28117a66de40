"""RunFolder: what a run wrote, read once for the report; whatever is missing or unreadable is a note, not a crash."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sgdkern.history import History, Record
from sgdkern.phases import label_phases

Array = npt.NDArray[Any]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Phase:
    """One labelled stretch of the run, in optimiser steps: [start, end)."""

    name: str
    start: float
    end: float
    confidence: float | None = None


@dataclass(frozen=True)
class PhaseLabels:
    """What phases.json says: the verdict in words, its reason, and the stretches (none where there is no signal)."""

    verdict: str
    reason: str
    phases: tuple[Phase, ...]
    cleaning_step: float | None
    truth: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Issues:
    """label_issues.csv as columns, worst sample first, [N] each; labels as text, `true_label` only where known."""

    index: Array
    is_label_issue: Array
    label_quality: Array
    given_label: tuple[str, ...]
    predicted_label: tuple[str, ...]
    p_wrong: Array
    true_label: tuple[str, ...] | None

    @cached_property
    def wrong(self) -> Array | None:
        """[N] bool in the order of the data: True where the given label is not the true one; None where unknown."""
        if self.true_label is None or sorted(self.index.tolist()) != list(range(len(self.index))):
            return None
        mask = np.zeros(len(self.index), dtype=bool)
        mask[self.index] = [given != true for given, true in zip(self.given_label, self.true_label)]
        return mask


@dataclass(frozen=True, eq=False)
class Samples:
    """Pictures of some samples: uint8 [K, H, W] or [K, H, W, 3], their indices [K], and the names of the classes."""

    images: Array
    indices: Array
    class_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run folder's files, read.

    Attributes:
        path: The folder.
        history: The measurements.
        phases: The phase labels; None where phases.json is missing.
        issues: The label issues; None where label_issues.csv is missing.
        summary: The numbers of the run, {} where missing.
        config: The settings of the run, {} where missing.
        samples: Pictures; None for data that are no images.
        notes: What could not be read, in sentences for the reader.
    """

    path: Path
    history: History
    phases: PhaseLabels | None
    issues: Issues | None
    summary: dict[str, Any]
    config: dict[str, Any]
    samples: Samples | None
    notes: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> RunFolder:
        """Read a run folder.

        Args:
            path: A folder with a history.jsonl; every other file may be missing.

        Returns:
            What was found.

        Raises:
            FileNotFoundError: The folder holds no history.jsonl.
            ValueError: history.jsonl is damaged before its last line.
        """
        folder = Path(path)
        if not (folder / "history.jsonl").is_file():
            raise FileNotFoundError(
                f"write_report: a run folder must hold history.jsonl, got {folder}. Make one with `sgdkern run`."
            )
        notes: list[str] = []
        history = _load_history(folder / "history.jsonl", notes)
        phases = _attempt(folder / "phases.json", _read_phases, notes)
        summary = _attempt(folder / "summary.json", _read_object, notes) or {}
        config = _attempt(folder / "config.json", _read_object, notes) or summary.get("config") or {}
        return cls(
            path=folder,
            history=history,
            phases=phases or (_phase_labels(summary["phases"]) if summary.get("phases") else None),
            issues=_attempt(folder / "label_issues.csv", _read_issues, notes),
            summary=summary,
            config=config,
            samples=_attempt(folder / "samples.npz", _read_samples, notes, expected=False),
            notes=tuple(notes),
        )

    @classmethod
    def of(cls, history: History) -> RunFolder:
        """Take a history that is in no folder; its phases are labelled here.

        Args:
            history: At least one record.

        Returns:
            A run with a history and phases, and nothing else.
        """
        found = label_phases(history)
        stretches = tuple(Phase(one.name, one.start, one.end, one.confidence) for one in found)
        phases = PhaseLabels(found.verdict, found.reason, stretches, found.cleaning_step, None)
        return cls(Path(), history, phases, None, {}, {}, None, ())

    def number(self, *keys: str) -> float | None:
        """Return one finite number of summary.json by its path of keys, None where it is missing."""
        value: Any = self.summary
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        try:
            found = float(value)
        except (TypeError, ValueError):
            return None
        return found if np.isfinite(found) else None

    def group_names(self, partition: str) -> tuple[str, ...]:
        """Return the names of a partition's groups, none where it was not measured."""
        found = (record.groups[partition].names for record in self.history if partition in record.groups)
        return next(found, ())

    @cached_property
    def given_groups(self) -> str:
        """What the groups of the partition `given` are: named c and w they are the truth, correct and wrong."""
        return "true groups*" if self.group_names("given") == ("c", "w") else "given groups"

    @cached_property
    def cleaning_step(self) -> float | None:
        """The step at which labels are best told right from wrong, None where there is none."""
        step = self.number("cleaning", "step")
        return self.phases.cleaning_step if step is None and self.phases else step

    @cached_property
    def in_epochs(self) -> bool:
        """Whether time is told in epochs: every record knows its own."""
        return bool(len(self.history)) and bool(np.isfinite(self.history.epochs).all())

    @cached_property
    def time(self) -> Array:
        """[T] float64, the records' time in epochs, or in steps where the epoch is unknown."""
        return self.history.epochs if self.in_epochs else self.history.steps.astype(np.float64)

    def at(self, step: float) -> float:
        """Turn a step into the report's unit of time."""
        if not self.in_epochs:
            return float(step)
        last_step, last_time = self.history.steps[-1], self.time[-1]
        if step > last_step > 0:
            return float(step * last_time / last_step)
        return float(np.interp(step, self.history.steps, self.time))

    def nearest(self, step: float, having: Callable[[Record], object] = lambda record: True) -> Record | None:
        """Return the record closest to a step (in ratio) among those that carry something, None where none does."""
        records = [record for record in self.history if having(record)]
        return min(records, key=lambda record: abs(math.log((record.step + 1) / (step + 1))), default=None)

    def representative(self, having: Callable[[Record], object] = lambda record: True) -> dict[str, Record]:
        """Return one record a phase: the one nearest to the phase's middle in log-time, inside it.

        Phases without such a record are left out. Without phases the thirds of log-time, `early`, `middle` and `late`,
        stand in for them. Empty where no record carries what is asked for.
        """
        steps = self.history.steps
        first, last = float(min(steps[steps > 0], default=1)), float(max(steps.max(initial=1), 1))
        labelled = self.phases.phases if self.phases else ()
        bounds = [first * (last / first) ** (part / 3) for part in range(4)]
        thirds = [Phase(name, *ends) for name, ends in zip(("early", "middle", "late"), pairwise(bounds))]
        chosen: dict[str, Record] = {}
        for phase in labelled or thirds:
            middle = math.sqrt(max(phase.start, first) * max(phase.end, first))
            inside = self.nearest(middle, lambda r, p=phase: p.start <= r.step <= p.end and having(r))  # type: ignore[misc]
            if inside is not None and inside not in chosen.values():
                chosen[phase.name] = inside
        return chosen

    def class_name(self, label: str) -> str:
        """Return the name of a class given by its number, or the label itself where there are no names."""
        names = self.samples.class_names if self.samples else ()
        return names[int(label)] if label.isdigit() and int(label) < len(names) else label


def _load_history(path: Path, notes: list[str]) -> History:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same text is in `damage`, and the report shows it
        history = History.load(path)
    if history.damage:
        notes.append(
            "The last line of history.jsonl was cut short (the run was stopped while writing it) and is left out."
        )
    return history


def _attempt(path: Path, read: Callable[[Path], Read], notes: list[str], *, expected: bool = True) -> Read | None:
    """Read one optional file; a missing or damaged one becomes a note."""
    if not path.is_file():
        if expected:
            notes.append(f"{path.name} is not in the run folder: what it would tell is left out.")
        return None
    try:
        return read(path)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, zipfile.BadZipFile) as error:
        notes.append(
            f"{path.name} could not be read ({type(error).__name__}: {error}): what it would tell is left out."
        )
        return None


def _read_object(path: Path) -> dict[str, Any]:
    body = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(body, dict):
        raise ValueError(f"a JSON object is expected, got {type(body).__name__}")
    return body


def _read_phases(path: Path) -> PhaseLabels:
    return _phase_labels(_read_object(path))


def _phase_labels(body: dict[str, Any]) -> PhaseLabels:
    phases = tuple(
        Phase(str(item["name"]), float(item["start"]), float(item["end"]), _number_or_none(item.get("confidence")))
        for item in body.get("phases") or ()
    )
    return PhaseLabels(
        verdict=str(body.get("verdict") or "not labelled"),
        reason=str(body.get("reason") or ""),
        phases=phases,
        cleaning_step=_number_or_none(body.get("cleaning_step")),
        truth=body.get("truth") or None,
    )


def _number_or_none(value: Any) -> float | None:
    return None if value is None or not np.isfinite(float(value)) else float(value)


def _read_issues(path: Path) -> Issues | None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return None
    true = tuple(row["true_label"] for row in rows) if "true_label" in rows[0] else None
    return Issues(
        index=np.array([int(row["index"]) for row in rows]),
        is_label_issue=np.array([row["is_label_issue"].strip().lower() in ("true", "1") for row in rows]),
        label_quality=np.array([float(row["label_quality"]) for row in rows]),
        given_label=tuple(row["given_label"] for row in rows),
        predicted_label=tuple(row["predicted_label"] for row in rows),
        p_wrong=np.array([float(row.get("p_wrong") or "nan") for row in rows]),
        true_label=true,
    )


def _read_samples(path: Path) -> Samples:
    with np.load(path, allow_pickle=False) as file:
        images, indices = file["images"], file["indices"]
        names = tuple(str(name) for name in file["class_names"]) if "class_names" in file else ()
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(indices):
        raise ValueError(f"images must be uint8 [K, H, W] or [K, H, W, 3], got {images.dtype} {list(images.shape)}")
    return Samples(images=images, indices=indices, class_names=names)
