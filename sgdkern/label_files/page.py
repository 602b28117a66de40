"""The page on wrong labels: what was found in a data set, as one HTML file that needs no other."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sgdkern.label_files.findings import CleaningReport
from sgdkern.label_files.reading import LabelledData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CARDS, MOST_ROWS, MOST_PAIRS = 36, 50, 10
TELLING_FEATURES = 3
_PICTURE_PIXELS = 224  # longest side of a picture on the page; small ones are enlarged to about half of that


@dataclass(frozen=True)
class Suspect:
    """One suspicious sample, in words, with a picture or with the features that tell against its label."""

    name: str
    given: str
    suggested: str
    p_wrong: str
    quality: str
    source: str | None
    picture: str | None
    telling: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """A figure as a data URI, with its description."""

    source: str
    width: int
    height: int
    caption: str


def page_is_possible() -> bool:
    """Say whether matplotlib and jinja2, which the page needs, are installed."""
    return all(find_spec(name) is not None for name in ("matplotlib", "jinja2"))


def write_page(data: LabelledData, report: CleaningReport, path: Path) -> Path:
    """Write what was found as one page that refers to nothing outside itself.

    Args:
        data: The data set.
        report: What was found in it.
        path: The file to write.

    Returns:
        The path written.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from sgdkern.report import style

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("sgdkern.label_files") / "page.html").read_text(encoding="utf-8"))
    with style.applied():
        drawings = _drawings(report)
    suspects = _suspects(data, report)
    text = template.render(
        css=Markup((files("sgdkern.report") / "page.css").read_text(encoding="utf-8")),
        kicker=f"Labels of {data.origin.name}",
        headline=_headline(report),
        standfirst=_standfirst(report),
        facts=_facts(report),
        suspects=suspects,
        telling=any(suspect.telling for suspect in suspects),
        pairs=[
            (str(true), str(given), f"{count:,.0f}")
            for true, given, count in report.noise_matrix.confused_pairs(MOST_PAIRS)
        ],
        drawings=drawings,
        class_rates=_rates(report.class_noise_rates),
        source_rates=_rates(report.source_noise_rates),
        report=report,
        percent=_percent,
    )
    path.write_text(text, encoding="utf-8")
    return path


def _headline(report: CleaningReport) -> str:
    issues = report.issues
    if issues.num_issues == 0:
        return "No label looks wrong"
    return f"{issues.num_issues:,} of {issues.num_samples:,} labels look wrong"


def _standfirst(report: CleaningReport) -> str:
    rate = report.noise_rate
    if rate.is_upper_bound:
        text = (
            f"How many are wrong cannot be told, at most {_percent(rate.high)}: the networks err even where they are "
            "surest, and many of these labels will be right. Review them by rank instead of dropping them; embeddings "
            "or more samples would tell more."
        )
    else:
        text = f"An estimated {_percent(rate)} of all labels are wrong ({_percent(rate.low)} to {_percent(rate.high)})."
    pairs = report.noise_matrix.confused_pairs(1)
    if pairs:
        true, given, samples = pairs[0]
        text += f" Most often, {true} is labelled {given}: about {_times(samples)}."
    return text


def _facts(report: CleaningReport) -> list[tuple[str, str, str]]:
    """Value, what it is, and a remark."""
    issues, rate = report.issues, report.noise_rate
    bound = "≤ " if rate.is_upper_bound else ""
    facts = [
        (f"{issues.num_issues:,}", "labels to look at", f"of {issues.num_samples:,}, quality below 0.5"),
        (bound + _percent(rate.high), "wrong labels", "how many cannot be told")
        if rate.is_upper_bound
        else (_percent(rate), "wrong labels, estimated", f"95 %: {_percent(rate.low)} to {_percent(rate.high)}"),
    ]
    if report.budget is not None and report.expected_precision is not None:
        facts.append((
            bound + _percent(report.expected_precision),
            f"of the {report.budget:,} worst are expected to be wrong",
            "precision of your review, estimated",
        ))
    if report.source_noise_rates:
        name, worst = max(report.source_noise_rates.items(), key=lambda pair: pair[1].estimate)
        facts.append((str(name), "the source with most wrong labels", f"{bound}{_percent(worst)} of them"))
    facts.append((f"{report.seconds:.0f} s", "computing", issues.method))
    return facts


