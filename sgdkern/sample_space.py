"""Eigenpairs of the gradient covariance: Σ (P × P) and H K H / N (N × N) share their non-zero eigenvalues.

H = 1 − 11ᵀ/N centres. An eigenvector u of H K H / N gives v = Gᵀ H u / √(N λ) of Σ, and back. Each function is one
route to the same pairs:

    whole_gram      K formed and diagonalised by LAPACK                                   N³
    stored_gram     K formed (in memory or in a file), Lanczos on it                      N² a vector
    sample_vectors  Lanczos on u → H G Gᵀ H u / N, K never formed                         N P a vector; two passes over
    a stream a block param_vectors   Lanczos on v → Σ v                                                    N P a vector;
    one pass a block, vectors of length P

The trace is known exactly beforehand, tr Σ = mean ‖g_n‖² − ‖ḡ‖², so an iteration can stop as soon as the eigenvalues
found hold the wanted share of it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.gram_pass import GramMatrix
from sgdkern.krylov import MatVec
from sgdkern.lanczos import GiveUp, holding, leading, leading_eigenpairs
from sgdkern.ops import thin_product
from sgdkern.streaming import StreamingGradients
from sgdkern.tiled_gram import TiledGram

Source = GradientMatrix | GramMatrix | StreamingGradients

# 8-byte words that one number of a basis vector takes: itself, its copy while the storage doubles, its share of the
# final vectors. And blocks in flight: the product, its residual and its projections, two of each such word.
WORDS_A_NUMBER = 3
BLOCKS_IN_FLIGHT = 2
# Numbers of K in float64 at once: they stay in the second-level cache.
_NUMBERS_AT_ONCE = 2**17


@dataclass(frozen=True)
class Request:
    """How much of the spectrum is wanted, and what may be spent on it.

    Attributes:
        energy: Share of the trace that the eigenvalues are to hold.
        num_eigenvalues: How many instead, or None.
        vectors: Whether eigenvectors are wanted.
        tolerance: Residual norm of a converged eigenvalue, relative to it.
        block: Vectors multiplied at once; eigenvalues of multiplicity up to the block are found.
        memory_bound: Bytes for K and the basis.
        max_matvecs: Most vectors multiplied, or None.
        generator: Of the random starting block.
        give_up: Whether to end, given the vectors multiplied and those forecast, since there is another route.
    """

    energy: float
    num_eigenvalues: int | None
    vectors: bool
    tolerance: float
    block: int
    memory_bound: int
    max_matvecs: int | None
    generator: torch.Generator | None
    give_up: GiveUp | None = None


@dataclass(frozen=True)
class EigenPairs:
    """Leading eigenpairs of Σ, and what else a route learns of it.

    Attributes:
        values: λ_k, descending [k], float64.
        vectors: Their unit eigenvectors as columns, of H K H / N [N, k] or of Σ [P, k]; where asked for.
        residual_norms: Bound on the distance of λ_k to an eigenvalue [k].
        trace: tr Σ.
        second_moment: Σ λ² over the whole spectrum, where known exactly.
        num_matvecs: Vectors multiplied.
        remedy: What to change, empty where converged.
        of_parameters: Whether the vectors are those of Σ.
    """

    values: Tensor
    vectors: Tensor | None
    residual_norms: Tensor
    trace: float
    second_moment: float | None
    num_matvecs: int
    remedy: str
    of_parameters: bool = False


def rounding(source: Source) -> float:
    """Relative accuracy to which sums of the factors' products agree with each other."""
    return 32 * torch.finfo(source.dtype).eps


def _vanishes(source: Source) -> bool:
    """Whether gradients whose squares are zero are zero themselves; of K alone no more can be known."""
    return isinstance(source, GramMatrix) or not bool(source.mean().any())


