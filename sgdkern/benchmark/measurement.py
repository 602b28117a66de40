"""Times one method on one workload in a process of its own: correct first, then time and memory."""

import multiprocessing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from sgdkern.benchmark import peers as peers  # fills METHODS
from sgdkern.benchmark.methods import METHODS, Method, forward_backward
from sgdkern.benchmark.oracle import CHECKED_SAMPLES, ERRORS, truth
from sgdkern.benchmark.timing import PeakMemory, available_mib, median_seconds, medians_in_turns, seconds_of
from sgdkern.benchmark.work import ceiling_gflops, useful_flops
from sgdkern.benchmark.workloads import WORKLOADS, Problem

FLOOR = "forward + backward"
# All samples at once, and batches whose activations stay in a cache.
FLOOR_BATCHES = (4096, 512, 128, 32)
# Of the largest entry: float32 methods agree to 1e-5; above this the method computes something else.
LARGEST_ERROR = 1e-3
# A method that holds explicit gradients is first run on so many samples that these take this much.
SOME_GRADIENTS_MIB = 256
# What such a method takes above its gradients, seen in runs: the products' operands are made contiguous, or summed.
MEMORY_FACTOR = 1.7
# A first run that takes longer is the measurement: warming up would not show.
LONG_SECONDS = 5.0


@dataclass(frozen=True)
class Effort:
    """How long measuring may take.

    Attributes:
        limit: Seconds that one run may take where it can be told before; what takes longer is bounded from below.
        budget: Seconds over which a short run is repeated.
        ceiling: Rate of a square matrix product, 10^9 operations a second, where it has been measured; None to do so.
        floor_batch: The floor's fastest batch size where it is known: a method is then timed in turns with the floor.
    """

    limit: float = 30.0
    budget: float = 2.0
    ceiling: float | None = None
    floor_batch: int | None = None


@dataclass(frozen=True)
class Measurement:
    """One method on one workload.

    Attributes:
        workload: Its name.
        method: Its name.
        quantity: What was asked for.
        num_samples: N.
        num_params: P.
        seconds: The median over `repeats` runs after those that warm up.
        first_seconds: The first run with all samples, layers studied and buffers made.
        repeats: How many runs.
        floor_seconds: The floor's median in turns with these runs, None where it was not run beside them.
        floor_batch: The floor's fastest batch size, of a row that is a floor.
        is_lower_bound: Whether it was run on some of the samples only: its time is scaled up, and so many plain
            products of gradients as are missing are added at the rate of a square matrix product.
        peak_mib: By how much the process grew at its peak, MiB; for a lower bound, what its gradients take.
        error: Largest difference from float64 autograd on a few samples, relative to the largest entry.
        useful_flops: Operations that no method can leave out.
        ceiling_gflops: Rate of a square float32 product in the same run, 10^9 operations a second.
        failure: Why there is no time, None where there is one.
    """

    workload: str
    method: str
    quantity: str = "K"
    num_samples: int = 0
    num_params: int = 0
    seconds: float | None = None
    first_seconds: float | None = None
    repeats: int = 0
    floor_seconds: float | None = None
    floor_batch: int | None = None
    is_lower_bound: bool = False
    peak_mib: float | None = None
    error: float | None = None
    useful_flops: int | None = None
    ceiling_gflops: float | None = None
    failure: str | None = None

    @property
    def share_of_ceiling(self) -> float | None:
        """Useful operations a second, of those of a square matrix product."""
        if self.seconds is None or self.useful_flops is None or self.ceiling_gflops is None:
            return None
        return self.useful_flops / self.seconds / self.ceiling_gflops / 1e9


def _repeated(problem: Problem, run: Callable[[], object], first: float, effort: Effort) -> dict[str, Any]:
    """Seconds and repeats of a method, in turns with the floor where its batch size is known."""
    if first > LONG_SECONDS:
        return {"seconds": first, "repeats": 1}
    if (batch := effort.floor_batch) is None or effort.budget == 0:
        seconds, repeats = median_seconds(run, budget=effort.budget)
        return {"seconds": seconds, "repeats": repeats}
    forward_backward(problem, batch)
    both, repeats = medians_in_turns([run, lambda: forward_backward(problem, batch)], budget=effort.budget)
    return {"seconds": both[0], "floor_seconds": both[1], "repeats": repeats}


def _floor(workload: str, problem: Problem, effort: Effort) -> Measurement:
    """One forward and backward at the batch size that is fastest; its peak is that of one batch with all samples."""
    sizes = [size for size in FLOOR_BATCHES if size < problem.num_samples]
    forward_backward(problem.first(CHECKED_SAMPLES), CHECKED_SAMPLES)
    memory = PeakMemory()
    first = seconds_of(lambda: forward_backward(problem, problem.num_samples))
    peak = memory.mib()
    found = []
    for size in (problem.num_samples, *sizes):
        forward_backward(problem, size)
        median, repeats = median_seconds(lambda size=size: forward_backward(problem, size), budget=effort.budget)  # type: ignore[misc]
        found.append((median, repeats, size))
    seconds, repeats, batch = min(found)
    return Measurement(
        workload,
        FLOOR,
        "gradient",
        problem.num_samples,
        problem.num_params,
        seconds=seconds,
        first_seconds=first,
        repeats=repeats,
        floor_batch=batch,
        peak_mib=peak,
        useful_flops=useful_flops(problem, "gradient"),
        ceiling_gflops=ceiling_gflops(),
    )


