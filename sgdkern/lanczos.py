"""Leading eigenpairs of a symmetric matrix that is only known by its products with blocks of vectors.

With Q [M, n] the orthonormal rows built so far and T = Q A Qᵀ, the recurrence is

    A Qᵀ = Qᵀ T + Rᵀ Eᵀ,      E = the last block's columns of the identity,

so a Ritz pair (θ, Qᵀy) of T has the residual norm ‖R_b y_last‖ without a further product. How the rows are built is
`krylov`'s affair; where the matrix comes from is not known here.

The Krylov space of b random vectors holds min(m, b) copies of an eigenvalue of multiplicity m. So where b equal ones
are among the pairs wanted there may be more, and b further random vectors are let in until some copy stays away.

Their Ritz values tell the density of all eigenvalues long before those wanted have converged: how many will be wanted,
and so how many vectors that takes, is forecast from it.

Reference: Golub and Underwood (1977), the block Lanczos method; Wu and Simon (2000), thick restart; Parlett (1998),
    chapters 6 and 13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.krylov import ROUNDING, Krylov, MatVec
from sgdkern.spectral_density import estimated_eigenvalues, vectors_needed

Wanted = Callable[[Tensor], int]  # Ritz values, descending -> how many of the leading ones are wanted
GiveUp = Callable[[int, int], bool]  # vectors multiplied so far, vectors forecast -> whether to end

# Forecasts begin after this many blocks; up to the second number T's eigenvalues cost nothing.
_FORECAST_BLOCKS, _EVERY_BLOCK = 3, 6
# A Ritz pair with a smaller residual, relative to its value, is counted as one eigenvalue.
_SINGLE = 0.05
# T's eigenvalues are looked at a little after the forecast: they cost as much as the last tenth or fifth of the
# vectors, and forecasts are good to a twentieth. But not before the basis has grown by the next factor; where there is
# no forecast, by the one after it.
_LATE = 1.04
_CHECK_GROWTH, _BLIND_GROWTH = 1.06, 1.15
# A forecast that lies further ahead than this factor is made anew when the basis has doubled.
_FAR = 3


@dataclass(frozen=True)
class Tridiagonalisation:
    """A block Lanczos decomposition A Qᵀ = Qᵀ T + rᵀ Eᵀ.

    Attributes:
        basis: Q, orthonormal rows [M, n].
        projected: T = Q A Qᵀ, block tridiagonal up to rounding [M, M].
        residual: r, what A adds to the last block beyond the basis [b, n].
    """

    basis: Tensor
    projected: Tensor
    residual: Tensor


@dataclass(frozen=True)
class RitzPairs:
    """Approximate leading eigenpairs.

    Attributes:
        values: Ritz values, descending [k].
        vectors: Ritz vectors, orthonormal columns [n, k], where asked for.
        residual_norms: ‖A x − θ x‖ of each pair; some eigenvalue lies within that distance of θ [k].
        converged: Whether all wanted pairs met the tolerance.
        num_matvecs: Vectors that A was applied to.
        num_restarts: Thick restarts.
        remedy: What to change, empty where converged.
    """

    values: Tensor
    vectors: Tensor | None
    residual_norms: Tensor
    converged: bool
    num_matvecs: int
    num_restarts: int
    remedy: str


def leading(count: int) -> Wanted:
    """The criterion "the `count` largest eigenvalues".

    Args:
        count: Number of eigenvalues, at least 1.

    Returns:
        The criterion, for `leading_eigenpairs`.
    """
    return lambda values: count


def holding(total: float) -> Wanted:
    """The criterion "the fewest leading eigenvalues that add up to at least this".

    Args:
        total: The sum, a share of the exactly known trace, say.

    Returns:
        The criterion, for `leading_eigenpairs`; one more than there are Ritz values while their sum is too small.
    """
    return lambda values: int(torch.count_nonzero(values.cumsum(0) < total)) + 1


def tridiagonalise(matvec: MatVec, start: Tensor, num_matvecs: int) -> Tridiagonalisation:
    """Build an orthonormal basis of the block Krylov space of a symmetric matrix, with full reorthogonalisation.

    A Qᵀ = Qᵀ T + rᵀ Eᵀ.

    Args:
        matvec: Product with the symmetric matrix, [n, k] -> [n, k].
        start: Starting block [n, b] (or one vector [n]) of rank b.
        num_matvecs: Vectors to apply the matrix to, which is the number of rows of the basis; at most n.

    Returns:
        The decomposition.

    Raises:
        ValueError: `start` or `num_matvecs` do not fit together.
    """
    start = _as_block(start)
    n, block = start.shape
    if not 1 <= num_matvecs <= n or (num_matvecs % block and num_matvecs < n):
        raise ValueError(
            f"tridiagonalise: num_matvecs must be a multiple of the block size {block}, or n = {n}, got {num_matvecs}."
            " Round it."
        )
    krylov = Krylov(matvec, start, torch.Generator(start.device).manual_seed(0), n)
    while krylov.size < num_matvecs:
        krylov.extend()
    return Tridiagonalisation(krylov.basis, krylov.projected, krylov.residual)


def leading_eigenpairs(
    matvec: MatVec,
    start: Tensor,
    wanted: Wanted,
    *,
    tolerance: float = 1e-4,
    trace: float | None = None,
    give_up: GiveUp | None = None,
    max_basis: int | None = None,
    max_matvecs: int | None = None,
    vectors: bool = True,
    generator: torch.Generator | None = None,
) -> RitzPairs:
    """Find leading eigenpairs by block Lanczos with full reorthogonalisation and thick restart.

    A pair counts as converged when ‖A x − θ x‖ ≤ max(tolerance · θ, 32 ε θ_1), ε of the dtype that `matvec` returns;
    eigenvalues closer than that are copies of one. All copies of an eigenvalue are found, whatever the block.

    Args:
        matvec: Product with the symmetric positive semidefinite matrix, [n, k] -> [n, k].
        start: Starting block [n, b] (or one vector [n]); its dtype is that of the basis.
        wanted: How many leading pairs are wanted, given the Ritz values (`leading`, `holding`).
        tolerance: Residual norm of a converged pair, relative to its Ritz value.
        trace: tr A where known, which makes forecasts better.
        give_up: Whether to end, given how many vectors were multiplied and how many are forecast.
        max_basis: Most rows of the basis kept in memory, at least 3 blocks; n where None.
        max_matvecs: Most vectors to apply the matrix to; 10 n where None.
        vectors: Whether Ritz vectors are wanted.
        generator: For directions that replace vanished ones; a fixed seed where None.

    Returns:
        The wanted pairs, or the leading ones reached where not converged.

    Raises:
        ValueError: A size does not fit.
    """
    start = _as_block(start)
    n, block = start.shape
    capacity = n if max_basis is None else min(n, max_basis)
    if capacity < min(n, 3 * block):
        raise ValueError(
            f"leading_eigenpairs: max_basis must be at least 3 blocks of {block}, got {max_basis}."
            " Allow more memory or a smaller block."
        )
    budget = 10 * n if max_matvecs is None else max_matvecs
    krylov = Krylov(matvec, start, generator or torch.Generator(start.device).manual_seed(0), capacity)
    restarts, next_check, kept_before = 0, 0, 0.0
    while True:
        krylov.extend()
        exhausted = krylov.size == n  # the basis spans everything: T's eigenvalues are A's
        full = krylov.size + krylov.next.shape[1] > capacity
        spent = krylov.num_matvecs >= budget
        if not (exhausted or full or spent or krylov.size >= next_check):
            continue
        values, rotation = krylov.ritz()
        norms = krylov.residual_norms(rotation)
        needed = None
        if not restarts and krylov.size >= _FORECAST_BLOCKS * block:
            needed = _forecast(n, values, norms, rotation[:block], wanted, tolerance, trace)
            spent = spent or (give_up is not None and give_up(krylov.num_matvecs, needed))
        next_check = _next_check(krylov.size, block, needed)
        krylov.expect(next_check)
        count = min(wanted(values), n)
        floor = ROUNDING * krylov.rounding * float(values[0].clamp(min=0))
        # Random vectors that came in on the way had time to show what they hold when the next pair is as good, too.
        judged = count + (krylov.num_random > block)
        limits = (tolerance * values[:judged]).clamp(min=floor)
        done = judged <= len(values) and bool((norms[:judged] <= limits).all())
        crowded = done and most_copies(values[:count], limits[:count], floor) >= krylov.num_random
        if (done and not crowded) or exhausted or spent:
            remedy = "" if (done and not crowded) or exhausted else "raise max_matvecs or the tolerance"
            break
        if crowded and count + 2 * block > capacity:
            remedy = (
                f"raise max_basis above {capacity} or the block: an eigenvalue may have more copies than were found"
            )
            break
        if crowded:
            # Half of the tolerance is left for what comes in; until the pairs are that good, the basis grows on.
            if krylov.dropped_norm(rotation[:, :count], limits[:count]) <= 0.5:
                krylov.renew(rotation[:, :count], values[:count])
                restarts, next_check, kept_before = restarts + 1, 0, 0.0
                continue
            next_check = 0
        if full:
            # Half of what is not wanted yet goes, but two blocks of room are needed to gain anything.
            keep = min((count + capacity) // 2, capacity - 2 * block)
            kept = float(values[:keep].sum())
            if count > keep and kept <= kept_before * (1 + tolerance):
                remedy = f"raise max_basis above {capacity}: the wanted eigenvectors do not fit in the basis"
                break
            krylov.restart(rotation[:, :keep], values[:keep])
            restarts, next_check, kept_before = restarts + 1, 0, kept
    count = min(count, len(values))
    ritz_vectors = krylov.basis.T @ rotation[:, :count] if vectors else None
    return RitzPairs(values[:count], ritz_vectors, norms[:count], not remedy, krylov.num_matvecs, restarts, remedy)


def most_copies(values: Tensor, limits: Tensor, floor: float) -> int:
    """The most eigenvalues that are equal within their limit, have one below them, and are not at the floor.

    More copies of the smallest value, or of zero, would change nothing.

    Args:
        values: Ritz values, descending [k].
        limits: How far a copy may be off [k].
        floor: What counts as zero.

    Returns:
        The number of copies, at least 0.
    """
    most, copies, first, room = 0, 0, float("inf"), 0.0
    for value, limit in zip(values.tolist(), limits.tolist(), strict=True):
        if first - value <= room:
            copies += 1
            continue
        most = max(most, copies)
        copies, first, room = 1, value, limit
        if value <= floor:
            break
    return most


def _forecast(
    n: int, values: Tensor, norms: Tensor, first_rows: Tensor, wanted: Wanted, tolerance: float, trace: float | None
) -> int:
    """How many vectors the wanted pairs of an n × n matrix will take, from the Ritz values of the first blocks."""
    block = len(first_rows)
    loose = (norms > _SINGLE * values).nonzero()
    weights = first_rows.square().sum(0) * (n / block)
    single = int(loose[0]) if len(loose) else len(values)
    count = wanted(estimated_eigenvalues(values, weights, single, n, trace=trace))
    return vectors_needed(count, block, max(tolerance, ROUNDING * torch.finfo(values.dtype).eps))


def _next_check(size: int, block: int, needed: int | None) -> int:
    """The size of the basis at which T's eigenvalues are looked at next."""
    if size < _EVERY_BLOCK * block:
        return size + block
    if needed is None:
        return max(size + block, int(_BLIND_GROWTH * size))
    ahead = _LATE * needed if needed <= _FAR * size else 2 * size
    return int(max(size + block, _CHECK_GROWTH * size, ahead))


def _as_block(start: Tensor) -> Tensor:
    """A starting block [n, b] from a vector or a block."""
    block = start[:, None] if start.ndim == 1 else start
    if block.ndim != 2 or not 1 <= block.shape[1] <= block.shape[0]:
        raise ValueError(
            f"lanczos: start must be a block [n, b] with 1 <= b <= n, got {list(start.shape)}."
            " Use a smaller block for a small matrix."
        )
    return block
