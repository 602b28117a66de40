"""one_by_one: a backward pass that gives away each layer's factors as soon as they are whole, and keeps none.

A pass that keeps all factors holds the gradients of all outputs at its end. Here a layer's gradient is met on its way
through autograd's graph, turned into factors, used, and let go, with the activations that belong to it: the peak is
that of an ordinary backward pass and what one layer needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from sgdkern.columns import Entry, Groups
from sgdkern.layers import Layout
from sgdkern.recorded_pass import Pass, Place, check_gradients, site_entries

Consumer = Callable[[Sequence[Entry]], None]


def give_away(seen: Pass, layouts: Sequence[Place], explicit: Collection[str], consume: Consumer) -> None:
    """Run the backward pass of a recorded forward pass; its graph and its sites are used up.

    Args:
        seen: the pass; every site's samples lie where its layout says.
        layouts: where the samples are in each site's output.
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
        number, layout = family_of[place], layouts[place]
        if place not in waiting[number]:
            return
        waiting[number].discard(place)
        if grad is not None and isinstance(layout, Layout):
            where = dataclasses.replace(layout, num_samples=seen.num_samples)
            placed = site_entries(sites[place], where, grad.detach(), seen.recorder, explicit)
            check_gradients(placed)
            complete[number] += placed
        sites[place] = sites[place].without_arguments()
        if not waiting[number]:
            entries = complete.pop(number)
            if entries:
                consume(entries)

    if not sites or not seen.losses.requires_grad:
        return
    last = _reached_last(seen.losses.grad_fn, [site.edge.node for site in sites])
    hooks = [
        site.edge.node.register_prehook(_giver(receive, place, site.edge.output_nr))
        for place, site in enumerate(sites)
        if place not in last
    ]
    try:
        edges = [sites[place].edge for place in last]
        found = list(torch.autograd.grad(seen.losses.sum(), edges, allow_unused=True))
    finally:
        for hook in hooks:
            hook.remove()
    for place in last:
        receive(place, found.pop(0))
    for place in range(len(sites)):  # what the loss does not depend on
        receive(place, None)


def _giver(receive: Callable[[int, Tensor | None], None], place: int, output: int) -> Callable[..., None]:
    """A hook that hands the gradient of one output of a node on."""

    def hook(grads: tuple[Tensor | None, ...]) -> None:
        with torch.no_grad():
            receive(place, grads[output])

    return hook


def _families(parameters: Sequence[Collection[str]]) -> list[list[int]]:
    """Sites that share a parameter, directly or by others between them."""
    groups = Groups(len(parameters))
    first: dict[str, int] = {}
    for place, names in enumerate(parameters):
        for name in names:
            groups.unite(place, first.setdefault(name, place))
    return groups.members()


def _reached_last(root: Any, nodes: Sequence[Node]) -> list[int]:
    """Places whose node is not on the way to another place's node: no backward pass to the others runs through them.

    Args:
        root: the node of the losses.
        nodes: the node of each place.

    Returns:
        The places, each node once or as often as it is met by several outputs.
    """
    wanted = set(nodes)
    leads: dict[Node, bool] = {}  # whether a wanted node lies behind a node
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        behind = [following for following, _ in node.next_functions if following is not None]
        if done:
            leads[node] = any(other in wanted or leads[other] for other in behind)
        elif node not in leads:
            leads[node] = False
            stack.append((node, True))
            stack.extend((other, False) for other in behind if other not in leads)
    return [place for place, node in enumerate(nodes) if not leads.get(node, False)]
