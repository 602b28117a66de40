"""Figures of the phase grid: one run with its phases, scores by noise rate, where log-time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter
from phase_scores import NAMES, Scored, confusion

# Okabe and Ito's colours, which colour-blind readers tell apart; the same colour means the same phase everywhere.
PHASE_COLOURS = {
    "I": "#56B4E9", "II": "#009E73", "III": "#D55E00", "IV": "#999999", "fast": "#56B4E9", "exploration": "#F0E442",
}  # fmt: skip
DATA_MARKS = {"digits": ("o", "#0072B2"), "mnist": ("s", "#E69F00"), "cifar10": ("^", "#CC79A7")}


def draw(halves: dict[str, list[Scored]], folder: Path) -> None:
    """Write phases_example.png, phases_scores.png and phases_confusion.png."""
    runs = next(iter(halves.values()))
    judged = [run for run in runs if run.is_judged]
    if judged:
        example = min(
            judged, key=lambda run: (run.config["data"] != "digits", run.config["rate"] != 0.5, run.config["seed"])
        )
        worst = min(judged, key=lambda run: run.score("auto"))
        _timeline(example, folder / "phases_example.png")
        _timeline(worst, folder / "phases_worst.png")
        _confusion(judged, folder / "phases_confusion.png")
    _scores(runs, folder / "phases_scores.png")


def _timeline(run: Scored, path: Path) -> None:
    """Test error, σ_λ² and A over log-time; the label's phases shaded, the truth's as a bar."""
    steps = np.maximum(run.history.steps, 0.5)
    figure, axes = plt.subplots(3, 1, figsize=(7.5, 6.5), sharex=True, constrained_layout=True)
    panels = [
        ("test_error", "test error", "linear"),
        ("sigma_lambda2", r"$\sigma_\lambda^2$", "log"),
        ("A", "activity A", "log"),
    ]
    left = run.truth[0].start
    for axis, (name, label, scale) in zip(axes, panels, strict=True):
        for phase in run.labels["auto"]:
            axis.axvspan(max(phase.start, left), phase.end, color=PHASE_COLOURS[phase.name], alpha=0.22, lw=0)
        axis.plot(steps, run.history.column(name), color="black", lw=1.4)
        axis.set(ylabel=label, yscale=scale, xscale="log", xlim=(left, steps[-1]))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0].plot(
        steps, run.history.column("train_error"), color="black", lw=1, ls=":", label="training error (given labels)"
    )
    axes[0].legend(frameon=False, loc="upper center", fontsize=8)
    top = axes[0].get_ylim()[1] * 1.12
    axes[0].set_ylim(0, top)
    for phase in run.truth:
        axes[0].axvspan(phase.start, phase.end, ymin=0.95, color=PHASE_COLOURS[phase.name], lw=0)
    for phase in run.labels["auto"]:
        middle = np.sqrt(max(phase.start, left) * phase.end)
        axes[1].text(middle, 0.04, phase.name, transform=axes[1].get_xaxis_transform(), ha="center", weight="bold")
    config = run.config
    axes[0].set_title(
        f"{config['data']}, {config['model']} {'-'.join(map(str, config['hidden']))}, lr {config['lr']:g}, "
        f"{config['noise']} noise {config['rate']:g}: score {run.score('auto'):.2f}\n"
        "shading: labels; bar at the top: phases by the test error", fontsize=10,
    )  # fmt: skip
    axes[2].set_xlabel("step")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _scores(runs: list[Scored], path: Path) -> None:
    """The score of every run over its noise rate."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), constrained_layout=True)
    jitter = np.random.default_rng(0)
    for data, (mark, colour) in DATA_MARKS.items():
        name = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}[data]
        axis.plot([], [], mark, color=colour, label=name)
        for run in (run for run in runs if run.config["data"] == data):
            where = run.config["rate"] + jitter.uniform(-0.02, 0.02)
            fill = colour if run.labels["auto"] else "white"
            axis.plot(where, run.score("auto"), mark, color=colour, mfc=fill, ms=6, alpha=0.8, clip_on=False)
    axis.plot([], [], "o", color="grey", mfc="white", label="no phases claimed")
    axis.axvspan(0.15, 0.75, color="#009E73", alpha=0.08, lw=0)
    axis.axhline(0.75, color="black", lw=0.8, ls=":")
    axis.set(xlabel="noise rate", ylabel="share of log-time labelled right", ylim=(-0.03, 1.03))
    axis.text(0.45, 0.03, "rates that are judged", ha="center", color="#006B4F")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(0.0, 0.35))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _confusion(runs: list[Scored], path: Path) -> None:
    """Share of log-time of each true phase that is given each label."""
    table: dict[str, dict[str, Any]] = confusion(runs)
    down = [name for name in NAMES[:4] if name in table]
    across = (*NAMES, "none")
    values = np.array([[table[right][guess] for guess in across] for right in down])
    figure, axis = plt.subplots(figsize=(6.4, 3.4), constrained_layout=True)
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(values.shape):
        shade = "white" if values[row, column] > 0.55 else "black"
        axis.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", color=shade)
    axis.set_xticks(range(len(across)), across, rotation=20)
    axis.set_yticks(range(len(down)), down)
    axis.set(xlabel="label", ylabel="by the test error")
    figure.savefig(path, dpi=110)
    plt.close(figure)
