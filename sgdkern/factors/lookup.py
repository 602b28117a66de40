"""Embeddings: indices in place of one-hot inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.factors.explicit import Explicit
from sgdkern.factors.protocol import Factors, chunks, gathered, output_ranges


@dataclass(frozen=True)
class Lookup:
    """Embeddings: inputs are indices in place of one-hot rows; gradient Σ_t e_{i_nt} b_ntᵀ, [V, O].

    Args:
        indices: i, [N, T], int64; a position whose index is −1 contributes nothing (padding).
        output_grads: b, [N, T, O].
        num_embeddings: V.
    """

    indices: Tensor
    output_grads: Tensor
    num_embeddings: int

    @property
    def num_samples(self) -> int:
        """N."""
        return self.indices.shape[0]

    @property
    def bytes_per_sample(self) -> int:
        """Size of one sample's factors."""
        return self.output_grads[:1].nbytes + self.indices[:1].nbytes

    @property
    def sizes(self) -> tuple[int, ...]:
        """V·O."""
        return (self.num_embeddings * self.output_grads.shape[2],)

    @property
    def is_shared(self) -> bool:
        """Whether all samples have the same indices, none of them twice and none of them padding."""
        first = self.indices[:1]
        unlike = bool((self.indices != first).any()) or bool((first < 0).any())
        return not unlike and first.unique().numel() == self.indices.shape[1] and self.num_samples > 0

    def rows(self, start: int, stop: int) -> Tensor:
        """Explicit gradients, [n, V·O], by scattered addition."""
        indices, grads = self.indices[start:stop], self.output_grads[start:stop]
        rows = grads.new_zeros(stop - start, self.num_embeddings + 1, grads.shape[2])
        where = indices.remainder(self.num_embeddings + 1)  # padding, −1, lands in an extra row that is dropped below
        where = where[..., None].expand_as(grads)
        return rows.scatter_add_(1, where, grads)[:, :-1].flatten(1)

    def gram(self) -> Tensor:
        """K = Σ_{t,s} [i_nt = i_ms] b_nt·b_ms, [N, N]: only positions that share an index meet.

        Positions of one sample and index are summed into a cell; cells of one index are next to each other, and indices
        with about as many cells go through one batched product.

        Returns:
            K, [N, N].
        """
        num_samples, num_positions = self.indices.shape
        flat, grads = self.indices.flatten(), self.output_grads.flatten(0, 1)
        samples = torch.arange(num_samples, device=flat.device).repeat_interleave(num_positions)
        if bool((flat < 0).any()):
            flat, grads, samples = flat[flat >= 0], grads[flat >= 0], samples[flat >= 0]
        keys, where = torch.unique(flat * num_samples + samples, return_inverse=True)
        cells = grads.new_zeros(len(keys), grads.shape[1]).index_add_(0, where, grads)
        owners = keys % num_samples
        _, counts = torch.unique_consecutive(keys // num_samples, return_counts=True)
        starts = counts.cumsum(0) - counts
        gram = cells.new_zeros(num_samples * num_samples)
        size = 1
        while len(counts) and size < 2 * int(counts.max()):
            some = (counts <= size) & (counts > size // 2)
            steps = torch.arange(size, device=flat.device)
            places = (starts[some, None] + steps).clamp_max(len(keys) - 1)
            absent = steps >= counts[some, None]  # the cells of a next index, which fill a shorter group up
            for start, stop in chunks(len(places), 16 * size * (size + cells.shape[1])):
                block, missing = cells[places[start:stop]], absent[start:stop]
                products = torch.bmm(block, block.transpose(1, 2))
                products.masked_fill_(missing[:, :, None] | missing[:, None, :], 0)
                samples = owners[places[start:stop]]
                pairs = samples[:, :, None] * num_samples + samples[:, None, :]
                gram.index_add_(0, pairs.flatten(), products.flatten())
            size *= 2
        return gram.view(num_samples, num_samples)

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N], by position pairs with equal indices, a few samples at a time."""
        norms = [self.output_grads.new_zeros(0)]
        for start, stop in chunks(self.num_samples, 16 * self.indices.shape[1] ** 2):
            indices, grads = self.indices[start:stop], self.output_grads[start:stop]
            same = (indices[:, :, None] == indices[:, None, :]) & (indices[:, :, None] >= 0)
            norms.append((torch.bmm(grads, grads.transpose(1, 2)) * same).sum((1, 2)))
        return torch.cat(norms)

    def matvec(self, vectors: Tensor) -> Tensor:
        """G v, [N, k]: gathered rows of v against b."""
        grads = self.output_grads.flatten(1)
        valid = (self.indices >= 0)[..., None]
        where = self.indices.clamp_min(0)
        tables = vectors.T.reshape(-1, self.num_embeddings, self.output_grads.shape[2])
        return torch.stack([torch.linalg.vecdot((table[where] * valid).flatten(1), grads) for table in tables], 1)

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w, [p, k]: rows of w ⊙ b added where they belong."""
        where = self.indices.flatten().remainder(self.num_embeddings + 1)
        columns = []
        for weight in weights.unbind(1):
            grads = (self.output_grads * weight[:, None, None]).flatten(0, 1)
            table = grads.new_zeros(self.num_embeddings + 1, grads.shape[1]).index_add_(0, where, grads)
            columns.append(table[:-1].flatten())
        return torch.stack(columns, 1)

    def select(self, indices: Tensor) -> Lookup:
        """The factors of samples [M] or of minibatches [M, B]."""
        return dataclasses.replace(
            self, indices=gathered(self.indices, indices), output_grads=gathered(self.output_grads, indices)
        )

    def keep(self, pieces: Sequence[bool]) -> Factors:
        """All or nothing: there is one piece."""
        return self if pieces[0] else Explicit(self.output_grads.new_zeros(self.num_samples, 0))

    def slices(self, limit_bytes: int) -> Iterator[Lookup]:
        """Some outputs at a time."""
        for start, stop in output_ranges(self.output_grads, self.num_embeddings, limit_bytes):
            yield dataclasses.replace(self, output_grads=self.output_grads[:, :, start:stop])
