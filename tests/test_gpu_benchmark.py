"""The GPU benchmark: its steps run without a GPU, and it claims nothing that was not measured."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
import torch
from native import ROOT
from test_cuda_kernels import PRODUCTS

from sgdkern.ops import OPS

GPU_BENCHMARK = ROOT / "benchmarks" / "gpu.py"


def check_fields(document):
    assert document["machine"]["gpu"].startswith("none")
    assert {(row["operation"], row["dtype"]) for row in document["parity"]} == {
        (name, str(dtype).removeprefix("torch.")) for name, op in OPS.items() for dtype in op.dtypes
    }
    assert all(row["error"] <= 2 * row["reference_error"] + 1e-6 for row in document["parity"])
    timed = {(row["operation"], row["arithmetic"]) for row in document["operations"]}
    kinds = ("float32", "tf32", "bfloat16", "float64")
    assert timed == {(name, kind) for name, op in OPS.items() for kind in kinds if PRODUCTS[kind][0] in op.dtypes}


@pytest.fixture
def gpu_benchmark():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", GPU_BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gpu_benchmark_s_steps_run(gpu_benchmark):
    """On the CPU, on operations' samples: that every step runs and every field is there; the times mean nothing."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    gpu_benchmark.run_samples(torch.device("cpu"))
    check_fields(json.loads(json.dumps(gpu_benchmark.measure(torch.device("cpu")))))
    assert torch.backends.cuda.matmul.allow_tf32 == allowed


@pytest.mark.parametrize(("arguments", "text"), [([], "sees no CUDA device"), (["--device", "cpu"], "Name a file")])
def test_the_gpu_benchmark_claims_nothing_without_a_gpu(gpu_benchmark, arguments, text, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    with pytest.raises(SystemExit, match=text):
        gpu_benchmark.main()


@pytest.mark.slow
def test_the_gpu_benchmark_from_end_to_end(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(GPU_BENCHMARK), "--device", "cpu", "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    document = json.loads(output.read_text())
    check_fields(document)
    assert document["tests"].startswith("skipped")
    assert set(document["sanitizer"]) == {"memcheck", "racecheck", "synccheck", "initcheck"}


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_gpu_runs_clean(tool):
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [program, "--tool", tool, "--error-exitcode", "1", sys.executable, str(GPU_BENCHMARK)]
    done = subprocess.run([*command, "--only", "samples"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
