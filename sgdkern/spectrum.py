"""The spectrum of the gradient noise: eigenvalues of C = φ Σ, effective dimension, and how far to trust them."""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgdkern import sample_space
from sgdkern.gram_pass import GramMatrix
from sgdkern.order_parameters.moments import noise_factor
from sgdkern.sample_space import EigenPairs, Request, Source
from sgdkern.spectral_density import vectors_needed
from sgdkern.streaming import StreamingGradients
from sgdkern.tiled_gram import TiledGram

# Vectors multiplied at once: one read of K, or one pass over a stream, serves them all; more of them need a larger
# basis for the same eigenvalues. Measured, see docs/spectrum.md.
_BLOCK = 16
# Up to this N, LAPACK on the whole matrix (N³) is faster than to find out whether an iteration to a share of the trace
# is; up to the second one, faster than one to a number of eigenvalues. Measured, see docs/spectrum.md.
_LAPACK_SAMPLES, _LAPACK_SAMPLES_A_NUMBER = 1024, 512
# A basis of x N on the stored K costs (0.8 x + 5.8 x²) times what LAPACK does on the whole; measured there too.
_LANCZOS_COST = (0.8, 5.8)
# Forecasts from the first blocks are too high, by up to 2.7 times the eigenvalues after three and 2 after four: an
# iteration is then given up only where it seems to cost this many times more.
_EARLY_DOUBT = {3: 5.0, 4: 2.0, 5: 2.0}
# D_s where nothing is known beforehand: 80 to 160 in the paper's networks.
_TYPICAL_DIMENSION = 100


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
        eigenvectors: Unit eigenvectors v_k of C in parameter space [P, k], where asked for: as many as were asked for,
            or D_s.
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


