"""gram_pass: K = G Gᵀ formed while the backward pass runs; the factors of one layer are all that is ever held of G."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sgdkern.capture import (
    BatchLoss,
    Params,
    captured,
    captured_in_chunks,
    chunk_of,
    coverage_of,
    explicit_entries,
    outputs_of,
    posed,
)
from sgdkern.columns import Entry
from sgdkern.footprint import footprint, pass_size
from sgdkern.full_precision import full_precision
from sgdkern.gradient_matrix import GradientMatrix, joined_outputs
from sgdkern.gram_routes import is_packed
from sgdkern.losses import Loss
from sgdkern.one_by_one import give_away
from sgdkern.preserve import preserve
from sgdkern.problem import Batch, Problem, at_least_single, part_of, slices_of
from sgdkern.recorded_pass import Pass, check_gradients, located, recorded
from sgdkern.source import Shaped
from sgdkern.speaker import speaking_as
from sgdkern.study import TELLING_SAMPLES, Plan, plan_for
from sgdkern.tiled_gram import cross_gram

# Where K is smaller than this, so much waits for each other: an operation's call costs more than to multiply it.
WAITING_BYTES = 2**20


@dataclass(frozen=True, repr=False)
class GramMatrix(Shaped):
    """K = G Gᵀ of N samples, with what was seen on the way; G itself is gone.

    What needs only inner products of gradients takes it in G's place: `sgdkern.order_parameters`,
    `sgdkern.noise_spectrum`.

    Args:
        values: K, [N, N].
        parameters: name → slice of the flat columns [P] that G would have.
        losses: unreduced losses l_n, [N].
        outputs: what the model returned, detached, where it returned one tensor; None otherwise.
        coverage: parameter → the route that its gradients took.
    """

    values: Tensor
    parameters: Mapping[str, slice]
    losses: Tensor
    outputs: Tensor | None
    coverage: Mapping[str, str]

    @property
    def _like(self) -> Tensor:
        return self.values

    @property
    def prefers_gram(self) -> bool:
        """K is there."""
        return True

    def gram(self) -> Tensor:
        """K, [N, N]; do not write into it."""
        return self.values

    def squared_norms(self) -> Tensor:
        """‖g_n‖², the diagonal of K, [N]."""
        return self.values.diagonal()

    @full_precision
    def gram_matvec(self, weights: Tensor) -> Tensor:
        """K w, [N] or [N, k] as ``weights``."""
        return self.values @ torch.as_tensor(weights).to(self.device, self.dtype)

    def minibatch_squared_norms(self, indices: Tensor) -> Tensor:
        """‖mean of the rows of each minibatch‖², [M, B] → [M]."""
        indices = indices.to(self.device)
        return self.values[indices[:, :, None], indices[:, None, :]].mean((1, 2))

    def matvec(self, vector: Tensor) -> NoReturn:
        """G v needs G."""
        raise _without("matvec")

    def rmatvec(self, weights: Tensor) -> NoReturn:
        """Gᵀ w needs G."""
        raise _without("rmatvec")

    def covariance_matvec(self, vector: Tensor) -> NoReturn:
        """Σ v needs G."""
        raise _without("covariance_matvec")

    def mean(self) -> NoReturn:
        """ḡ needs G."""
        raise _without("mean")

    @property
    def layers(self) -> NoReturn:
        """The layers' own matrices need G."""
        raise _without("layers")


def _without(what: str) -> TypeError:
    """The error for what inner products of gradients do not tell."""
    return TypeError(
        f"{what}: the gradients must be at hand, but a GramMatrix holds K = G Gᵀ alone. Take per_sample_gradients, or "
        'method="gram" for a spectrum.'
    )


def gram_matrix(
    model: nn.Module,
    loss_fn: Loss | None = None,
    inputs: Any = None,
    targets: Any = None,
    *,
    params: Params = None,
    memory_budget: int | None = None,
    batch_loss: BatchLoss | None = None,
    batch: Batch = None,
    seed: int | None = None,
) -> GramMatrix:
    """K = G Gᵀ of all samples in the memory of an ordinary backward pass: K, and one layer's factors at a time.

    The same numbers as ``per_sample_gradients(...).gram()``, which keeps the factors of all layers for whatever may be
    asked next. Here each layer's part of K is added when its gradient comes by, and the layer is forgotten.

    Args:
        model: as for `per_sample_gradients`, like all that follows.
        loss_fn: the loss.
        inputs: the samples.
        targets: what the loss compares with.
        params: restricts the gradient to parameters.
        memory_budget: bytes for K, the model's outputs and the pass over the samples; explicit gradients come on top.
            Where all together do not fit, K is formed in tiles: the factors of some samples are held while those of
            all later ones are recomputed.
        batch_loss: a second form of the loss, ``batch_loss(model, batch)`` giving losses [N].
        batch: what ``batch_loss`` takes.
        seed: seed of random layers, whose masks are drawn tile by tile where K is formed in tiles.

    Returns:
        K, with losses and outputs.

    Raises:
        TypeError: as `per_sample_gradients`.
        ValueError: as `per_sample_gradients`; or the budget holds too little.
        RuntimeError: as `per_sample_gradients`.

    Example:
        >>> import torch, sgdkern as sk
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> K = sk.gram_matrix(model, torch.nn.CrossEntropyLoss(), torch.randn(6, 4), torch.arange(6) % 3)
        >>> K.gram().shape
        torch.Size([6, 6])
    """
    with speaking_as("gram_matrix"):
        problem = posed(model, loss_fn, inputs, targets, params, batch_loss, batch, seed)
        tiling = None if memory_budget is None else _tiling(problem, memory_budget)
        if tiling is not None:
            return _tiled(problem, *tiling)
        size = pass_size(problem)
        return _whole(problem) if size is None else _of(captured_in_chunks(problem, size))


