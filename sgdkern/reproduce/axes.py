"""The axes of the paper's figures, in the project's style: panels with letters, curves over epochs, bars over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from sgdkern.report import style

# Of the seeds after the first one.
_FAINT = 0.28
_PANEL_WIDTH, _PANEL_HEIGHT = 4.1, 3.5
_PAD, _LEGEND_ROW = 6.0, 13.5  # points
_LETTER_WIDTH = 0.1  # inches


def panels(titles: Sequence[str], *, columns: int, legend_rows: int) -> tuple[Figure, list[Axes]]:
    """An empty figure with a panel for each title, lettered from A on.

    Args:
        titles: Of the panels, in reading order.
        columns: Panels in a row.
        legend_rows: Rows kept for the legends, between the titles and the axes.

    Returns:
        The figure and its axes.
    """
    rows = -(-len(titles) // columns)
    figure = Figure(
        figsize=(_PANEL_WIDTH * columns, _PANEL_HEIGHT * rows), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    )
    found = [figure.add_subplot(rows, columns, place + 1) for place in range(len(titles))]
    for letter, title, axes in zip("ABCDEFGH", titles, found, strict=False):
        pad = _PAD + _LEGEND_ROW * legend_rows
        axes.set_title(f"{letter}  {title}", loc="left", fontsize=10.5, fontweight="bold", color=style.INK, pad=pad)
        axes.grid(axis="y", color=style.RULE, linewidth=0.5, alpha=0.7)
    return figure, found


def epoch_axis(axes: Axes, end: float, *, start: float = 0.1) -> None:
    """Make the x axis the logarithm of the epoch.

    Args:
        axes: The axes.
        end: The last epoch.
        start: The first one shown.
    """
    style.time_axis(axes, min(start, end / 10), end, in_epochs=True)


def log_y(axes: Axes) -> None:
    """Make the y axis logarithmic.

    Args:
        axes: The axes, with their data.
    """
    axes.set_yscale("log")
    style.plain_log_axis(axes.yaxis)


def curve(
    axes: Axes,
    times: Sequence[Sequence[float]],
    values: Sequence[Sequence[float | None]],
    colour: Any,
    label: str,
    *,
    dashes: Any = "-",
    width: float = 1.7,
    positive: bool = False,
) -> None:
    """Draw one curve a seed, the first one strong.

    Args:
        axes: The axes.
        times: When was measured, for each seed.
        values: What.
        colour: Of the curves.
        label: For the legend.
        dashes: Their dashes.
        width: Width of the first.
        positive: Whether only positive values can be shown.
    """
    for place, (x, y) in enumerate(zip(times, values, strict=True)):
        shown = np.array([np.nan if value is None else value for value in y], dtype=np.float64)
        if positive:
            shown[shown <= 0] = np.nan
        axes.plot(
            x,
            shown,
            color=colour,
            linestyle=dashes,
            linewidth=width if place == 0 else 1.0,
            alpha=1.0 if place == 0 else _FAINT,
            label=label if place == 0 else None,
            zorder=3 if place == 0 else 2,
        )


def points(
    axes: Axes, at: Sequence[float], values: Sequence[Sequence[float | None]], colour: Any, label: str, marker: str
) -> None:
    """Draw the mean over the seeds with a bar of one standard deviation to each side.

    Args:
        axes: The axes.
        at: Places, [X].
        values: For each place one value a seed, None where there is none.
        colour: Of the points.
        label: For the legend.
        marker: Their form.
    """
    known = [[value for value in seeds if value is not None] for seeds in values]
    kept = [place for place, seeds in enumerate(known) if seeds]
    axes.errorbar(
        [at[place] for place in kept],
        [float(np.mean(known[place])) for place in kept],
        yerr=[float(np.std(known[place], ddof=1)) if len(known[place]) > 1 else 0.0 for place in kept],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.2,
        elinewidth=1.2,
        capsize=2.5,
        label=label,
    )


def shade(axes: Axes, spans: Mapping[str, Sequence[float]]) -> None:
    """Shade the phases, each with its name on top.

    Args:
        axes: The axes; their x limits are set.
        spans: Name to start and end in epochs.
    """
    low, high = axes.get_xlim()
    for name, (start, end) in spans.items():
        start, end = max(start, low), min(end, high)
        if end <= start:
            continue
        colour = style.PHASE_COLOURS.get(name, style.RULE)
        axes.axvspan(start, end, color=style.tint(colour, 0.13), linewidth=0, zorder=0)
        left, right = axes.transAxes.inverted().transform(axes.transData.transform([(start, 0), (end, 0)]))[:, 0]
        if (right - left) * _PANEL_WIDTH < _LETTER_WIDTH * len(name):
            continue
        axes.text(
            float(np.sqrt(start * end)) if axes.get_xscale() == "log" else (start + end) / 2,
            0.985,
            name,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=9,
            fontweight="bold",
            color=style.MUTED,
        )


def level(axes: Axes, value: float) -> None:
    """Draw a level that means something.

    Args:
        axes: The axes.
        value: Where.
    """
    axes.axhline(value, color=style.MUTED, linewidth=0.9, linestyle=(0, (1, 1.6)), zorder=1.5)


def legend(axes: Axes, *, columns: int) -> None:
    """Put the legend in rows between the title and the axes, where it can hide no data.

    Args:
        axes: The axes, with their data.
        columns: Entries in a row.
    """
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.005),
        ncols=columns,
        fontsize=8.5,
        handlelength=1.6,
        handletextpad=0.5,
        columnspacing=1.1,
        labelspacing=0.25,
        borderaxespad=0.0,
        borderpad=0.15,
    )
