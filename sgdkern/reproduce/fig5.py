"""The paper's Fig. 5: the noise spectrum in the four phases of learning with wrong labels."""

from __future__ import annotations

from collections.abc import Sequence

from sgdkern.reproduce.curves import START, landmarks
from sgdkern.reproduce.figure import Findings, PaperFigure, Row, extent, spread
from sgdkern.reproduce.job import Job, Load, Result
from sgdkern.reproduce.plan import Plan
from sgdkern.reproduce.spectra import Spans, dimensions, draw_spectra, spectra_data

# Phase: the paper's D_s, and the range of an independent implementation.
_KNOWN = {"I": ("43", "33–55"), "II": ("58", "42–66"), "III": ("140", "157–159"), "IV": ("95", "89–100")}


def _jobs(plan: Plan) -> Sequence[Job]:
    return plan.noisy_spectra()


def _findings(plan: Plan, load: Load) -> Findings:
    runs = [load(job) for job in plan.noisy_spectra()]
    spans = [_spans(run) for run in runs]
    rows = []
    for phase, (paper, reference) in _KNOWN.items():
        middles, every = dimensions(runs, spans, phase)
        rows.append(Row(f"D_s in phase {phase}, its middle", paper, spread(middles, ".0f")))
        rows.append(Row(f"D_s in phase {phase}, all measurements", paper, extent(every), reference))
    before = [{"I": (START, max(landmarks(run).t_half, START))} for run in runs]
    rows.append(Row("D_s before the test error has fallen half-way", "–", extent(dimensions(runs, before, "I")[1])))
    return Findings(spectra_data(runs, spans), tuple(rows))


def _spans(run: Result) -> Spans:
    """The four phases; phase I from where the test error has fallen half-way: before, nothing has been learned yet."""
    found = landmarks(run)
    spans = {name: (max(start, found.t_half), end) for name, (start, end) in found.phases.items()}
    return {name: (start, end) for name, (start, end) in spans.items() if end > start}


FIGURE = PaperFigure(
    name="fig5",
    title="The noise spectrum in the four phases",
    caption=(
        "As Fig. 2, with wrong labels: eigenvalues of the gradient noise covariance C of the weights between the "
        "two hidden layers in the middle of each phase (A; of phase I after the test error has fallen half-way), "
        "summed up (B; the dot is D_s, where 90 % of the trace is reached), and D_s over time (C, one curve a "
        "seed, the first one strong). The phases are those of the test error."
    ),
    jobs=_jobs,
    findings=_findings,
    draw=draw_spectra,
)
