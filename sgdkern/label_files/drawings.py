"""The figures of the page on wrong labels: qualities, noise rates, confused labels, what a review would find."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from sgdkern.cleaning import LabelIssues, NoiseMatrix, NoiseRate
from sgdkern.report import style

MOST_RATES = 24  # rows of a figure of noise rates
MOST_CLASSES = 20  # classes of a matrix that can still be read


def qualities(issues: LabelIssues) -> Figure:
    """Draw how many labels have which quality, suspicious ones in their own colour.

    Args:
        issues: The table of issues.

    Returns:
        The figure.
    """
    panel = style.canvas("Label quality", strip=False)
    bins = np.linspace(0, 1, 41)
    for chosen, colour in ((issues.is_label_issue, style.WRONG), (~issues.is_label_issue, style.CORRECT)):
        panel.axes.hist(issues.label_quality[chosen], bins=list(bins), color=colour, linewidth=0.3, edgecolor="white")
    panel.axes.set_xlim(0, 1)
    panel.axes.set_xlabel("label quality (0: surely wrong, 1: surely right)")
    panel.axes.set_ylabel("labels")
    style.linear_axis(panel.axes.yaxis)
    handles = [Patch(color=style.WRONG, label="suspicious"), Patch(color=style.CORRECT, label="nothing against them")]
    style.add_legend(panel, columns=2, handles=handles)
    return panel.figure


def review(issues: LabelIssues, budget: int | None) -> Figure:
    """Draw which share of the N most suspicious labels is expected to be wrong, over N.

    Args:
        issues: The table of issues.
        budget: How many a person will review; None where not said.

    Returns:
        The figure.
    """
    panel = style.canvas("What a review would find", strip=False)
    counts = np.arange(1, issues.num_samples + 1)
    found = np.cumsum(issues.p_wrong[issues.ranking])
    panel.axes.plot(counts, found / counts, color=style.WRONG, label="of those reviewed, wrong")
    if found[-1] > 0:
        panel.axes.plot(
            counts, found / found[-1], color=style.INK, linestyle=(0, (5, 2)), label="of all wrong, reviewed"
        )
    if budget is not None:
        panel.axes.axvline(budget, color=style.CHOSEN, linewidth=1.2)
        right = budget > math.sqrt(issues.num_samples)
        panel.axes.annotate(
            f"{budget:,}", (budget, 0.03), xytext=(-4 if right else 4, 0), textcoords="offset points",
            ha="right" if right else "left", color=style.CHOSEN,
        )  # fmt: skip
    panel.axes.set_xscale("log")
    panel.axes.set_xlim(1, issues.num_samples)
    style.plain_log_axis(panel.axes.xaxis)
    panel.axes.set_ylim(0, 1.02)
    panel.axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.axes.set_xlabel("labels reviewed, worst first (log scale)")
    panel.axes.set_ylabel("share, as estimated")
    style.add_legend(panel, columns=2)
    return panel.figure


def rates(title: str, found: Mapping[Any, NoiseRate], whole: NoiseRate) -> Figure:
    """Draw noise rates with their intervals, the highest on top.

    Args:
        title: What they are rates of.
        found: Rate by name.
        whole: The rate of all samples.

    Returns:
        The figure; of many names only the highest rates.
    """
    shown = sorted(found.items(), key=lambda pair: pair[1].estimate, reverse=True)[:MOST_RATES]
    panel = style.canvas(title, strip=False, legend_rows=1, height=1.75 + 0.22 * len(shown))
    box = panel.axes.get_position()
    left = 1.25 / 4.5  # room for names
    panel.axes.set_position((left, box.y0, box.x1 - left, box.height))
    for place, (_, rate) in enumerate(reversed(shown)):
        panel.axes.plot([rate.low, rate.high], [place, place], color=style.WRONG, linewidth=2.2, alpha=0.55)
        panel.axes.plot(rate.estimate, place, marker="o", markersize=5.5, color=style.WRONG)
    panel.axes.axvline(whole.estimate, color=style.INK, linewidth=0.9, linestyle=(0, (1, 1.6)))
    panel.axes.set_yticks(range(len(shown)), [style.literal(short(name, 15)) for name, _ in reversed(shown)])
    panel.axes.set_ylim(-0.7, len(shown) - 0.3)
    panel.axes.set_xlim(0, min(1.0, 1.05 * max(whole.high, *(rate.high for _, rate in shown))))
    panel.axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    style.linear_axis(panel.axes.xaxis)
    panel.axes.grid(axis="x", color=style.RULE, linewidth=0.5, alpha=0.7)
    panel.axes.set_xlabel("wrong labels, with 95 % interval")
    handles = [Line2D([], [], color=style.INK, linewidth=0.9, linestyle=(0, (1, 1.6)), label="all samples")]
    style.add_legend(panel, columns=1, handles=handles)
    return panel.figure


def confusion(matrix: NoiseMatrix) -> Figure | None:
    """Draw the noise matrix: of the samples of each class, the share that carries each wrong label.

    Args:
        matrix: The noise matrix.

    Returns:
        The figure; None where there are too many classes to read it.
    """
    count = len(matrix.classes)
    if count > MOST_CLASSES:
        return None
    shares = np.where(np.eye(count, dtype=bool), np.nan, matrix.probabilities)
    panel = style.canvas("Which label is given for which", strip=False, legend_rows=0, height=4.4)
    axes = panel.axes
    box = axes.get_position()
    axes.set_position((0.27, box.y0 + 0.09, box.x1 - 0.27, box.height - 0.09))  # room for names
    axes.grid(visible=False)
    largest = np.nanmax(shares, initial=0.0)
    axes.imshow(shares, cmap="OrRd", vmin=0, vmax=max(largest, 1e-9), aspect="auto")
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.005):
        if count <= 12:
            colour = "white" if shares[row, column] > 0.6 * largest else style.INK
            text = f"{100 * shares[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=colour)
    names = [style.literal(short(name, 11)) for name in matrix.classes.tolist()]
    axes.set_yticks(range(count), names)
    axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.tick_params(length=0)
    axes.set_xlabel("given label")
    axes.set_ylabel("label suggested (% of the samples of it)")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return panel.figure


def short(label: Any, length: int = 10) -> str:
    """Cut a label to so many letters.

    Args:
        label: Any label.
        length: The most letters.

    Returns:
        The text, with an ellipsis where it was cut.
    """
    text = str(label)
    return text if len(text) <= length else text[: length - 1] + "…"
