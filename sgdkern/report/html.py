"""The page: findings, figures and tables put into one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from sgdkern.report import style, tables
from sgdkern.report.figures import Panel
from sgdkern.report.findings import describe
from sgdkern.report.run_folder import Issues, RunFolder

SHOWN_SAMPLES = 24
# A capital letter, perhaps with the index 0, an underscore, and a lower-case word, as in R_cw, A₀_c, D_s, σ_λ, B_noise.
_INDEXED = re.compile(r"\b([A-Zσ])(₀?)_([a-zλ]+)")
_CARD_PIXELS = 112  # pictures are enlarged by a whole factor to about this many pixels
_SECTIONS = {
    "training": (
        "Loss and order parameters",
        "How far learning is, and how much the samples agree on where to go (Fig. 1).",
    ),
    "groups": (
        "Two groups of samples",
        "How strongly each group of samples pulls, and whether they pull together (Fig. 4).",
    ),
    "alignments": (
        "The groups that you named",
        "Whether these groups of samples pull together: the cosines of their mean gradients, and what chance gives.",
    ),
    "noise": ("The noise of the gradient", "In how many directions of weight space it points (Figs. 2 and 5)."),
    "losses": (
        "The losses of single samples",
        "The training samples’ losses at the middle of each phase, with the two Gaussians fitted to them (Fig. 6A).",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A drawing as data URIs, ready for the page."""

    panel: Panel
    source: str
    narrow_source: str | None
    width: int
    height: int


@dataclass(frozen=True)
class Card:
    """One suspicious sample: its picture where there is one, and what is said of it."""

    index: int
    source: str | None
    given: str
    predicted: str
    p_wrong: float | None
    quality: float
    true: str | None


def page(run: RunFolder, pictures: Sequence[Picture]) -> str:
    """Put a run on one page.

    Args:
        run: The run.
        pictures: Its figures.

    Returns:
        The HTML text; it refers to nothing outside itself.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["symbols"] = symbols
    here = files("sgdkern.report")
    template = environment.from_string((here / "template.html").read_text(encoding="utf-8"))
    sections = [
        (title, lead, [picture for picture in pictures if picture.panel.section == name])
        for name, (title, lead) in _SECTIONS.items()
    ]
    return template.render(
        css=Markup((here / "page.css").read_text(encoding="utf-8")),
        colours={name: style.PHASE_COLOURS[name] for name in style.PHASE_COLOURS},
        run=run,
        title=_title(run),
        findings=describe(run),
        phase_pictures=[picture for picture in pictures if picture.panel.section == "phases"],
        label_pictures=[picture for picture in pictures if picture.panel.section == "labels"],
        sections=[section for section in sections if section[2]],
        cards=cards(run),
        by_phase=tables.by_phase(run),
        outcome=tables.outcome(run),
        everything=tables.everything(run),
        settings=tables.settings(run),
        definitions=tables.definitions(),
    )


def cards(run: RunFolder) -> list[Card]:
    """Collect the most suspicious samples, worst first: those with a picture, or all where there are no pictures.

    Args:
        run: The run.

    Returns:
        At most `SHOWN_SAMPLES` cards; none where no label looks wrong.
    """
    if run.issues is None:
        return []
    pictures = {} if run.samples is None else {int(index): row for row, index in enumerate(run.samples.indices)}
    found = [
        row
        for row, index in enumerate(run.issues.index)
        if run.issues.is_label_issue[row] and (not pictures or int(index) in pictures)
    ]
    return [_card(run, run.issues, row, pictures) for row in found[:SHOWN_SAMPLES]]


def picture(panel: Panel) -> Picture:
    """Turn a panel into what the page shows; to be used inside `style.applied()`.

    Args:
        panel: The panel.

    Returns:
        Its drawings as data URIs.
    """
    width, height = panel.figure.get_size_inches()
    return Picture(
        panel=panel,
        source=data_uri(svg(panel.figure), "image/svg+xml"),
        narrow_source=None if panel.narrow is None else data_uri(svg(panel.narrow), "image/svg+xml"),
        width=round(100 * width),
        height=round(100 * height),
    )


def symbols(text: str) -> Markup:
    """Set the indices of symbols as subscripts: R_cw, σ_λ², A₀_c.

    Args:
        text: Plain text; it is escaped first.

    Returns:
        HTML.

    Example:
        >>> symbols("R_cw < A₀")
        Markup('R<sub>cw</sub> &lt; A<sub>0</sub>')
    """
    text = _INDEXED.sub(r"\1<sub>\2\3</sub>", str(escape(text)))
    return Markup(
        text
        .replace("<sub>₀", "<sub>0")
        .replace("₀", "<sub>0</sub>")
        .replace("σ<sub>λ</sub>²", "σ<sub>λ</sub><sup>2</sup>")
    )


def svg(figure: Figure) -> bytes:
    """Draw a figure as SVG, the same bytes for the same figure.

    Args:
        figure: The figure.

    Returns:
        The file's content.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _title(run: RunFolder) -> str:
    dataset = (run.summary.get("dataset") or {}).get("name") or run.config.get("dataset")
    return f"Training run on {dataset}" if dataset else "Training run"


def _card(run: RunFolder, issues: Issues, row: int, pictures: dict[int, int]) -> Card:
    index = int(issues.index[row])
    chance = float(issues.p_wrong[row])
    source = None
    if run.samples is not None and index in pictures:
        source = data_uri(enlarged(run.samples.images[pictures[index]]), "image/png")
    return Card(
        index=index,
        source=source,
        given=run.class_name(issues.given_label[row]),
        predicted=run.class_name(issues.predicted_label[row]),
        p_wrong=chance if np.isfinite(chance) else None,
        quality=float(issues.label_quality[row]),
        true=run.class_name(issues.true_label[row]) if issues.true_label else None,
    )


def enlarged(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Draw a small picture larger, every pixel a crisp square.

    Args:
        image: uint8 [H, W] or [H, W, 3].

    Returns:
        The content of a PNG file.
    """
    factor = max(1, round(_CARD_PIXELS / max(image.shape[:2])))
    buffer = io.BytesIO()
    Image.fromarray(image.repeat(factor, axis=0).repeat(factor, axis=1)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Put a file's content where a page wants an address.

    Args:
        content: The file's content.
        kind: Its media type.

    Returns:
        The data URI.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
