"""pytest-benchmark: every operation that has shapes, compiled and reference, by number of threads."""

import pytest
import torch

from sgdkern.benchmark.operations import ARGUMENTS
from sgdkern.ops import OPS

CASES = [
    pytest.param(name, dtype, index, id=f"{name}-{str(dtype).removeprefix('torch.')}-{index}")
    for name in ARGUMENTS
    for dtype in (torch.float32, torch.float64, torch.bfloat16)
    for index in range(5)
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["compiled", "reference"])
@pytest.mark.parametrize(("name", "dtype", "index"), CASES)
def test_operation(benchmark, name, dtype, index, kind, threads):
    op = OPS[name]
    shape, args = list(ARGUMENTS[name](dtype))[index]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        benchmark.pedantic(op if kind == "compiled" else op.reference, args, rounds=5, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)
    benchmark.extra_info["shape"] = shape
    benchmark.extra_info["gflops"] = op.cost(*args).flops / benchmark.stats["median"] / 1e9
