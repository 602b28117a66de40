"""The spectrum of the gradient noise: eigenvalues of C = φ Σ, effective dimension, and how far to trust them.

Σ = (G − 1ḡᵀ)ᵀ(G − 1ḡᵀ)/N is P × P; its non-zero eigenvalues are those of H K H / N, N × N, with the centring matrix H
= 1 − 11ᵀ/N. All work is done on that side, in vectors of length N:

    gram      K is formed, centred and diagonalised whole (LAPACK), or only its leading part (Lanczos on the stored K);
    lanczos   u → H G Gᵀ H u / N by the factors, K never formed.

The trace is known exactly beforehand, tr Σ = mean ‖g_n‖² − ‖ḡ‖², so the iteration can stop as soon as the eigenvalues
found hold the wanted share of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.lanczos import RitzPairs, holding, leading, leading_eigenpairs

# Vectors multiplied at once. On the stored K one read of K serves them all; eigenvalues of multiplicity up to the
# block are found.
_BLOCK = 16
# 8-byte words a row of the Krylov basis takes: itself, its copy while the storage doubles, and its share of the final
# vectors.
_WORDS_A_ROW = 3
# Below this N, LAPACK on the whole matrix (N³) is faster than any iteration; measured, see docs/spectrum.md.
_LAPACK_SAMPLES = 1024


@dataclass(frozen=True)
class Spectrum:
    """Leading eigenvalues of the gradient noise covariance, with error bounds.

    Attributes:
        eigenvalues: λ_k of C = φ Σ, or of Σ where no batch size was given; descending [k], float64.
        trace: Their sum over the whole spectrum, known exactly.
        effective_dimension: D_s, the fewest leading eigenvalues that hold `energy` of the trace; the same for every
            batch size. None where the eigenvalues found hold less.
        participation_ratio: (Σ λ)² / Σ λ², within ± `participation_ratio_error`.
        participation_ratio_error: 0 where Σ λ² is known exactly (K was formed, or the whole spectrum found).
        stable_rank: tr C / λ_1, how many directions as strong as the first would hold the trace.
        residual_norms: ‖C v − λ v‖ bounds the distance of λ to an eigenvalue [k].
        converged: Whether every eigenvalue asked for met the tolerance.
        remedy: What to change, empty where converged.
        num_matvecs: Vectors that the Gram matrix was applied to; 0 where it was diagonalised whole.
        method: The route taken: "gram" or "lanczos".
        reason: Why this route.
        energy: The share of the trace asked for.
        batch_size: B, or None for Σ itself.
        eigenvectors: Unit eigenvectors v_k of C in parameter space [P, k], where asked for.
    """

    eigenvalues: Tensor
    trace: float
    effective_dimension: int | None
    participation_ratio: float
    participation_ratio_error: float
    stable_rank: float
    residual_norms: Tensor
    converged: bool
    remedy: str
    num_matvecs: int
    method: str
    reason: str
    energy: float
    batch_size: int | None
    eigenvectors: Tensor | None = None


def noise_spectrum(
    G: GradientMatrix,
    *,
    batch_size: int | None = None,
    energy: float = 0.9,
    num_eigenvalues: int | None = None,
    method: str = "auto",
    strict: bool = False,
    tolerance: float = 1e-4,
    eigenvectors: bool = False,
    memory_bound: int = 4 * 2**30,
    max_matvecs: int | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Leading eigenvalues of the gradient noise covariance C = φ Σ, φ = (N − B) / (B (N − 1)).

    Args:
        G: Per-sample gradients of N samples.
        batch_size: B, for minibatches drawn without replacement; None for Σ itself (φ = 1).
        energy: Share of the trace that the eigenvalues are to hold, in (0, 1].
        num_eigenvalues: How many eigenvalues instead; at most min(N, P) are returned.
        method: "gram", "lanczos", or "auto", which picks by cost and memory and says why in `reason`.
        strict: Raise instead of returning what has not converged.
        tolerance: Residual norm of an eigenvalue found by iteration, relative to it.
        eigenvectors: Whether to form the eigenvectors in parameter space, Gᵀ H u / √(N λ).
        memory_bound: Bytes that K and the basis may take together, the factors not counted.
        max_matvecs: Most vectors to apply the Gram matrix to; 10 N where None.
        generator: For the random starting block; a fixed seed where None, so that results repeat.

    Returns:
        The spectrum.

    Raises:
        ValueError: An argument is out of range, or the memory bound is too small for the method.
        RuntimeError: Not converged, with `strict`.

    Reference:
        Feng and Tu (2021): D_s, the number of leading eigenvalues of the noise covariance that hold 90 % of its trace.

    Example:
        >>> G = GradientMatrix.from_dense(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
        >>> spectrum = noise_spectrum(G, batch_size=2)
        >>> spectrum.effective_dimension
        2
    """
    _check(G, batch_size, energy, num_eigenvalues, method)
    wanted_bytes = _gram_bytes(G.num_samples, whole=G.num_samples <= _LAPACK_SAMPLES)
    if method == "auto":
        method, reason = _choice(G.num_samples, wanted_bytes, memory_bound)
    else:
        reason = "asked for"
    if method == "gram" and wanted_bytes > memory_bound:
        raise ValueError(
            f"noise_spectrum: K of {G.num_samples} samples must fit memory_bound = {memory_bound:,} bytes, got"
            f' {wanted_bytes:,}. Use method="lanczos", fewer samples, or raise memory_bound.'
        )
    problem = _Problem(G, energy, num_eigenvalues, tolerance, memory_bound, max_matvecs, generator)
    found = problem.by_gram(eigenvectors) if method == "gram" else problem.by_lanczos()
    if strict and found.remedy:
        raise RuntimeError(f"noise_spectrum: not converged after {found.num_matvecs} products with K: {found.remedy}.")
    return _spectrum(G, found, batch_size, energy, method, reason, eigenvectors)


