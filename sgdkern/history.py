"""A run as a table of order parameters over steps: one JSON line a measurement, safe against a kill at any byte."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sgdkern.record import (
    PER_SAMPLE,
    SCHEMA_VERSION,
    GroupRecord,
    NewerSchemaError,
    NullRecord,
    Record,
    SpectrumRecord,
    header_line,
    read_header,
    read_record,
    record_line,
)

if TYPE_CHECKING:
    import pandas

__all__ = [
    "SCHEMA_VERSION",
    "GroupRecord",
    "History",
    "HistoryWriter",
    "NewerSchemaError",
    "NullRecord",
    "Record",
    "SpectrumRecord",
]


class History:
    """The records of a run, by increasing step.

    Args:
        header: What holds for the whole run (`num_samples`, `config`, ...): JSON values and numeric arrays.

    Attributes:
        header: As given.
        records: The records, in order.
        damage: What was dropped when the file was loaded, in words; None where nothing was.

    Example:
        >>> history = History({"batch_size": 25})
        >>> history.append(Record(step=0, values={"A": 2.0}))
        >>> history.append(Record(step=10, values={"A": 1.0}, metrics={"test_error": 0.5}))
        >>> history.column("test_error")
        array([nan, 0.5])
    """

    def __init__(self, header: Mapping[str, Any] | None = None) -> None:
        self.header: dict[str, Any] = dict(header or {})
        self.records: list[Record] = []
        self.damage: str | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def append(self, record: Record) -> None:
        """Add a record at the end.

        Args:
            record: A record whose step is larger than the last one's.

        Raises:
            ValueError: The step does not increase.
        """
        if self.records and record.step <= self.records[-1].step:
            raise ValueError(
                f"history: steps must increase, got {record.step} after {self.records[-1].step}. Measure a step once."
            )
        self.records.append(record)

    @property
    def steps(self) -> NDArray[np.int64]:
        """Steps of the records, int64 [T]."""
        return np.array([record.step for record in self.records], dtype=np.int64)

    @property
    def epochs(self) -> NDArray[np.float64]:
        """Epochs of the records, float64 [T], NaN where unknown."""
        return np.array([math.nan if r.epoch is None else r.epoch for r in self.records], dtype=np.float64)

    def column(self, name: str, partition: str | None = None) -> NDArray[np.float64]:
        """Return one scalar over the run.

        Args:
            name: An order parameter or metric; with a partition a name of `GroupRecord.scalars`, such as `R_cw`.
            partition: Name of a partition of the samples; None for the whole set.

        Returns:
            float64 [T], NaN where a record lacks it.

        Raises:
            KeyError: No record has it.
        """
        rows = [record.scalars(partition) for record in self.records]
        if not any(name in row for row in rows):
            known = sorted({key for row in rows for key in row})
            where = "" if partition is None else f" of partition {partition!r}"
            raise KeyError(f"column: {name!r}{where} was never measured. Known here: {', '.join(known) or 'nothing'}.")
        return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)

    def has(self, name: str, partition: str | None = None) -> bool:
        """Say whether any record carries the scalar."""
        return any(name in record.scalars(partition) for record in self.records)

    def per_sample(self, name: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return a per-sample quantity over the run.

        Args:
            name: `losses`, `margins` or `predictions`.

        Returns:
            Indices [T'] of the records that carry it, and the values [T', N].

        Raises:
            KeyError: No record has it.
        """
        rows = [index for index, record in enumerate(self.records) if getattr(record, name, None) is not None]
        if name not in PER_SAMPLE or not rows:
            raise KeyError(f"per_sample: {name!r} was never measured. There are losses, margins and predictions.")
        return np.array(rows, dtype=np.int64), np.stack([getattr(self.records[index], name) for index in rows])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history as JSON lines, through a temporary file that replaces `path` in one move.

        Args:
            path: The file to write.
        """
        target = Path(path)
        temporary = target.with_name(target.name + ".tmp")
        with temporary.open("wb") as file:
            file.writelines([header_line(self.header), *map(record_line, self.records)])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Read a history; a damaged last line (a write cut short) is dropped with a warning and told in `damage`.

        Args:
            path: A file of `save` or of `HistoryWriter`.

        Returns:
            The history.

        Raises:
            ValueError: An earlier line is damaged (its number is named), or the schema is newer (`NewerSchemaError`).
        """
        history, _ = _read(Path(path))
        if history.damage:
            warnings.warn(history.damage, stacklevel=2)
        return history

    def to_pandas(self) -> pandas.DataFrame:
        """Return all scalars as a table indexed by step; a partition's columns are named `<partition>/<scalar>`.

        Returns:
            A `pandas.DataFrame`; per-sample arrays are left out.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas: pandas is needed. Install it with: pip install pandas") from error
        rows = []
        for record in self.records:
            epoch = math.nan if record.epoch is None else record.epoch  # None would make the column one of objects
            row: dict[str, float] = {"epoch": epoch, **record.scalars()}
            for partition in record.groups:
                row |= {f"{partition}/{name}": value for name, value in record.scalars(partition).items()}
            if record.spectrum is not None:
                row["effective_dimension"] = record.spectrum.effective_dimension
            rows.append(row)
        return pandas.DataFrame(rows, index=pandas.Index(self.steps, name="step"))


def _read(path: Path) -> tuple[History, list[int]]:
    """Read a file; also return the byte offset of the end of the header and of each whole record."""
    lines = path.read_bytes().splitlines(keepends=True)
    history = History()
    ends: list[int] = []
    offset = 0
    for number, line in enumerate(lines, start=1):
        try:
            if number == 1:
                history.header = read_header(line)
            else:
                history.append(read_record(line))
        except NewerSchemaError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if number < len(lines) or number == 1:
                raise ValueError(
                    f"history: line {number} of {path} must be whole, got: {error}. Restore the file from a copy."
                ) from error
            history.damage = f"history: dropped the damaged last line {number} of {path}: {error}."
            break
        offset += len(line)
        ends.append(offset)
    if not lines:
        raise ValueError(f"history: {path} must begin with a header line, got an empty file. Start the run again.")
    return history, ends


class HistoryWriter:
    """Append records to a file, each one flushed and synced to the disk before `append` returns.

    Args:
        path: The file to start; it must not exist, or be empty.
        header: As of `History`.

    Raises:
        FileExistsError: The file holds something already.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any] | None = None) -> None:
        target = Path(path)
        if target.exists() and target.stat().st_size:
            raise FileExistsError(f"HistoryWriter: {target} exists already. Use HistoryWriter.resume to go on with it.")
        self._open(target, -1)
        self._write(header_line(header or {}))

    def _open(self, path: Path, last_step: int) -> None:
        self._file: BinaryIO = path.open("ab")
        self._last_step = last_step

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    @classmethod
    def resume(cls, path: str | os.PathLike[str], last_step: int) -> HistoryWriter:
        """Go on with a file: a damaged tail and all records after `last_step` are cut off first.

        Args:
            path: A file that a writer began.
            last_step: The step of the checkpoint that the run goes on from.

        Returns:
            A writer at the end of what is kept.

        Raises:
            ValueError: As `History.load`.
        """
        target = Path(path)
        history, ends = _read(target)
        kept = [record.step for record in history if record.step <= last_step]
        os.truncate(target, ends[len(kept)])
        writer = cls.__new__(cls)
        writer._open(target, kept[-1] if kept else -1)
        return writer

    def append(self, record: Record) -> None:
        """Write one record and wait until it is on the disk.

        Args:
            record: A record whose step is larger than the last one's.

        Raises:
            ValueError: The step does not increase.
        """
        if record.step <= self._last_step:
            raise ValueError(
                f"HistoryWriter: steps must increase, got {record.step} after {self._last_step}. Measure a step once."
            )
        self._write(record_line(record))
        self._last_step = record.step

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
