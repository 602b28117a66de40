"""The CPU's native code under sanitizers: its kernels in a program of their own, its operations from Python."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from native import compile_dev, compile_operations, compiler

ROOT = Path(__file__).parents[1]
# These call operations on many shapes, strides and dtypes, empty ones among them.
CALLERS = [
    "test_gram_matvec.py",
    "test_gram_positions.py",
    "test_minibatch_norms.py",
    "test_ops.py",
    "test_patch_gradients.py",
    "test_narrow_linear.py",
    "test_thin_product.py",
]

pytestmark = pytest.mark.slow


def test_kernels_under_address_and_undefined_behaviour_sanitizers():
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    done = subprocess.run([compile_dev("sanitize.cpp", *flags)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* passed, 0 failed", done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a sanitizer is preloaded as Linux does it")
def test_operations_under_the_address_sanitizer(tmp_path):
    """The host functions around the kernels, too: their checks, their packing plans, their work space."""
    for name in ("csrc", "build"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("sgdkern", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    contracting = ["-ffp-contract=fast", "-fexpensive-optimizations"]  # as accurate as what is installed
    flags = ["-O1", "-g1", "-fsanitize=address", "-D_GLIBCXX_ASSERTIONS", *contracting]
    shutil.copy(compile_operations(*flags), tmp_path / "sgdkern" / "_lib" / "cpu.so")
    # Python itself is linked to neither library, and must have both before it loads torch.
    preloaded = [runtime_library(name) for name in ("libasan.so", "libstdc++.so")]
    checks = "detect_leaks=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1"
    environment = os.environ | {"LD_PRELOAD": ":".join(preloaded), "ASAN_OPTIONS": checks}
    run = partial(subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    found = run([sys.executable, "-c", "from sgdkern.ops import LIBRARIES; print(LIBRARIES['cpu'].reason)"])
    assert found.stdout == "None\n", found.stdout + found.stderr
    options = ["-q", "-p", "no:cacheprovider", "--capture=sys"]  # a sanitizer writes to the process's own output
    done = run([sys.executable, "-m", "pytest", *options, *(f"tests/{name}" for name in CALLERS)])
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[:10000]


def runtime_library(name):
    found = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
    if not Path(found.strip()).is_absolute():
        pytest.skip(f"no {name}")
    return found.strip()
