"""The estimate of a whole spectrum from a few products, against prescribed ones."""

import numpy as np
import pytest
import torch

from sgdkern.lanczos import tridiagonalise
from sgdkern.spectral_density import estimated_eigenvalues


def estimate(eigenvalues: torch.Tensor, block: int, num_blocks: int, seed: int, trace: float | None) -> torch.Tensor:
    n = len(eigenvalues)
    start = torch.randn(n, block, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    run = tridiagonalise(lambda u: eigenvalues[:, None] * u, start, num_blocks * block)
    values, rotation = (part.flip(-1) for part in torch.linalg.eigh(run.projected))
    norms = torch.linalg.vector_norm(torch.linalg.qr(run.residual.T)[1] @ rotation[-block:], dim=0)
    single = int((norms <= 0.05 * values).cumprod(0).sum())
    return estimated_eigenvalues(values, rotation[:block].square().sum(0) * n / block, single, n, trace=trace)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("power", [1.0, 1.5])
def test_counts_and_sums_of_a_power_law(power: float, known: bool, seed: int) -> None:
    eigenvalues = torch.arange(1, 1001, dtype=torch.float64) ** -power
    found = estimate(eigenvalues, 16, 6, seed, float(eigenvalues.sum()) if known else None)
    assert found.shape == (1000,)
    assert (found.diff() <= 0).all()
    for energy in (0.5, 0.8, 0.9):
        count, truth = (int((v.cumsum(0) < energy * eigenvalues.sum()).sum()) + 1 for v in (found, eigenvalues))
        assert abs(count - truth) <= 1 + 0.25 * truth
    if known:
        assert float(found.sum()) == pytest.approx(float(eigenvalues.sum()), rel=0.03)


def test_a_few_eigenvalues_are_exact_once_they_have_converged() -> None:
    eigenvalues = torch.cat([torch.tensor([9.0, 5.0, 2.0]), torch.zeros(97)]).double()
    found = estimate(eigenvalues, 4, 3, 0, None)
    np.testing.assert_allclose(found[:3].numpy(), [9, 5, 2], rtol=1e-12)
    assert found[3:].sum() <= 1e-10


@pytest.mark.parametrize("size", [1, 2, 5])
def test_small_and_empty_tails(size: int) -> None:
    values = torch.full((size,), 2.0)
    whole = estimated_eigenvalues(values, torch.ones(size), size, size)
    assert whole.tolist() == values.tolist()
    flat = estimated_eigenvalues(values[:1], torch.tensor([float(size)]), 0, size, trace=2.0 * size)
    np.testing.assert_allclose(flat.numpy(), 2.0)
    assert not estimated_eigenvalues(0 * values, torch.ones(size), 0, size + 3).any()
