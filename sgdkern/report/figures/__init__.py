"""The paper's figures for one run: each function draws one panel, or says None where the run lacks what it needs."""

from __future__ import annotations

from collections.abc import Callable

from sgdkern.report import style
from sgdkern.report.figures import losses, noise, order_parameters, training
from sgdkern.report.figures.panel import Panel
from sgdkern.report.run_folder import RunFolder

__all__ = ["PANELS", "Panel", "draw"]

PANELS: tuple[Callable[[RunFolder], Panel | list[Panel] | None], ...] = (
    training.errors,
    losses.accuracies,
    losses.at_cleaning_time,
    training.loss,
    noise.strength,
    order_parameters.alignment,
    order_parameters.projection_variance,
    order_parameters.activity,
    order_parameters.directed_activity,
    order_parameters.ratio,
    order_parameters.alignments,
    order_parameters.blind_alignment,
    losses.separation,
    noise.spectra,
    noise.cumulative,
    noise.dimension,
    losses.distributions,
)


def draw(run: RunFolder, progress: Callable[[int, int], None] | None = None) -> list[Panel]:
    """Draw every figure that the run can show.

    Args:
        run: The run.
        progress: Called with the number of figures tried and their total.

    Returns:
        The panels, in the order of the report.
    """
    panels: list[Panel] = []
    if not len(run.history):
        return panels
    with style.applied():
        for done, panel in enumerate(PANELS, start=1):
            found = panel(run)
            panels += found if isinstance(found, list) else [found] if found is not None else []
            if progress:
                progress(done, len(PANELS))
    return panels
