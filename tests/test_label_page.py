"""The page on wrong labels: one file that needs no other, in a sensible form for pictures and for tables."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sgdkern.cleaning import LabelIssues, NoiseMatrix, NoiseRate, noise_matrix, noise_rates_by
from sgdkern.cleaning.table import UPPER_BOUND
from sgdkern.label_files import CleaningReport, LabelledData
from sgdkern.label_files.page import page_is_possible, write_page

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

NAMES = np.array(["ant <b>", "bee", "cat"])


class Reader(HTMLParser):
    """Collects what a page refers to, its open elements and its text."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.open, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("img", "meta", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def found(data, *, budget=None, sources=None, num_issues=6, covers="sampling of the samples"):
    """What a cleaning of the data might find: the first samples are wrong."""
    count = len(data.labels)
    score = np.linspace(0.05, 0.95, count)
    issue = np.arange(count) < num_issues
    score[~issue] = np.linspace(0.6, 0.95, count - num_issues)
    predicted = np.where(issue, np.roll(NAMES, 1)[np.searchsorted(NAMES, data.labels)], data.labels)
    p_wrong = np.where(issue, 0.9, 0.02)
    rate = NoiseRate(0.1, 0.05, 0.18, covers)
    issues = LabelIssues(issue, np.where(issue, score / 2, score), data.labels, predicted, p_wrong, rate, "aum")
    matrix: NoiseMatrix = noise_matrix(issues, classes=NAMES)
    return CleaningReport(
        issues=issues,
        names=data.names,
        noise_rate=rate,
        noise_matrix=matrix,
        class_noise_rates=noise_rates_by(issues, data.labels),
        source_noise_rates={} if sources is None else noise_rates_by(issues, sources),
        budget=budget,
        expected_precision=None if budget is None else issues.expected_precision(budget),
        files={},
        seconds=1.0,
    )


def table_of(tmp_path, count=60, sources=None):
    """A table of two features whose labels are names."""
    rng = np.random.default_rng(0)
    codes = np.arange(count) % 3
    inputs = (codes[:, None] + rng.normal(0, 0.1, (count, 2))).astype(np.float32)
    inputs[:6] -= 1  # the first six look like the class before theirs
    return LabelledData(inputs, NAMES[codes], np.arange(count), sources, None, tmp_path / "a.csv", ("wing", "leg"))


def read(tmp_path, data, report):
    """The page, parsed, all its elements closed."""
    reader = Reader(write_page(data, report, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_page_of_a_table_needs_no_other_file_and_shows_what_tells(tmp_path):
    sources = np.array(["eve", "ann"])[(np.arange(60) >= 6).astype(int)]
    data = table_of(tmp_path, sources=sources)
    page = read(tmp_path, data, found(data, budget=12, sources=sources))
    assert all(re.match(r"data:|#", address) for address in page.addresses)
    text = " ".join(" ".join(page.words).split())
    for words in (
        "6 of 60 labels look wrong",
        "10 % of all labels are wrong (5.0 % to 18 %)",
        "Of the 12 worst labels about 6 (46 %) are expected to be wrong",
        "ant <b>",
        "eve",
        "the source with most wrong labels",
        "wing",
    ):
        assert words in text
    figures = [address for address in page.addresses if address.startswith("data:image/svg")]
    assert len(figures) == 5  # qualities, review, matrix, by label, by source


def test_the_same_findings_give_the_same_bytes(tmp_path):
    data = table_of(tmp_path)
    pages = [write_page(data, found(data), tmp_path / name).read_bytes() for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]


def test_page_of_pictures_shows_them(tmp_path):
    image = pytest.importorskip("PIL.Image")
    labels = NAMES[np.arange(60) % 3]
    pictures = np.random.default_rng(1).integers(0, 255, (60, 8, 8, 3)).astype(np.uint8)
    data = LabelledData(pictures.astype(np.float32), labels, np.arange(60), None, pictures, tmp_path / "a.npz")
    page = read(tmp_path, data, found(data))
    assert sum(address.startswith("data:image/png") for address in page.addresses) == 6
    large = tmp_path / "folder"
    large.mkdir()
    names = np.array([f"{index}.png" for index in range(60)])
    for name in names[:6]:
        image.fromarray(np.zeros((300, 200, 3), np.uint8)).save(large / name)
    data = LabelledData(pictures.astype(np.float32), labels, names, None, pictures, large)
    page = read(tmp_path, data, found(data))
    assert sum(address.startswith("data:image/jpeg") for address in page.addresses) == 6


def test_page_where_nothing_is_wrong_and_where_the_rate_is_a_bound(tmp_path):
    data = table_of(tmp_path)
    text = " ".join(read(tmp_path, data, found(data, num_issues=0)).words)
    assert "No label looks wrong" in text
    assert "none is confused" in text
    text = " ".join(read(tmp_path, data, found(data, covers=UPPER_BOUND, budget=5)).words)
    assert "cannot be told, at most 18 %" in text
    assert "Review them by rank" in text
    assert "p(wrong), upper bound" in text
    assert "Here both are upper bounds" in text
    assert "worst labels at most" in text
    assert "an upper bound" in text


def test_many_classes_and_long_names_are_cut(tmp_path):
    count = 26
    labels = np.array([f"species-{index:02}-with-a-long-name" for index in range(count)] * 4)
    issue = np.arange(len(labels)) < 8
    rate = NoiseRate(0.1, 0.05, 0.18)
    issues = LabelIssues(
        issue, np.where(issue, 0.2, 0.8), labels, np.roll(labels, 1), np.where(issue, 0.9, 0.0), rate, "aum"
    )
    data = LabelledData(np.zeros((len(labels), 1, 2)), labels, np.arange(len(labels)), None, None, tmp_path / "a.npz")
    report = CleaningReport(
        issues, data.names, rate, noise_matrix(issues), noise_rates_by(issues, labels), {}, None, None, {}, 1.0
    )
    page = read(tmp_path, data, report)
    figures = [address for address in page.addresses if address.startswith("data:image/svg")]
    assert len(figures) == 3  # no matrix of 26 classes


def test_no_page_without_its_packages(monkeypatch):
    assert page_is_possible()
    monkeypatch.setattr("sgdkern.label_files.page.find_spec", lambda name: None)
    assert not page_is_possible()
