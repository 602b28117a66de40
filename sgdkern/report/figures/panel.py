"""Panel: one drawing with its caption and its description in words; and the axes that every panel over time shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sgdkern.report import style
from sgdkern.report.run_folder import RunFolder

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Panel:
    """One figure of the report.

    Attributes:
        name: Stem of its PNG file.
        section: Which part of the report it belongs to.
        figure: The drawing.
        caption: What it shows and how to read it, a few sentences.
        alt: The same for a reader who cannot see it.
        narrow: A drawing of the same for narrow screens, where `figure` is wide.
        size: `half` or `wide`: the share of the page's width on a large screen.
    """

    name: str
    section: str
    figure: Figure
    caption: str
    alt: str
    narrow: Figure | None = None
    size: str = "half"


@dataclass(frozen=True)
class Line:
    """One curve over time, [T] with NaN where nothing was measured."""

    label: str
    values: Array
    colour: str
    dashes: object = "-"
    width: float = 1.7
    alpha: float = 1.0


def over_time(
    run: RunFolder,
    title: str,
    ylabel: str,
    lines: list[Line],
    *,
    log: bool = False,
    ylim: tuple[float, float] | None = None,
    reference: float | None = None,
    percent: bool = False,
    columns: int | None = None,
    width: float = 4.5,
    height: float = 3.4,
) -> Figure:
    """Draw curves over the logarithm of time, with the phases and the cleaning time.

    Args:
        run: The run.
        title: Title of the panel.
        ylabel: What the y axis measures, with its unit.
        lines: The curves.
        log: Whether the y axis is logarithmic.
        ylim: Limits of the y axis; None for those of the data.
        reference: A level that means something (0 or 1), drawn as a thin line.
        percent: Whether the y axis is told in percent.
        columns: Legend entries in a row; None for all in one row.
        width: Width in inches.
        height: Height in inches.

    Returns:
        The figure.
    """
    marked = run.cleaning_step is not None
    entries = len(lines) + marked
    columns = columns or min(entries, 4)
    panel = style.canvas(title, width=width, height=height, legend_rows=-(-entries // columns))
    axes = panel.axes
    shown = run.time > 0
    for line in lines:
        kept = shown & np.isfinite(line.values) & ((line.values > 0) if log else True)
        axes.plot(
            run.time[kept], line.values[kept], color=line.colour, linestyle=line.dashes, linewidth=line.width,
            alpha=line.alpha, label=line.label, marker="o" if kept.sum() == 1 else None, markersize=4,
        )  # fmt: skip
    times = run.time[shown]
    if len(times):
        style.time_axis(axes, float(times.min()), float(times.max()), in_epochs=run.in_epochs)
    if log and any((line.values[shown] > 0).any() for line in lines):
        axes.set_yscale("log")
        style.plain_log_axis(axes.yaxis)
    else:
        style.linear_axis(axes.yaxis)
    if ylim:
        axes.set_ylim(*ylim)
    if reference is not None:
        axes.axhline(reference, color=style.MUTED, linewidth=0.9, zorder=1.5)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_ylabel(ylabel)
    style.shade_phases(panel, spans(run))
    if run.cleaning_step is not None:
        style.mark_time(axes, run.at(run.cleaning_step))
    handles = [*axes.get_legend_handles_labels()[0], *([style.CLEANING_TIME] if marked else [])]
    style.add_legend(panel, columns=columns, handles=handles)
    return panel.figure


def spans(run: RunFolder) -> list[tuple[str, float, float]]:
    """Return the phases' names, starts and ends in the report's unit of time.

    Args:
        run: The run.

    Returns:
        One triple a phase.
    """
    return [(phase.name, run.at(phase.start), run.at(phase.end)) for phase in run.phases.phases] if run.phases else []


def when(run: RunFolder, step: float) -> str:
    """Say a time: `epoch 12` or `step 340`.

    Args:
        run: The run.
        step: The time in steps.

    Returns:
        The words.
    """
    if not run.in_epochs:
        return f"step {step:,.0f}"
    epoch = run.at(step)
    return f"epoch {epoch:.1f}" if 0 < epoch < 10 else f"epoch {epoch:,.0f}"


def column(run: RunFolder, name: str, partition: str | None = None) -> Array | None:
    """Return one scalar over the run, None where it was never measured.

    Args:
        run: The run.
        name: Name of the scalar.
        partition: Name of the partition, None for the whole set.

    Returns:
        float64 [T].
    """
    return run.history.column(name, partition) if run.history.has(name, partition) else None
