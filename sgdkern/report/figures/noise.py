"""The spectrum of the gradient noise: the paper's Figs. 2 and 5."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgdkern.history import Record
from sgdkern.report import style
from sgdkern.report.figures.panel import Line, Panel, column, over_time, when
from sgdkern.report.run_folder import RunFolder

ENERGY = 0.9  # the share of the noise that defines D_s


def spectra(run: RunFolder) -> Panel | None:
    """Eigenvalues of the noise covariance by rank, one curve a phase (Figs. 2A and 5).

    Args:
        run: The run.

    Returns:
        The panel, None where no spectrum was measured.
    """
    chosen = run.representative(_has_spectrum)
    if not chosen:
        return None
    panel = style.canvas("Spectrum of the noise", strip=False, legend_rows=2)
    axes = panel.axes
    largest, longest = 0.0, 1
    for name, record in chosen.items():
        values = _eigenvalues(record)
        axes.plot(np.arange(1, len(values) + 1), values, label=_label(run, name, record), **_look(name))
        largest, longest = max(largest, float(values.max(initial=0.0))), max(longest, len(values))
    style.log_rank_axis(axes, longest)
    axes.set_yscale("log")
    smallest = min(float(_eigenvalues(record).min(initial=largest)) for record in chosen.values())
    axes.set_ylim(max(smallest, largest * 1e-9) / 2, largest * 3)
    style.plain_log_axis(axes.yaxis)
    axes.set_xlabel("rank of the eigenvalue (log scale)")
    axes.set_ylabel("eigenvalue, (loss / parameter)²")
    style.add_legend(panel, columns=2)
    caption = (
        f"Eigenvalues of the covariance C of minibatch gradients, over {_params(chosen)}, one curve a phase (Figs. 2A "
        "and 5). The steep fall says how few directions carry the noise."
    )
    return Panel("fig5_spectra", "noise", panel.figure, caption, "Eigenvalue spectra of the noise, one a phase.")


def cumulative(run: RunFolder) -> Panel | None:
    """The share of the noise that the leading eigenvalues hold, and D_s (Fig. 2B).

    Args:
        run: The run.

    Returns:
        The panel, None where no spectrum was measured.
    """
    chosen = run.representative(_has_spectrum)
    if not chosen:
        return None
    panel = style.canvas("How many directions hold the noise", strip=False, legend_rows=2)
    axes = panel.axes
    longest = 2
    for name, record in chosen.items():
        spectrum = record.spectrum
        assert spectrum is not None
        share = np.cumsum(_eigenvalues(record)) / spectrum.trace
        longest = max(longest, len(share))
        label = f"{name}: $D_s$ = {spectrum.effective_dimension:,.0f}"
        axes.plot(np.arange(1, len(share) + 1), share, label=label, **_look(name))
        if spectrum.effective_dimension <= len(share):
            axes.plot(
                spectrum.effective_dimension, ENERGY, "o", color=_look(name)["color"], markersize=6, zorder=4,
                markeredgecolor="white", markeredgewidth=1, clip_on=False,
            )  # fmt: skip
    axes.axhline(ENERGY, color=style.MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1.5)
    style.log_rank_axis(axes, longest)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("number of leading eigenvalues (log scale)")
    axes.set_ylabel("share of the noise")
    style.add_legend(panel, columns=2)
    caption = (
        f"The effective dimension D_s is where a curve crosses {100 * ENERGY:.0f} %: so many directions hold "
        f"{100 * ENERGY:.0f} % of the noise strength (Fig. 2B)."
    )
    found = ", ".join(
        f"{name} {record.spectrum.effective_dimension:,.0f}" for name, record in chosen.items() if record.spectrum
    )
    return Panel("fig2b_cumulative", "noise", panel.figure, caption, f"Cumulative spectra. D_s by phase: {found}.")


def dimension(run: RunFolder) -> Panel | None:
    """D_s over the run.

    Args:
        run: The run.

    Returns:
        The panel, None where fewer than three spectra were measured.
    """
    values = np.array([
        np.nan if record.spectrum is None else record.spectrum.effective_dimension for record in run.history
    ])
    if np.isfinite(values).sum() < 3:
        return None
    lines = [Line("all parameters", values, style.WHOLE)]
    if (hidden := column(run, "effective_dimension_hidden")) is not None:
        lines.append(Line("hidden weights", hidden, style.CHOSEN, (0, (3, 1.3))))
    figure = over_time(run, "Effective dimension of the noise", "$D_s$ (directions)", lines)
    figure.axes[0].set_ylim(bottom=0)
    caption = "D_s over the run. It usually grows while wrong labels are memorised."
    return Panel("fig2c_dimension", "noise", figure, caption, "Effective dimension over time.")


def strength(run: RunFolder) -> Panel | None:
    """Noise strength D against directed activity A0.

    Args:
        run: The run.

    Returns:
        The panel, None where D was never measured.
    """
    named = (("D", "noise strength $D$", style.WHOLE, "-"), ("A0", "directed $A_0$", style.CHOSEN, (0, (4, 1.5))))
    lines = [
        Line(label, run.history.column(name), colour, dashes)
        for name, label, colour, dashes in named
        if run.history.has(name)
    ]
    if not lines or not run.history.has("D"):
        return None
    figure = over_time(run, "Noise and signal", "$D$ and $A_0$, (loss / parameter)²", lines, log=True)
    caption = "The noise strength D (the trace of C) beside the directed activity A₀: their sum is the activity A."
    return Panel("fig1b_noise_strength", "training", figure, caption, "Noise strength and directed activity over time.")


def _has_spectrum(record: Record) -> bool:
    return record.spectrum is not None and len(record.spectrum.eigenvalues) > 0


def _eigenvalues(record: Record) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Positive eigenvalues only: rounding leaves a tail around zero, which no logarithm can show."""
    values = np.array(record.spectrum.eigenvalues if record.spectrum else (), dtype=np.float64)
    return values[values > 0]


def _params(chosen: dict[str, Record]) -> str:
    words = {record.spectrum.params for record in chosen.values() if record.spectrum}
    return "all parameters" if words <= {"all"} else ", ".join(sorted(words))


def _label(run: RunFolder, name: str, record: Record) -> str:
    return f"{name}, {when(run, record.step)}"


def _look(name: str) -> dict[str, Any]:
    return {
        "color": style.PHASE_COLOURS.get(name, style.WHOLE),
        "linestyle": style.PHASE_DASHES.get(name, "-"),
        "linewidth": 2.0,
    }
