"""One look for every figure: the palette, the axes, and how phases are shaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

INK = "#1b1e23"
MUTED = "#5a6069"
RULE = "#c9cdd3"

# Okabe and Ito's colours, told apart with every common kind of colour blindness. A colour means one thing throughout.
CORRECT = "#0072B2"  # samples whose label is right, and their group
WRONG = "#D55E00"  # samples whose label is wrong, and their group
WHOLE = INK  # the whole training set
TEST = "#009E73"  # test images: the measure of generalisation
CHOSEN = "#A4478C"  # what the method chose: the cleaning time, the fitted mixture
NULL = "#8a9099"  # what chance would give

PHASE_COLOURS = {"I": "#56B4E9", "II": "#009E73", "III": "#E69F00", "IV": "#CC79A7"}
PHASE_COLOURS |= {"fast": PHASE_COLOURS["I"], "exploration": PHASE_COLOURS["II"]}
PHASE_DASHES: dict[str, Any] = {"I": (0, (4, 1.5)), "II": "-", "III": (0, (6, 1.5, 1.5, 1.5)), "IV": (0, (1.5, 1.2))}
PHASE_DASHES |= {"fast": PHASE_DASHES["I"], "exploration": "-"}
for _third, _phase in (("early", "I"), ("middle", "II"), ("late", "III")):  # of runs without phases
    PHASE_COLOURS[_third], PHASE_DASHES[_third] = PHASE_COLOURS[_phase], PHASE_DASHES[_phase]

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "mathtext.fontset": "dejavusans",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.hashsalt": "sgdkern",
    "svg.fonttype": "path",
    "savefig.facecolor": "white",
}

# Margins in inches, the same for every panel, so that panels side by side line up.
_LEFT, _RIGHT, _BOTTOM, _TITLE, _LEGEND_ROW, _STRIP = 0.74, 0.12, 0.54, 0.34, 0.22, 0.2


def applied() -> AbstractContextManager[None]:
    """Return a context in which figures are drawn and saved in this style; nothing of it stays behind."""
    return rc_context(cast(Any, _RC))


@dataclass(frozen=True)
class Canvas:
    """An empty panel: its figure, its axes, and where the legend goes (in figure coordinates)."""

    figure: Figure
    axes: Axes
    legend_y: float


def canvas(title: str, *, width: float = 4.5, height: float = 3.4, strip: bool = True, legend_rows: int = 1) -> Canvas:
    """Lay out one panel: title, legend, room for the phases' strip, axes.

    Args:
        title: A short name, printed at the top left.
        width: Width in inches.
        height: Height in inches.
        strip: Whether room is kept for the strip with the phases' names.
        legend_rows: Rows kept for the legend, 0 for none.

    Returns:
        The panel, still empty.
    """
    figure = Figure(figsize=(width, height))
    top = _TITLE + _LEGEND_ROW * legend_rows + (_STRIP if strip else 0.0) + 0.05
    axes = figure.add_axes((
        _LEFT / width,
        _BOTTOM / height,
        1 - (_LEFT + _RIGHT) / width,
        1 - (_BOTTOM + top) / height,
    ))
    figure.text(0.06 / width, 1 - 0.06 / height, title, ha="left", va="top", fontsize=11, fontweight="bold", color=INK)
    axes.grid(axis="y", color=RULE, linewidth=0.5, alpha=0.7)
    return Canvas(figure, axes, 1 - (_TITLE - 0.02) / height)


def add_legend(panel: Canvas, *, columns: int, handles: Sequence[Any] | None = None) -> None:
    """Put the legend in rows between the title and the axes, where it can hide no data.

    Args:
        panel: The panel.
        columns: Entries in a row.
        handles: What to list; None for everything that has a label.
    """
    found = panel.axes.get_legend_handles_labels()[0] if handles is None else list(handles)
    panel.figure.legend(
        handles=found,
        loc="upper left",
        bbox_to_anchor=(0.06 / panel.figure.get_size_inches()[0], panel.legend_y),
        ncols=columns,
        borderaxespad=0,
        borderpad=0.1,
        handlelength=1.7,
        handletextpad=0.5,
        columnspacing=1.2,
        labelspacing=0.25,
    )


def time_axis(axes: Axes, start: float, end: float, *, in_epochs: bool) -> None:
    """Make the x axis logarithmic time.

    Args:
        axes: The axes.
        start: First time shown, positive.
        end: Last time shown.
        in_epochs: Whether the unit is the epoch (else the optimiser step).
    """
    axes.set_xscale("log")
    axes.set_xlim(start, end if end > start else start * 1.1)
    axes.xaxis.set_major_locator(LogLocator(base=10, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("epoch (log scale)" if in_epochs else "optimiser step (log scale)")


def plain_log_axis(axis: Any) -> None:
    """Label a logarithmic axis sparsely: by powers of ten, or by 1, 2, 5 where it spans less than three decades.

    Args:
        axis: An `XAxis` or `YAxis` whose scale is logarithmic already, with its data.
    """
    low, high = axis.get_view_interval()
    if high < low * 300:
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high < low * 60 else (1, 3), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}"))
    else:
        axis.set_major_locator(LogLocator(base=10, numticks=6))
        axis.set_major_formatter(FuncFormatter(_power))
    axis.set_minor_locator(NullLocator())


def log_rank_axis(axes: Axes, longest: int) -> None:
    """Make the x axis the logarithm of a rank, 1 to `longest`.

    Args:
        axes: The axes.
        longest: The last rank.
    """
    axes.set_xscale("log")
    axes.set_xlim(1, max(longest, 2))
    axes.xaxis.set_major_locator(LogLocator(base=10, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _power(value: float, _: object) -> str:
    """Powers of ten near one in plain numbers, the others as powers."""
    exponent = round(math.log10(value)) if value > 0 else 0
    return f"{value:,.3g}" if -2 <= exponent <= 3 else f"$10^{{{exponent}}}$"


def linear_axis(axis: Any, ticks: int = 5) -> None:
    """Label a linear axis sparsely.

    Args:
        axis: An `XAxis` or `YAxis`.
        ticks: The most ticks.
    """
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))


def shade_phases(panel: Canvas, spans: Iterable[tuple[str, float, float]]) -> None:
    """Shade the phases the same way everywhere: a faint tint, and a strip on top with their names.

    Args:
        panel: A panel whose x limits are set.
        spans: Name, start and end of each phase, in the units of the x axis.
    """
    axes = panel.axes
    low, high = axes.get_xlim()
    width, height = panel.figure.get_size_inches()
    strip = _STRIP / (axes.get_position().height * height)
    to_axes = axes.transData + axes.transAxes.inverted()
    for name, start, end in spans:
        start, end = max(start, low), min(end, high)
        if end <= start:
            continue
        colour = PHASE_COLOURS.get(name, RULE)
        left, right = to_axes.transform((start, 1))[0], to_axes.transform((end, 1))[0]
        axes.axvspan(start, end, color=tint(colour, 0.10), linewidth=0, zorder=0)
        patch = Rectangle(
            (left, 1.0), right - left, strip, transform=axes.transAxes, clip_on=False, facecolor=tint(colour, 0.42),
            edgecolor="white", linewidth=1.2,
        )  # fmt: skip
        axes.add_patch(patch)
        room = (right - left) * axes.get_position().width * width
        if room > 0.09 * len(name):
            axes.text(
                (left + right) / 2, 1.0 + strip * 0.48, literal(name), transform=axes.transAxes, ha="center",
                va="center", fontsize=9, fontweight="bold", color=INK,
            )  # fmt: skip


def mark_time(axes: Axes, time: float) -> None:
    """Mark the cleaning time with a thin line that stands on a triangle.

    Args:
        axes: The axes.
        time: Where, in the units of the x axis.
    """
    axes.axvline(time, color=INK, linewidth=0.9, linestyle=(0, (1, 1.6)), zorder=2)
    across = axes.get_xaxis_transform()
    axes.plot(
        [time], [0.0], marker="^", markersize=6.5, color=INK, linestyle="", transform=across, clip_on=False, zorder=6
    )


CLEANING_TIME = Line2D([], [], color=INK, marker="^", markersize=6.5, linestyle="", label="cleaning time")


def literal(text: str) -> str:
    """Keep matplotlib from reading a user's name as mathematics.

    Args:
        text: Any text.

    Returns:
        The text with its dollar signs escaped.
    """
    return text.replace("$", r"\$")


def tint(colour: str, strength: float) -> tuple[float, float, float]:
    """Mix a colour with white.

    Args:
        colour: Any colour.
        strength: Share of the colour, 0 … 1.

    Returns:
        Red, green and blue, 0 … 1.
    """
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue
