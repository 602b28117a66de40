"""GradientMatrix: G, samples × parameters, never materialised; G v, Gᵀ w and K = G Gᵀ from its factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sgdkern.columns import Entry, Whole, components, merged, restricted, same_structure, stacked
from sgdkern.factors import Explicit, chunks
from sgdkern.full_precision import full_precision
from sgdkern.gram_routes import (
    add_gram_by_rows,
    add_grams,
    gram_is_cheaper,
    gram_of,
    norms_and_products,
    norms_of_sums,
    squared_norms,
)
from sgdkern.source import Shaped

# How the route of a parameter begins that no loss depends on.
UNUSED = "no gradient"
# `dense` refuses to build more than this: G is meant never to exist.
DENSE_LIMIT_BYTES = 2 * 2**30


@dataclass(frozen=True, repr=False)
class GradientMatrix(Shaped):
    """Per-sample gradients of N samples with respect to P parameters, as factors.

    Rows are g_n = ∂l_n/∂θ for unreduced losses l_n; the flat order of the P columns is ``model.named_parameters()``'s.
    Made by `sgdkern.per_sample_gradients`.

    Args:
        entries: factors and their columns; several may meet in the same parameter (tied weights, a module called
            twice).
        parameters: name → slice of the flat columns [P].
        losses: unreduced losses l_n, [N].
        outputs: what the model returned, detached, where it returned one tensor; None otherwise.
        coverage: parameter → the route that its gradients took.

    Example:
        >>> import torch, sgdkern as sk
        >>> model = torch.nn.Linear(3, 2)
        >>> G = sk.per_sample_gradients(model, torch.nn.MSELoss(), torch.randn(5, 3), torch.randn(5, 2))
        >>> G.shape, G.gram().shape
        ((5, 8), torch.Size([5, 5]))
    """

    entries: tuple[Entry, ...]
    parameters: Mapping[str, slice]
    losses: Tensor
    outputs: Tensor | None = None
    coverage: Mapping[str, str] = field(default_factory=dict)
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def from_dense(rows: Tensor, losses: Tensor | None = None) -> GradientMatrix:
        """G from explicit rows.

        Args:
            rows: G itself, [N, P], floating point.
            losses: l_n, [N]; zeros where not given.

        Returns:
            The gradient matrix, with one parameter named ``parameters``.

        Raises:
            ValueError: if ``rows`` is not a matrix of floating-point numbers or ``losses`` does not fit it.
        """
        if rows.ndim != 2 or not rows.is_floating_point():
            raise ValueError(
                f"from_dense: rows must be a floating-point matrix [N, P], got {list(rows.shape)} of {rows.dtype}."
            )
        losses = rows.new_zeros(len(rows)) if losses is None else losses
        if losses.shape != rows.shape[:1]:
            raise ValueError(f"from_dense: losses must be [N] = [{len(rows)}], got {list(losses.shape)}.")
        entry = Entry(Explicit(rows.detach()), (Whole(("parameters",)),))
        return GradientMatrix(
            (entry,), {"parameters": slice(0, rows.shape[1])}, losses, coverage={"parameters": "explicit rows"}
        )

    @property
    def _like(self) -> Tensor:
        return self.entries[0].factors.output_grads if self.entries else self.losses

    @full_precision
    def matvec(self, vector: Tensor) -> Tensor:
        """G v.

        Args:
            vector: v, [P], or k vectors as columns, [P, k].

        Returns:
            [N] or [N, k].

        Raises:
            ValueError: if the vector does not have P rows.
        """
        vectors = self._columns(vector, self.num_params, "matvec", "P")
        out = vectors.new_zeros(self.num_samples, vectors.shape[1])
        for entry in self.entries:
            out += entry.factors.matvec(entry.push(vectors.T, self.parameters))
        return out.view(-1, *torch.as_tensor(vector).shape[1:])

    @full_precision
    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w, the weighted sum of per-sample gradients.

        Args:
            weights: w, [N], or k sets of weights as columns, [N, k].

        Returns:
            [P] or [P, k].

        Raises:
            ValueError: if the weights do not have N rows.
        """
        columns = self._columns(weights, self.num_samples, "rmatvec", "N")
        out = columns.new_zeros(columns.shape[1], self.num_params)
        for entry in self.entries:
            entry.pull(entry.factors.rmatvec(columns).T, out, self.parameters)
        return out.T.reshape(-1, *torch.as_tensor(weights).shape[1:])

    def _columns(self, vector: Tensor, rows: int, op: str, letter: str) -> Tensor:
        """The argument as columns in the factors' dtype, checked."""
        vector = torch.as_tensor(vector)
        if vector.ndim not in (1, 2) or vector.shape[0] != rows:
            raise ValueError(
                f"{op}: the vector must be [{letter}] or [{letter}, k] with {letter} = {rows}, got "
                f"{list(vector.shape)}."
            )
        return (
            vector.to(self.device, self.dtype).view(rows, -1)
            if vector.numel()
            else vector.new_zeros(rows, vector.shape[-1])
        )

    def mean(self) -> Tensor:
        """Mean gradient ḡ, [P]."""
        return self.rmatvec(self._like.new_full((self.num_samples,), 1 / max(1, self.num_samples)))

    @full_precision
    def gram_matvec(self, weights: Tensor) -> Tensor:
        """K w = G Gᵀ w without K, [N] or [N, k] as ``weights``."""
        weights = torch.as_tensor(weights)
        if "gram" in self._cache:
            gram = self._cache["gram"]  # float32 for 16-bit rows
            return (gram @ weights.to(gram)).to(self.dtype)
        columns = self._columns(weights, self.num_samples, "gram_matvec", "N")
        return self._norms_and_products(columns)[:, 1:].reshape(weights.shape).contiguous()

    @torch.no_grad()  # the operations have no derivatives, and norms that are kept carry no graph
    def _norms_and_products(self, columns: Tensor) -> Tensor:
        """The diagonal of K and K w, [N, 1 + k], a layer or a part of it at a time, never [P, k]; norms are kept."""
        groups = self._components()
        plain, norms = [group.entries[0].factors for group in groups if group.plain], "squared_norms" not in self._cache
        wide = columns.to(torch.promote_types(self.dtype, torch.float32))
        total = norms_and_products(plain, wide, norms=norms).to(self.dtype)
        for group in groups:
            if not group.plain:
                total[:, 1:] += group.matvec(group.rmatvec(columns))
                total[:, 0] += group.squared_norms() if norms else 0
        if norms:
            self._cache["squared_norms"] = total[:, 0].clone()
        return total

    def covariance_matvec(self, vector: Tensor) -> Tensor:
        """Σ v with Σ = (G − 1ḡᵀ)ᵀ(G − 1ḡᵀ)/N, [P] or [P, k] as ``vector``."""
        projections = self.matvec(vector)
        return self.rmatvec(projections - projections.mean(0)) / self.num_samples

    @full_precision
    def squared_norms(self) -> Tensor:
        """‖g_n‖², the diagonal of K, [N]."""
        if "squared_norms" not in self._cache and "gram" in self._cache:
            self._cache["squared_norms"] = self._cache["gram"].diagonal().to(self.dtype, copy=True)
        if "squared_norms" not in self._cache:
            norms = self._like.new_zeros(self.num_samples)
            for group in self._components():
                norms += group._component_norms()
            self._cache["squared_norms"] = norms
        return self._cache["squared_norms"]

    def _component_norms(self) -> Tensor:
        """Squared norms of one component, [N]."""
        if self.plain:
            return squared_norms(self.entries[0].factors)
        norms = [self.losses[:0].to(self.dtype)]
        for start, stop in chunks(self.num_samples, self._like.element_size() * self.num_params):
            norms.append(self.rows(start, stop).square().sum(1))
        return torch.cat(norms)

    @full_precision
    def gram(self) -> Tensor:
        """K = G Gᵀ, [N, N]; kept with the gradient matrix, so do not write into it."""
        if "gram" not in self._cache:
            groups = self._components()
            gram = gram_of([group.entries[0].factors for group in groups if group.plain], self._like)
            for group in groups:
                if not group.plain:
                    add_gram_by_rows(gram, group.rows, group.num_params)
            self._cache["gram"] = gram
        return self._cache["gram"]

    @full_precision
    def add_gram_to(self, gram: Tensor) -> None:
        """K += G Gᵀ, in place: [N, N]."""
        groups = self._components()
        add_grams(gram, [group.entries[0].factors for group in groups if group.plain])
        for group in groups:
            if not group.plain:
                add_gram_by_rows(gram, group.rows, group.num_params)

    @property
    def prefers_gram(self) -> bool:
        """Whether K is there, or costs less than G (Gᵀ w)."""
        return "gram" in self._cache or gram_is_cheaper([entry.factors for entry in self.entries])

    @property
    def plain(self) -> bool:
        """Whether one set of factors is all there is, so that their inner products are G's."""
        return len(self.entries) == 1 and self.entries[0].orthogonal

    @full_precision
    def rows(self, start: int, stop: int) -> Tensor:
        """Explicit gradients of samples start … stop − 1, [stop − start, P]."""
        out = self._like.new_zeros(stop - start, self.num_params)
        for entry in self.entries:
            entry.pull(entry.factors.rows(start, stop), out, self.parameters)
        return out

    def dense(self, *, limit_bytes: int = DENSE_LIMIT_BYTES) -> Tensor:
        """G itself, [N, P].

        Args:
            limit_bytes: refuse to build more than this.

        Returns:
            Explicit per-sample gradients.

        Raises:
            ValueError: if G would be larger than the limit.
        """
        size = self.num_samples * self.num_params * self._like.element_size()
        if size > limit_bytes:
            raise ValueError(
                f"dense: G must fit {limit_bytes:,} bytes, got {self.num_samples} x {self.num_params} = {size:,} "
                f"bytes. "
                "Use matvec, rmatvec or gram, restrict params=, or raise limit_bytes."
            )
        return self.rows(0, self.num_samples)

    @full_precision
    def minibatch_squared_norms(self, indices: Tensor) -> Tensor:
        """‖(1/B) Σ_{n∈µ} g_n‖² of minibatches, without K: a minibatch is one sample with B times as many positions.

        Args:
            indices: members of each minibatch, [M, B], int64.

        Returns:
            Squared norms of the mean gradients, [M].

        Raises:
            ValueError: if the indices are not [M, B].
        """
        if indices.ndim != 2:
            raise ValueError(f"minibatch_squared_norms: indices must be [M, B], got {list(indices.shape)}.")
        num_minibatches, size = indices.shape
        indices = indices.to(self.device)
        if "gram" in self._cache or self.num_samples**2 <= 2 * num_minibatches * size**2:  # K has no more pairs
            return self.gram()[indices[:, :, None], indices[:, None, :]].mean((1, 2))
        groups = self._components()
        norms = norms_of_sums([group.entries[0].factors for group in groups if group.plain], indices, self._like)
        for group in groups:
            if not group.plain:
                for place, members in enumerate(indices):
                    norms[place] += group.select(members).rmatvec(self._like.new_ones(size)).square().sum()
        return norms / size**2

    def select(self, indices: Tensor | Sequence[int] | slice | Any) -> GradientMatrix:
        """Rows of G.

        Args:
            indices: which samples: integers [M] (a tensor, an array, a list, a range), a slice, or a mask [N]; or
                minibatches [M, B], whose rows are summed.

        Returns:
            The gradient matrix of these samples.

        Raises:
            ValueError: if an index is out of range, or there are more than two axes.
        """
        if isinstance(indices, slice | range):
            indices = torch.arange(self.num_samples)[indices] if isinstance(indices, slice) else list(indices)
        indices = torch.as_tensor(indices, device=self.device)
        if indices.dtype == torch.bool and indices.shape == (self.num_samples,):
            indices = indices.nonzero()[:, 0]
        indices = indices.long() if indices.numel() == 0 else indices
        good = not indices.is_floating_point() and indices.dtype != torch.bool and indices.ndim in (1, 2)
        if not good or (
            indices.numel() and not -self.num_samples <= int(indices.min()) <= int(indices.max()) < self.num_samples
        ):
            raise ValueError(
                f"select: indices must be integers [M] or [M, B] below {self.num_samples}, or a mask "
                f"[{self.num_samples}], got {indices.dtype} {list(indices.shape)}."
            )
        losses = self.losses[indices] if indices.ndim == 1 else self.losses[indices].sum(1)
        entries = tuple(Entry(entry.factors.select(indices), entry.columns) for entry in self.entries)
        outputs = self.outputs[indices] if self.outputs is not None and indices.ndim == 1 else None
        return dataclasses.replace(self, entries=entries, losses=losses, outputs=outputs, _cache={})

    @staticmethod
    def stack(parts: Sequence[GradientMatrix], *, consume: bool = False) -> GradientMatrix:
        """Several sets of samples as one matrix, rows one after the other.

        Args:
            parts: gradient matrices with the same parameters.
            consume: whether ``parts`` is a list that may lose its factors on the way, so that they are not held twice.

        Returns:
            The gradient matrix of all samples.

        Raises:
            TypeError: if what is to be consumed is no list.
            ValueError: if there are no parts, or their parameters differ.
        """
        if not parts:
            raise ValueError("stack: at least one gradient matrix is needed, got none.")
        if consume and not isinstance(parts, list):
            raise TypeError(f"stack: consume takes a list of its parts, got {type(parts).__name__}. Make a list of it.")
        first = parts[0]
        for part in parts:
            if dict(part.parameters) != dict(first.parameters):
                raise ValueError(
                    f"stack: parts must share their parameters, got {list(first.parameters)} and "
                    f"{list(part.parameters)}."
                )
        alike = all(same_structure(first.entries, part.entries) for part in parts)
        rest = [list(part.entries) for part in parts]
        if consume:
            parts[:] = [dataclasses.replace(part, entries=(), _cache={}) for part in parts]  # type: ignore[index]
            first = parts[0]
        if alike:
            entries = stacked(rest)
        else:  # unlike factors (a batch that took another path through the model): their rows are explicit
            rows = torch.cat([
                dataclasses.replace(part, entries=tuple(kept)).dense() for part, kept in zip(parts, rest, strict=True)
            ])
            entries = tuple(
                Entry(Explicit(rows[:, columns]), (Whole((name,)),)) for name, columns in first.parameters.items()
            )
        return dataclasses.replace(
            first,
            entries=entries,
            losses=torch.cat([part.losses for part in parts]),
            outputs=joined_outputs(parts),
            coverage={  # a layer that some parts do not use has the route of those that do
                name: min((part.coverage[name] for part in parts), key=lambda route: route.startswith(UNUSED))
                for name in first.coverage
                if all(name in part.coverage for part in parts)
            },
            _cache={},
        )

    def chunks(self) -> Iterator[GradientMatrix]:
        """The matrix itself: what it shares with a stream of matrices too large to hold at once."""
        yield self

    @property
    def layers(self) -> dict[str, GradientMatrix]:
        """Module name → G restricted to the module's own parameters."""
        names: dict[str, list[str]] = {}
        for name in self.parameters:
            names.setdefault(name.rpartition(".")[0], []).append(name)
        entries: dict[str, list[Entry]] = {layer: [] for layer in names}
        for entry in self.entries:
            for layer in {name.rpartition(".")[0] for name in entry.parameters if name in self.parameters}:
                entries[layer].append(entry)
        return {layer: self._only(members, _restricted(entries[layer], members)) for layer, members in names.items()}

    def restrict(self, names: Sequence[str]) -> GradientMatrix:
        """Columns of G: some parameters only, in their order in G.

        Args:
            names: names of parameters of G.

        Returns:
            The gradient matrix of these parameters.

        Raises:
            ValueError: if a name is not a parameter of G.
        """
        wanted = set(names)
        unknown = sorted(wanted - set(self.parameters))
        if unknown:
            raise ValueError(f"restrict: names must be parameters of G, got {unknown}. G has {list(self.parameters)}.")
        return self._only([name for name in self.parameters if name in wanted], _restricted(self.entries, wanted))

    def _components(self) -> list[GradientMatrix]:
        """Entries that share no parameter element apart, each as a gradient matrix of its own parameters."""
        order = {name: place for place, name in enumerate(self.parameters)}
        found = []
        for group in components(self.entries):
            names = frozenset[str]().union(*(entry.parameters for entry in group)) & order.keys()
            found.append(self._only(sorted(names, key=order.__getitem__), merged(group)))
        return found

    def _only(self, names: Sequence[str], entries: Iterable[Entry]) -> GradientMatrix:
        """Some columns of G, packed in the order of their names, with their entries."""
        slices: dict[str, slice] = {}
        start = 0
        for name in names:
            columns = self.parameters[name]
            slices[name] = slice(start, start := start + columns.stop - columns.start)
        coverage = {name: self.coverage[name] for name in names if name in self.coverage}
        return dataclasses.replace(self, entries=tuple(entries), parameters=slices, coverage=coverage, _cache={})


def joined_outputs(parts: Sequence[GradientMatrix]) -> Tensor | None:
    """What the model returned for all samples, where that is a row a sample in all parts, of one shape."""
    outputs = [part.outputs for part in parts if part.outputs is not None]
    by_sample = all(part.outputs is not None and part.outputs.shape[:1] == part.losses.shape for part in parts)
    return torch.cat(outputs) if by_sample and len({output.shape[1:] for output in outputs}) == 1 else None


def _restricted(entries: Iterable[Entry], names: Iterable[str]) -> list[Entry]:
    """What entries have in some parameters."""
    wanted = frozenset(names)
    return [kept for entry in entries if (kept := restricted(entry, wanted)) is not None]
