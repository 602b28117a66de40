"""The orthonormal basis that an iteration grows: blocks made orthonormal; the recurrence itself is in test_lanczos."""

import pytest
import torch
from torch import Tensor

from sgdkern.krylov import Krylov, orthonormalised


@pytest.mark.parametrize("smallest", [1.0, 0.1, 1e-2, 1e-4, 1e-7, 1e-12, 0.0])
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (200, 3), (300, 16)])
def test_an_orthonormalised_block(shape: tuple[int, int], smallest: float) -> None:
    n, b = shape
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, b, dtype=torch.float64, generator=generator))[0] for size in shape)
    sizes = torch.linspace(1, smallest, b, dtype=torch.float64) if b > 1 else torch.tensor([smallest]).double()
    block = 7 * (left * sizes) @ right.T
    for condition in (2.0, 100.0):
        orthonormal, triangle, least = orthonormalised(block, condition)
        assert (orthonormal.T @ orthonormal - torch.eye(b, dtype=torch.float64)).abs().max() <= 1e-15 * condition**2
        assert (orthonormal @ triangle - block).abs().max() <= 7e-15 * condition
        assert not triangle.tril(-1).any()
        assert 0 <= least <= 7 * float(sizes.min()) * (1 + 1e-9)
    assert orthonormalised(block[:, :0], 2.0)[0].shape == (n, 0)


def test_the_basis_takes_no_more_rows_than_it_may_have() -> None:
    matrix = torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))
    start = torch.randn(100, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    krylov = Krylov(lambda u: matrix @ u, start, torch.Generator().manual_seed(0), 30)
    whole: list[Tensor] = []
    for _ in range(7):
        krylov.extend()
        krylov.expect(1000)
        whole.append(krylov.basis.clone())
        assert krylov.basis.untyped_storage().nbytes() <= 30 * 100 * 8
    assert krylov.basis.shape == (28, 100)
    assert all(torch.equal(krylov.basis[: len(rows)], rows) for rows in whole)  # what was there does not change
    torch.testing.assert_close(krylov.projected, krylov.basis @ matrix @ krylov.basis.T, rtol=0, atol=1e-12)
    values, rotation = krylov.ritz()
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(krylov.projected @ rotation, rotation * values, rtol=0, atol=1e-12)
