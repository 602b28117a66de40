"""Seconds and bytes that a call takes in this process."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def median_seconds(
    run: Callable[[], object],
    *,
    at_least: int = 3,
    budget: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, int]:
    """Time a function: at least so many runs, then more while the budget lasts; long runs count once.

    Args:
        run: What to time; it has been run once before.
        at_least: Runs that are wanted even when they take longer than the budget together.
        budget: Seconds.
        clock: Tells seconds.

    Returns:
        The median in seconds, and the number of runs.
    """
    times: list[float] = []
    while not times or (sum(times) < budget and len(times) < 50) or (len(times) < at_least and times[0] < budget):
        times.append(seconds_of(run, clock))
    return statistics.median(times), len(times)


def medians_in_turns(
    runs: Sequence[Callable[[], object]],
    *,
    budget: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], int]:
    """Time functions one after the other, again and again: a processor whose rate drifts does so for all of them.

    Args:
        runs: What to time; each has been run once before.
        budget: Seconds, for all of them together; there are three rounds at least.
        clock: Tells seconds.

    Returns:
        The median of each in seconds, and the number of rounds.
    """
    rounds: list[list[float]] = []
    while len(rounds) < 3 or (sum(map(sum, rounds)) < budget and len(rounds) < 50):
        rounds.append([seconds_of(run, clock) for run in runs])
    return [statistics.median(times) for times in zip(*rounds, strict=True)], len(rounds)


def seconds_of(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time one call.

    Args:
        run: What to time.
        clock: Tells seconds.

    Returns:
        Seconds.
    """
    start = clock()
    run()
    return clock() - start


class PeakMemory:
    """The largest resident memory since it was made, above what was resident then."""

    def __init__(self) -> None:
        """Forget earlier peaks, where the system can (Linux); elsewhere growth beyond them is what is seen."""
        if _STATUS.exists():
            Path("/proc/self/clear_refs").write_text("5")
        self._start = _resident_mib()[1]

    def mib(self) -> float:
        """How far memory has grown at its peak, MiB."""
        return max(_resident_mib()[0] - self._start, 0.0)


_STATUS = Path("/proc/self/status")


def _resident_mib() -> tuple[float, float]:
    """Peak and present resident memory."""
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        peak, now = (int(lines[key].split()[0]) / 2**10 for key in ("VmHWM", "VmRSS"))
        return peak, now
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return peak, peak


def available_mib() -> float:
    """Memory that a process could still take, MiB; infinite where the system does not say."""
    found = Path("/proc/meminfo")
    lines = found.read_text().splitlines() if found.exists() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("MemAvailable")), float("inf"))
