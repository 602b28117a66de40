"""one_by_one: a backward pass that gives away each layer's factors as soon as they are whole, and keeps none.

A pass that keeps all factors holds the gradients of all outputs at its end. Here a layer's gradient is met on its way
through autograd's graph, turned into factors, used, and let go, with the activations that belong to it: the peak is
that of an ordinary backward pass and what one layer needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from sgdkern.columns import Entry, Groups
from sgdkern.layers import Layout, Scattered
from sgdkern.passing_by import passing_by
from sgdkern.recorded_pass import Pass, check_gradients, site_entries

Consumer = Callable[[Sequence[Entry]], None]


def give_away(
    seen: Pass, places: Sequence[Layout | Scattered | None], explicit: Collection[str], consume: Consumer
) -> None:
    """Run the backward pass of a recorded forward pass; its graph and its sites are used up.

    Args:
        seen: the pass.
        places: where the samples are in each site's output.
        explicit: names of the parameters to leave out.
        consume: is given all entries that meet in some parameters, once they are complete.

    Raises:
        RuntimeError: if a gradient is not finite.
    """
    sites = seen.recorder.sites
    families = _families([site.parameters for site in sites])
    waiting = [set(family) for family in families]
    family_of = {place: number for number, family in enumerate(families) for place in family}
    complete: dict[int, list[Entry]] = {number: [] for number in range(len(families))}

    def receive(place: int, grad: Tensor | None) -> None:
        number, where = family_of[place], places[place]
        if place not in waiting[number]:
            return
        waiting[number].discard(place)
        if grad is not None and where is not None:
            placed = site_entries(seen, sites[place], where, grad.detach(), explicit)
            check_gradients(placed, seen.numbers)
            complete[number] += placed
        sites[place] = sites[place].without_arguments()
        if not waiting[number]:
            entries = complete.pop(number)
            if entries:
                consume(entries)

    passing_by(seen.losses.sum(), [site.edge for site in sites], receive)
    for place in range(len(sites)):  # what the loss does not depend on
        receive(place, None)


def _families(parameters: Sequence[Collection[str]]) -> list[list[int]]:
    """Sites that share a parameter, directly or by others between them."""
    groups = Groups(len(parameters))
    first: dict[str, int] = {}
    for place, names in enumerate(parameters):
        for name in names:
            groups.unite(place, first.setdefault(name, place))
    return groups.members()
