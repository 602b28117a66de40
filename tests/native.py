"""Compiles what lies in csrc for the tests, once for each state of the sources."""

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[1]


def compiler() -> str:
    """Return the C++ compiler; the test skips where there is none."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def compile_dev(name: str, *flags: str) -> Path:
    """Return csrc/dev/<name> compiled; the test skips where there is no compiler."""
    return _compiled(Path(name).stem, [ROOT / "csrc" / "dev" / name], flags)


def compile_operations(*flags: str) -> Path:
    """Return the CPU operations' library, compiled with flags of the test's own."""
    paths = [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
    sources = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    return _compiled("cpu.so", sources, ("-shared", "-fPIC", *paths, "-ltorch_cpu", "-lc10", *flags))


def _compiled(name: str, sources: list[Path], flags: tuple[str, ...]) -> Path:
    everything = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    state = hashlib.sha256(b"".join(path.read_bytes() for path in everything) + " ".join(flags).encode()).hexdigest()
    target = ROOT / "build" / "dev" / state[:16] / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        options = ["-std=c++20", "-Wno-psabi", "-pthread", *flags, "-o", str(partial)]
        subprocess.run([compiler(), *sources, *options], check=True, cwd=ROOT, capture_output=True, text=True)
        partial.rename(target)
    return target


@functools.cache
def dev_module(name: str) -> ModuleType:
    """Return csrc/dev/<name>.cpp as a Python module."""
    pybind11 = pytest.importorskip("pybind11")
    includes = ["-I" + pybind11.get_include(), "-I" + sysconfig.get_path("include")]
    path = compile_dev(f"{name}.cpp", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", *includes)
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
