"""The rendered report: whole, self-contained, escaped, and honest about what a run folder lacks."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

import matplotlib
from PIL import Image
from run_folder import change_json, write_run

from sgdkern.history import History
from sgdkern.record import GroupRecord, NullRecord
from sgdkern.report import group_alignment_figures, style, write_report
from sgdkern.report.figures import draw, group_alignment, order_parameters
from sgdkern.report.html import page as render
from sgdkern.report.html import picture
from sgdkern.report.run_folder import RunFolder
from sgdkern.report.tables import number

PANELS = {
    "fig1a_loss", "fig1b_noise_strength", "fig1c_minibatch_alignment", "fig1d_projection_variance", "fig2b_cumulative",
    "fig2c_dimension", "fig3a_errors", "fig4a_activity", "fig4b_directed", "fig4b_ratio", "fig4c_alignment",
    "fig4c_blind",
    "fig5_spectra", "fig6a_losses_I", "fig6a_losses_II", "fig6a_losses_III", "fig6a_losses_IV", "fig6b_mixture",
    "fig6c_separation", "fig6d_accuracy",
}  # fmt: skip
VOID = {"meta", "img", "source", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: text, tags with attributes, and whether every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u202f", " ").split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@dataclass
class Written:
    """One whole report, and what its writing left behind."""

    folder: Path
    progress: list[tuple[int, int]]
    style_before: dict[str, object]
    style_after: dict[str, object]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = write_run(tmp_path_factory.mktemp("runs") / "whole")
    progress: list[tuple[int, int]] = []
    before = dict(matplotlib.rcParams)
    write_report(folder, progress=lambda done, total: progress.append((done, total)))
    return Written(folder, progress, before, dict(matplotlib.rcParams))


@pytest.fixture(scope="module")
def run(written: Written) -> Path:
    return written.folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def words(folder: Path) -> Page:
    """The page without its figures, which take most of the time."""
    return Page(render(RunFolder.read(folder), []))


def read(folder: Path) -> Page:
    """The page with its first figure, after all were drawn on few pixels, for speed."""
    run = RunFolder.read(folder)
    with style.applied():
        panels = [panel for drawn in draw(run) for panel in drawn]
        for panel in panels:
            panel.figure.savefig(io.BytesIO(), dpi=20)
        return Page(render(run, [picture(panel) for panel in panels[:1]]))


def test_every_figure_is_written_and_shows_something(run: Path) -> None:
    files = {path.stem: path for path in (run / "figures").glob("*.png")}
    assert set(files) == PANELS
    for path in files.values():
        picture = np.asarray(Image.open(path).convert("L"))
        assert min(picture.shape) > 300
        assert picture.std() > 5, f"{path.name} is blank"


def test_report_refers_to_nothing_outside_itself(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object"), tag
        for name in ("src", "srcset", "href", "data", "style"):
            value = attributes.get(name, "")
            assert value == "" or value.startswith(("data:image/", "#", "--tone: #")), (tag, name, value[:80])
    styles = (Path(write_report.__code__.co_filename).parent / "page.css").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import", styles)


def test_every_link_has_a_target(page: Page) -> None:
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"][1:] for link in page.all("a")} <= ids


def test_every_picture_is_described_and_readable(page: Page) -> None:
    images = page.all("img")
    assert len(images) == len(PANELS) + 24
    for image in images:
        assert len(image["alt"]) > 15
        kind, content = image["src"].split(";base64,")
        body = base64.b64decode(content, validate=True)
        if kind == "data:image/png":
            assert min(Image.open(io.BytesIO(body)).size) >= 64
        else:
            assert kind == "data:image/svg+xml"
            assert b"<svg" in body[:2000]
            assert b"<path" in body


def test_findings_come_first_and_are_complete(page: Page) -> None:
    text = page.text
    assert "About 49 % of the labels look wrong, and the network began to memorise them at epoch 30" in text
    for expected in (
        "48.7 %", "95 % interval 42.0 to 55.1 %", "labels to look at", "epoch 11", "epochs 4.0 to 30",
        "epochs 30 to 140", "Memorising wrong labels", "What to do:", "go back to a checkpoint",
        "Verdict: four phases.", "Wrong labels in truth: 50.0 %", "0.981", "0.992", "93 %", "margins averaged",
    ):  # fmt: skip
        assert expected in text, expected
    assert (
        text.index("What the run went through")
        < text.index("The most suspicious samples")
        < text.index("The measurements")
    )


def test_tables_hold_the_numbers_of_the_history(run: Path, page: Page) -> None:
    last = History.load(run / "history.jsonl").records[-1]
    for key in ("A", "A0", "D", "R", "sigma_lambda2", "noise_scale"):
        assert number(last.values[key]) in page.text, key
    assert f"Every measurement ({len(History.load(run / 'history.jsonl'))} rows)" in page.text


def test_headings_do_not_skip_a_level(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))


def test_same_folder_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    again = write_run(tmp_path / "again")
    assert write_report(again).read_bytes() == (run / "report.html").read_bytes()
    for path in (run / "figures").glob("*.png"):
        assert path.read_bytes() == (again / "figures" / path.name).read_bytes()


def test_class_names_are_escaped(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", 'a"b', "c&d", "<b>bold"]
    folder = write_run(tmp_path / "escaped", class_names=names)
    change_json(folder / "phases.json", reason="<img src=x onerror=alert(2)>")
    page = words(folder)
    assert not page.all("script")
    assert not page.all("b")
    assert not any("onerror" in image for image in page.all("img"))
    assert all(name in page.text for name in names)


def test_data_without_pictures_get_a_table(tmp_path: Path) -> None:
    page = words(write_run(tmp_path / "plain", pictures=False))
    assert not page.all("img")
    assert "label quality" in page.text
    assert "samples.npz" not in page.text


def test_history_alone_makes_a_shorter_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "bare")
    for path in folder.iterdir():
        if path.name != "history.jsonl":
            path.unlink()
    page = read(folder)
    assert "A run without phase labels" in page.text
    assert "phases.json is not in the run folder" in page.text
    assert "Wrong labels" not in page.text
    assert "truly" not in page.text


def test_the_score_is_told_in_words(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "method")
    change_json(folder / "summary.json", cleaning={"method": "aum"})
    assert "area under the margin" in words(folder).text
    assert "averaged over the run until memorising begins" in words(folder).text


def test_unknown_truth_is_not_scored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "unknown")
    lines = (folder / "label_issues.csv").read_text(encoding="utf-8").splitlines()
    (folder / "label_issues.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in lines), encoding="utf-8")
    change_json(
        folder / "summary.json", noise_rate={"true": None, "estimate": 0.4, "low": 0.3, "high": 0.5}, cleaning={}
    )
    phases = json.loads((folder / "phases.json").read_text(encoding="utf-8"))
    change_json(folder / "phases.json", truth=None, phases=phases["phases"])
    page = words(folder)
    assert "Scoring only." not in page.text
    assert "truly" not in page.text
    assert "training, wrong labels" not in page.text


@pytest.mark.parametrize(
    ("verdict", "names", "headline"),
    [
        ("two phases", ["fast", "exploration"], "No sign that the network memorised wrong labels"),
        ("no phase II", [], "Too many wrong labels"),
        ("not enough of a run", [], "Too short a run to tell its phases"),
        ("something new", ["<odd>"], "The run went through phase <odd>"),
    ],
)
def test_every_verdict_has_its_words(tmp_path: Path, verdict: str, names: list[str], headline: str) -> None:
    folder = write_run(tmp_path / "verdict")
    phases = [
        {"name": name, "start": 100 * row, "end": 100 * row + 100, "confidence": None} for row, name in enumerate(names)
    ]
    change_json(
        folder / "phases.json", verdict=verdict, phases=phases, cleaning_step=None, t12=None, t23=None, t34=None
    )
    page = words(folder)
    assert page.text.startswith(headline)
    assert f"Verdict: {verdict}." in page.text


def test_a_network_that_learned_nothing_is_told_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "nothing")
    change_json(folder / "summary.json", test_error={"final": 0.74, "best": 0.72})
    page = words(folder)
    assert page.text.startswith("The network learned nothing that holds on the test data")
    assert "do not rely on these phases" in page.text
    assert "What to do:" not in page.text


@pytest.mark.parametrize("kept", [1, 3])
def test_a_run_that_has_just_begun(tmp_path: Path, kept: int) -> None:
    folder = write_run(tmp_path / "short")
    lines = (folder / "history.jsonl").read_bytes().splitlines(keepends=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / "history.jsonl").write_bytes(b"".join(lines[:kept]) + b'{"schema_ver')
    page = read(folder)
    assert "was cut short" in page.text
    assert ("Nothing was measured yet" in page.text) == (kept == 1)


@pytest.mark.parametrize("name", ["phases.json", "summary.json", "label_issues.csv", "config.json", "samples.npz"])
def test_damaged_files_become_notes(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "damaged")
    (folder / name).write_bytes(b'[{"\xff\x00 not what was meant,\n1,2')
    assert f"{name} could not be read" in words(folder).text


def test_non_finite_values_and_steps_without_epochs(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "odd")
    text = (folder / "history.jsonl").read_text(encoding="utf-8")
    text = re.sub(r'"epoch":[0-9.e+-]+', '"epoch":null', text)
    text = re.sub(r'"sigma_lambda2":[0-9.e+-]+', '"sigma_lambda2":"nan"', text)
    text = re.sub(r'"R":[0-9.e+-]+', '"R":"-inf"', text, count=3)
    (folder / "history.jsonl").write_text(text, encoding="utf-8")
    page = read(folder)
    assert "steps 48 to 360" in page.text
    assert "−∞" in page.text


def test_groups_of_any_number_and_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "groups")
    history = History.load(folder / "history.jsonl")
    names = ("cat_1", "a$b$c", "<i>dog")
    cosines = ((1.0, 0.1, 0.2, 0.3), (0.1, 1.0, 0.4, 0.5), (0.2, 0.4, 1.0, 0.6), (0.3, 0.5, 0.6, 1.0))
    group = GroupRecord(names, (40, 40, 40), (1.0, 2.0, 3.0), (0.1, 0.2, 0.3), cosines)
    named = History(history.header)
    for record in history:
        named.append(replace(record, groups={"given": group}))
    named.save(folder / "history.jsonl")
    run = RunFolder.read(folder)
    with style.applied():
        for drawn in (order_parameters.activity(run), order_parameters.alignments(run)):
            assert drawn is not None
            drawn.figure.savefig(io.BytesIO(), dpi=20)
    assert order_parameters.ratio(run) is None
    page = words(folder)
    assert not page.all("i")
    assert "A_<i>dog, given groups" in page.text
    assert "true groups" not in page.text


def test_a_folder_without_a_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold history\.jsonl"):
        write_report(tmp_path)


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "pickle")
    np.savez(folder / "samples.npz", images=np.array([{"a": 1}], dtype=object), indices=np.array([0]))
    assert "samples.npz could not be read" in words(folder).text


def test_progress_reaches_its_total(written: Written) -> None:
    assert [done for done, _ in written.progress] == list(range(1, len(written.progress) + 1))
    assert written.progress[-1][0] == written.progress[-1][1]


def test_style_leaves_nothing_behind(written: Written) -> None:
    assert written.style_after == written.style_before


# --- groups that the user named ---------------------------------------------------------------------------------------


def with_groups(history: History, num_groups: int, *, nulls: bool, seed: int = 0) -> History:
    """The history with a partition `sites` of so many groups, whose cosines wander, and what chance gives."""
    draws = np.random.default_rng(seed)
    names = tuple(f"site ${one}" for one in range(num_groups))
    found = History(history.header)
    for row, record in enumerate(history):
        cosines = np.corrcoef(draws.standard_normal((num_groups + 1, 6)))
        rows = tuple(map(tuple, cosines.tolist()))
        group = GroupRecord(names, tuple(range(10, 10 + num_groups)), (1.0,) * num_groups, (1.0,) * num_groups, rows)
        bounds = [tuple(map(tuple, np.full_like(cosines, bound).tolist())) for bound in (-0.3, 0.4)]
        null = {"sites": NullRecord(*bounds, (0.025, 0.975), 50)} if nulls and row % 4 == 0 else {}
        found.append(replace(record, groups={**record.groups, "sites": group}, nulls=null))
    return found


@pytest.mark.parametrize(("num_groups", "nulls"), [(2, True), (10, True), (30, False)])
def test_named_groups_have_curves_and_matrices(tmp_path: Path, num_groups: int, nulls: bool) -> None:
    folder = write_run(tmp_path / "run")
    with_groups(History.load(folder / "history.jsonl"), num_groups, nulls=nulls).save(folder / "history.jsonl")
    run = RunFolder.read(folder)
    with style.applied():
        curves, matrices = group_alignment.group_alignments(run)
        assert (curves.name, matrices.name) == ("fig4d_sites_curves", "fig4d_sites_matrices")
        for panel in (curves, matrices):
            for figure in (panel.figure, panel.narrow):
                assert figure is not None
                figure.savefig(io.BytesIO(), dpi=20)
        text = Page(render(run, [picture(matrices)])).text
    assert len(curves.figure.axes) == min(num_groups, 12)
    assert len(matrices.figure.axes) == 4 + 1  # the phases, and the scale of the colours
    assert matrices.figure.axes[0].images[0].get_array().shape == (num_groups + 1, num_groups + 1)
    assert ("random splits" in curves.caption) == nulls
    assert ("random splits" in matrices.caption) == nulls
    assert ("12 largest of 30" in curves.caption) == (num_groups == 30)
    assert "The groups that you named" in text
    if num_groups == 30:  # the largest are the last, by the sizes above
        assert curves.figure.axes[0].get_title(loc="left") == style.literal("site $18")


def test_dots_mark_what_chance_gives(tmp_path: Path) -> None:
    history = with_groups(History.load(write_run(tmp_path / "run") / "history.jsonl"), 3, nulls=True)
    run = RunFolder.of(history)
    with style.applied():
        figure = group_alignment.matrices(run, "sites").figure
    axes = figure.axes[0]
    values = np.asarray(axes.images[0].get_array())
    inside = (values >= -0.3) & (values <= 0.4) & ~np.eye(4, dtype=bool)
    dots = {(round(x), int(y)) for x, y in zip(*axes.lines[0].get_data())}  # each stands a third below its number
    assert dots == {(across, down) for down, across in zip(*np.nonzero(inside))}


def test_the_same_figures_from_a_history_alone(tmp_path: Path) -> None:
    history = with_groups(History.load(write_run(tmp_path / "run") / "history.jsonl"), 3, nulls=True)
    figures = group_alignment_figures(history, "sites")
    assert set(figures) == {"curves", "matrices"}
    assert len(figures["curves"].axes) == 3
    with pytest.raises(KeyError, match=r"got 'given groups'\. Known here: blind, given, random, sites"):
        group_alignment_figures(history, "given groups")


# --- the alarm --------------------------------------------------------------------------------------------------------


def test_the_alarm_is_told_with_the_moment_to_go_back_to(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert "Alarm." not in words(folder).text  # a run of before there were alarms
    alarm = {"step": 360, "seen_at": 500, "best_step": 120, "checkpoint": "best_phase_II.pt", "test_error": 0.2,
             "test_error_at_best_step": 0.1}  # fmt: skip
    change_json(folder / "summary.json", alarm=alarm)
    text = words(folder).text
    assert "the alarm was raised at epoch 42" in text
    assert "go back to was epoch 10, whose weights are in best_phase_II.pt" in text
    assert "Test error: 10.0 % at that moment, 20.0 % at the alarm, and 50.0 % at the end." in text
    assert "does not bear the alarm out" not in text
    kept = json.loads((folder / "phases.json").read_text())
    change_json(folder / "phases.json", phases=kept["phases"][:2])  # by the whole run there is no phase III
    assert "does not bear the alarm out" in words(folder).text
    change_json(folder / "phases.json", phases=kept["phases"])
    change_json(folder / "config.json", stop_at_alarm=True)
    assert "Training ended there." in words(folder).text
    change_json(folder / "summary.json", alarm=None)
    assert "no alarm was raised" in words(folder).text
