"""The paper's figures for one run: each function draws one panel, or says None where the run lacks what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sgdkern.report.figures import group_alignment, losses, noise, order_parameters, training
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
    group_alignment.group_alignments,
    losses.separation,
    noise.spectra,
    noise.cumulative,
    noise.dimension,
    losses.distributions,
)


def draw(run: RunFolder) -> Iterator[list[Panel]]:
    """Draw every figure that the run can show; to be used inside `style.applied()`.

    Args:
        run: The run.

    Yields:
        For each entry of `PANELS` the panels that it drew, in the order of the report.
    """
    for panel in PANELS:
        found = panel(run) if len(run.history) else None
        yield found if isinstance(found, list) else [] if found is None else [found]
