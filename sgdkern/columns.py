"""Columns: where factors lie among the parameters, the flat columns of G."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sgdkern.factors import Dense, Factors, can_stack, stack


class Columns(Protocol):
    """Where one piece of some factors lies among the columns of G."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters."""

    def push(self, vectors: Tensor, slices: Mapping[str, slice]) -> Tensor:
        """What the piece sees of vectors [k, P], as [k, p]."""

    def pull(self, local: Tensor, out: Tensor, slices: Mapping[str, slice]) -> None:
        """Add local columns [k, p] to [k, P] where they belong."""


@dataclass(frozen=True)
class Whole:
    """A whole parameter, in its own order."""

    parameters: tuple[str, ...]

    def push(self, vectors: Tensor, slices: Mapping[str, slice]) -> Tensor:
        """The parameter's columns."""
        return vectors[:, slices[self.parameters[0]]]

    def pull(self, local: Tensor, out: Tensor, slices: Mapping[str, slice]) -> None:
        """Add to the parameter's columns."""
        out[:, slices[self.parameters[0]]] += local


@dataclass(frozen=True)
class Part:
    """Elements of one parameter in some order: a transposed weight, a third of an attention's in_proj.

    Args:
        parameters: the parameter's name.
        index: position of each column within the parameter, [p], int64.
    """

    parameters: tuple[str, ...]
    index: Tensor

    def push(self, vectors: Tensor, slices: Mapping[str, slice]) -> Tensor:
        """The elements' columns."""
        return vectors[:, slices[self.parameters[0]]][:, self.index]

    def pull(self, local: Tensor, out: Tensor, slices: Mapping[str, slice]) -> None:
        """Add to the elements' columns."""
        out[:, slices[self.parameters[0]]].index_add_(1, self.index, local)


@dataclass(frozen=True)
class Derived:
    """A tensor computed from parameters alone (a normalised weight, say): a linear map J away from them.

    Args:
        parameters: names of the parameters that it is computed from.
        pullback: vector-Jacobian product, [p] → one flat tensor a parameter.
        pushforward: Jacobian-vector product, the reverse; None stands for zeros.
    """

    parameters: tuple[str, ...]
    pullback: Callable[[Tensor], Sequence[Tensor]]
    pushforward: Callable[[Sequence[Tensor | None]], Tensor]

    def push(self, vectors: Tensor, slices: Mapping[str, slice]) -> Tensor:
        """J v; parameters that are not columns of G stand still."""
        parts = [[vector[slices[name]] if name in slices else None for name in self.parameters] for vector in vectors]
        return torch.stack([self.pushforward(part) for part in parts]).to(vectors.dtype)

    def pull(self, local: Tensor, out: Tensor, slices: Mapping[str, slice]) -> None:
        """Jᵀ u, where it falls on columns of G."""
        for row, vector in zip(out, local, strict=True):
            for name, gradient in zip(self.parameters, self.pullback(vector), strict=True):
                if name in slices:
                    row[slices[name]] += gradient


@dataclass(frozen=True)
class Entry:
    """Factors and the columns of each of their pieces."""

    factors: Factors
    columns: tuple[Columns, ...]

    @property
    def parameters(self) -> frozenset[str]:
        """Names of the parameters that the entry contributes to."""
        return frozenset(name for columns in self.columns for name in columns.parameters)

    def push(self, vectors: Tensor, slices: Mapping[str, slice]) -> Tensor:
        """Vectors [k, P] as the factors want them, [p, k]."""
        return torch.cat([columns.push(vectors, slices) for columns in self.columns], 1).T

    def pull(self, local: Tensor, out: Tensor, slices: Mapping[str, slice]) -> None:
        """Add local columns [k, p] to [k, P]."""
        for columns, piece in zip(self.columns, local.split(list(self.factors.sizes), 1), strict=True):
            columns.pull(piece, out, slices)

    @property
    def orthogonal(self) -> bool:
        """Whether local inner products are the parameters': no element is met twice, and no map lies between."""
        return all(
            isinstance(columns, Whole)
            or (isinstance(columns, Part) and columns.index.unique().numel() == columns.index.numel())
            for columns in self.columns
        )


