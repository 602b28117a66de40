"""Noise spectra of the weights between hidden layers in each phase, for the paper's Figs. 2 and 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sgdkern.report import style
from sgdkern.reproduce import axes as paper_axes
from sgdkern.reproduce.curves import nearest, within
from sgdkern.reproduce.job import Result

Spans = Mapping[str, tuple[float, float]]


def spectra_data(runs: Sequence[Result], spans: Sequence[Spans]) -> dict[str, Any]:
    """What is drawn: D_s over time, and the first run's spectrum nearest to the middle of each phase.

    Args:
        runs: One a seed.
        spans: Start and end of the phases of each, in epochs.

    Returns:
        JSON values.
    """
    first = runs[0]
    shown = {}
    for phase, (start, end) in spans[0].items():
        row = nearest(first["spectrum_epochs"], float(np.sqrt(start * end)))
        values = first["spectrum_eigenvalues"][row].astype(float)
        shown[phase] = {
            "epoch": float(first["spectrum_epochs"][row]),
            "dimension": int(first["spectrum_dimension"][row]),
            "trace": float(first["spectrum_trace"][row]),
            "eigenvalues": [float(f"{value:.5g}") for value in values[np.isfinite(values) & (values > 0)]],
        }
    return {
        "spectrum_epochs": [run["spectrum_epochs"].tolist() for run in runs],
        "dimension": [run["spectrum_dimension"].tolist() for run in runs],
        "participation": [run["spectrum_participation"].tolist() for run in runs],
        "phases": {name: list(span) for name, span in spans[0].items()},
        "shown": shown,
    }


def dimensions(runs: Sequence[Result], spans: Sequence[Spans], phase: str) -> tuple[list[float], list[int]]:
    """D_s in one phase.

    Args:
        runs: One a seed.
        spans: Start and end of the phases of each, in epochs.
        phase: Which one.

    Returns:
        The measurement nearest to the phase's middle (in the logarithm) of each run that has it, and all measurements
        in it.
    """
    middles: list[float] = []
    every: list[int] = []
    for run, named in zip(runs, spans, strict=True):
        if phase not in named:
            continue
        start, end = named[phase]
        epochs, found = run["spectrum_epochs"], run["spectrum_dimension"]
        middles.append(float(found[nearest(epochs, float(np.sqrt(start * end)))]))
        every += within(epochs, found, named[phase]).tolist()
    return middles, every


def draw_spectra(data: Mapping[str, Any]) -> Figure:
    """Spectra, their cumulative sums, and D_s over time.

    Args:
        data: Of `spectra_data`.

    Returns:
        The figure.
    """
    figure, (spectrum, energy, dimension) = paper_axes.panels(
        ("Noise spectrum", "Share of the noise", "Effective dimension"), columns=3, legend_rows=2
    )
    longest = max((len(each["eigenvalues"]) for each in data["shown"].values()), default=2)
    for phase, each in data["shown"].items():
        values = np.array(each["eigenvalues"])
        ranks = np.arange(1, len(values) + 1)
        look = {"color": style.PHASE_COLOURS[phase], "linestyle": style.PHASE_DASHES[phase]}
        epoch = f"{each['epoch']:.0f}" if each["epoch"] >= 10 else f"{each['epoch']:.2g}"
        label = f"{phase}: $D_s$ = {each['dimension']} (epoch {epoch})"
        spectrum.plot(ranks, values, label=label, **look)
        energy.plot(ranks, np.cumsum(values) / each["trace"], **look)
        energy.plot(each["dimension"], 0.9, "o", color=look["color"], markersize=5, zorder=4)
    for axes in (spectrum, energy):
        style.log_rank_axis(axes, longest)
        axes.set_xlabel("rank $i$")
    spectrum.set_ylabel(r"eigenvalue $\lambda_i$ of $C$, nats²")
    paper_axes.log_y(spectrum)
    paper_axes.legend(spectrum, columns=2 if len(data["shown"]) > 2 else 1)
    paper_axes.level(energy, 0.9)
    energy.set(ylabel="share of tr $C$ in the first $i$", ylim=(0, 1.02))
    epochs = data["spectrum_epochs"]
    paper_axes.epoch_axis(dimension, epochs[0][-1], start=epochs[0][0])
    paper_axes.shade(dimension, data["phases"])
    paper_axes.curve(dimension, epochs, data["dimension"], style.WHOLE, "$D_s$")
    dimension.plot(epochs[0], data["dimension"][0], "o", color=style.WHOLE, markersize=3.5)
    dimension.set_ylabel("$D_s$, eigenvalues that hold 90 %")
    dimension.set_ylim(0, 1.15 * max(max(each) for each in data["dimension"]))  # room for the phases' names
    return figure
