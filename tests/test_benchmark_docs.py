"""The page of benchmarks says what was measured: its tables are those of the results, and its verdicts are computed."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gram.json"


@pytest.fixture(scope="module")
def docs():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("gram_docs", ROOT / "benchmarks" / "gram_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_what_the_results_say(docs, tmp_path, monkeypatch):
    originals = [docs.PAGE, docs.README]
    pages = [Path(shutil.copy(original, tmp_path)) for original in originals]
    monkeypatch.setattr(docs, "FIGURE", tmp_path / "growth.png")
    docs.write_docs(json.loads(RESULT.read_text()), *pages)
    for page, original in zip(pages, originals, strict=True):
        assert page.read_text() == original.read_text(), "python benchmarks/gram.py docs"
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_a_page_without_its_marks_is_refused(docs, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must have the mark of 'machine'"):
        docs.write_docs(json.loads(RESULT.read_text()), page)


@pytest.mark.parametrize(
    ("value", "at_most", "verdict"),
    [(1.0, True, "met"), (1.1, True, "**missed**"), (1.1, False, "met"), (0.9, False, "**missed**"), (None, True, "-")],
)
def test_verdicts(docs, value, at_most, verdict):
    found = docs.verdict(value, 1.0, at_most=at_most)
    assert found == (verdict if value is not None else "not measured")


def test_results_hold_no_path_and_no_host():
    document = json.loads(RESULT.read_text())
    assert "/" not in json.dumps(document["machine"])
    assert document["schema_version"] == 2