def components(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries grouped so that no two groups share an element of a parameter, in the order of their first entries.

    Each parameter remembers the places of its own that were met before, equal ones once: entries of other parameters
    are never looked at.

    Args:
        entries: any entries.

    Returns:
        The groups, their members in the given order.
    """
    groups = Groups(len(entries))
    met: dict[str, list[tuple[Columns, int]]] = {}
    for place, entry in enumerate(entries):
        for columns in entry.columns:
            for name in columns.parameters:
                known = met.setdefault(name, [])
                touching = [(other, member) for other, member in known if _touch(columns, other)]
                for _, member in touching:
                    groups.unite(place, member)
                if not any(same_place(columns, other) for other, _ in touching):
                    known.append((columns, place))
    return [[entries[place] for place in group] for group in groups.members()]


class Groups:
    """Places 0 … n − 1 in groups that are united step by step: the smaller joins, so a place moves ≤ log₂ n times.

    Args:
        size: n; each place begins as a group of its own.
    """

    def __init__(self, size: int) -> None:
        self._groups = [[place] for place in range(size)]

    def unite(self, one: int, other: int) -> None:
        """Make one group of those of two places."""
        smaller, larger = sorted((self._groups[one], self._groups[other]), key=len)
        if smaller is not larger:
            larger.extend(smaller)
            for place in smaller:
                self._groups[place] = larger

    def members(self) -> list[list[int]]:
        """The groups, each in order, by their first places."""
        return sorted({id(group): sorted(group) for group in self._groups}.values())


def _touch(first: Columns, second: Columns) -> bool:
    """Whether two pieces of a parameter share an element."""
    if isinstance(first, Part) and isinstance(second, Part):
        return bool(torch.isin(first.index, second.index).any())
    return True


def merged(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Entries with linear layers of the very same columns joined: further calls of one weight are further positions."""
    groups: list[list[Entry]] = []
    linear: dict[tuple[Any, ...], list[list[Entry]]] = {}  # what layers of one weight agree in → their groups
    for entry in entries:
        alike = []
        if isinstance(entry.factors, Dense):
            names = tuple(columns.parameters for columns in entry.columns)
            alike = linear.setdefault((entry.factors.bias, names), [])
        for group in alike:
            if all(same_place(a, b) for a, b in zip(group[0].columns, entry.columns, strict=True)):
                group.append(entry)
                break
        else:
            groups.append([entry])
            alike.append(groups[-1])
    return tuple(_joined(group) for group in groups)


def _joined(group: Sequence[Entry]) -> Entry:
    """One linear layer with the positions of several calls."""
    if len(group) == 1:
        return group[0]
    calls = [entry.factors for entry in group if isinstance(entry.factors, Dense)]
    inputs, grads = torch.cat([call.inputs for call in calls], 1), torch.cat([call.output_grads for call in calls], 1)
    return Entry(Dense(inputs, grads, bias=calls[0].bias), group[0].columns)


def same_place(first: Columns, second: Columns) -> bool:
    """Whether two pieces lie on the same elements of one parameter, in the same order."""
    if isinstance(first, Part) and isinstance(second, Part):
        return first.parameters == second.parameters and torch.equal(first.index, second.index)
    return isinstance(first, Whole) and first == second


def restricted(entry: Entry, names: frozenset[str]) -> Entry | None:
    """The entry's pieces that meet some parameters; None where there are none."""
    kept = [bool(set(columns.parameters) & names) for columns in entry.columns]
    if not any(kept):
        return None
    columns = tuple(columns for columns, keep in zip(entry.columns, kept, strict=True) if keep)
    return Entry(entry.factors if all(kept) else entry.factors.keep(kept), columns)


def same_structure(first: Sequence[Entry], second: Sequence[Entry]) -> bool:
    """Whether two sets of samples have like factors on like columns, so that they can be put together."""
    if len(first) != len(second):
        return False
    return all(
        can_stack([one.factors, two.factors]) and all(map(_stackable, one.columns, two.columns))
        for one, two in zip(first, second, strict=True)
    )


def _stackable(first: Columns, second: Columns) -> bool:
    """Whether two pieces are the same function of the parameters."""
    derived = isinstance(first, Derived) and isinstance(second, Derived) and first.parameters == second.parameters
    return derived or same_place(first, second)


def stacked(rest: Sequence[list[Entry]]) -> tuple[Entry, ...]:
    """Entries of several sets of samples put together one after the other; the lists are used up."""
    entries = []
    shared: dict[Any, Tensor] = {}
    while rest[0]:
        group = [entries_left.pop(0) for entries_left in rest]
        entries.append(Entry(stack([entry.factors for entry in group], shared), group[0].columns))
    return tuple(entries)
