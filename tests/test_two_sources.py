"""The worked example of docs/examples: the bad source is found, a good one is not accused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent / "docs" / "examples" / "two_sources.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("matplotlib")
    specification = importlib.util.spec_from_file_location("two_sources", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "found"), [("b: 60 % of the labels wrong", ["b"]), ("neither", [])])
def test_the_bad_source_is_found_and_no_good_one(example, name, found):
    """Seeds of the page's table: this keeps the page true, it judges nothing."""
    history = example.observe(name, 70, epochs=12)
    assert example.accused(history) == found
    assert set(history.records[0].groups) == {"sources", *(f"split {number}" for number in range(example.SPLITS))}


def test_the_cases_are_what_they_are_called(example):
    for name in example.CASES:
        data, inputs, labels, from_b = example.case_of(name, 0)
        wrong = labels != data.train_labels
        rates = [float(wrong[one].double().mean()) for one in (~from_b, from_b)]
        rate = 0.6 if "60 %" in name else 0.3 if "30 %" in name else 0.0
        expected = [rate if "both" in name else 0.0, rate]
        spread = (0.25 / len(from_b[from_b])) ** 0.5  # at most, of a share of so many samples
        assert all(abs(one - other) <= 5 * spread for one, other in zip(rates, expected, strict=True)), name
        assert bool((inputs != data.train_inputs).any()) == ("images" in name)
        assert bool((inputs == data.train_inputs)[~from_b].all())
