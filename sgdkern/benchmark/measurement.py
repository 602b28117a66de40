"""Times one method on one workload in a process of its own: correct first, then time and memory."""

import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgdkern.benchmark.methods import METHODS, forward_backward, loop_gradients
from sgdkern.benchmark.workloads import WORKLOADS, Problem

FLOOR = "forward + backward"
FLOOR_BATCHES = (4096, 256, 64)
CHECKED_SAMPLES = 4
LARGEST_ERROR = (
    1e-3  # of the largest entry: float32 methods agree to 1e-5; above this the method computes something else
)


@dataclass(frozen=True)
class Measurement:
    """One method on one workload.

    Attributes:
        workload: Its name.
        method: Its name.
        seconds: The median over `repeats` runs after one that warms up.
        repeats: How many runs.
        is_lower_bound: Whether it was run on a few samples and scaled up, without the products of the gradients.
        peak_mib: By how much the process grew while it ran, MiB; for few samples, their share only.
        error: Largest difference from plain autograd over a block of K, relative to its largest entry.
        failure: Why there is no time, None where there is one.
    """

    workload: str
    method: str
    seconds: float | None = None
    repeats: int = 0
    is_lower_bound: bool = False
    peak_mib: float | None = None
    error: float | None = None
    failure: str | None = None


def median_seconds(run: Callable[[], object], *, at_least: int = 3, budget: float = 2.0) -> tuple[float, int]:
    """Time a function: at least so many runs, then more while the budget lasts; long runs count once.

    Args:
        run: What to time; it has been run once before.
        at_least: Runs that are wanted even when they take longer than the budget together.
        budget: Seconds.

    Returns:
        The median in seconds, and the number of runs.
    """
    times: list[float] = []
    while not times or (sum(times) < budget and len(times) < 50) or (len(times) < at_least and times[0] < budget):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(times)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _few(problem: Problem, num_samples: int | None) -> Problem:
    return replace(problem, inputs=problem.inputs[:num_samples], targets=problem.targets[:num_samples])


def _error(problem: Problem, result: Tensor) -> float:
    """K's, or G's, distance from plain autograd on the first samples."""
    some = _few(problem, CHECKED_SAMPLES)
    rows = loop_gradients(some).double()  # a product over millions of parameters is off by 4e-5 in float32
    truth = rows if result.shape[1] == rows.shape[1] else rows @ rows.T
    difference = result[:CHECKED_SAMPLES, : truth.shape[1]] - truth
    return float(difference.abs().max() / truth.abs().max())


def measure(workload: str, method: str) -> Measurement:
    """Time a method in this process.

    Args:
        workload: One of `WORKLOADS`.
        method: One of `METHODS`, or `FLOOR`.

    Returns:
        What was measured; a method that is wrong or fails is a failure, not an exception.
    """
    problem = WORKLOADS[workload].make()
    if method == FLOOR:
        best = (float("inf"), 0)
        before = _peak_mib()
        for batch_size in FLOOR_BATCHES:
            forward_backward(problem, batch_size)
            best = min(best, median_seconds(lambda batch=batch_size: forward_backward(problem, batch)))  # type: ignore[misc]
        return Measurement(workload, method, *best, peak_mib=_peak_mib() - before)
    chosen = METHODS[method]
    few = _few(problem, chosen.num_samples)
    scale = problem.num_samples / few.num_samples
    before = _peak_mib()
    try:
        result = chosen.run(few)
        peak = _peak_mib() - before
        wrong = _error(few, result.detach())
        if not wrong <= LARGEST_ERROR:
            return Measurement(workload, method, error=wrong, failure=f"wrong by {wrong:.1%}")
        del result
        seconds, repeats = median_seconds(lambda: chosen.run(few))
    except Exception as error:  # whatever a peer raises is its result
        return Measurement(workload, method, failure=f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
    return Measurement(workload, method, seconds * scale, repeats, scale > 1, peak, wrong)


def _send(connection: Connection, workload: str, method: str, threads: int) -> None:
    torch.set_num_threads(threads)
    connection.send(measure(workload, method))


def measure_apart(workload: str, method: str, *, threads: int, seconds: float = 300.0) -> Measurement:
    """Time a method in a process of its own, so that its peak memory is its own.

    Args:
        workload: One of `WORKLOADS`.
        method: One of `METHODS`, or `FLOOR`.
        threads: PyTorch's number of threads.
        seconds: After so long the process is ended.

    Returns:
        What was measured.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, workload, method, threads))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(seconds) else Measurement(workload, method, failure=f"over {seconds:.0f} s")
    except EOFError:
        process.join()
        return Measurement(workload, method, failure=f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, versions. No host name, no paths.

    Returns:
        Plain values.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": torch.multiprocessing.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
