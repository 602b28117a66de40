"""pytest-benchmark: the methods and workloads of `sgdkern bench`, and every operation, compiled and reference.

python -m pytest benchmarks/test_gram.py -k "narrow and sgdkern"
"""

from contextlib import contextmanager

import pytest
import torch

from sgdkern.benchmark import FLOOR, METHODS, WORKLOADS
from sgdkern.benchmark.measurement import FLOOR_BATCHES, LARGEST_ERROR, lower_bound
from sgdkern.benchmark.methods import forward_backward
from sgdkern.benchmark.operations import ARGUMENTS
from sgdkern.benchmark.oracle import CHECKED_SAMPLES, ERRORS, truth
from sgdkern.benchmark.timing import median_seconds
from sgdkern.benchmark.work import ceiling_gflops, useful_flops
from sgdkern.ops import OPS

# Seconds; a method that is known to take longer is skipped, with what it takes at least.
LIMIT = 10.0
CASES = [
    pytest.param(name, dtype, index, id=f"{name}-{str(dtype).removeprefix('torch.')}-{index}")
    for name in ARGUMENTS
    for dtype in (torch.float32, torch.float64, torch.bfloat16)
    for index in range(5)
]


@contextmanager
def num_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_floor(benchmark, workload, threads):
    """At the batch size that is fastest."""
    problem = WORKLOADS[workload].make()
    with num_threads(threads):
        sizes = [problem.num_samples, *(size for size in FLOOR_BATCHES if size < problem.num_samples)]
        best = min(sizes, key=lambda size: median_seconds(lambda: forward_backward(problem, size), budget=0.3)[0])
        benchmark.pedantic(forward_backward, (problem, best), rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {"method": FLOOR, "workload": workload, "threads": threads, "batch_size": best}


@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_method(benchmark, workload, name, threads):
    method, problem = METHODS[name], WORKLOADS[workload].make()
    if not method.is_available:
        pytest.skip(f"{method.requires} is not installed (pip install 'sgdkern[peers]')")
    with num_threads(threads):
        try:
            error = ERRORS[method.quantity](truth(problem), method.run(problem.first(CHECKED_SAMPLES)), True)
        except Exception as failure:  # whatever a peer raises
            if method.requires is None:
                raise
            pytest.skip(f"{name} fails: {failure}")
        if method.requires is not None and not error <= LARGEST_ERROR:
            pytest.skip(f"{name} is wrong by {error:.1%}")
        assert error <= LARGEST_ERROR
        if method.holds and (least := lower_bound(method, problem, ceiling_gflops())) > LIMIT:
            pytest.skip(f"{name} takes at least {least:.0f} s")
        benchmark.pedantic(method.run, (problem,), rounds=3, warmup_rounds=1)
    benchmark.extra_info |= {"method": name, "workload": workload, "threads": threads, "error": error}
    if (flops := useful_flops(problem, method.quantity)) is not None:
        benchmark.extra_info["gflops"] = flops / benchmark.stats["median"] / 1e9


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["compiled", "reference"])
@pytest.mark.parametrize(("name", "dtype", "index"), CASES)
def test_operation(benchmark, name, dtype, index, kind, threads):
    op = OPS[name]
    shape, args = list(ARGUMENTS[name](dtype))[index]
    with num_threads(threads):
        benchmark.pedantic(op if kind == "compiled" else op.reference, args, rounds=5, warmup_rounds=1)
    benchmark.extra_info["shape"] = shape
    benchmark.extra_info["gflops"] = op.cost(*args).flops / benchmark.stats["median"] / 1e9