@dataclass(frozen=True)
class _Moments:
    """What is known of Σ before any of its eigenvalues: mean ‖g_n‖², ‖ḡ‖², and tr Σ² where K was formed."""

    source: Source
    mean_squared_norm: float
    directed: float
    second: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean_squared_norm):
            raise ValueError(
                "noise_spectrum: the gradients must be finite, got NaN or infinity. Which samples are it?"
                " G.squared_norms() shows them; leave them out, or scale the loss."
            )
        # Below this the squares have no digits left, at last none at all.
        least = torch.finfo(self.source.dtype).tiny / torch.finfo(self.source.dtype).eps
        if self.mean_squared_norm < least and (self.mean_squared_norm or not _vanishes(self.source)):
            raise ValueError(
                f"noise_spectrum: the gradients' squared norms must be above {least:.0e} in {self.source.dtype}, got"
                f" {self.mean_squared_norm:.0e} on average. Scale the loss by a power of two, or take float64."
            )

    @property
    def trace(self) -> float:
        """Tr Σ = mean ‖g_n‖² − ‖ḡ‖²; zero where it drowns in the rounding of the two."""
        difference = self.mean_squared_norm - self.directed
        return difference if difference > rounding(self.source) * self.mean_squared_norm else 0.0

    def bounded(self, values: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues and how far they may be off, given how far an algorithm without rounding would be."""
        if self.trace == 0:  # none of them is above what drowned
            return torch.zeros_like(values), torch.full_like(norms, rounding(self.source) * self.mean_squared_norm)
        # K, or a product with it, is exact to a rounding of what stands in it: ‖K‖ / N ≤ λ_1 + ‖ḡ‖².
        error = torch.finfo(self.source.dtype).eps * (float(values[0]) + self.directed)
        return values.clamp(min=0), norms + error


def _moments_by_passes(source: Source) -> _Moments:
    """From the per-sample norms and the mean gradient."""
    mean = source.mean().double()
    return _Moments(source, float(source.squared_norms().mean(dtype=torch.float64)), float(mean @ mean))


def _rows_at_once(n: int) -> int:
    """How many rows of K are converted to float64 at once."""
    return max(1, _NUMBERS_AT_ONCE // n)


def _moments(source: Source, gram: Tensor) -> _Moments:
    """From K, in float64 and some rows at a time so that no second K is made."""
    n = source.num_samples
    means, squares = [], 0.0
    for rows in gram.split(_rows_at_once(n)):
        exact = rows.double()
        means.append(exact.mean(1))
        squares += float(exact.flatten() @ exact.flatten())
    row_means = torch.cat(means)
    mean = float(row_means.mean())
    # ‖H K H‖² = ‖K‖² − 2 N ‖row means‖² + N² mean².
    second = (squares - 2 * n * float(row_means @ row_means)) / n**2 + mean**2
    return _Moments(source, float(gram.diagonal().mean(dtype=torch.float64)), mean, second)


def whole_gram(G: GradientMatrix | GramMatrix, request: Request) -> EigenPairs:
    """All eigenvalues from LAPACK in the dtype of the factors, on K centred in float64."""
    n, gram = G.num_samples, G.gram()
    size = _rows_at_once(n)
    row_means = torch.cat([rows.double().mean(1) for rows in gram.split(size)])
    mean = row_means.mean()
    # K was rounded to its own dtype before: LAPACK adds no more than that again, in half of the time.
    centred = torch.empty_like(gram, dtype=torch.promote_types(gram.dtype, torch.float32))
    for out, rows, means in zip(*(part.split(size) for part in (centred, gram, row_means - mean)), strict=True):
        out.copy_((rows.double() - row_means).sub_(means[:, None]).div_(n))
    moments = _Moments(G, float(gram.diagonal().mean(dtype=torch.float64)), float(mean))
    count = min(*G.shape, request.num_eigenvalues or n)
    vectors = None
    if request.vectors:
        values, rotation = torch.linalg.eigh(centred)
        vectors = rotation.flip(1)[:, :count]
    else:
        values = torch.linalg.eigvalsh(centred)
    values = values.double().flip(0)
    # LAPACK is backward stable: eigenvalues are off by a modest multiple of √N ε ‖Σ‖, up to 1.8 in what was tried
    norms = torch.full_like(values, float(values[0]) * 4 * math.sqrt(n) * torch.finfo(centred.dtype).eps)
    values, norms = moments.bounded(values, norms)
    return EigenPairs(values[:count], vectors, norms[:count], moments.trace, float(values.square().sum()), 0, "")


def stored_gram(source: Source, gram: Tensor | TiledGram, request: Request) -> EigenPairs:
    """Leading eigenvalues by Lanczos on K, [N, N] in memory or tiles in a file."""
    moments = _moments(source, gram) if isinstance(gram, Tensor) else _moments_by_passes(source)
    product = functools.partial(thin_product, gram) if isinstance(gram, Tensor) else gram.product
    return _sample_vectors(source, lambda u: product(u.to(source.dtype)), moments, request)


def sample_vectors(source: Source, request: Request) -> EigenPairs:
    """Leading eigenvalues by Lanczos in sample space, K never formed."""
    return _sample_vectors(source, _products(source), _moments_by_passes(source), request)


def param_vectors(source: Source, request: Request) -> EigenPairs:
    """Leading eigenvalues by Lanczos on Σ in parameter space."""
    moments = _moments_by_passes(source)
    matvec = lambda v: source.covariance_matvec(v.to(source.dtype))  # noqa: E731
    pairs = _lanczos(source, matvec, source.num_params, moments, request)
    return dataclasses.replace(pairs, of_parameters=True)


def _sample_vectors(source: Source, gram_matvec: MatVec, moments: _Moments, request: Request) -> EigenPairs:
    """Lanczos on H K H / N, given u → K u."""
    n = source.num_samples

    def centred(block: Tensor) -> Tensor:
        products = gram_matvec(block - block.mean(0)).double()
        return products.sub_(products.mean(0)).div_(n)

    return _lanczos(source, centred, n, moments, request)


def _lanczos(source: Source, matvec: MatVec, length: int, moments: _Moments, request: Request) -> EigenPairs:
    """Leading eigenpairs of a matrix with the spectrum of Σ that acts on vectors of this length."""
    most, block = min(source.shape), min(request.block, length)
    capacity, fewest = max_basis(length, block, request.memory_bound), min(length, 3 * block)
    if capacity < fewest:
        raise ValueError(
            f"noise_spectrum: memory_bound must hold {fewest} basis vectors of length {length}, got"
            f" {request.memory_bound:,} bytes. Raise it to"
            f" {8 * WORDS_A_NUMBER * length * (fewest + BLOCKS_IN_FLIGHT * block):,}, or lower block_size."
        )
    generator = request.generator or torch.Generator(source.device).manual_seed(0)
    # Single precision is random enough, and drawn in a third of the time.
    start = torch.randn(length, block, dtype=torch.float32, device=source.device, generator=generator).double()
    if request.num_eigenvalues is None:
        wanted = holding(request.energy * (1 - rounding(source)) * moments.trace)
    else:
        wanted = leading(min(request.num_eigenvalues, most))
    pairs = leading_eigenpairs(
        matvec,
        start,
        wanted,
        tolerance=request.tolerance,
        trace=moments.trace,
        give_up=request.give_up,
        max_basis=capacity,
        max_matvecs=request.max_matvecs,
        vectors=request.vectors,
        generator=generator,
    )
    count = min(len(pairs.values), most)
    values, norms = moments.bounded(pairs.values[:count], pairs.residual_norms[:count])
    vectors = None if pairs.vectors is None else pairs.vectors[:, :count]
    return EigenPairs(values, vectors, norms, moments.trace, moments.second, pairs.num_matvecs, pairs.remedy)


def max_basis(length: int, block: int, memory_bound: int) -> int:
    """How many vectors of a length a basis can hold within a bound in bytes, beside the blocks in flight."""
    return memory_bound // (8 * WORDS_A_NUMBER * length) - BLOCKS_IN_FLIGHT * block


def _products(source: Source) -> MatVec:
    """U → K u, K never formed."""
    if isinstance(source, StreamingGradients) or not source.layers:
        return lambda u: source.gram_matvec(u.to(source.dtype))
    # K is the sum of its layers' (their columns do not overlap): only one layer's block of vectors [p, k] exists at
    # once.
    layers = list(source.layers.values())
    return lambda u: sum((layer.gram_matvec(u.to(source.dtype)) for layer in layers), start=torch.zeros(()))


def in_parameter_space(source: Source, pairs: EigenPairs, count: int) -> Tensor:
    """The leading unit eigenvectors of Σ, [P, count]: those of H K H / N by way of v = Gᵀ H u, normalised."""
    if pairs.vectors is None:
        raise ValueError("in_parameter_space: the request must have asked for vectors, got none. Ask for them.")
    vectors = pairs.vectors[:, :count]
    if pairs.of_parameters:
        return vectors.to(source.dtype)
    return torch.nn.functional.normalize(source.rmatvec((vectors - vectors.mean(0)).to(source.dtype)), dim=0)
