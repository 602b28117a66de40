"""The paper's Fig. 3: errors with wrong labels, and their landmarks against the noise rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sgdkern.report import style
from sgdkern.reproduce import axes as paper_axes
from sgdkern.reproduce.curves import landmarks
from sgdkern.reproduce.figure import Findings, PaperFigure, Row, spread
from sgdkern.reproduce.job import Job, Load
from sgdkern.reproduce.plan import Plan

_SHOWN = ("train_error", "test_error", "error_correct", "error_wrong")
_LANDMARKS = ("t_m", "t23", "t_f", "lowest", "final")
# ρ: t_m, t_f, lowest and final test error of an independent implementation, two seeds.
_REFERENCE = {
    0.1: ("22–24", "88", "0.088", "0.163"),
    0.2: ("17–19", "108", "0.097", "0.256"),
    0.3: ("12–18", "120–132", "0.109", "0.356"),
    0.4: ("13–18", "132–136", "0.119", "0.446"),
    0.5: ("15–17", "144", "0.139", "0.541"),
    0.6: ("10–11", "148–156", "0.171", "0.634"),
    0.7: ("11–13", "164–168", "0.235", "0.722"),
    0.8: ("13–14", "160–164", "0.43", "0.816"),
}


def _jobs(plan: Plan) -> Sequence[Job]:
    return [training for rate in plan.noise_rates for training in plan.noisy(rate)]


def _findings(plan: Plan, load: Load) -> Findings:
    runs = {rate: [load(job) for job in plan.noisy(rate)] for rate in plan.noise_rates}
    found = {rate: [landmarks(run) for run in each] for rate, each in runs.items()}
    shown = runs[plan.shown_rate]
    numbers = {
        name: [[_known(getattr(each, name)) for each in found[rate]] for rate in plan.noise_rates]
        for name in _LANDMARKS
    }
    data: dict[str, Any] = {
        "shown_rate": plan.shown_rate,
        "epochs": [run["epochs"].tolist() for run in shown],
        **{name: [run[name].tolist() for run in shown] for name in _SHOWN},
        "phases": {name: list(span) for name, span in found[plan.shown_rate][0].phases.items()},
        "noise_rates": list(plan.noise_rates),
        "sweep_epochs": [runs[rate][0]["epochs"].tolist() for rate in plan.noise_rates],
        "sweep_test_error": [runs[rate][0]["test_error"].tolist() for rate in plan.noise_rates],
        **numbers,
    }
    rows = [
        Row(
            f"test error, ρ = {plan.shown_rate:g}",
            "falls, stays low, rises to a plateau",
            "{} → {} → {}".format(
                *(f"{value:.2f}" for value in (shown[0]["test_error"][0], *_pair(found[plan.shown_rate])))
            ),
            "0.91 → 0.14 → 0.53",
        )
    ]
    for place, rate in enumerate(plan.noise_rates):
        known = _REFERENCE.get(rate, ("", "", "", ""))
        for (name, label, form), reference in zip(
            (
                ("t_m", "t_m, epoch", ".0f"),
                ("t_f", "t_f, epoch", ".0f"),
                ("lowest", "lowest test error ε_m", ".3f"),
                ("final", "final test error ε_f", ".3f"),
            ),
            known,
            strict=True,
        ):
            rows.append(Row(f"{label}, ρ = {rate:g}", "–", spread(numbers[name][place], form), reference))
    return Findings(data, tuple(rows))


def _pair(found: Sequence[Any]) -> tuple[float, float]:
    return float(np.mean([each.lowest for each in found])), float(np.mean([each.final for each in found]))


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _draw(data: Mapping[str, Any]) -> Figure:
    figure, (errors, sweep, times, levels) = paper_axes.panels(
        (f"Errors at ρ = {data['shown_rate']:g}", "Test error, every ρ", "Times against ρ", "Test error against ρ"),
        columns=2,
        legend_rows=2,
    )
    end = data["epochs"][0][-1]
    for axes in (errors, sweep):
        paper_axes.epoch_axis(axes, end)
        axes.set(ylabel="samples misclassified", ylim=(-0.02, 1.06))
    paper_axes.shade(errors, data["phases"])
    for name, colour, label, dashes, width in (
        ("train_error", style.WHOLE, "training, as labelled", "-", 1.7),
        ("error_correct", style.CORRECT, "training, right labels", (0, (4, 1.5)), 1.4),
        ("error_wrong", style.WRONG, "training, wrong labels", (0, (1.5, 1.2)), 1.4),
        ("test_error", style.TEST, "test", "-", 2.3),
    ):
        paper_axes.curve(errors, data["epochs"], data[name], colour, label, dashes=dashes, width=width)
    paper_axes.legend(errors, columns=2)
    rates = data["noise_rates"]
    colours = colormaps["viridis"](np.linspace(0.05, 0.88, len(rates)))
    for rate, epochs, test, colour in zip(rates, data["sweep_epochs"], data["sweep_test_error"], colours, strict=True):
        sweep.plot(
            epochs, test, color=colour, linewidth=1.3, label=f"ρ = {rate:g}" if rate == rates[0] else f"{rate:g}"
        )
    paper_axes.legend(sweep, columns=5)
    for name, colour, label, marker in (
        ("t_f", style.WHOLE, "$t_f$: training error ≤ 1 %", "s"),
        ("t23", style.WRONG, "phase III begins", "^"),
        ("t_m", style.TEST, "$t_m$: lowest test error", "o"),
    ):
        paper_axes.points(times, rates, data[name], colour, label, marker)
    times.set(ylabel="epoch")
    times.set_ylim(bottom=0)
    for name, colour, label, marker in (
        ("final", style.WHOLE, r"$\epsilon_f$, final", "s"),
        ("lowest", style.TEST, r"$\epsilon_m$, lowest", "o"),
    ):
        paper_axes.points(levels, rates, data[name], colour, label, marker)
    levels.set(ylabel="test samples misclassified", ylim=(0, 1))
    for axes in (times, levels):
        axes.set(xlabel="share of wrong labels, ρ", xlim=(0, 1))
        paper_axes.legend(axes, columns=2)
    for axes in (errors, sweep, levels):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    return figure


FIGURE = PaperFigure(
    name="fig3",
    title="Errors with wrong labels",
    caption=(
        "A: errors of one noise rate, one curve a seed, the first one strong; the phases are those of the test "
        "error. B: the test error of every rate, first seed. C and D: mean over the seeds with a bar of one "
        "standard deviation to each side; t_f is the first epoch with a training error of at most 1 %."
    ),
    jobs=_jobs,
    findings=_findings,
    draw=_draw,
)
