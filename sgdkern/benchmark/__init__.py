"""What the Gram matrix costs: this library, plain autograd and the installed peers, against one forward and backward.

`benchmark` runs the workloads, each method in a process of its own, correctness before time; `operation_speeds` runs
the compiled operations against the machine's matrix product rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sgdkern.benchmark.measurement import FLOOR, Measurement, machine, measure_apart
from sgdkern.benchmark.methods import METHODS
from sgdkern.benchmark.operations import OperationSpeed, operation_speeds
from sgdkern.benchmark.workloads import WORKLOADS

__all__ = [
    "FLOOR",
    "METHODS",
    "QUICK",
    "WORKLOADS",
    "Benchmark",
    "Measurement",
    "OperationSpeed",
    "benchmark",
    "machine",
    "operation_speeds",
]

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
        floor = floors.get(measurement.workload)
        return None if measurement.seconds is None or floor is None else measurement.seconds / floor

    def as_dict(self) -> dict[str, Any]:
        """Plain values with the machine's description, for JSON."""
        rows = [asdict(m) | {"ratio_to_floor": self.ratio(m)} for m in self.measurements]
        return {"schema_version": 1, "machine": machine(), "threads": self.threads, "measurements": rows}


def benchmark(
    workloads: Sequence[str] = QUICK,
    *,
    methods: Sequence[str] | None = None,
    threads: int = 1,
    progress: Callable[[str, str], None] | None = None,
) -> Benchmark:
    """Time methods on workloads, each pair in a process of its own.

    Args:
        workloads: Names in `WORKLOADS`.
        methods: Names in `METHODS`; None for all that are installed. The floor is always measured.
        threads: PyTorch's number of threads.
        progress: Called with workload and method before each.

    Returns:
        The measurements.

    Raises:
        ValueError: For a name that is not known.
    """
    chosen = [name for name, method in METHODS.items() if method.is_available] if methods is None else list(methods)
    for kind, names, known in [("workload", workloads, list(WORKLOADS)), ("method", chosen, list(METHODS))]:
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"benchmark: {kind} must be one of {known}, got {unknown[0]!r}.")
    measurements = []
    for workload in workloads:
        for method in [FLOOR, *chosen]:
            if progress is not None:
                progress(workload, method)
            measurements.append(measure_apart(workload, method, threads=threads))
    return Benchmark(threads, tuple(measurements))
