"""StreamingGradients: G of a whole data set, a chunk of samples at a time; every product is a pass over the data.

G = [G_1; G_2; …] is the stack of the chunks that the loader's batches give. What needs only passes reads the same here
as on a `GradientMatrix`:

    G v      each chunk's product, one after the other          one pass
    Gᵀ w     Σ_c G_cᵀ w_c                                       one pass
    Σ v      Σ_c G_cᵀ (G_c v − ḡ·v) / N                         one pass, since ḡ is known from the first one
    G Gᵀ u   Gᵀ u, then G (Gᵀ u)                                two passes

The factors of a chunk are recomputed every pass, or kept in memory as far as they fit, or in a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sgdkern.capture import BatchLoss, Params, per_sample_gradients
from sgdkern.chunk_store import factor_bytes, store
from sgdkern.full_precision import product
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.losses import Loss
from sgdkern.problem import taken

Progress = Callable[[int, int, int | None], None]  # pass, samples done in it, N where known


class StreamingGradients:
    """Per-sample gradients of all samples of a data loader, never in memory together.

    The loader must give the same batches in the same order every time it is walked through: no shuffling, no random
    augmentation. A pass that meets other data or losses than the first one did is an error. Sample n is the n-th that
    the loader gives.

    Args:
        model: As for `per_sample_gradients`; it must not change while the stream is in use.
        loss_fn: As for `per_sample_gradients`.
        loader: Batches (inputs, targets), re-iterable: a `DataLoader` with shuffle=False, or a list.
        params: As for `per_sample_gradients`.
        cache: What happens to factors after a pass: None recomputes them, "memory" keeps those that fit in half of
            `memory_bound`, a folder's path keeps all in a file there that ends with the process.
        chunk_size: Most samples captured at once; larger batches are cut. None takes the loader's batches as they come.
        memory_bound: Bytes that cached factors and blocks of vectors [P, k] may take together; beyond it blocks are cut
            into more passes. The model, one chunk's capture, and what the caller holds come on top.
        progress: Called after each chunk with (number of the pass, samples done, N or None in the first pass).
        batch_loss: As for `per_sample_gradients`, in place of `loss_fn`; it is given each of the loader's batches
            whole.
        seed: As for `per_sample_gradients`.

    Raises:
        TypeError: The loader is an iterator, which could be walked through only once.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss | None,
        loader: Iterable[Any],
        *,
        params: Params = None,
        cache: str | os.PathLike[str] | None = None,
        chunk_size: int | None = None,
        memory_bound: int = 2 * 2**30,
        progress: Progress | None = None,
        batch_loss: BatchLoss | None = None,
        seed: int | None = None,
    ) -> None:
        if isinstance(loader, Iterator):
            raise TypeError(
                f"StreamingGradients: the loader must be re-iterable, got {type(loader).__name__}, which ends after one"
                " pass. Pass the DataLoader itself, or a list of its batches."
            )
        if batch_loss is not None:
            self._capture = lambda batch: per_sample_gradients(
                model, batch_loss=batch_loss, batch=batch, params=params, seed=seed
            )
        else:
            self._capture = lambda batch: per_sample_gradients(model, loss_fn, *batch, params=params, seed=seed)
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._loader = loader
        self._chunk_size = chunk_size
        self._memory_bound = memory_bound
        self._store = store(cache, memory_bound // 2)
        self._progress = progress
        self._survey: _Survey | None = None
        self._marks: list[Tensor] = []  # of every chunk, what its data were recognised by
        self.num_passes = 0

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.losses)

    @property
    def num_params(self) -> int:
        """P."""
        return len(self._surveyed.mean)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, P)."""
        return self.num_samples, self.num_params

    @property
    def parameters(self) -> dict[str, slice]:
        """Name → the parameter's columns among the flat P."""
        return self._surveyed.parameters

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of every product: that of the factors."""
        return self._surveyed.mean.dtype

    @property
    def device(self) -> torch.device:
        """Device of the factors."""
        return self._device

    @property
    def losses(self) -> Tensor:
        """l_n, [N]."""
        return self._surveyed.losses

    @property
    def factor_bytes(self) -> int:
        """Bytes that the factors of all samples would take together."""
        return self._surveyed.factor_bytes

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N]; known from the first pass."""
        return self._surveyed.squared_norms

    def mean(self) -> Tensor:
        """Mean gradient ḡ, [P]; known from the first pass."""
        return self._surveyed.mean

    def chunks(self) -> Iterator[GradientMatrix]:
        """One pass: the rows of G in order, as gradient matrices.

        Yields:
            The chunks.

        Raises:
            ValueError: The data or the losses are not those of the first pass.
        """
        survey, done = self._surveyed, 0
        kept = len(self._store) == survey.num_chunks
        for chunk in self._counted(self._kept() if kept else self._fresh(), len(survey.losses)):
            before = survey.losses[done : done + chunk.num_samples]
            if before.shape != chunk.losses.shape or not torch.allclose(
                before, chunk.losses, rtol=1e-3, equal_nan=True
            ):
                raise self._changed(f"other losses from sample {done} on")
            done += chunk.num_samples
            yield chunk
        if done != len(survey.losses):
            raise self._changed(f"{done} samples instead of {len(survey.losses)}")

    def _changed(self, what: str) -> ValueError:
        """The error of a pass that differs from the first one."""
        return ValueError(
            f"StreamingGradients: every pass must meet the same samples in the same order, got {what} in pass"
            f" {self.num_passes}. Build the loader with shuffle=False and without random augmentation, leave the "
            f"model as"
            ' it is, or keep the factors of the first pass with cache="memory" or cache=folder.'
        )

    def matvec(self, vector: Tensor) -> Tensor:
        """G v in one pass, [P] → [N] or [P, k] → [N, k]."""
        return torch.cat([chunk.matvec(vector) for chunk in self.chunks()])

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w, [N] → [P] or [N, k] → [P, k]: one pass for as many columns as fit in the memory bound."""
        if weights.shape[0] != self.num_samples:
            raise ValueError(
                f"rmatvec: the weights must be [N] or [N, k] with N = {self.num_samples}, got {list(weights.shape)}."
            )
        columns = weights.reshape(self.num_samples, -1)
        return torch.cat([self._rmatvec(block) for block in columns.split(self._columns_at_once, 1)], 1).view(
            -1, *weights.shape[1:]
        )

    def gram_matvec(self, weights: Tensor) -> Tensor:
        """K w = G (Gᵀ w), [N] or [N, k] as ``weights``: two passes for as many columns as fit in the memory bound."""
        columns = weights.reshape(self.num_samples, -1)
        parts = [self.matvec(self._rmatvec(block)) for block in columns.split(self._columns_at_once, 1)]
        return torch.cat(parts, 1).view(weights.shape)

    def covariance_matvec(self, vector: Tensor) -> Tensor:
        """Σ v = Σ_c G_cᵀ (G_c v − ḡ·v) / N in one pass, [P] or [P, k] as ``vector``."""
        vectors = vector.reshape(self.num_params, -1).to(self.device, self.dtype)
        level = product(self.mean(), vectors)
        out = torch.zeros_like(vectors)
        for chunk in self.chunks():
            out += chunk.rmatvec(chunk.matvec(vectors) - level)
        return (out / self.num_samples).view(vector.shape)

    def select(self, indices: Tensor) -> GradientMatrix:
        """Some rows of G in one pass, [M] int64 or a mask [N]; their factors must fit in memory."""
        if indices.ndim != 1:
            raise ValueError(f"select: indices must be [M] or a mask [N], got {list(indices.shape)}.")
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        indices = indices.to(self.device)
        parts, places, start = [], [], 0
        for chunk in self.chunks():
            here = ((indices >= start) & (indices < start + chunk.num_samples)).nonzero()[:, 0]
            if len(here):
                parts.append(chunk.select(indices[here] - start))
                places.append(here)
            start += chunk.num_samples
        return GradientMatrix.stack(parts).select(torch.cat(places).argsort())

    def minibatch_squared_norms(self, indices: Tensor) -> Tensor:
        """‖(1/B) Σ_{n∈µ} g_n‖² of minibatches, [M, B] → [M]: one pass for as many of them as fit in memory."""
        size = indices.shape[1]
        # A minibatch is held either as the factors of its samples or as its mean gradient, P numbers, whichever is
        # smaller.
        gathered = self.factor_bytes // self.num_samples * size
        summed = self.num_params * self.dtype.itemsize
        at_once = max(1, self._memory_bound // 2 // max(1, min(gathered, summed)))
        parts = []
        for block in indices.to(self.device).split(at_once):
            if gathered <= summed:
                members, places = torch.unique(block, return_inverse=True)
                parts.append(self.select(members).minibatch_squared_norms(places))
            else:
                weights = torch.zeros(self.num_samples, len(block), dtype=self.dtype, device=self.device)
                weights.scatter_add_(0, block.T, torch.full_like(block.T, 1, dtype=self.dtype) / size)
                parts.append(self._rmatvec(weights).square().sum(0))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=self.dtype, device=self.device)

    def gathered(self) -> GradientMatrix:
        """All rows as one gradient matrix, for data that does fit in memory."""
        return GradientMatrix.stack(list(self.chunks()))

    def _rmatvec(self, columns: Tensor) -> Tensor:
        """Gᵀ w in one pass, [N, k] → [P, k]."""
        out, start = columns.new_zeros(self.num_params, columns.shape[1], dtype=self.dtype), 0
        for chunk in self.chunks():
            out += chunk.rmatvec(columns[start : start + chunk.num_samples])
            start += chunk.num_samples
        return out

    @property
    def _columns_at_once(self) -> int:
        """How many columns [P] fit in half of the memory bound: the sum, a chunk's share of it, a transposed copy."""
        return max(1, self._memory_bound // 2 // (3 * self.num_params * self.dtype.itemsize))

    @property
    def _surveyed(self) -> _Survey:
        """What the first pass tells."""
        if self._survey is None:
            self._store.clear()
            self._marks.clear()
            losses, norms, total, size, chunk = [], [], None, 0, None
            for chunk in self._counted(self._fresh(), None):
                losses.append(chunk.losses)
                norms.append(chunk.squared_norms())
                part = chunk.rmatvec(torch.ones_like(chunk.losses))
                total = part.double() if total is None else total.add_(part)  # in place: P numbers are many
                del part
                size += factor_bytes(chunk)
            if chunk is None or total is None:
                raise ValueError(
                    "StreamingGradients: the loader must give at least one batch, got none. Is it exhausted?"
                )
            count = sum(len(part) for part in losses)
            mean = total.div_(count).to(chunk.dtype)
            self._survey = _Survey(torch.cat(losses), torch.cat(norms), mean, dict(chunk.parameters), size, len(losses))
        return self._survey

    def _counted(self, chunks: Iterator[GradientMatrix], num_samples: int | None) -> Iterator[GradientMatrix]:
        """One pass, counted and reported."""
        self.num_passes += 1
        done = 0
        for chunk in chunks:
            yield chunk
            done += chunk.num_samples
            if self._progress is not None:
                self._progress(self.num_passes, done, num_samples)

    def _kept(self) -> Iterator[GradientMatrix]:
        """The chunks, all of them from the store."""
        for index in range(len(self._store)):
            if (chunk := self._store.get(index)) is not None:
                yield chunk

    def _fresh(self) -> Iterator[GradientMatrix]:
        """The chunks by way of the loader, from the store where it has them."""
        index = 0
        for batch in self._loader:
            for part in self._parts(batch):
                chunk = self._store.get(index)
                if chunk is None:
                    self._recognise(index, part)
                    chunk = self._capture(pytree.tree_map(self._moved, part))  # type: ignore[no-untyped-call]
                    self._store.put(index, chunk)
                index += 1
                yield chunk

    def _recognise(self, index: int, part: Any) -> None:
        """Refuse data that are not those of the first pass: losses may agree where samples do not."""
        mark = _mark(part)
        if index >= len(self._marks):
            if self._survey is not None:
                raise self._changed(f"more than {len(self._marks)} chunks")
            self._marks.append(mark)
        elif mark.shape != self._marks[index].shape or not torch.allclose(
            mark, self._marks[index], rtol=1e-4, atol=1e-6 * float(mark.abs().max()), equal_nan=True
        ):
            raise self._changed(f"other data in chunk {index}")

    def _moved(self, leaf: Any) -> Any:
        """A tensor on the model's device."""
        return leaf.to(self._device) if isinstance(leaf, Tensor) else leaf

    def _parts(self, batch: Any) -> Iterator[Any]:
        """The batch, cut into pieces of at most `chunk_size` samples."""
        size = next(len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
        step = self._chunk_size or size
        for start in range(0, size, step):
            yield batch if step >= size else taken(batch, torch.arange(start, min(start + step, size)))


def _mark(part: Any) -> Tensor:
    """A few numbers a sample that change with its data and with their order, float64."""
    marks = [torch.zeros(1, dtype=torch.float64)]
    for leaf in pytree.tree_leaves(part):
        if isinstance(leaf, Tensor) and leaf.numel() and leaf.ndim:
            rows = leaf.detach().reshape(len(leaf), -1)
            rows = rows if rows.is_floating_point() else rows.double()
            # Weights that differ, since a picture that was mirrored has the same sum.
            weights = torch.arange(rows.shape[1], device=leaf.device).cos()
            marks.append(product(rows, weights.to(rows.dtype)).double().cpu())
    return torch.cat(marks)


@dataclass(frozen=True)
class _Survey:
    """What the first pass over the data tells."""

    losses: Tensor  # [N]
    squared_norms: Tensor  # [N]
    mean: Tensor  # [P]
    parameters: dict[str, slice]
    factor_bytes: int
    num_chunks: int
