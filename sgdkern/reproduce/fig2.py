"""The paper's Fig. 2: the noise spectrum without wrong labels."""

from __future__ import annotations

from collections.abc import Sequence

from sgdkern.reproduce.curves import START, landmarks
from sgdkern.reproduce.figure import Findings, PaperFigure, Row, extent, spread
from sgdkern.reproduce.job import Job, Load, Result
from sgdkern.reproduce.plan import Plan
from sgdkern.reproduce.spectra import Spans, dimensions, draw_spectra, spectra_data


def _jobs(plan: Plan) -> Sequence[Job]:
    return plan.clean_spectra()


def _spans(run: Result) -> Spans:
    """The two phases, divided where the test error has fallen but for a tenth."""
    found = landmarks(run)
    change = max(found.t12, START)
    spans = {"fast": (START, change), "exploration": (change, found.end)}
    return {name: (start, end) for name, (start, end) in spans.items() if end > start}


def _findings(plan: Plan, load: Load) -> Findings:
    runs = [load(job) for job in plan.clean_spectra()]
    spans = [_spans(run) for run in runs]
    rows = []
    for phase in ("fast", "exploration"):
        middles, every = dimensions(runs, spans, phase)
        rows.append(Row(f"D_s, {phase} phase, its middle", "≈ 110", spread(middles, ".0f")))
        rows.append(Row(f"D_s, {phase} phase, all measurements", "≈ 110", extent(every), "84–104"))
    return Findings(spectra_data(runs, spans), tuple(rows))


FIGURE = PaperFigure(
    name="fig2",
    title="The noise spectrum without wrong labels",
    caption=(
        "Eigenvalues of the gradient noise covariance C of the weights between the two hidden layers, taken over "
        "all training samples: in the middle of each phase (A), summed up (B; the dot is D_s, where 90 % of the "
        "trace is reached), and D_s over time (C, one curve a seed, the first one strong). Exploration begins "
        "where the test error has fallen but for a tenth."
    ),
    jobs=_jobs,
    findings=_findings,
    draw=draw_spectra,
)
