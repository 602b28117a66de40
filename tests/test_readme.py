"""The README: its examples run, its table is the registry's, its links lead somewhere, its commands exist."""

import re
from pathlib import Path

import pytest
import torch

from sgdkern.cli import app
from sgdkern.order_parameters import table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    """In order and in one namespace, as a reader would paste them."""
    assert len(BLOCKS) == 2
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    assert "noise_scale" in capsys.readouterr().out
    assert len(namespace["probe"].history) > 30  # type: ignore[attr-defined]


def test_the_guide_to_the_probe_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "probe.md").read_text("utf-8"), flags=re.DOTALL):
        exec(compile(block, "docs/probe.md", "exec"), namespace)
    assert namespace["history"].steps.tolist() == [0, 10, 20]  # type: ignore[attr-defined]


def test_the_first_example_has_ten_lines() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) == 10


def test_the_table_is_the_registry() -> None:
    """Mend with: python tests/test_readme.py."""
    assert _generated(README) == table().strip()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in ("index", "demo", "command_line"))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_command_is_in_the_table() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"`sgdkern {command.callback.__name__}" in README


_PART = re.compile(r"(<!-- generated.*?-->\n)(.*?)(<!-- end of the generated part -->)", flags=re.DOTALL)


def _generated(text: str) -> str:
    found = _PART.search(text)
    assert found is not None
    return found[2].strip()


if __name__ == "__main__":
    (ROOT / "README.md").write_text(_PART.sub(lambda m: m[1] + table() + m[3], README), encoding="utf-8")