def lower_bound(chosen: Method, problem: Problem, ceiling: float) -> float:
    """Bound a method that forms explicit gradients: some samples in proportion, missing products at full rate.

    Args:
        chosen: The method.
        problem: All samples.
        ceiling: The rate of a square matrix product, 10^9 operations a second.

    Returns:
        Seconds that it takes at least.
    """
    gradients = sum(p.numel() * p.element_size() for p in problem.parameters)
    some = min(problem.num_samples, max(16, min(512, SOME_GRADIENTS_MIB * 2**20 // gradients)))
    few = problem.first(some)
    seconds = min(seconds_of(lambda: chosen.run(few)) for _ in range(2))
    missing = 2 * problem.num_samples * (problem.num_samples - some) * problem.num_params
    return seconds * problem.num_samples / some + missing / ceiling / 1e9


def _measured(workload: str, chosen: Method, problem: Problem, effort: Effort) -> Measurement:
    true = truth(problem)
    error = ERRORS[chosen.quantity]
    row: dict[str, Any] = {
        "workload": workload,
        "method": chosen.name,
        "quantity": chosen.quantity,
        "num_samples": problem.num_samples,
        "num_params": problem.num_params,
    }
    wrong = error(true, chosen.run(problem.first(CHECKED_SAMPLES)), True)
    if not wrong <= LARGEST_ERROR:
        return Measurement(**row, error=wrong, failure=f"wrong by {wrong:.1%}")
    ceiling = effort.ceiling or ceiling_gflops()
    row |= {"useful_flops": useful_flops(problem, chosen.quantity), "ceiling_gflops": ceiling}
    if chosen.holds is not None:
        least = chosen.least_mib(problem)
        bound = lower_bound(chosen, problem, ceiling)
        if bound > effort.limit or MEMORY_FACTOR * least > available_mib():
            return Measurement(
                **row,
                seconds=bound,
                repeats=1,
                is_lower_bound=True,
                peak_mib=least,
                error=wrong,
            )
    kept: list[Any] = []
    memory = PeakMemory()
    first = seconds_of(lambda: kept.append(chosen.run(problem)))
    peak = memory.mib()
    wrong = max(wrong, error(true, kept.pop(), False))
    if not wrong <= LARGEST_ERROR:
        return Measurement(**row, error=wrong, failure=f"wrong by {wrong:.1%}")
    timed = _repeated(problem, lambda: chosen.run(problem), first, effort)
    return Measurement(**row, **timed, first_seconds=first, peak_mib=peak, error=wrong)


def measure(workload: str, method: str, effort: Effort | None = None) -> Measurement:
    """Time a method in this process.

    Args:
        workload: One of `WORKLOADS`.
        method: One of `METHODS`, or `FLOOR`.
        effort: How long it may take.

    Returns:
        What was measured; a method that is wrong or fails is a failure, not an exception.
    """
    effort = effort or Effort()
    problem = WORKLOADS[workload].make()
    if method == FLOOR:
        return _floor(workload, problem, effort)
    chosen = METHODS[method]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peers' own
            return _measured(workload, chosen, problem, effort)
    except Exception as error:  # whatever a peer raises is its result
        lines = str(error).strip().splitlines() or [""]
        failure = f"{type(error).__name__}: {lines[0][:80]}"
        return Measurement(workload, method, chosen.quantity, failure=failure)


def _send(connection: Connection, workload: str, method: str, threads: int, effort: Effort) -> None:
    torch.set_num_threads(threads)
    connection.send(measure(workload, method, effort))


def measure_apart(
    workload: str, method: str, *, threads: int, effort: Effort | None = None, seconds: float = 300.0
) -> Measurement:
    """Time a method in a process of its own, so that its peak memory is its own.

    Args:
        workload: One of `WORKLOADS`.
        method: One of `METHODS`, or `FLOOR`.
        threads: PyTorch's number of threads.
        effort: How long it may take where that can be told before.
        seconds: After so long the process is ended.

    Returns:
        What was measured.
    """
    quantity = METHODS[method].quantity if method in METHODS else "gradient"
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:  # by a server that never computes, and so has no threads to lose
        context.set_forkserver_preload(["__main__", "sgdkern.benchmark.preload"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, workload, method, threads, effort or Effort()))
    process.start()
    there.close()
    try:
        if here.poll(seconds):
            found: Measurement = here.recv()
            return found
        return Measurement(workload, method, quantity, failure=f"over {seconds:.0f} s")
    except EOFError:
        process.join()
        return Measurement(workload, method, quantity, failure=f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
