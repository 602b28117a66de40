"""How the cost of K grows with the samples, the width and the depth of a network, and the power law through the end."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from sgdkern.benchmark import peers as peers  # fills METHODS
from sgdkern.benchmark.measurement import FLOOR
from sgdkern.benchmark.methods import METHODS, forward_backward
from sgdkern.benchmark.timing import median_seconds, seconds_of
from sgdkern.benchmark.workloads import Problem, mlp

METHODS_SHOWN = (FLOOR, "sgdkern", "asdfghjkl, hadamard", "vmap(grad)")
FITTED = 4


@dataclass(frozen=True)
class Axis:
    """One of the three directions in which a network's cost grows.

    Attributes:
        name: What grows.
        text: What is held.
        values: Its values, ascending.
        make: The problem at one of them.
    """

    name: str
    text: str
    values: tuple[int, ...]
    make: Callable[[int], Problem]


AXES = {
    axis.name: axis
    for axis in (
        Axis(
            "samples",
            "784-256-256-10",
            (125, 250, 500, 1000, 2000, 4000, 8000),
            lambda n: mlp(n, 784, 256, 256, 10),
        ),
        Axis(
            "width",
            "784-width-width-10, N = 500",
            (64, 128, 256, 512, 1024, 2048, 4096),
            lambda width: mlp(500, 784, width, width, 10),
        ),
        Axis(
            "hidden layers",
            "784-256-…-256-10, N = 1000",
            (1, 2, 4, 8, 16, 32),
            lambda depth: mlp(1000, 784, *[256] * depth, 10),
        ),
    )
}


@dataclass(frozen=True)
class GrowthPoint:
    """One method at one size: `value` of `axis`, median `seconds`."""

    axis: str
    value: int
    method: str
    seconds: float


def growth(
    *,
    methods: Sequence[str] = METHODS_SHOWN,
    limit: float = 3.0,
    budget: float = 0.3,
    axes: Sequence[Axis] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[GrowthPoint]:
    """Time methods along the axes, in this process; a method's line ends where one run takes longer than a limit.

    Args:
        methods: Names in `METHODS`, or the floor; those that are not installed are left out.
        limit: Seconds.
        budget: Seconds over which a short run is repeated.
        axes: Other axes than `AXES`.
        clock: Tells seconds: `time.process_time` with one thread on a machine that others use.

    Yields:
        The points.
    """
    for axis in axes or AXES.values():
        going = [name for name in methods if name not in METHODS or METHODS[name].is_available]
        for value in axis.values:
            problem = axis.make(value)
            for name in list(going):

                def run(name: str = name, problem: Problem = problem) -> object:
                    if name in METHODS:
                        return METHODS[name].run(problem)
                    return forward_backward(problem, min(problem.num_samples, 1000))

                seconds = seconds_of(run, clock)
                if seconds < limit:
                    seconds = min(seconds, median_seconds(run, budget=budget, clock=clock)[0])
                else:
                    going.remove(name)
                yield GrowthPoint(axis.name, value, name, seconds)


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Fit t ∝ xᵖ by least squares in logarithms through the last four points, where the largest term rules.

    Args:
        points: Pairs (x, t), ascending in x, all positive.

    Returns:
        p.

    Raises:
        ValueError: For less than two points.
    """
    if len(points) < 2:
        raise ValueError(f"exponent: at least two points are needed, got {len(points)}. Measure more sizes.")
    logs = torch.tensor([[math.log(x), math.log(t)] for x, t in points[-FITTED:]], dtype=torch.float64)
    x, t = (logs - logs.mean(0)).unbind(1)
    return float((x * t).sum() / (x * x).sum())
