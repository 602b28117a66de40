"""The tables beside the figures: Markdown, and one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from sgdkern.reproduce.figure import PaperFigure, Row


@dataclass(frozen=True)
class Reproduced:
    """A figure that is done.

    Attributes:
        figure: Which one.
        rows: Its table.
        seconds: Wall time of this call: jobs that were still to do, and the drawing.
        cpu_seconds: CPU time of all jobs that the figure rests on, whenever they were done.
        data: The JSON file.
        picture: The PNG file.
        table: The Markdown file.
    """

    figure: PaperFigure
    rows: tuple[Row, ...]
    seconds: float
    cpu_seconds: float
    data: Path
    picture: Path
    table: Path

    def as_dict(self) -> dict[str, Any]:
        """The table and the places of the files, as JSON holds them.

        Returns:
            Name to value.
        """
        columns = columns_of(self.rows)
        return {
            "title": self.figure.title,
            "table": [dict(zip(columns, cells, strict=True)) for cells in cells_of(self.rows)],
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "files": {"data": str(self.data), "figure": str(self.picture), "table": str(self.table)},
        }


def columns_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The headings of a table; the reference only where there is any.

    Args:
        rows: The rows.

    Returns:
        Three or four headings.
    """
    return ("quantity", "paper", "here", *(("another implementation",) if any(row.reference for row in rows) else ()))


def cells_of(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The text of a table, row by row.

    Args:
        rows: The rows.

    Returns:
        As many cells in each as there are headings.
    """
    width = len(columns_of(rows))
    return [(row.quantity, row.paper, row.here, row.reference or "–")[:width] for row in rows]


def markdown(done: Reproduced, described: str) -> str:
    """The figure's table in Markdown, with the picture beside it.

    Args:
        done: The figure.
        described: The settings, in a sentence.

    Returns:
        The text.
    """
    columns = columns_of(done.rows)
    lines = [
        f"# {done.figure.name}: {done.figure.title}",
        "",
        f"![{done.figure.title}]({done.picture.name})",
        "",
        done.figure.caption,
        "",
        described,
        "",
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(cells)} |" for cells in cells_of(done.rows)),
        "",
        times(done),
    ]
    return "\n".join(lines) + "\n"


def times(done: Reproduced) -> str:
    """What the figure took, in a sentence.

    Args:
        done: The figure.

    Returns:
        The sentence.
    """
    return f"Wall time of this call {done.seconds:.0f} s; CPU time of all its runs {done.cpu_seconds:.0f} s."


def html(figures: Sequence[Reproduced], described: str) -> str:
    """One page with every figure and its table; it needs no other file.

    Args:
        figures: The figures.
        described: The settings, in a sentence.

    Returns:
        The page.
    """
    style = (files("sgdkern.report") / "page.css").read_text(encoding="utf-8")
    body = "\n".join(_section(done) for done in figures)
    links = "\n".join(f'<li><a href="#{done.figure.name}">{escape(done.figure.title)}</a></li>' for done in figures)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Phases of learning dynamics: the paper and here</title>
<style>{style}</style></head>
<body><div class="page">
<header class="masthead"><p class="kicker">sgdkern reproduce</p><h1>Phases of learning dynamics: the paper and here</h1>
<p class="standfirst">The experiments of Feng and Tu (2021), done again. {escape(described)}</p></header>
<nav><ol>{links}</ol></nav>
{body}
</div></body></html>
"""


def _section(done: Reproduced) -> str:
    source = base64.b64encode(done.picture.read_bytes()).decode()
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in columns_of(done.rows))
    rows = "\n".join(
        f"<tr><th scope='row'>{escape(cells[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells[1:])}</tr>"
        for cells in cells_of(done.rows)
    )
    return f"""<section id="{done.figure.name}"><h2>{escape(done.figure.title)}</h2>
<figure><img src="data:image/png;base64,{source}" alt="{escape(done.figure.caption)}">
<figcaption>{escape(done.figure.caption)}</figcaption></figure>
<table><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table>
<p class="lead">{escape(times(done))}</p></section>"""