@torch.no_grad()
def noise_spectrum(
    G: Source,
    *,
    batch_size: int | None = None,
    energy: float = 0.9,
    num_eigenvalues: int | None = None,
    method: str = "auto",
    strict: bool = False,
    tolerance: float = 1e-4,
    eigenvectors: bool = False,
    block_size: int | None = None,
    num_passes: int = 4,
    memory_bound: int = 4 * 2**30,
    scratch: str | os.PathLike[str] | None = None,
    max_matvecs: int | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Leading eigenvalues of the gradient noise covariance C = φ Σ, φ = (N − B) / (B (N − 1)).

    Args:
        G: Per-sample gradients of N samples, a `GradientMatrix` or `StreamingGradients`.
        batch_size: B, for minibatches drawn without replacement; None for Σ itself (φ = 1).
        energy: Share of the trace that the eigenvalues are to hold, in (0, 1].
        num_eigenvalues: How many eigenvalues instead; at most min(N, P) are returned.
        method: "gram" forms K; "lanczos" never does; "randomised" takes `num_passes` products with a wide block of
            random vectors, whatever the accuracy then is; "auto" picks "gram" or "lanczos" by cost and memory and says
            why in `reason`.
        strict: Raise instead of returning what has not converged.
        tolerance: Residual norm of an eigenvalue found by iteration, relative to it.
        eigenvectors: Whether to form the eigenvectors in parameter space.
        block_size: Vectors multiplied at once; 16 where None, for "randomised" 1.5 times the eigenvalues asked
            for, or 127.
        num_passes: Products that "randomised" makes; over a stream one costs one or two passes over the data.
        memory_bound: Bytes that K and the basis may take together, the factors not counted.
        scratch: A folder where K may be kept in a file (2 N² bytes) when it does not fit in memory.
        max_matvecs: Most vectors to apply the Gram matrix to; 10 N where None.
        generator: For the random starting block; a fixed seed where None, so that results repeat.

    Returns:
        The spectrum.

    Raises:
        ValueError: An argument is out of range, a gradient is not finite, or the memory bound is too small for the
            method.
        RuntimeError: Not converged, with `strict`.

    Reference:
        Feng and Tu (2021): D_s, the number of leading eigenvalues of the noise covariance that hold 90 % of its trace.

    Example:
        >>> from sgdkern.gradient_matrix import GradientMatrix
        >>> G = GradientMatrix.from_dense(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
        >>> spectrum = noise_spectrum(G, batch_size=2)
        >>> spectrum.effective_dimension
        2
    """
    _check(G, batch_size, energy, method)
    counts = {"block_size": block_size, "num_passes": num_passes, "max_matvecs": max_matvecs}
    _check_counts({"num_eigenvalues": num_eigenvalues} | counts)
    if not tolerance >= 0:
        raise ValueError(f"noise_spectrum: tolerance must be at least 0, got {tolerance}. 1e-4 is the default.")
    if method == "randomised":
        # Half as many vectors again as are wanted is the usual oversampling (Halko, Martinsson and Tropp 2011, §4.3).
        block_size = min(block_size or (num_eigenvalues or 85) * 3 // 2, *G.shape)
        max_matvecs = num_passes * block_size
    request = Request(
        energy, num_eigenvalues, eigenvectors, tolerance, block_size or _BLOCK, memory_bound, max_matvecs, generator
    )
    route, reason = _route(G, method, request, scratch is not None)
    found = _followed(G, route, request, scratch)
    if strict and found.remedy:
        raise RuntimeError(f"noise_spectrum: not converged after {found.num_matvecs} products: {found.remedy}.")
    if route == "gram" and not found.num_matvecs:
        reason += "; its spectrum is broad, so that LAPACK on the whole is cheaper than an iteration"
    result = _spectrum(G, found, batch_size, energy, method if method == "randomised" else route.split()[0], reason)
    if eigenvectors:
        count = num_eigenvalues or result.effective_dimension or len(result.eigenvalues)
        result = dataclasses.replace(result, eigenvectors=sample_space.in_parameter_space(G, found, count))
    return result


def _check_counts(counts: dict[str, int | None]) -> None:
    """Refuse what counts nothing."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"noise_spectrum: {name} must be at least 1, got {count}. Leave it out for the default.")


def _check(G: Source, batch_size: int | None, energy: float, method: str) -> None:
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
    if method not in {"auto", "gram", "lanczos", "randomised"}:
        raise ValueError(
            f'noise_spectrum: method must be "auto", "gram", "lanczos" or "randomised", got {method!r}. Use "auto".'
        )


def _route(G: Source, method: str, request: Request, scratch: bool) -> tuple[str, str]:
    """The route and the reason."""
    n = G.num_samples
    whole = _prefers_lapack(n, request) and _gram_bytes(G, whole=True) <= request.memory_bound
    # A stream's factors are gathered.
    gram_bytes = _gram_bytes(G, whole=whole) + (G.factor_bytes if isinstance(G, StreamingGradients) else 0)
    if isinstance(G, GramMatrix):
        if method not in ("auto", "gram"):
            raise ValueError(
                f'noise_spectrum: method={method!r} iterates on the gradients, got a GramMatrix. Use method="gram", or '
                "take per_sample_gradients."
            )
        return ("gram whole" if whole else "gram"), "K is at hand"
    size = f"K of {n} samples takes {gram_bytes / 2**20:,.0f} MiB"
    # Work of one layer of I × O: K costs N² (I + O) multiplications (two products of N², half of each by symmetry); one
    # vector by the factors, G Gᵀ u, costs 2 N I O. So K is as dear as N (I + O) / (2 I O) vectors: 45 for the paper's
    # 784-50-50-10 at N = 4000, 0.12 for a layer of 4096 × 4096 at N = 512; the 90 % spectrum takes a hundred or more.
    # K wins wherever it fits in memory.
    fits = gram_bytes <= request.memory_bound
    if method == "gram" or (method == "auto" and (fits or scratch)):
        why = "asked for" if method == "gram" else f"{size}, within the bound, and costs less than the iteration"
        if fits:
            return ("gram whole" if whole else "gram"), why
        if scratch:
            return "gram file", f"{size}, above the bound: kept in a file"
        raise ValueError(
            f"noise_spectrum: {size}, which must fit memory_bound = {request.memory_bound:,} bytes."
            ' Use method="lanczos", give a scratch= folder, take fewer samples, or raise memory_bound.'
        )
    why = "asked for" if method != "auto" else f"{size}, above the bound"
    if not isinstance(G, StreamingGradients):
        return "lanczos samples", why
    # A block of b vectors costs two passes over the data in sample space and one in parameter space, a pass about 2 N P
    # multiplications where factors are recomputed; against it stands the orthogonalisation, M b (P − N) more in
    # parameter space for a basis of M, which also has to fit.
    basis = request.max_matvecs or _needed(request.num_eigenvalues or _TYPICAL_DIMENSION, request)
    roomy = sample_space.max_basis(G.num_params, request.block, request.memory_bound) >= basis
    if roomy and basis * request.block * (G.num_params - n) <= 2 * n * G.num_params:
        return "lanczos parameters", f"{why}; in parameter space, one pass over the data a block of vectors"
    return "lanczos samples", f"{why}; in sample space, two passes over the data a block of vectors"


def _prefers_lapack(n: int, request: Request) -> bool:
    """Whether all eigenvalues of a stored matrix are found sooner than the wanted ones."""
    if request.num_eigenvalues is None:
        return n <= _LAPACK_SAMPLES
    return n <= _LAPACK_SAMPLES_A_NUMBER or _cost(n, 0, _needed(request.num_eigenvalues, request)) > 1


def _needed(count: int, request: Request) -> int:
    """How many vectors an iteration to so many eigenvalues takes."""
    return vectors_needed(count, request.block, max(request.tolerance, torch.finfo(torch.float64).eps))


def _followed(G: Source, route: str, request: Request, scratch: str | os.PathLike[str] | None) -> EigenPairs:
    """What the route finds."""
    if route == "lanczos samples":
        return sample_space.sample_vectors(G, request)
    if route == "lanczos parameters":
        return sample_space.param_vectors(G, request)
    if route == "gram file" and not isinstance(G, GramMatrix):
        return sample_space.stored_gram(G, TiledGram(G, Path(str(scratch)), request.memory_bound // 2), request)
    together = G.gathered() if isinstance(G, StreamingGradients) else G
    if route == "gram whole":
        return sample_space.whole_gram(together, request)
    # A broad spectrum needs a basis that costs more than LAPACK: where what is left to do seems to, the matrix is
    # diagonalised whole, if its float64 form fits.
    if request.max_matvecs is None and _gram_bytes(G, whole=True) <= request.memory_bound:
        request = dataclasses.replace(request, give_up=functools.partial(_hopeless, G.num_samples, request.block))
    found = sample_space.stored_gram(together, together.gram(), request)
    return sample_space.whole_gram(together, request) if found.remedy and request.give_up else found


def _hopeless(n: int, block: int, spent: int, needed: int) -> bool:
    """Whether what is left of an iteration seems to cost more than LAPACK."""
    if spent >= needed:  # the forecast was wrong: it may be half way
        needed = 2 * spent
    return _cost(n, spent, needed) > _EARLY_DOUBT.get(spent // block, 1.0)


def _cost(n: int, spent: int, needed: int) -> float:
    """What the iteration from the vectors spent to those needed costs, in units of LAPACK on N × N."""
    linear, square = _LANCZOS_COST
    return linear * (needed - spent) / n + square * (needed**2 - spent**2) / n**2


def _gram_bytes(G: Source, *, whole: bool) -> int:
    """Bytes of K, and where LAPACK diagonalises it whole, of its centred float64 form and a copy of that."""
    return G.num_samples**2 * (G.dtype.itemsize + 16 * whole)


def _spectrum(
    G: Source, found: EigenPairs, batch_size: int | None, energy: float, method: str, reason: str
) -> Spectrum:
    """The result in the units of C."""
    n = G.num_samples
    phi = 1.0 if batch_size is None else noise_factor(batch_size, n)
    values, trace = found.values, found.trace
    held = values.cumsum(0)
    below = int(torch.count_nonzero(held < energy * trace * (1 - sample_space.rounding(G))))
    effective_dimension = 0 if trace == 0 else below + 1 if below < len(values) else None
    ratio, error = _participation_ratio(values, trace, found.second_moment, whole=len(values) == min(G.shape))
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
    )


def _participation_ratio(values: Tensor, trace: float, second: float | None, *, whole: bool) -> tuple[float, float]:
    """(Σ λ)² / Σ λ² and its largest error."""
    # The eigenvalues not found sum to the rest of the trace and are at most the last one found: their squares sum to
    # between 0 and rest · last.
    low = float(values.square().sum()) if second is None else second
    if trace == 0 or low == 0:
        return 0.0, 0.0
    if second is not None or whole:
        return trace**2 / low, 0.0
    high = low + max(trace - float(values.sum()), 0.0) * float(values[-1])
    most, least = trace**2 / low, trace**2 / high
    return (most + least) / 2, (most - least) / 2
