"""A job of a sweep: a frozen description of some work, and the one file that its result is kept in.

The file's name is made from the description alone. A result that is there is never made again, whichever figure asked
for it first; a run that was killed leaves all of its finished files, whole.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdkern.atomic import replacing, strict_json

Array = NDArray[Any]

# Raised whenever a job of the same description would give another result, as by another rule of the phase labels.
_VERSION = 3


@dataclass(frozen=True, eq=False)
class Result:
    """What a job found.

    Attributes:
        arrays: Name to array.
        facts: What is not an array, as JSON holds it.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]


class Job(ABC):
    """Some work: a frozen dataclass of numbers and text, and of the jobs that it needs."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, in a few words."""

    @property
    def needs(self) -> tuple[Job, ...]:
        """The jobs whose results it reads."""
        return ()

    @abstractmethod
    def make(self, needed: Sequence[Result]) -> Result:
        """Do the work.

        Args:
            needed: The results of `needs`, in that order.

        Returns:
            What was found; the same for the same description.
        """


Load = Callable[[Job], Result]


def file_of(job: Job, folder: Path) -> Path:
    """Where a job's result is kept.

    Args:
        job: The job.
        folder: The folder of all results.

    Returns:
        The file, named by the job's kind and a hash of its description.
    """
    description = {**asdict(job), "kind": type(job).__name__, "version": _VERSION}  # type: ignore[call-overload]
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    return folder / f"{type(job).__name__.lower()}-{digest[:16]}.npz"


def with_needs(jobs: tuple[Job, ...]) -> Iterator[Job]:
    """All jobs and what they need, each once, needs first.

    Args:
        jobs: The jobs that are asked for.

    Yields:
        The jobs.
    """
    seen: set[Job] = set()

    def visit(job: Job) -> Iterator[Job]:
        if job not in seen:
            seen.add(job)
            for needed in job.needs:
                yield from visit(needed)
            yield job

    for job in jobs:
        yield from visit(job)


def complete(job: Job, folder: Path) -> None:
    """Do a job whose needs are done, and write its file.

    Args:
        job: The job.
        folder: The folder of all results.

    Raises:
        RuntimeError: If it fails; the text tells which job it was.
    """
    needed = [load(need, folder) for need in job.needs]
    began = time.process_time()
    try:
        result = job.make(needed)
    except Exception as error:
        raise RuntimeError(f"{job.title}: {error}") from error
    facts = {"title": job.title, **result.facts, "cpu_seconds": time.process_time() - began}
    with replacing(file_of(job, folder)) as file:
        np.savez(file, **result.arrays, facts=np.array(strict_json(facts)), allow_pickle=False)


def load(job: Job, folder: Path) -> Result:
    """Read the result of a job that is done.

    Args:
        job: The job.
        folder: The folder of all results.

    Returns:
        Its result; `facts` also holds the `cpu_seconds` that it took.
    """
    with np.load(file_of(job, folder), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return Result(arrays, json.loads(str(arrays.pop("facts"))))
