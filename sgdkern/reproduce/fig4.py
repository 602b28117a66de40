"""The paper's Fig. 4: order parameters of the rightly and the wrongly labelled samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sgdkern.report import style
from sgdkern.reproduce import axes as paper_axes
from sgdkern.reproduce.curves import at, landmarks
from sgdkern.reproduce.figure import Findings, PaperFigure, Row, spread
from sgdkern.reproduce.job import Array, Job, Load, Result
from sgdkern.reproduce.plan import Plan

_PROBED = ("A", "A0", "R", "sigma_lambda2")
_GROUPED = ("given.A_c", "given.A_w", "given.A0_c", "given.A0_w", "given.R_cw", "given.R_ac", "given.R_aw")
_COMPARED = ("blind.R_cw", "random.R_cw")
# Phase: A0_c/A0_w, R_cw, σ_λ² in the paper's words, and of an independent implementation.
_PAPER = {
    "I": ("≫ 1", "< 0", "< 1"),
    "II": ("≈ 1 (< 2)", "< 0, near −1", "> 1"),
    "III": ("< 1", "> 0", "< 1"),
    "IV": ("–", "< 0", "> 1"),
}
_REFERENCE = {
    "I": ("9.5 … 1.0", "−0.60 … −0.77", "0.19"),
    "II": ("1.2", "−0.77", "1.9"),
    "III": ("0.50", "+0.41", "0.15"),
    "IV": ("0.21 … 0.74", "−0.53 … −0.83", "2.5 … 5.2"),
}


def _jobs(plan: Plan) -> Sequence[Job]:
    return plan.noisy()


def _ratio(run: Result) -> Array:
    """A0_c / A0_w over time."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Array = run["given.A0_c"] / run["given.A0_w"]
    return ratio


def _auroc(run: Result) -> list[float]:
    """How well the losses tell right from wrong labels at each measurement."""
    from sklearn.metrics import roc_auc_score

    return [float(roc_auc_score(run["wrong"], losses)) for losses in run["losses"]]


def _findings(plan: Plan, load: Load) -> Findings:
    runs = [load(job) for job in plan.noisy()]
    found = [landmarks(run) for run in runs]
    data: dict[str, Any] = {
        "epochs": [run["probe_epochs"].tolist() for run in runs],
        **{name: [run[name].tolist() for run in runs] for name in (*_PROBED, *_GROUPED)},
        **{name: [run[name].tolist() if name in run.arrays else [] for run in runs] for name in _COMPARED},
        "ratio": [_ratio(run).tolist() for run in runs],
        "auroc": [_auroc(run) for run in runs],
        "error_epochs": [run["epochs"].tolist() for run in runs],
        "test_error": [run["test_error"].tolist() for run in runs],
        "phases": {name: list(span) for name, span in found[0].phases.items()},
    }
    rows = []
    for phase, (ratio, cosine, variance) in _PAPER.items():
        middles = [each.middle(phase) for each in found]
        values = (
            ("A0_c / A0_w", ratio, [_ratio(run) for run in runs]),
            ("R_cw", cosine, [run["given.R_cw"] for run in runs]),
            ("σ_λ²", variance, [run["sigma_lambda2"] for run in runs]),
        )
        for (name, paper, each), reference in zip(values, _REFERENCE[phase], strict=True):
            here = [
                at(run["probe_epochs"], column, time) for run, column, time in zip(runs, each, middles, strict=True)
            ]
            rows.append(Row(f"{name}, middle of phase {phase}", paper, spread(here, ".2g"), reference))
    return Findings(data, tuple(rows))


def _draw(data: Mapping[str, Any]) -> Figure:
    titles = (
        "Activity",
        "Directed activity",
        "Which group leads",
        "Alignment of the groups",
        "Projection variance",
        "What can be told apart",
    )
    figure, found = paper_axes.panels(titles, columns=3, legend_rows=1)
    times = data["epochs"]
    for axes in found:
        paper_axes.epoch_axis(axes, times[0][-1])
        paper_axes.shade(axes, data["phases"])
    activity, directed, ratio, cosine, variance, separation = found
    for axes, names in ((activity, ("A", "given.A_c", "given.A_w")), (directed, ("A0", "given.A0_c", "given.A0_w"))):
        symbol = "A" if axes is activity else "A_0"
        for name, colour, label in zip(
            names,
            (style.WHOLE, style.CORRECT, style.WRONG),
            (f"${symbol}$", f"${symbol}^c$, right", f"${symbol}^w$, wrong"),
            strict=True,
        ):
            paper_axes.curve(axes, times, data[name], colour, label, positive=True)
        paper_axes.log_y(axes)
        axes.set_ylabel("squared gradient, nats²")
        paper_axes.legend(axes, columns=3)
    paper_axes.curve(ratio, times, data["ratio"], style.WHOLE, "ratio", positive=True)
    paper_axes.log_y(ratio)
    paper_axes.level(ratio, 1.0)
    ratio.set_ylabel("$A_0^c / A_0^w$")
    for name, colour, label, dashes in (
        ("random.R_cw", style.NULL, "random split", (0, (1.5, 1.2))),
        ("given.R_cw", style.WHOLE, "true groups", "-"),
        ("blind.R_cw", style.CHOSEN, "blind groups", (0, (4, 1.5))),
    ):
        first = data[name][0]
        if first:
            paper_axes.curve(cosine, times[:1], [first], colour, label, dashes=dashes)
    paper_axes.level(cosine, 0.0)
    cosine.set(ylabel="$R_{cw}$, cosine of mean gradients", ylim=(-1.05, 1.12))
    paper_axes.legend(cosine, columns=3)
    paper_axes.curve(variance, times, data["sigma_lambda2"], style.WHOLE, "$\\sigma_\\lambda^2$", positive=True)
    paper_axes.log_y(variance)
    paper_axes.level(variance, 1.0)
    variance.set_ylabel(r"$\sigma_\lambda^2$")
    paper_axes.curve(separation, times, data["auroc"], style.CHOSEN, "AUROC of loss")
    paper_axes.curve(separation, data["error_epochs"], data["test_error"], style.TEST, "test error")
    paper_axes.curve(separation, times, data["R"], style.WHOLE, "alignment $R$")
    separation.set(ylim=(-0.05, 1.12), ylabel="share")
    separation.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    paper_axes.legend(separation, columns=3)
    return figure


FIGURE = PaperFigure(
    name="fig4",
    title="Two groups of samples and the four phases",
    caption=(
        "Activity (A) and directed activity (B) of all samples and of the rightly and the wrongly labelled ones, "
        "the ratio of the latter (C), the cosine of the two groups' mean gradients beside the same for blindly "
        "found groups and for a random split (D, first seed), σ_λ² (E), and how well the loss tells wrong labels "
        "(F). One curve a seed, the first one strong; the phases are those of the test error. A0 ≈ 0 drives the "
        "cosine of any two groups towards −1: only the positive excursion in phase III says something about the "
        "groups."
    ),
    jobs=_jobs,
    findings=_findings,
    draw=_draw,
)
