"""passing_by: a backward pass whose gradients are met on their way through the graph, and not kept.

`torch.autograd.grad` holds whatever gradients it is asked for until it returns. It is asked only for those behind which
no other wanted one lies; the others pass by on the way there. Those that pass by have been through the hooks that a
user registered on their tensors, as the parameters' gradients have; those that are asked for have not, if the pass goes
on behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Receiver = Callable[[int, Tensor | None], None]


def passing_by(
    total: Tensor,
    edges: Sequence[GradientEdge],
    receive: Receiver,
    *,
    leaves: Sequence[Tensor] = (),
    retain_graph: bool = False,
) -> list[Tensor | None]:
    """Run the backward pass of a sum, and hand over each edge's gradient as it comes by.

    Args:
        total: what is differentiated, a number.
        edges: places in its graph.
        receive: is given the number of an edge, and the gradient there.
        leaves: parameters whose gradients are wanted as well.
        retain_graph: whether further passes follow.

    Returns:
        The gradients of the leaves.
    """
    if not (edges or leaves) or not total.requires_grad:
        return [None] * len(leaves)
    last = _reached_last(total.grad_fn, [edge.node for edge in edges])
    waiting = set(range(len(edges)))

    def give(place: int, grad: Tensor | None) -> None:
        if place in waiting:
            waiting.remove(place)
            receive(place, grad)

    passing = range(len(edges)) if leaves else sorted(waiting.difference(last))
    hooks = [edges[place].node.register_prehook(_giver(give, place, edges[place].output_nr)) for place in passing]
    try:
        wanted: list[Any] = [*(edges[place] for place in last), *leaves]
        found: list[Tensor | None] = list(
            torch.autograd.grad(total, wanted, allow_unused=True, retain_graph=retain_graph)
        )
    finally:
        for hook in hooks:
            hook.remove()
    for place in last:
        give(place, found.pop(0))
    return found


def _giver(receive: Receiver, place: int, output: int) -> Callable[..., None]:
    """A hook that hands the gradient of one output of a node on."""

    def hook(grads: tuple[Tensor | None, ...]) -> None:
        with torch.no_grad():
            receive(place, grads[output])

    return hook


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
