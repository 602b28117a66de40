"""What the Gram matrix costs: this library, plain autograd and the installed peers, against one forward and backward.

`benchmark` runs the workloads, each method in a process of its own, correctness before time; `operation_speeds` runs
the compiled operations against the machine's matrix product rate.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sgdkern.benchmark.machine import machine
from sgdkern.benchmark.measurement import FLOOR, Effort, Measurement, measure_apart
from sgdkern.benchmark.methods import MEMORY_METHODS, METHODS
from sgdkern.benchmark.operations import OperationSpeed, operation_speeds
from sgdkern.benchmark.workloads import WORKLOADS

__all__ = [
    "FLOOR",
    "MEMORY_METHODS",
    "METHODS",
    "QUICK",
    "WORKLOADS",
    "Benchmark",
    "Effort",
    "Measurement",
    "OperationSpeed",
    "benchmark",
    "machine",
    "operation_speeds",
]

# No measurement may take more than this part of the time for all.
_SHARES = 8
QUICK = ("narrow", "medium", "cnn", "transformer")


@dataclass(frozen=True)
class Benchmark:
    """All measurements of a run, floors among them.

    Attributes:
        threads: PyTorch's number of threads.
        measurements: In the order in which they were made.
    """

    threads: int
    measurements: tuple[Measurement, ...]

    def ratio(self, measurement: Measurement) -> float | None:
        """Return a time in units of one forward and backward over the same samples; None where either is missing."""
        floors = {m.workload: m.seconds for m in self.measurements if m.method == FLOOR}
        floor = measurement.floor_seconds or floors.get(measurement.workload)
        return None if measurement.seconds is None or floor is None else measurement.seconds / floor

    def as_dict(self) -> dict[str, Any]:
        """Plain values with the machine's description, for JSON."""
        rows = [
            asdict(m) | {"ratio_to_floor": self.ratio(m), "share_of_ceiling": m.share_of_ceiling}
            for m in self.measurements
        ]
        return {"schema_version": 2, "machine": machine(), "threads": self.threads, "measurements": rows}


def benchmark(
    workloads: Sequence[str] = QUICK,
    *,
    methods: Sequence[str] | None = None,
    threads: int = 1,
    effort: Effort | None = None,
    within: float = float("inf"),
    progress: Callable[[str, float], None] | None = None,
) -> Benchmark:
    """Time methods on workloads, each pair in a process of its own.

    Args:
        workloads: Names in `WORKLOADS`.
        methods: Names in `METHODS`; None for all that are installed. The floor is always measured.
        threads: PyTorch's number of threads.
        effort: How long one measurement may take.
        within: Seconds for everything: what is then not done is a row that says so, and what runs is ended.
        progress: Called before each measurement with what it is, and the share that is done.

    Returns:
        The measurements.

    Raises:
        ValueError: For a name that is not known.
    """
    chosen = [name for name, method in METHODS.items() if method.is_available] if methods is None else list(methods)
    for kind, names, known in [("workload", workloads, list(WORKLOADS)), ("method", chosen, list(METHODS))]:
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"benchmark: {kind} must be one of {known}, got {unknown[0]!r}.")
    ours = [name for name in chosen if METHODS[name].requires is None and METHODS[name].holds is None]
    others = [name for name in chosen if name not in ours]  # last, so that little time is enough for ours
    pairs = [(workload, method) for workload in workloads for method in (FLOOR, *ours)]
    pairs += [(workload, method) for workload in workloads for method in others]
    measurements: list[Measurement] = []
    floors: dict[str, Measurement] = {}
    effort, end = effort or Effort(), time.monotonic() + within
    for done, (workload, method) in enumerate(pairs):
        if progress is not None:
            progress(f"{workload}: {method}", done / len(pairs))
        floor = floors.get(workload)
        told = effort if floor is None else replace(effort, ceiling=floor.ceiling_gflops, floor_batch=floor.floor_batch)
        measurements.append(_within(end, within / _SHARES, workload, method, threads, told))
        if method == FLOOR:
            floors[workload] = measurements[-1]
    return Benchmark(threads, tuple(measurements))


def _within(end: float, one: float, workload: str, method: str, threads: int, effort: Effort) -> Measurement:
    """One measurement, if there is time for it before the end, of at most so many seconds."""
    left = end - time.monotonic()
    if left > 1:
        return measure_apart(workload, method, threads=threads, effort=effort, seconds=min(left, one, 3600.0))
    quantity = METHODS[method].quantity if method in METHODS else "gradient"
    return Measurement(workload, method, quantity, failure="not run: the time is up")
