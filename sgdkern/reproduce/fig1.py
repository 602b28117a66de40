"""The paper's Fig. 1: without wrong labels, fast learning turns into exploration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from sgdkern.report import style
from sgdkern.reproduce import axes as paper_axes
from sgdkern.reproduce.curves import at, landmarks
from sgdkern.reproduce.figure import Findings, PaperFigure, Row, spread
from sgdkern.reproduce.job import Job, Load
from sgdkern.reproduce.plan import Plan

_ERRORS = ("train_loss", "train_error", "test_error")
_PROBED = ("A", "A0", "D", "R", "sigma_lambda2")
# Epoch: training error, A, R, σ_λ² of an independent implementation with the same settings.
_REFERENCE = {
    1: (0.21, 6.9, 0.50, 0.14),
    10: (0.035, 2.5, 0.24, 0.59),
    20: (0.0005, 0.15, 0.084, 6.8),
    50: (0.0, 0.0013, 0.006, 9.0),
}


def _jobs(plan: Plan) -> Sequence[Job]:
    return plan.clean()


def _findings(plan: Plan, load: Load) -> Findings:
    runs = [load(job) for job in plan.clean()]
    data: dict[str, Any] = {
        "epochs": [run["epochs"].tolist() for run in runs],
        "probe_epochs": [run["probe_epochs"].tolist() for run in runs],
        "change": [landmarks(run).t12 for run in runs],
        **{name: [run[name].tolist() for run in runs] for name in (*_ERRORS, *_PROBED)},
    }
    verdicts = [run.facts["phases"]["verdict"] for run in runs]
    rows = [
        Row("phases, as the tool labels each seed", "fast learning, then exploration", ", ".join(verdicts)),
        Row("the test error has fallen but for a tenth, epoch", "–", spread(data["change"])),
    ]
    before = [1.0 + at(run["probe_epochs"], run["sigma_lambda2"], 0.3) for run in runs]
    rows.append(Row("⟨λ²⟩ = 1 + σ_λ² in the fast phase (epoch 0.3)", "≈ 1", spread(before)))
    rows.append(Row("σ_λ² at the end", "≫ 1", spread([run["sigma_lambda2"][-1] for run in runs], ".2g")))
    for epoch, reference in _REFERENCE.items():
        if epoch > runs[0]["epochs"][-1]:
            continue
        found = [
            spread([at(run["epochs"], run["train_error"], epoch) for run in runs], ".2g"),
            *(
                spread([at(run["probe_epochs"], run[name], epoch) for run in runs], ".2g")
                for name in ("A", "R", "sigma_lambda2")
            ),
        ]
        names = ("training error", "A", "R", "σ_λ²")
        rows += [
            Row(f"{name}, epoch {epoch}", "–", here, f"{known:g}")
            for name, here, known in zip(names, found, reference, strict=True)
        ]
    return Findings(data, tuple(rows))


def _draw(data: Mapping[str, Any]) -> Figure:
    figure, (errors, activity, alignment, projection) = paper_axes.panels(
        ("Loss and errors", "Activity of the gradient", "Alignment", "Projection variance"), columns=2, legend_rows=1
    )
    times, probed = data["epochs"], data["probe_epochs"]
    end = times[0][-1]
    change = data["change"][0]
    spans = {"fast": (0.0, change), "exploration": (change, end)}
    for axes in (errors, activity, alignment, projection):
        paper_axes.epoch_axis(axes, end, start=0.03)
        paper_axes.shade(axes, spans)
    for name, colour, label in (
        ("train_loss", style.WHOLE, "training loss, nats"),
        ("train_error", style.CORRECT, "training error"),
        ("test_error", style.TEST, "test error"),
    ):
        paper_axes.curve(errors, times, data[name], colour, label, positive=True)
    errors.set(ylabel="mean loss, share of samples", ylim=(2e-4, 9))
    for name, colour, label, dashes in (
        ("A", style.WHOLE, "$A$", "-"),
        ("D", style.WRONG, "$D$", (0, (4, 1.5))),
        ("A0", style.CORRECT, "$A_0$", "-"),
    ):
        paper_axes.curve(activity, probed, data[name], colour, label, dashes=dashes, positive=True)
    activity.set_ylabel("squared gradient, nats²")
    paper_axes.curve(alignment, probed, data["R"], style.WHOLE, "$R$")
    paper_axes.level(alignment, 0.0)
    alignment.set_ylabel("$R$, mean cosine of two minibatches")
    paper_axes.curve(projection, probed, data["sigma_lambda2"], style.WHOLE, r"$\sigma_\lambda^2$", positive=True)
    paper_axes.level(projection, 1.0)
    projection.set_ylabel(r"$\sigma_\lambda^2$")
    for axes in (errors, activity, projection):
        paper_axes.log_y(axes)
    for axes in (errors, activity):
        paper_axes.legend(axes, columns=3)
    return figure


FIGURE = PaperFigure(
    name="fig1",
    title="Two phases without wrong labels",
    caption=(
        "Loss and errors, activity A with its directed part A0 and its noise D, alignment R and projection "
        "variance σ_λ² of a run on right labels. One curve a seed, the first one strong; the shading changes "
        "where its test error has fallen but for a tenth. Zeros cannot be drawn on a logarithmic axis: a curve "
        "that stops reached zero."
    ),
    jobs=_jobs,
    findings=_findings,
    draw=_draw,
)
