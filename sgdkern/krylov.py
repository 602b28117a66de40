"""A growing orthonormal basis Q of the Krylov space of a block, and T = Q A Qᵀ.

A product is orthogonalised twice: against the rows that it meets in exact arithmetic, and what is left of it,
orthonormal by then, against the whole basis. T is filled with the coefficients of both: rounding in the products and a
vanished direction that was replaced by a random one then need no special case. Blocks are [n, b] throughout, their
vectors the columns, which is what products with thin blocks are made for; only the basis lies by rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sgdkern.ops import thin_product

MatVec = Callable[[Tensor], Tensor]  # [n, k] -> [n, k]

# A product in floating point is off by a few eps·‖A‖; what lies below is taken as zero (deflation) or as converged.
ROUNDING = 32.0
# Of a block's condition: up to the first its Cholesky factor is exact enough, up to the second it leaves no digit out.
_MILD, _ORTHONORMAL = 100.0, 2.0
# Of a block of unit vectors, squared: where more lies inside the basis, rounding may be seen in what is left.
_MOSTLY_INSIDE = 0.5
# Blocks that there is room for at first.
_FIRST_BLOCKS = 6


class Krylov:
    """The growing basis, T, and the block that comes next.

    Args:
        matvec: Product with the symmetric matrix, [n, k] -> [n, k].
        start: Starting block [n, b].
        generator: For directions that replace vanished ones.
        capacity: Most rows that the basis will have.
    """

    def __init__(self, matvec: MatVec, start: Tensor, generator: torch.Generator, capacity: int) -> None:
        self._matvec = matvec
        self._generator = generator
        self._capacity = capacity
        self._block = start.shape[1]
        self._rows = start.new_empty(0, start.shape[0])
        self._expected = _FIRST_BLOCKS * self._block
        self._columns: list[Tensor] = []  # T down to its diagonal, a block of columns each
        self._scale = 0.0  # a lower bound of ‖A‖
        self._factor = start.new_zeros(0, 0)
        self._dropped = start.new_zeros(0, 0)  # residuals of the first rows that no later block took up
        self.size = 0
        self.num_matvecs = 0
        self.num_random = 0  # random vectors that the basis grew from
        self.rounding = torch.finfo(start.dtype).eps
        self._product = start
        self._met = 0  # the first row that the next product meets
        self.next, *_ = self._orthonormal(start)
        self._random_next = self._block

    @property
    def basis(self) -> Tensor:
        """Q [M, n]."""
        return self._rows[: self.size]

    @property
    def projected(self) -> Tensor:
        """T [M, M]."""
        projected = self._rows.new_zeros(self.size, self.size)
        for part in self._columns:
            stop, width = part.shape
            projected[:stop, stop - width : stop] = part
            projected[stop - width : stop, :stop] = part.T
        return projected

    def extend(self) -> None:
        """Append the next block and orthogonalise A times it against all rows."""
        block, old = self.next, self.size
        self.num_random += self._random_next
        self._random_next = 0
        self._reserve(old + block.shape[1])
        self.size += block.shape[1]
        self._rows[old : self.size] = block.T
        product = self._matvec(block)
        self.num_matvecs += block.shape[1]
        self.rounding = max(self.rounding, torch.finfo(product.dtype).eps)
        product = product.to(block.dtype)
        largest = float(torch.linalg.vector_norm(product, dim=0).max())
        if not math.isfinite(largest):
            raise RuntimeError(
                "lanczos: A times a finite block must be finite, got NaN or infinity. Check the matrix, or scale it."
            )
        self._scale = max(self._scale, largest)
        met, self._met = self._met, old  # the next block meets this one and itself
        near = self.basis[met:]
        coefficients = thin_product(near, product)
        self.next, self._factor, columns = self._orthonormal(product - thin_product(near.T, coefficients))
        columns[met:] += coefficients
        columns[old:] = (columns[old:] + columns[old:].T) / 2
        self._columns.append(columns)
        self._product = product

    @property
    def residual(self) -> Tensor:
        """What A adds to the last block beyond the basis [b, n]."""
        return self._product.T - self._columns[-1].T @ self.basis

    def expect(self, size: int) -> None:
        """Make room for so many rows at once when more is needed: memory that was never written to costs time."""
        self._expected = size

    def _reserve(self, size: int) -> None:
        """Make room for `size` rows, doubling, so that nothing is paid for rows that never come."""
        if size > len(self._rows):
            rows = self._rows.new_empty(min(max(2 * size, self._expected), self._capacity), self._rows.shape[1])
            rows[: self.size] = self.basis
            self._rows = rows

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of T, descending, and its eigenvectors as columns."""
        values, rotation = torch.linalg.eigh(self.projected.neg_())
        return values.neg_(), rotation

    def residual_norms(self, rotation: Tensor) -> Tensor:
        """‖R_b y_last‖ of each column y of the rotation, and what was dropped of it by `renew`."""
        norms: Tensor = torch.linalg.vector_norm(self._last(rotation), dim=0)
        norms += torch.linalg.vector_norm(self._lost(rotation), dim=0)
        return norms

    def _last(self, rotation: Tensor) -> Tensor:
        """The residuals of Ritz vectors in the next block [b, k]."""
        return self._factor @ rotation[self.size - self._factor.shape[1] :]

    def _lost(self, rotation: Tensor) -> Tensor:
        """The residuals of Ritz vectors in blocks that were dropped [·, k]."""
        return self._dropped @ rotation[: self._dropped.shape[1]]

    def dropped_norm(self, rotation: Tensor, limits: Tensor) -> float:
        """How large the residuals of these Ritz vectors, or of any mixture of them, are beside their limits."""
        residuals = torch.cat([self._last(rotation), self._lost(rotation)]) / limits.clamp(
            min=torch.finfo(limits.dtype).tiny
        )
        return float(torch.linalg.matrix_norm(residuals, 2))

    def renew(self, rotation: Tensor, values: Tensor) -> None:
        """Keep only these Ritz vectors, and go on with random vectors."""
        residuals = torch.cat([self._last(rotation), self._lost(rotation)])
        self.restart(rotation, values)
        self._dropped = residuals
        self.next, *_ = self._orthonormal(torch.zeros_like(self._rows[:1].T).expand(-1, self._block))
        self._random_next = self.next.shape[1]

    def restart(self, rotation: Tensor, values: Tensor) -> None:
        """Keep only the Ritz vectors in the columns of `rotation`; the next block stays what it is."""
        self._dropped = self._lost(rotation)
        self._rows[: len(values)] = rotation.T @ self.basis
        self.size = len(values)
        self._columns = [torch.diag(values)]
        self._met = 0

    def _orthonormal(self, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An orthonormal block [n, b] beside the basis, residual's factor [b, b] and its coefficients in the basis."""
        n, width = residual.shape
        room = live = min(self._block, n - self.size)
        block, factor, least = orthonormalised(residual, _MILD)
        if width != room or least <= ROUNDING * self.rounding * self._scale:
            # A vanished direction becomes a random one. The singular value decomposition tells which ones vanished;
            # without pivoting, a triangle's diagonal could hide one.
            left, sizes, right = torch.linalg.svd(factor)
            vanished = sizes <= ROUNDING * self.rounding * self._scale
            factor = torch.where(vanished, 0.0, sizes)[:, None] * right
            live = min(room, int(torch.count_nonzero(~vanished)))
            random = torch.randn(room - live, n, dtype=block.dtype, device=block.device, generator=self._generator)
            block = torch.cat([(block @ left)[:, :live], torch.nn.functional.normalize(random).T], dim=1)
        inside = thin_product(self.basis, block)
        coefficients = inside[:, :live] @ factor[:live]
        block, mixed = self._beside(block, inside)
        factor[:live] = mixed[:live, :live] @ factor[:live]
        # What is left keeps a rounding error of eps / its size, which another pass takes away. All vectors together
        # are asked: a mixture of them may lie inside the basis where none of them does.
        while float(inside.square().sum()) > _MOSTLY_INSIDE:
            inside = thin_product(self.basis, block)
            block, _ = self._beside(block, inside)
        return block, factor, coefficients

    def _beside(self, block: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """A block [n, b] without what it holds of the basis [M, b], orthonormal again, and the triangle between."""
        return orthonormalised(block - thin_product(self.basis.T, inside), _ORTHONORMAL)[:2]


def orthonormalised(block: Tensor, condition: float) -> tuple[Tensor, Tensor, float]:
    """QR of a tall thin block, X = Y R: by the Cholesky factor of XᵀX where X is well-conditioned.

    Y is orthonormal to ε κ², and X = Y R holds to ε κ, κ = ‖R‖_F ‖R⁻¹‖_F / b at most `condition`; to ε where it is more
    and Householder's QR was taken.

    Args:
        block: X [n, b], b at most n.
        condition: The largest κ for Cholesky's factor.

    Returns:
        Y [n, b], R [b, b], upper triangular, and a lower bound of the smallest singular value of X, 0 where unknown.

    Reference: Fukaya, Nakatsukasa, Yanagisawa and Yamamoto (2014), CholeskyQR2.
    """
    lower, failed = torch.linalg.cholesky_ex(thin_product(block.T, block))
    if block.shape[1] and not bool(failed):
        identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        size, growth = torch.stack([lower, inverse]).flatten(1).norm(dim=1).tolist()
        if size * growth <= condition * len(lower):
            return thin_product(block, inverse.T), lower.T.contiguous(), 1 / growth
    orthonormal, triangle = torch.linalg.qr(block)
    return orthonormal, triangle, 0.0