def _check(G: GradientMatrix, batch_size: int | None, energy: float, num_eigenvalues: int | None, method: str) -> None:
    """Refuse what a user can get wrong."""
    if G.num_samples < 1:
        raise ValueError("noise_spectrum: at least one sample is needed, got none. Is the batch empty?")
    if batch_size is not None and not 1 <= batch_size <= G.num_samples:
        raise ValueError(
            f"noise_spectrum: batch_size must be between 1 and N = {G.num_samples}, got {batch_size}."
            " Leave it out for the spectrum of the per-sample covariance."
        )
    if not 0 < energy <= 1:
        raise ValueError(f"noise_spectrum: energy must be in (0, 1], got {energy}. It is a share: 0.9 is 90 %.")
    if num_eigenvalues is not None and num_eigenvalues < 1:
        raise ValueError(
            f"noise_spectrum: num_eigenvalues must be at least 1, got {num_eigenvalues}. Or ask for energy=."
        )
    if method not in {"auto", "gram", "lanczos"}:
        raise ValueError(f'noise_spectrum: method must be "auto", "gram" or "lanczos", got {method!r}. Use "auto".')


def _gram_bytes(num_samples: int, *, whole: bool) -> int:
    """Bytes of K (4 N²) and, for LAPACK, of its centred float64 form and LAPACK's own copy of it (16 N²)."""
    return num_samples**2 * (20 if whole else 4)


def _choice(num_samples: int, gram_bytes: int, memory_bound: int) -> tuple[str, str]:
    """The route and the reason."""
    # Work of one layer of I × O: K costs N² (I + O) multiplications (two products of N², half of each by symmetry); one
    # vector by the factors, G Gᵀ u, costs 2 N I O. So K is as dear as N (I + O) / (2 I O) vectors: 45 for the paper's
    # 784-50-50-10 at N = 4000, 0.12 for a layer of 4096 × 4096 at N = 512; the 90 % spectrum takes a hundred or more.
    # K wins wherever it fits in memory.
    size = f"K of {num_samples} samples takes {gram_bytes / 2**20:,.0f} MiB"
    if gram_bytes <= memory_bound:
        return "gram", f"{size}, within the bound, and costs less than the iteration"
    return "lanczos", f"{size}, above the bound"


@dataclass(frozen=True)
class _Found:
    """Eigenpairs of Σ in sample space and what else is known of it."""

    eigenvalues: Tensor  # [k]
    vectors: Tensor | None  # [N, k]
    residual_norms: Tensor  # [k]
    trace: float
    second_moment: float | None  # Σ λ² where known exactly
    rounding: float  # relative
    num_matvecs: int
    remedy: str


