"""Spectral density of a symmetric matrix by stochastic Lanczos quadrature: every eigenvalue, estimated.

The Krylov space of b random vectors, with T = Q A Qᵀ = Σ_j θ_j y_j y_jᵀ, integrates any f against the density of A's
eigenvalues:

    tr f(A) ≈ Σ_j w_j f(θ_j),      w_j = (n / b) ‖first b entries of y_j‖²,

exactly for polynomials up to a degree of twice the number of blocks, up to the chance in the b vectors. The leading
Ritz values converge first: each is then one eigenvalue, whatever its w_j says, and chance has a part only in the rest.

Reference: Ubaru, Chen and Saad (2017), fast estimation of tr f(A) via stochastic Lanczos quadrature; Golub and Meurant
    (2010), matrices, moments and quadrature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Vectors that k leading eigenvalues take: 2.1 k, and a block and a half for every digit of the tolerance. Measured on
# spectra of networks, see docs/spectrum.md.
_VECTORS_AN_EIGENVALUE = 2.1
_BLOCKS_A_DIGIT = 1.5


def estimated_eigenvalues(
    values: Tensor, weights: Tensor, num_converged: int, size: int, *, trace: float | None = None
) -> Tensor:
    """All eigenvalues of a positive semidefinite matrix, from Ritz values of a block of random vectors.

    The first `num_converged` stay; between the others, counted by their weights, log λ is interpolated over the place
    k − 1/2 in the order of all n.

    Args:
        values: θ_j, descending [M].
        weights: w_j, how many eigenvalues each stands for [M].
        num_converged: How many of the leading ones are single eigenvalues.
        size: n.
        trace: tr A where it is known: the rest is scaled to it.

    Returns:
        The estimate, descending [n], float64.

    Example:
        >>> estimated_eigenvalues(torch.tensor([8.0, 1.0]), torch.tensor([2.0, 4.0]), 1, 4, trace=11.0).tolist()
        [8.0, 1.0, 1.0, 1.0]
    """
    values, weights = values[:size].double().clamp(min=0), weights[:size].double()
    head, tail, weights = values[:num_converged], values[num_converged:], weights[num_converged:]
    rest, held = size - len(head), float(weights @ tail)
    if not rest or held == 0:
        return torch.cat([head, values.new_zeros(rest)])
    left = held if trace is None else max(trace - float(head.sum()), 0.0)
    weights = weights * (left / held)
    middles = weights.cumsum(0) - weights / 2
    places = torch.arange(rest, dtype=torch.float64, device=values.device) + 0.5
    after = torch.searchsorted(middles, places).clamp(1, max(len(tail) - 1, 1))
    before = after - 1
    after = after.clamp(max=len(tail) - 1)
    # Before the first place and after the last one there is nothing to interpolate between: the end goes on.
    span = (middles[after] - middles[before]).clamp(min=torch.finfo(torch.float64).tiny)
    share = ((places - middles[before]) / span).clamp(0, 1)
    logs = tail.clamp(min=torch.finfo(torch.float64).eps * float(values[0])).log()
    return torch.cat([head, torch.lerp(logs[before], logs[after], share).exp()])


def vectors_needed(count: int, block: int, tolerance: float) -> int:
    """About how many vectors the leading eigenpairs take, 2.1 k + 1.5 b log₁₀(1 / tolerance) on networks' spectra.

    Args:
        count: k, the number of eigenpairs.
        block: b, vectors multiplied at once.
        tolerance: Residual norm of a converged pair, relative to its eigenvalue, above 0.

    Returns:
        The number of vectors.

    Example:
        >>> vectors_needed(100, 16, 1e-4)
        306
    """
    return int(_VECTORS_AN_EIGENVALUE * count - _BLOCKS_A_DIGIT * block * math.log10(tolerance))
