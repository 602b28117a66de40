"""The paper's Fig. 6: the losses of single samples, and cleaning by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sgdkern.report import style
from sgdkern.reproduce import axes as paper_axes
from sgdkern.reproduce.curves import landmarks, nearest
from sgdkern.reproduce.figure import Findings, PaperFigure, Row, spread
from sgdkern.reproduce.job import Job, Load, Result
from sgdkern.reproduce.plan import Plan
from sgdkern.reproduce.retraining import Kept, Retraining, cleaning_row

_BINS = 48
_PHASES = ("I", "II", "III", "IV")
_KEPT: dict[str, Kept] = {"a_c": "largest gap", "a_b": "phase II", "a_p": "right labels"}
# ρ: Q at the paper's t_c and at the blind one, of an independent implementation.
_REFERENCE = {
    0.1: ("0.69", "0.82"),
    0.2: ("0.92", "0.93"),
    0.3: ("0.95", ""),
    0.4: ("0.93", "0.94"),
    0.5: ("0.90", "0.93"),
    0.6: ("0.6", "0.88"),
    0.7: ("0.25", "0.75"),
    0.8: ("0.07", "0.35"),
}


def _jobs(plan: Plan) -> Sequence[Job]:
    return [
        Retraining(training=training, kept=kept)
        for kept in _KEPT.values()
        for rate in plan.noise_rates
        for training in plan.noisy(rate)
    ]


def _findings(plan: Plan, load: Load) -> Findings:
    accuracies = _accuracies(plan, load)
    quality = {
        name: [
            [_quality(*each) for each in zip(*(accuracies[key][place] for key in (name, "a_n", "a_p")), strict=True)]
            for place in range(len(plan.noise_rates))
        ]
        for name in ("a_c", "a_b")
    }
    first = load(plan.noisy()[0])
    data = {
        "shown_rate": plan.shown_rate,
        "noise_rates": list(plan.noise_rates),
        **_losses(first),
        **accuracies,
        "Q_c": quality["a_c"],
        "Q_b": quality["a_b"],
    }
    rows = []
    for place, rate in enumerate(plan.noise_rates):
        known = _REFERENCE.get(rate, ("", ""))
        four = " / ".join(spread(accuracies[name][place], ".3f") for name in ("a_n", "a_c", "a_b", "a_p"))
        rows += [
            Row(f"a_n / a_c / blind a_c / a_p, ρ = {rate:g}", "a_n < a_c < a_p", four),
            Row(f"Q at the largest ΔL, ρ = {rate:g}", "–", spread(quality["a_c"][place], ".2f"), known[0]),
            Row(f"Q in the blindly found phase II, ρ = {rate:g}", "–", spread(quality["a_b"][place], ".2f"), known[1]),
        ]
    return Findings(data, tuple(rows))


def _accuracies(plan: Plan, load: Load) -> dict[str, list[list[float | None]]]:
    """For each rate one accuracy a seed: as trained (a_n), cleaned (a_c, a_b), perfectly cleaned (a_p)."""
    found: dict[str, list[list[float | None]]] = {"a_n": []}
    for rate in plan.noise_rates:
        finals = [landmarks(load(training)).final for training in plan.noisy(rate)]
        found["a_n"].append([1 - final for final in finals])
        for name, kept in _KEPT.items():
            results = [load(Retraining(training=training, kept=kept)) for training in plan.noisy(rate)]
            found.setdefault(name, []).append([result.facts["accuracy"] for result in results])
    return found


def _quality(cleaned: float | None, noisy: float, perfect: float | None) -> float | None:
    """Q = (a_c − a_n) / (a_p − a_n)."""
    if cleaned is None or perfect is None or perfect == noisy:
        return None
    return (cleaned - noisy) / (perfect - noisy)


def _losses(run: Result) -> dict[str, Any]:
    """Histograms of the losses in the middle of each phase and at t_c, and ΔL over time."""
    epochs, wrong, losses = run["probe_epochs"], run["wrong"], run["losses"]
    found = landmarks(run)
    means = run["mixture_means"]
    chosen = cleaning_row(run, "largest gap")
    blind = cleaning_row(run, "phase II")
    assert chosen is not None
    return {
        "histograms": {
            phase: {"epoch": float(epochs[row]), **_histogram(losses[row], wrong)}
            for phase in _PHASES
            if np.isfinite(found.middle(phase))
            for row in [nearest(epochs, found.middle(phase))]
        },
        "at_t_c": {
            "epoch": float(epochs[chosen]),
            **_histogram(losses[chosen], wrong),
            **{name: run[f"mixture_{name}"][chosen].tolist() for name in ("means", "variances", "weights")},
        },
        "epochs": epochs.tolist(),
        "gap_fitted": (means[:, 1] - means[:, 0]).tolist(),
        "gap_true": [float(row[wrong].mean() - row[~wrong].mean()) for row in losses],
        "t_c": float(epochs[chosen]),
        "t_blind": None if blind is None else float(epochs[blind]),
        "phases": {name: list(span) for name, span in found.phases.items()},
    }


def _histogram(losses: Any, wrong: Any) -> dict[str, list[float]]:
    """Counts of the right and the wrong samples in common bins, up to the loss that one sample in 500 exceeds."""
    edges = np.linspace(0.0, float(np.quantile(losses, 0.998)) + 1e-12, _BINS + 1)
    counts = [np.histogram(losses[group], edges)[0].tolist() for group in (~wrong, wrong)]
    return {"edges": edges.tolist(), "correct": counts[0], "wrong": counts[1]}


def _draw(data: Mapping[str, Any]) -> Figure:
    titles = (
        *(f"Losses in phase {phase}" for phase in _PHASES),
        "Two Gaussians at $t_c$",
        "Distance of the means",
        "Accuracy after cleaning",
        "Quality of the cleaning",
    )
    figure, found = paper_axes.panels(titles, columns=4, legend_rows=2)
    for axes, phase in zip(found, _PHASES, strict=False):
        each = data["histograms"].get(phase)
        if each is None:
            axes.set_axis_off()
            continue
        _bars(axes, each)
        paper_axes.legend(axes, columns=2)
        axes.set_xlabel(f"loss at epoch {each['epoch']:.3g}, nats")
    found[0].set_ylabel("samples")
    _mixture(found[4], data["at_t_c"])
    _gaps(found[5], data)
    rates = data["noise_rates"]
    for name, colour, label, marker in (
        ("a_p", style.TEST, "$a_p$, right labels", "D"),
        ("a_b", style.CHOSEN, "in blind phase II", "^"),
        ("a_c", style.WHOLE, "$a_c$, at largest $\\Delta L$", "o"),
        ("a_n", style.WRONG, "$a_n$, not cleaned", "s"),
    ):
        paper_axes.points(found[6], rates, data[name], colour, label, marker)
    paper_axes.points(found[7], rates, data["Q_b"], style.CHOSEN, "in blind phase II", "^")
    paper_axes.points(found[7], rates, data["Q_c"], style.WHOLE, "at largest $\\Delta L$ (paper)", "o")
    paper_axes.level(found[7], 1.0)
    for axes in found[6:]:
        axes.set(xlabel="share of wrong labels, ρ", xlim=(0, 1))
        paper_axes.legend(axes, columns=2)
    found[6].set(ylabel="test accuracy", ylim=(0, 1))
    found[6].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    low, high = found[7].get_ylim()
    found[7].set(ylabel="$Q = (a_c - a_n) / (a_p - a_n)$", ylim=(min(low, -0.15), max(high, 1.1)))
    return figure


def _bars(axes: Axes, histogram: Mapping[str, Any]) -> None:
    edges = np.array(histogram["edges"])
    for group, colour, label in (("correct", style.CORRECT, "right label"), ("wrong", style.WRONG, "wrong label")):
        axes.stairs(histogram[group], edges, fill=True, color=colour, alpha=0.45, linewidth=0)
        axes.stairs(histogram[group], edges, color=colour, linewidth=1.2, label=label)


def _mixture(axes: Axes, each: Mapping[str, Any]) -> None:
    """The losses of all samples, the two Gaussians, and the midpoint l_c."""
    edges = np.array(each["edges"])
    total = np.array(each["correct"]) + np.array(each["wrong"])
    axes.stairs(total, edges, fill=True, color=style.NULL, alpha=0.4, linewidth=0)
    grid = np.linspace(edges[0], edges[-1], 300)
    scale = total.sum() * (edges[1] - edges[0])
    parts = [
        weight * np.exp(-((grid - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        for mean, variance, weight in zip(each["means"], each["variances"], each["weights"], strict=True)
    ]
    for part in parts:
        axes.plot(grid, scale * part, color=style.CHOSEN, linewidth=1.1, linestyle=(0, (4, 1.5)))
    axes.plot(grid, scale * sum(parts), color=style.CHOSEN, label="fitted")
    middle = sum(each["means"]) / 2
    axes.axvline(middle, color=style.INK, linewidth=1.0, linestyle=(0, (1, 1.6)), label=f"$l_c$ = {middle:.2f}")
    axes.set(xlabel=f"loss at epoch {each['epoch']:.3g}, nats", ylabel="samples")
    paper_axes.legend(axes, columns=2)


def _gaps(axes: Axes, data: Mapping[str, Any]) -> None:
    """ΔL as fitted and as it is, and the two cleaning times."""
    paper_axes.epoch_axis(axes, data["epochs"][-1])
    paper_axes.shade(axes, data["phases"])
    axes.set_ymargin(0.15)  # curves end below the names of the phases
    axes.plot(data["epochs"], data["gap_true"], color=style.TEST, label="true groups")
    axes.plot(data["epochs"], data["gap_fitted"], color=style.WHOLE, linestyle=(0, (4, 1.5)), label="fitted")
    axes.axvline(data["t_c"], color=style.WHOLE, linewidth=1.0, linestyle=(0, (1, 1.6)), label="$t_c$: largest fitted")
    if data["t_blind"] is not None:
        axes.axvline(
            data["t_blind"], color=style.CHOSEN, linewidth=1.0, linestyle=(0, (1, 1.6)), label="blind phase II"
        )
    axes.set_ylabel(r"$\Delta L$, nats")
    paper_axes.legend(axes, columns=2)


FIGURE = PaperFigure(
    name="fig6",
    title="Losses of single samples, and cleaning by them",
    caption=(
        "A–D: losses of the rightly and the wrongly labelled training samples in the middle of each phase of the "
        "test error, first seed (the largest 0.2 % are not shown). E: two Gaussians fitted at t_c, the epoch "
        "where their means are furthest apart; samples above the midpoint l_c are dropped. F: that distance, and "
        "the true groups'. G: test accuracy after training anew on what is left. H: the share of the possible "
        "gain. Bars are one standard deviation over the seeds to each side; a rate where no phase II is found has "
        "no blind point."
    ),
    jobs=_jobs,
    findings=_findings,
    draw=_draw,
)
