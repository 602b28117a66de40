"""The distribution of the losses, and what cleaning by it gains: the paper's Fig. 6."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sgdkern.cleaning.mixture import Mixture, fit_mixture
from sgdkern.history import Record
from sgdkern.report import style
from sgdkern.report.figures.panel import Array, Line, Panel, over_time, when
from sgdkern.report.run_folder import RunFolder

_READINGS = {
    "I": "Too early: the network treats right and wrong labels nearly alike.",
    "II": "Two humps: samples whose label contradicts the pattern keep a high loss.",
    "III": "The humps run together: the wrong labels are being learned.",
    "IV": "All is fitted; the losses say almost nothing about the labels.",
}
_FITS = 80  # as many points as a curve needs; each is a fit


def distributions(run: RunFolder) -> list[Panel]:
    """Histograms of the losses in each phase, with the fitted mixture (Fig. 6A).

    Args:
        run: The run.

    Returns:
        One panel a phase; none where no losses were kept.
    """
    panels = []
    for name, record in run.representative(_has_losses).items():
        title = f"{phase_title(name)}, {when(run, record.step)}"
        panels.append(_histogram(run, record, title, f"fig6a_losses_{name}", _READINGS.get(name, "")))
    return panels


def at_cleaning_time(run: RunFolder) -> Panel | None:
    """The distribution at the cleaning time, where right and wrong labels come apart (Fig. 6B).

    Args:
        run: The run.

    Returns:
        The panel, None where there is no cleaning time or no losses were kept.
    """
    record = None if run.cleaning_step is None else run.nearest(run.cleaning_step, _has_losses)
    if record is None:
        return None
    return _histogram(
        run, record, f"Losses at the cleaning time, {when(run, record.step)}", "fig6b_mixture", "", "labels"
    )


def separation(run: RunFolder) -> Panel | None:
    """The distance of the two fitted components over time, ΔL(t) (Fig. 6C).

    Args:
        run: The run.

    Returns:
        The panel, None where no losses were kept.
    """
    fitted, true = np.full(len(run.history), np.nan), np.full(len(run.history), np.nan)
    wrong = run.issues.wrong if run.issues else None
    kept = [row for row, record in enumerate(run.history) if record.step > 0 and _has_losses(record)]
    for row in kept[:: -(-len(kept) // _FITS) or 1]:
        record = run.history.records[row]
        if record.losses is None:
            continue
        mixture = _fit(record.losses)
        fitted[row] = np.nan if mixture is None else mixture.gap
        if wrong is not None and wrong.any() and not wrong.all() and len(wrong) == len(record.losses):
            true[row] = record.losses[wrong].mean() - record.losses[~wrong].mean()
    if not np.isfinite(fitted).any():
        return None
    lines = [Line("fitted, blind", fitted, style.CHOSEN)]
    if np.isfinite(true).any():
        lines.append(Line("true groups*", true, style.WHOLE, (0, (3, 1.3))))
    figure = over_time(run, "How far apart the losses are", r"$\Delta L$ (nats)", lines, columns=3)
    caption = (
        "ΔL, the distance between the means of the two components fitted to the losses (Fig. 6C). It is largest where "
        "labels are best told right from wrong; late in training the fit overestimates it."
    )
    return Panel("fig6c_separation", "groups", figure, caption, "Distance of the fitted mixture’s means over time.")


def accuracies(run: RunFolder) -> Panel | None:
    """Test accuracy after training on the noisy, the cleaned and the perfect labels (Fig. 6D).

    Args:
        run: The run.

    Returns:
        The panel, None where nothing was retrained.
    """
    named = (
        ("final", "all labels as given,\nlast step", style.WRONG),
        ("at_cleaning_time", "the same, stopped at\nthe cleaning time", style.CHOSEN),
        ("cleaned", "retrained without\nthe issues found", style.TEST),
        ("perfect", "retrained on right\nlabels only*", style.CORRECT),
    )
    keys = {"at_cleaning_time": "at_cleaning_step"}
    found = [
        (label, 1 - error, colour)
        for name, label, colour in named
        if (error := run.number("test_error", keys.get(name, name))) is not None
    ]
    if len(found) < 2 or run.number("test_error", "cleaned") is None:
        return None
    panel = style.canvas("What cleaning gains", height=1.1 + 0.575 * len(found), strip=False, legend_rows=0)
    axes = panel.axes
    width = panel.figure.get_size_inches()[0]
    box = axes.get_position()
    axes.set_position((1.62 / width, box.y0, 1 - (1.62 + 0.32) / width, box.height))
    rows = np.arange(len(found))[::-1]
    axes.barh(rows, [value for _, value, _ in found], height=0.62, color=[style.tint(c, 0.5) for _, _, c in found])
    for row, (_, value, _) in zip(rows, found):
        inside = value > 0.25
        axes.text(
            value - 0.015 if inside else value + 0.015, row, f"{100 * value:.1f} %", ha="right" if inside else "left",
            va="center", fontsize=10, fontweight="bold", color=style.INK,
        )  # fmt: skip
    axes.set_yticks(rows, [label for label, _, _ in found])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("test accuracy")
    caption = "Accuracy on the test data after training on all labels as given, and again without the issues found"
    if run.number("test_error", "perfect") is not None:
        caption += ", or (*for scoring only) on exactly the samples whose labels are right"
    words = "; ".join(f"{label.replace(chr(10), ' ')} {value:.1%}" for label, value, _ in found)
    return Panel(
        "fig6d_accuracy", "labels", panel.figure, caption + " (Fig. 6D).", f"Bar chart of test accuracies: {words}."
    )


def phase_title(name: str) -> str:
    """Name a phase in a title.

    Args:
        name: `I` … `IV`, `fast` or `exploration`.

    Returns:
        `Phase II`, `Exploration`.
    """
    return f"Phase {name}" if name in ("I", "II", "III", "IV") else name.capitalize()


def _histogram(run: RunFolder, record: Record, title: str, name: str, reading: str, section: str = "losses") -> Panel:
    """Draw one distribution of losses, split by the truth where that is known, under the fitted mixture."""
    assert record.losses is not None
    losses = record.losses[np.isfinite(record.losses)].astype(np.float64)
    panel = style.canvas(title, height=3.4 if section == "labels" else 2.9, strip=False)
    axes = panel.axes
    low, top = (float(value) for value in np.quantile(losses, [0.002, 0.998])) if len(losses) else (0.0, 1.0)
    margin = 0.05 * (top - low) + 1e-9
    edges = np.linspace(max(low - margin, 0.0) if low > 0.15 * top else 0.0, top + margin, 41)
    bins = edges.tolist()
    wrong = run.issues.wrong if run.issues else None
    split = wrong is not None and len(wrong) == len(record.losses) and wrong.any()
    if split and wrong is not None:
        axes.hist(record.losses[~wrong], bins, color=style.CORRECT, alpha=0.5, label="label right*")
        axes.hist(record.losses[wrong], bins, color=style.WRONG, alpha=0.5, label="label wrong*")
    else:
        axes.hist(losses, bins, color=style.tint(style.WHOLE, 0.35), label="samples")
    tallest = axes.get_ylim()[1]
    mixture = _fit(losses)
    if mixture is not None:
        points = np.linspace(edges[0], edges[-1], 400)
        scale = len(losses) * (edges[1] - edges[0])
        parts = _densities(mixture, points) * scale
        axes.plot(points, parts.sum(axis=0), color=style.INK, linewidth=1.4, label="fit, blind")
        axes.plot(points, parts.T, color=style.INK, linewidth=1.0, linestyle=(0, (3, 1.5)))
        tallest = max(tallest, min(1.05 * float(parts.sum(axis=0).max()), 2 * tallest))
    axes.set_ylim(0, tallest)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("loss of a sample (nats)")
    axes.set_ylabel("samples")
    style.linear_axis(axes.xaxis)
    style.linear_axis(axes.yaxis, 4)
    style.add_legend(panel, columns=4)
    caption = "Losses of the training samples"
    caption += ", by whether the label is right (*scoring only)" if split else ""
    caption += ", and the two Gaussians fitted to all of them without that knowledge." if mixture is not None else "."
    caption = reading or caption
    return Panel(name, section, panel.figure, caption, f"Histogram of losses. {title}.")


def _fit(losses: npt.NDArray[Any]) -> Mixture | None:
    """Two Gaussians fitted to the losses; None where they are all the same or not finite."""
    finite = losses[np.isfinite(losses)].astype(np.float64)
    return fit_mixture(finite) if len(finite) > 2 and np.ptp(finite) > 0 else None


def _densities(mixture: Mixture, points: Array) -> Array:
    """The weighted densities of the two components, [2, points]."""
    means, variances, weights = (
        np.array(part)[:, None] for part in (mixture.means, mixture.variances, mixture.weights)
    )
    return np.asarray(weights / np.sqrt(2 * np.pi * variances) * np.exp(-((points - means) ** 2) / (2 * variances)))


def _has_losses(record: Record) -> bool:
    return record.losses is not None and len(record.losses) > 0
