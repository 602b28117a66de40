"""What every kind of factors offers, and what they share: chunks of samples, ranges of outputs, minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

# Rows are formed for so many bytes at a time: large enough for full-speed products, small beside an ordinary backward
# pass.
CHUNK_BYTES = 64 * 2**20
# A sum of gradients is multiplied with the factors in parts of this size, which a last-level cache holds.
SUM_BYTES = 8 * 2**20


class Factors(Protocol):
    """What a gradient matrix asks of factors; N samples, p local columns, k vectors at once."""

    @property
    def output_grads(self) -> Tensor:
        """Gradients of the outputs, samples first."""

    @property
    def num_samples(self) -> int:
        """N."""

    @property
    def bytes_per_sample(self) -> int:
        """Size of one sample's factors."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of columns of each piece; they add up to p."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Explicit gradients of samples start … stop − 1, [stop − start, p]."""

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N]."""

    def matvec(self, vectors: Tensor) -> Tensor:
        """G v for [p, k], giving [N, k]."""

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w for [N, k], giving [p, k]."""

    def select(self, indices: Tensor) -> Factors:
        """The factors of samples [M], or of sums over minibatches [M, B]: more positions a sample."""

    def keep(self, pieces: Sequence[bool]) -> Factors:
        """The factors restricted to some of their pieces."""

    def slices(self, limit_bytes: int) -> Iterator[Factors]:
        """The columns in parts whose rows for all samples fit a limit (one output's at least), in any order."""


def chunks(num_samples: int, bytes_per_sample: int) -> list[tuple[int, int]]:
    """Ranges of samples whose rows fit `CHUNK_BYTES`, at least one sample each."""
    step = max(1, min(num_samples, CHUNK_BYTES // max(1, bytes_per_sample)))
    return [(start, min(start + step, num_samples)) for start in range(0, num_samples, step)]


def output_ranges(output_grads: Tensor, weights: int, limit_bytes: int) -> list[tuple[int, int]]:
    """Ranges of outputs whose explicit gradients for all samples fit a limit."""
    num_samples, out_features = output_grads.shape[0], output_grads.shape[2]
    step = max(1, limit_bytes // (output_grads.element_size() * max(1, num_samples * weights)))
    return [(start, min(start + step, out_features)) for start in range(0, out_features, step)]


def gram_products(factors: Factors, weights: Tensor) -> Tensor:
    """K w = G (Gᵀ w) some columns of G at a time, so that what goes between the two products stays in a cache.

    Args:
        factors: the factors.
        weights: w, [N, k].

    Returns:
        [N, k].
    """
    products = torch.zeros_like(weights)
    for part in factors.slices(SUM_BYTES * factors.num_samples):
        products += part.matvec(part.rmatvec(weights))
    return products


def squared_norms_by_rows(factors: Factors) -> Tensor:
    """‖g_n‖² by forming the rows of a few samples at a time, [N]."""
    norms = []
    for start, stop in chunks(factors.num_samples, 4 * sum(factors.sizes)):
        rows = factors.rows(start, stop)
        norms.append(torch.linalg.vecdot(rows, rows))
    return torch.cat(norms)


def gathered(tensor: Tensor, indices: Tensor) -> Tensor:
    """Samples [M] of a tensor [N, T, …], or minibatches [M, B] whose positions follow one another, [M, B·T, …]."""
    chosen = tensor[indices]
    return chosen if indices.ndim == 1 else chosen.flatten(1, 2)
