"""Everything that needs a GPU, in one command: build, parity, compute-sanitizer, timing; JSON to benchmarks/results.

    python benchmarks/gpu.py

It has not yet run on a GPU: until `benchmarks/results/gpu.json` exists, nothing is claimed about one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils._pytree import tree_map_only

from sgdkern.benchmark import machine
from sgdkern.benchmark.operations import ARGUMENTS, CEILING_SIZE
from sgdkern.ops import OPS

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gpu.json"
RUNS = 20


def build() -> None:
    """Compile both libraries; a failure ends the run."""
    environment = os.environ | {"SGDKERN_BUILD": "cuda"}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]
    subprocess.run(command, check=True, env=environment)


def sanitize(tool: str) -> str:
    """Run every operation's samples under a compute-sanitizer tool.

    Returns:
        Its last line, or why it did not run.
    """
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        return "compute-sanitizer not found"
    command = [program, "--tool", tool, "--error-exitcode", "1", sys.executable, __file__, "--samples"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"exit code {done.returncode}: {done.stdout.strip().splitlines()[-1]}"


def run_samples() -> None:
    """Run every operation on its samples once."""
    for op in OPS.values():
        for dtype in op.dtypes:
            for args in op.sample_inputs(dtype, torch.device("cuda")):
                op(*args)
    torch.cuda.synchronize()


def milliseconds(run, *args) -> float:
    """Median over runs, by events on the stream, after three that warm up."""
    for _ in range(3):
        run(*args)
    times = []
    for _ in range(RUNS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run(*args)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[RUNS // 2]


def timings(dtype: torch.dtype) -> list[dict[str, object]]:
    """Each operation against its reference, which is cuBLAS calls, and the rate of a square product without TF32."""
    rows = []
    a = torch.randn(4 * CEILING_SIZE, 4 * CEILING_SIZE, device="cuda").to(torch.promote_types(dtype, torch.float32))
    ceiling = 2e-9 * a.shape[0] ** 3 / milliseconds(torch.mm, a, a)
    for name, arguments in ARGUMENTS.items():
        for shape, args in arguments(dtype):
            on_gpu = tree_map_only(torch.Tensor, torch.Tensor.cuda, args)
            op = OPS[name]
            elapsed, reference = milliseconds(op, *on_gpu), milliseconds(op.reference, *on_gpu)
            rate = 1e-9 * op.cost(*on_gpu).flops / elapsed
            rows.append({
                "operation": name,
                "shape": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "elapsed_ms": elapsed,
                "reference_ms": reference,
                "tflops": rate,
                "ceiling_tflops": ceiling,
                "share_of_ceiling": rate / ceiling,
            })
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", action="store_true", help="run the samples only: what compute-sanitizer is put on")
    if parser.parse_args().samples:
        run_samples()
        return
    if not torch.cuda.is_available():
        sys.exit("gpu.py: PyTorch sees no CUDA device here. Run it on a machine with one.")
    build()
    parity = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_ops.py"], cwd=ROOT, check=False
    )
    document = {
        "schema_version": 1,
        "machine": machine() | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda},
        "parity": "passed" if parity.returncode == 0 else "FAILED",
        "sanitizer": {tool: sanitize(tool) for tool in ("memcheck", "racecheck", "synccheck", "initcheck")},
        "operations": [row for dtype in (torch.float32, torch.bfloat16, torch.float64) for row in timings(dtype)],
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))
    sys.exit(parity.returncode)


if __name__ == "__main__":
    main()
