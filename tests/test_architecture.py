"""The house keeps its shape: one-way imports, rooms with names, twins with a reference, small files, a light import."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sgdkern.ops import OPS

ROOT = Path(__file__).parents[1]
PYTHON = sorted((ROOT / "sgdkern").rglob("*.py"))
NATIVE = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
TESTS = sorted((ROOT / "tests").glob("*.py"))


def test_imports_point_one_way():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_rooms_have_names():
    homeless = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "settings", "globals"}
    assert [path for path in [*PYTHON, *NATIVE] if homeless & set(path.relative_to(ROOT).with_suffix("").parts)] == []


def test_files_are_one_idea_long():
    """About 300 lines is the aim; at half as much again some idea should have left."""
    assert [path for path in [*PYTHON, *NATIVE] if len(path.read_text().splitlines()) > 450] == []


def test_nothing_is_left_to_do():
    words = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"])
    assert [path for path in [*PYTHON, *NATIVE, *TESTS] if re.search(rf"\b({words})\b", path.read_text())] == []


def test_every_module_says_what_it_is():
    assert [path for path in PYTHON if not path.read_text().startswith(('"""', 'r"""'))] == []


def test_a_decision_is_known_by_its_number():
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    assert len(set(numbers)) == len(numbers)
    titles = [page.read_text().splitlines()[0] for page in pages]
    assert [title for number, title in zip(numbers, titles) if not title.startswith(f"# {number}. ")] == []


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_twins_have_a_reference_of_the_same_stem(folder):
    twins = {path.stem for pattern in ("*.cpp", "*.cu") for path in (ROOT / "csrc" / folder).glob(pattern)}
    references = {path.stem for path in (ROOT / "sgdkern" / "ops").glob("*.py")}
    assert twins <= references
    assert twins <= OPS.keys()


def test_every_operation_has_a_file_and_is_exported():
    import sgdkern.ops

    files = {path.stem for path in (ROOT / "sgdkern" / "ops").glob("*.py")} - {"__init__", "registry"}
    assert files == OPS.keys()
    assert all(getattr(sgdkern.ops, name) is op for name, op in OPS.items())


def test_an_operation_without_samples_or_cost_is_a_type_error():
    from sgdkern.ops.registry import op

    with pytest.raises(TypeError, match="sample_inputs"):
        op(dtypes=(), check=lambda: None)


def test_only_the_kernel_boundary_touches_the_libraries():
    for path in PYTHON:
        if re.search(r"torch\.ops\.(sgdkern|load_library)|torch\.library", path.read_text()):
            assert path.parent.name == "ops", path


def test_kernels_use_the_stable_abi_only():
    for path in NATIVE:
        for header in re.findall(r"#include <((?:torch|ATen|c10|pybind11)/[^>]*)>", path.read_text()):
            stable = header.startswith(("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/"))
            assert stable or path.parent.name == "dev", f"{path.name}: {header}"


def test_the_kernel_files_follow_the_five_rules_of_cuda():
    """Device guard, current stream, launch, launch check; and no synchronisation. All launches are in one place."""
    sources = {path.name: path.read_text() for path in (ROOT / "csrc" / "cuda").iterdir()}
    queue = sources["queue.h"]
    for word in ("get_current_cuda_stream", "<<<", "STD_CUDA_KERNEL_LAUNCH_CHECK"):
        assert queue.count(word) == 1, word
    for name, source in sources.items():
        assert "Synchronize" not in source, name
        assert "<<<" not in source or name == "queue.h", name
        if name.endswith(".cu"):
            assert "DeviceGuard" in source, name
            assert "current_queue(device)" in source, name


def test_setup_stays_small():
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 60


def test_make_targets_are_two_lines_at_most():
    recipes = re.findall(r"^[a-z-]+:.*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert recipes
    assert all(recipe.count("\n") <= 2 for recipe in recipes)


def test_importing_is_light():
    heavy = ["matplotlib", "pandas", "sklearn", "scipy", "jinja2", "torchvision", "typer", "rich", "torch._dynamo"]
    code = "import sys, torch; before = set(sys.modules); import sgdkern; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(heavy) & set(done.stdout.split())
