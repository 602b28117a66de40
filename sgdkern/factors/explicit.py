"""Per-sample gradients held as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Explicit:
    """Per-sample gradients held as they are: scales and shifts, and whatever has no cheaper form.

    Args:
        output_grads: the rows themselves, [N, p].
    """

    output_grads: Tensor

    @property
    def num_samples(self) -> int:
        """N."""
        return self.output_grads.shape[0]

    @property
    def bytes_per_sample(self) -> int:
        """Size of one sample's factors."""
        return self.output_grads[:1].nbytes

    @property
    def sizes(self) -> tuple[int, ...]:
        """One piece of p columns."""
        return (self.output_grads.shape[1],)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start … stop − 1, [stop − start, p]."""
        return self.output_grads[start:stop]

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N]."""
        return self.output_grads.square().sum(1)

    def matvec(self, vectors: Tensor) -> Tensor:
        """G v, [N, k]."""
        return self.output_grads @ vectors

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w, [p, k]."""
        return self.output_grads.T @ weights

    def select(self, indices: Tensor) -> Explicit:
        """Rows of samples [M], or their sums over minibatches [M, B]."""
        rows = self.output_grads[indices]
        return Explicit(rows if indices.ndim == 1 else rows.sum(1))

    def keep(self, pieces: Sequence[bool]) -> Explicit:
        """All or nothing: there is one piece."""
        return self if pieces[0] else Explicit(self.output_grads[:, :0])

    def slices(self, limit_bytes: int) -> Iterator[Explicit]:
        """The rows are there already."""
        yield self