class _Sum:
    """K, layer by layer.

    Narrow linear layers, scales and shifts wait for each other, up to the size of K: one sweep over K's tiles then
    serves them all.
    """

    def __init__(self, problem: Problem, losses: Tensor) -> None:
        self._tracked, self._losses = problem.tracked, losses
        self._order = {name: place for place, name in enumerate(problem.tracked)}
        self._waiting: list[Entry] = []
        self._held = 0  # bytes of what waits
        self._gram: Tensor | None = None

    def add(self, entries: Sequence[Entry]) -> None:
        """Take the factors of some parameters, all that there are for them."""
        if not all(is_packed(entry.factors) for entry in entries):
            self._add(entries)
            return
        self._waiting += entries
        self._held += sum(entry.factors.bytes_per_sample for entry in entries) * len(self._losses)
        if self._held > max(WAITING_BYTES, entries[0].factors.output_grads.element_size() * len(self._losses) ** 2):
            self._add_waiting()

    def finish(self) -> Tensor:
        """K, once what waits is added; zeros where no parameter had a gradient."""
        self._add_waiting()
        return self._losses.new_zeros(len(self._losses), len(self._losses)) if self._gram is None else self._gram

    def _add_waiting(self) -> None:
        if self._waiting:
            entries, self._waiting, self._held = self._waiting, [], 0
            self._add(entries)

    def _add(self, entries: Sequence[Entry]) -> None:
        names = frozenset[str]().union(*(entry.parameters for entry in entries))
        known = sorted(names & self._order.keys(), key=self._order.__getitem__)
        slices = slices_of({name: self._tracked[name] for name in known})
        part = GradientMatrix(tuple(entries), slices, self._losses)
        if self._gram is None:
            self._gram = part.gram()  # as the operation gave it: K is never there twice
        else:
            part.add_gram_to(self._gram)


def _whole(problem: Problem) -> GramMatrix:
    """K from one pass over all samples."""
    with preserve(problem.model, seed=problem.seed):
        seen = recorded(problem)
        return _formed(problem, seen, plan_for(problem, seen))


def _of(gradients: GradientMatrix) -> GramMatrix:
    """K of gradients at hand, which are let go."""
    return GramMatrix(gradients.gram(), gradients.parameters, gradients.losses, gradients.outputs, gradients.coverage)


def _formed(problem: Problem, seen: Pass, plan: Plan) -> GramMatrix:
    """K from one recorded pass."""
    losses, outputs = at_least_single(seen.losses.detach()), outputs_of(seen)
    coverage = coverage_of(problem, seen.recorder.sites, plan)
    total = _Sum(problem, losses)
    give_away(seen, located(seen, plan.layouts), plan.explicit, total.add)
    for entry in explicit_entries(problem, plan, seen.dtype):
        check_gradients([entry], problem.numbers)
        total.add([entry])
    return GramMatrix(total.finish(), slices_of(problem.tracked), losses, outputs, coverage)


def _tiling(problem: Problem, budget: int) -> tuple[int, int] | None:
    """Samples a block and blocks held at once; None where one pass over all samples fits the budget."""
    num_samples, weight = problem.num_samples, footprint(problem)
    widest = max(max(4, parameter.element_size()) for parameter in problem.tracked.values())
    size = widest * num_samples**2
    room = budget - 2 * size - 2 * num_samples * weight.outputs  # K, and the part of it that one layer adds
    if num_samples * weight.capture <= room:
        return None
    least = min(TELLING_SAMPLES, num_samples)
    block = room // max(1, 2 * (weight.capture + weight.factors))
    if block < least:
        needed = 2 * size + 2 * num_samples * weight.outputs + 2 * least * (weight.capture + weight.factors)
        raise ValueError(
            f"gram_matrix: memory_budget must hold K twice and the passes of {least} samples, {needed:,} bytes, got "
            f"{budget:,}. Raise it, take fewer samples, or take StreamingGradients, which needs no K in memory."
        )
    held = (room - block * (weight.capture + weight.factors)) // max(1, block * weight.factors)
    return block, max(1, held)


def _tiled(problem: Problem, size: int, held_at_once: int) -> GramMatrix:
    """K block by block: a band of blocks is held while all later ones pass by."""
    few = captured(part_of(problem, torch.arange(min(TELLING_SAMPLES, problem.num_samples))))
    gram = torch.zeros(problem.num_samples, problem.num_samples, dtype=few.dtype, device=few.device)
    starts = range(0, problem.num_samples, size)
    spans = [slice(start, min(start + size, problem.num_samples)) for start in starts]
    seen: list[GradientMatrix] = []  # losses and outputs of the first walk
    for first in range(0, len(spans), held_at_once):
        held: list[tuple[slice, GradientMatrix]] = []
        for number, columns in enumerate(spans[first:], first):
            block = captured(chunk_of(problem, columns.start, columns.stop))
            if first == 0:
                seen.append(dataclasses.replace(block, entries=()))
            for rows, other in held:
                gram[rows, columns] = cross_gram(other, block)
                gram[columns, rows] = gram[rows, columns].T
            if number < first + held_at_once:
                gram[columns, columns] = block.gram()
                held.append((columns, block))
    return GramMatrix(
        gram,
        slices_of(problem.tracked),
        torch.cat([block.losses for block in seen]),
        joined_outputs(seen),
        few.coverage,
    )
