"""Everything that needs a GPU, in one command: build, parity, compute-sanitizer, timing; JSON to benchmarks/results.

    python benchmarks/gpu.py

It has not yet run on a GPU: until `benchmarks/results/gpu.json` exists, nothing is claimed about one. Timed against the
reference, which is cuBLAS calls, and against the rate of a large square product, each with the same arithmetic: float32
with TF32 forbidden (this library's compensated products) and allowed, bfloat16, float64.

`--device cpu --output FILE` walks the same way on operations' samples without a GPU, to see that the script runs; its
times mean nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils._pytree import tree_map_only

from sgdkern.benchmark import machine
from sgdkern.benchmark.operations import ARGUMENTS
from sgdkern.ops import OPS, Op

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gpu.json"
RUNS = {"cuda": 20, "cpu": 1}
CEILING_SIZES = {"cuda": 8192, "cpu": 256}
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Name: element type, and whether float32 products may be TF32.
ARITHMETIC = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float64": (torch.float64, False),
}


def build() -> None:
    """Compile both libraries; a failure ends the run."""
    environment = os.environ | {"SGDKERN_BUILD": "cuda"}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]
    subprocess.run(command, check=True, env=environment)


def run_tests() -> str:
    """Run the tests that need a GPU, compute-sanitizer's excepted.

    Returns:
        What pytest says last.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "--deselect",
        "tests/test_gpu_benchmark.py::test_gpu_runs_clean",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"exit code {done.returncode}: {(done.stdout.strip().splitlines() or ['no output'])[-1]}"


def sanitize(tool: str, device: str) -> str:
    """Run every operation's samples under a compute-sanitizer tool.

    Returns:
        Its last line, or why it did not run.
    """
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        return "skipped: compute-sanitizer is not installed"
    command = [program, "--tool", tool, "--error-exitcode", "1", sys.executable, __file__]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor an allocation of its own
    done = subprocess.run(
        [*command, "--device", device, "--only", "samples"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    return f"exit code {done.returncode}: {(done.stdout.strip().splitlines() or ['no output'])[-1]}"


def run_samples(device: torch.device) -> None:
    """Run every operation on its samples once."""
    for op in OPS.values():
        for dtype in op.dtypes:
            for args in op.sample_inputs(dtype, device):
                op(*args)
    wait(device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def parity(device: torch.device) -> Iterator[dict[str, object]]:
    """Each operation's and its reference's largest error against the reference in float64, over the largest entry."""
    for name, op in OPS.items():
        for dtype in op.dtypes:
            errors: dict[str, list[float]] = {"error": [0.0], "reference_error": [0.0]}
            for args in op.sample_inputs(dtype, device):
                floats = lambda t: t.double() if t.is_floating_point() else t  # noqa: E731
                truth = op.reference(*tree_map_only(torch.Tensor, floats, args))
                if not truth.numel() or not truth.abs().max():
                    continue
                for key, result in [("error", op(*args)), ("reference_error", op.reference(*args))]:
                    errors[key].append(float((result - truth).abs().max() / truth.abs().max()))
            yield {
                "operation": name,
                "dtype": str(dtype).removeprefix("torch."),
                "compiled": op.is_compiled(device.type),
                **{key: max(values) for key, values in errors.items()},
            }


def milliseconds(device: torch.device, run: Callable[..., object], *args: object) -> float:
    """Median over runs, after some that warm up; on a GPU by events on the stream."""
    for _ in range(RUNS[device.type] // 4):
        run(*args)
    times = []
    for _ in range(RUNS[device.type]):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run(*args)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            before = time.perf_counter()
            run(*args)
            times.append(1e3 * (time.perf_counter() - before))
    return sorted(times)[len(times) // 2]


def workloads(op: Op, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, tuple[object, ...]]]:
    """The operation's shapes in benchmarks; where it has none, and without a GPU, its samples."""
    if device.type == "cuda" and op.name in ARGUMENTS:
        for shape, args in ARGUMENTS[op.name](dtype):
            yield shape, tree_map_only(torch.Tensor, torch.Tensor.cuda, args)
        return
    for index, args in enumerate(op.sample_inputs(dtype, device)):
        yield f"sample {index}", args


def timings(arithmetic: str, device: torch.device) -> Iterator[dict[str, object]]:
    """Each operation against its reference and a square product with the same arithmetic."""
    dtype, torch.backends.cuda.matmul.allow_tf32 = ARITHMETIC[arithmetic]
    size = CEILING_SIZES[device.type]
    a = torch.randn(size, size, device=device).to(dtype)
    ceiling = 2e-9 * size**3 / milliseconds(device, torch.mm, a, a)
    for name, op in OPS.items():
        if dtype not in op.dtypes:
            continue
        for shape, args in workloads(op, dtype, device):
            elapsed, reference = milliseconds(device, op, *args), milliseconds(device, op.reference, *args)
            rate = 1e-9 * op.cost(*args).flops / elapsed
            yield {
                "operation": name,
                "shape": shape,
                "arithmetic": arithmetic,
                "compiled": op.is_compiled(device.type),
                "elapsed_ms": elapsed,
                "reference_ms": reference,
                "times_faster": reference / elapsed,
                "tflops": rate,
                "ceiling_tflops": ceiling,
                "share_of_ceiling": rate / ceiling,
            }


def measure(device: torch.device) -> dict[str, object]:
    """Everything that runs in this process, after the build."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "none: this run shows nothing about one"
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        rows = [row for arithmetic in ARITHMETIC for row in timings(arithmetic, device)]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return {
        "machine": machine() | {"gpu": name, "cuda": torch.version.cuda},
        "parity": list(parity(device)),
        "operations": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: only to see that the script runs"
    )
    parser.add_argument("--output", type=Path, help=f"where to write, {RESULT.relative_to(ROOT)} for cuda")
    parser.add_argument("--only", choices=["samples", "measure"], help="one step, in this process: what `main` calls")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: PyTorch sees no CUDA device here. Run it on a machine with one.")
    if options.only == "samples":
        run_samples(device)
        return
    output = options.output or (RESULT if options.device == "cuda" else None)
    if output is None:
        sys.exit("gpu.py: without a GPU nothing belongs into benchmarks/results. Name a file in --output.")
    if options.only == "measure":
        output.write_text(json.dumps(measure(device)))
        return
    on_gpu = options.device == "cuda"
    if on_gpu:
        build()
    with tempfile.TemporaryDirectory() as folder:  # a process of its own, which loads what was built
        measured = Path(folder) / "measured.json"
        command = [sys.executable, __file__, "--device", options.device, "--only", "measure", "--output", str(measured)]
        subprocess.run(command, check=True)
        document = {"schema_version": 2, **json.loads(measured.read_text())}
    document["tests"] = run_tests() if on_gpu else "skipped: they need a GPU"
    document["sanitizer"] = {tool: sanitize(tool, options.device) for tool in TOOLS}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))
    failed = [text for text in (document["tests"], *document["sanitizer"].values()) if text.startswith("exit code 1")]
    sys.exit(len(failed))


if __name__ == "__main__":
    main()