@dataclass(frozen=True)
class _Problem:
    """What was asked for, and the routes to it."""

    G: GradientMatrix
    energy: float
    num_eigenvalues: int | None
    tolerance: float
    memory_bound: int
    max_matvecs: int | None
    generator: torch.Generator | None

    def by_gram(self, vectors: bool) -> _Found:
        """K is formed; below `_LAPACK_SAMPLES` diagonalised whole, else by iteration on the stored K."""
        gram, n = self.G.gram(), self.G.num_samples
        row_means = gram.mean(1, dtype=torch.float64)
        mean = row_means.mean()
        trace = self._difference(float(gram.diagonal().mean(dtype=torch.float64)), float(mean))
        if n > _LAPACK_SAMPLES:
            # ‖H K H‖² = ‖K‖² − 2 N ‖row means‖² + N² mean²: all in float64, row by row so that no second K is made.
            squares = sum(float(rows.double().square().sum()) for rows in gram.split(256))
            second = (squares - 2 * n * float(row_means.square().sum())) / n**2 + float(mean) ** 2
            return self._found(self._iterate(lambda u: gram @ u.to(gram.dtype), trace), trace, second)
        centred = gram.double() - row_means - row_means[:, None] + mean
        if vectors:
            values, rotation = torch.linalg.eigh(centred / n)
        else:
            values, rotation = torch.linalg.eigvalsh(centred / n), None
        count = min(*self.G.shape, self.num_eigenvalues or n)
        values = values.flip(0).clamp(min=0)
        second = float(values.square().sum())
        values = values[:count]
        # LAPACK is backward stable: eigenvalues are off by at most a modest multiple of ε ‖Σ‖ √N.
        norms = torch.full_like(values, float(values[0]) * math.sqrt(n) * torch.finfo(torch.float64).eps)
        vectors_found = None if rotation is None else rotation.flip(1)[:, :count]
        return _Found(values, vectors_found, norms, trace, second, self._rounding, 0, "")

    def by_lanczos(self) -> _Found:
        """K is never formed."""
        mean_squared_norm = float(self.G.squared_norms().mean(dtype=torch.float64))
        trace = self._difference(mean_squared_norm, float(self.G.mean().double().square().sum()))
        return self._found(self._iterate(self.G.gram_matvec, trace), trace, None)

    @property
    def _rounding(self) -> float:
        """Sums of float32 products agree with an exact trace only to within this."""
        return 32 * torch.finfo(self.G.dtype).eps

    def _difference(self, mean_squared_norm: float, directed: float) -> float:
        """Tr Σ = mean ‖g_n‖² − ‖ḡ‖², zero where it drowns in the rounding of the two."""
        difference = mean_squared_norm - directed
        return difference if difference > self._rounding * mean_squared_norm else 0.0

    def _iterate(self, product: Callable[[Tensor], Tensor], trace: float) -> RitzPairs:
        """Lanczos on H K H / N, given u → K u."""
        n = self.G.num_samples
        block = min(_BLOCK, n)
        rows = int(self.memory_bound // (8 * _WORDS_A_ROW * n))
        if rows < min(n, 3 * block):
            raise ValueError(
                f"noise_spectrum: memory_bound must hold {3 * block} vectors of {n} samples,"
                f" got {self.memory_bound:,} bytes. Raise it to {3 * block * 8 * _WORDS_A_ROW * n:,}."
            )

        def centred(block: Tensor) -> Tensor:
            products = product(block - block.mean(0)).double()
            return (products - products.mean(0)) / n

        count = None if self.num_eigenvalues is None else min(*self.G.shape, self.num_eigenvalues)
        generator = self.generator or torch.Generator(self.G.device).manual_seed(0)
        start = torch.randn(n, block, dtype=torch.float64, device=self.G.device, generator=generator)
        return leading_eigenpairs(
            centred,
            start - start.mean(0),
            holding(self.energy * (1 - self._rounding), trace) if count is None else leading(count),
            tolerance=self.tolerance,
            max_basis=rows,
            max_matvecs=self.max_matvecs,
            generator=generator,
        )

    def _found(self, pairs: RitzPairs, trace: float, second: float | None) -> _Found:
        count = min(len(pairs.values), *self.G.shape)
        values = pairs.values[:count].clamp(min=0)
        vectors, norms = pairs.vectors[:, :count], pairs.residual_norms[:count]
        return _Found(values, vectors, norms, trace, second, self._rounding, pairs.num_matvecs, pairs.remedy)


def _spectrum(
    G: GradientMatrix,
    found: _Found,
    batch_size: int | None,
    energy: float,
    method: str,
    reason: str,
    eigenvectors: bool,
) -> Spectrum:
    """The result in the units of C."""
    n = G.num_samples
    phi = 1.0 if batch_size is None else (n - batch_size) / (batch_size * (n - 1)) if n > 1 else 0.0
    values, trace = found.eigenvalues, found.trace
    held = values.cumsum(0)
    below = int(torch.count_nonzero(held < energy * trace * (1 - found.rounding)))
    effective_dimension = 0 if trace == 0 else below + 1 if below < len(values) else None
    ratio, error = _participation_ratio(values, trace, found.second_moment, whole=len(values) == min(G.shape))
    vectors = None
    if eigenvectors and found.vectors is not None:
        count = effective_dimension or len(values)
        basis = found.vectors[:, :count]
        vectors = torch.nn.functional.normalize(G.rmatvec((basis - basis.mean(0)).to(G.dtype)), dim=0)
    return Spectrum(
        eigenvalues=phi * values,
        trace=phi * trace,
        effective_dimension=effective_dimension,
        participation_ratio=ratio,
        participation_ratio_error=error,
        stable_rank=trace / float(values[0]) if float(values[0]) > 0 else 0.0,
        residual_norms=phi * found.residual_norms,
        converged=not found.remedy,
        remedy=found.remedy,
        num_matvecs=found.num_matvecs,
        method=method,
        reason=reason,
        energy=energy,
        batch_size=batch_size,
        eigenvectors=vectors,
    )


def _participation_ratio(values: Tensor, trace: float, second: float | None, *, whole: bool) -> tuple[float, float]:
    """(Σ λ)² / Σ λ² and its largest error."""
    # The eigenvalues not found sum to the rest of the trace and are at most the last one found: their squares sum to
    # between 0 and rest · last.
    low = float(values.square().sum())
    if trace == 0 or low == 0:
        return 0.0, 0.0
    if second is not None or whole:
        return trace**2 / (second or low), 0.0
    high = low + max(trace - float(values.sum()), 0.0) * float(values[-1])
    most, least = trace**2 / low, trace**2 / high
    return (most + least) / 2, (most - least) / 2