def _suspects(data: LabelledData, report: CleaningReport) -> list[Suspect]:
    """The worst samples, worst first: more of them where there are no pictures."""
    issues = report.issues
    most = max(report.budget or 0, MOST_ROWS) if data.images is None else MOST_CARDS
    worst = [int(index) for index in issues.ranking[: min(most, 5 * MOST_ROWS)] if issues.is_label_issue[index]]
    means = _class_means(data, report) if data.features is not None and worst else {}
    return [
        Suspect(
            name=str(report.names[index]),
            given=str(issues.given_label[index]),
            suggested=str(issues.predicted_label[index]),
            p_wrong="> .99" if issues.p_wrong[index] > 0.99 else f"{issues.p_wrong[index]:.2f}"[-3:],
            quality=f"{issues.label_quality[index]:.3f}",
            source=None if data.sources is None else str(data.sources[index]),
            picture=None if data.images is None else _picture(data, index),
            telling=_telling(data, report, means, index),
        )
        for index in worst
    ]


def _class_means(data: LabelledData, report: CleaningReport) -> dict[Any, Any]:
    """Mean features [F] of the samples of each label that nothing speaks against."""
    issues = report.issues
    kept = ~issues.is_label_issue
    return {
        label: data.inputs[kept & (issues.given_label == label)].mean(axis=0, dtype=np.float64)
        for label in np.unique(issues.given_label[kept]).tolist()
    }


def _telling(data: LabelledData, report: CleaningReport, means: dict[Any, Any], index: int) -> tuple[str, ...]:
    """The features that fit the suggested label better than the given one, by the difference in squared distance."""
    given, suggested = report.issues.given_label[index].item(), report.issues.predicted_label[index].item()
    if data.features is None or given not in means or suggested not in means:
        return ()
    from sgdkern.report.tables import number

    values, spread = data.inputs[index].astype(np.float64), data.inputs.std(axis=0, dtype=np.float64)
    gain = (values - means[given]) ** 2 - (values - means[suggested]) ** 2
    gain = np.divide(gain, spread**2, out=np.zeros_like(gain), where=spread > 0)
    order = [place for place in np.argsort(-gain)[:TELLING_FEATURES] if gain[place] > 0]
    return tuple(
        f"{data.features[place]} {number(values[place])} ({given}: {number(means[given][place])}, "
        f"{suggested}: {number(means[suggested][place])})"
        for place in order
    )


def _picture(data: LabelledData, index: int) -> str:
    """A sample's picture as a data URI: from its own file where there is one, else from the array."""
    from PIL import Image

    from sgdkern.report.html import data_uri, enlarged

    assert data.images is not None
    if data.origin.is_dir():
        with Image.open(data.origin / str(data.names[index])) as opened:
            image = opened.convert("RGB")
    else:
        image = Image.fromarray(data.images[index])
    if max(image.size) <= _PICTURE_PIXELS // 2:
        return data_uri(enlarged(np.asarray(image)), "image/png")
    image.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def _drawings(report: CleaningReport) -> dict[str, Drawing | None]:
    """All figures by name; to be drawn in the report's style."""
    from sgdkern.label_files import drawings

    whole = report.noise_rate
    matrix = drawings.confusion(report.noise_matrix)
    sources = report.source_noise_rates
    figures: dict[str, tuple[Figure | None, str]] = {
        "quality": (
            drawings.qualities(report.issues),
            "Every label by its quality; those below one half are suspicious.",
        ),
        "review": (
            drawings.review(report.issues, report.budget),
            "If the worst N labels were reviewed: the share of them that is expected to be wrong, and the share of all "
            "wrong labels among them. Both are estimates from the scores alone.",
        ),
        "matrix": (
            matrix,
            "Each row is what samples of one class are labelled as, if the suggested labels are right; the diagonal, "
            "the right labels, is left out.",
        ),
        "classes": (
            drawings.rates("Wrong labels by given label", report.class_noise_rates, whole),
            "The share of wrong ones among the labels of each name.",
        ),
        "sources": (
            drawings.rates("Wrong labels by source", sources, whole) if sources else None,
            "The share of wrong ones among the labels that each source gave.",
        ),
    }
    return {name: None if figure is None else _drawn(figure, caption) for name, (figure, caption) in figures.items()}


def _drawn(figure: Figure, caption: str) -> Drawing:
    from sgdkern.report.html import data_uri, svg

    width, height = figure.get_size_inches()
    return Drawing(data_uri(svg(figure), "image/svg+xml"), round(100 * width), round(100 * height), caption)


def _rates(found: dict[Any, Any]) -> Iterable[tuple[str, ...]]:
    """Rows of a table of noise rates, the highest first."""
    ordered = sorted(found.items(), key=lambda pair: pair[1].estimate, reverse=True)
    return [(str(name), _percent(rate), f"{_percent(rate.low)} to {_percent(rate.high)}") for name, rate in ordered]


def _percent(share: float) -> str:
    """A share in per cent, with one digit where it is small."""
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def _times(count: float) -> str:
    return "once" if round(count) == 1 else f"{count:,.0f} times"
