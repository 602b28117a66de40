"""Block Lanczos against prescribed spectra, LAPACK and scipy's eigsh: laws before values."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgdkern.lanczos import holding, leading, leading_eigenpairs, most_copies, tridiagonalise

BLOCKS = [1, 3, 8]

SPECTRA = {
    "one": [2.0],
    "two": [1.0, 0.25],
    "linear": np.linspace(1, 0.01, 120),
    "decay from 1 to 1e-12": np.logspace(0, -12, 150),
    "rank 9 of 160": np.concatenate([np.linspace(2, 1, 9), np.zeros(151)]),
    "tight cluster": np.concatenate([1 + 1e-9 * np.arange(7), np.linspace(0.5, 0.01, 140)]),
    "multiplicities": np.repeat([3.0, 2.0, 1.0, 0.1], [5, 6, 7, 100]),
    "zero": np.zeros(30),
    "identity": np.ones(40),
}


def prescribed(values: object, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with these eigenvalues in random directions, and the eigenvalues descending."""
    eigenvalues = torch.as_tensor(np.sort(np.asarray(values, dtype=float))[::-1].copy())
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    return (q * eigenvalues) @ q.T, eigenvalues


def start_block(n: int, block: int, seed: int = 1) -> Tensor:
    return torch.randn(n, min(block, n), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_recurrence_holds_and_the_basis_is_orthonormal(name: str, block: int) -> None:
    matrix, eigenvalues = prescribed(SPECTRA[name])
    n = len(matrix)
    start = start_block(n, block)
    for blocks in (1, 2, 5):
        size = min(n, blocks * start.shape[1])
        result = tridiagonalise(lambda u, a=matrix: a @ u, start, size)
        ends = torch.zeros(size, len(result.residual), dtype=torch.float64)
        ends[size - len(result.residual) :] = torch.eye(len(result.residual), dtype=torch.float64)
        scale = float(eigenvalues[0])
        law = matrix @ result.basis.T - result.basis.T @ result.projected - result.residual.T @ ends.T
        assert result.basis.shape == (size, n)
        assert law.abs().max() <= 1e-13 * scale
        assert (result.basis @ result.basis.T - torch.eye(size, dtype=torch.float64)).abs().max() <= 1e-13
        outside = [(i, j) for i in range(size) for j in range(size) if abs(i // len(start.T) - j // len(start.T)) > 1]
        assert all(abs(result.projected[i, j]) <= 1e-12 * scale for i, j in outside)
        ritz = torch.linalg.eigvalsh(result.projected).flip(0)
        # Cauchy interlacing: the k-th Ritz value lies between the k-th and the (n - M + k)-th eigenvalue.
        assert (ritz <= eigenvalues[:size] + 1e-12 * scale).all()
        assert (ritz >= eigenvalues[n - size :] - 1e-12 * scale).all()


def test_a_full_decomposition_rebuilds_the_matrix() -> None:
    matrix, _ = prescribed(np.linspace(2, 1, 12))
    result = tridiagonalise(lambda u: matrix @ u, torch.arange(1.0, 13.0, dtype=torch.float64), 12)
    torch.testing.assert_close(result.basis.T @ result.projected @ result.basis, matrix, rtol=0, atol=1e-13)
    assert result.residual.abs().max() <= 1e-13


@pytest.mark.parametrize("max_basis", [None, 40])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", SPECTRA)
def test_leading_eigenvalues_of_prescribed_spectra(name: str, block: int, max_basis: int | None) -> None:
    matrix, eigenvalues = prescribed(SPECTRA[name])
    n, count = len(matrix), min(6, len(matrix))
    pairs = leading_eigenpairs(
        lambda u: matrix @ u, start_block(n, block), leading(count), tolerance=1e-6, max_basis=max_basis
    )
    scale = float(eigenvalues[0])
    assert pairs.converged
    assert pairs.remedy == ""
    assert pairs.values.shape == (count,)
    assert (pairs.values - eigenvalues[:count]).abs().max() <= 1e-9 * scale
    assert (pairs.vectors.T @ pairs.vectors - torch.eye(count, dtype=torch.float64)).abs().max() <= 1e-12
    true = torch.linalg.vector_norm(matrix @ pairs.vectors - pairs.vectors * pairs.values, dim=0)
    assert (true <= pairs.residual_norms + 1e-13 * max(scale, 1)).all()
    if most_copies(eigenvalues[:count], 1e-6 * eigenvalues[:count], 0) < block:  # nothing was dropped on the way
        assert (true - pairs.residual_norms).abs().max() <= 1e-13 * max(scale, 1)


@pytest.mark.parametrize("block", [1, 3, 16])
@pytest.mark.parametrize("max_basis", [None, 90])
def test_all_copies_of_an_eigenvalue_whatever_the_block(block: int, max_basis: int | None) -> None:
    matrix, eigenvalues = prescribed(np.concatenate([[5.0], np.repeat([4.0, 2.0], [20, 17]), np.linspace(1, 0, 140)]))
    start = start_block(len(matrix), block)
    pairs = leading_eigenpairs(lambda u: matrix @ u, start, leading(42), tolerance=1e-6, max_basis=max_basis)
    assert pairs.converged, pairs.remedy
    assert (pairs.values - eigenvalues[:42]).abs().max() <= 1e-9
    assert (pairs.vectors.T @ pairs.vectors - torch.eye(42, dtype=torch.float64)).abs().max() <= 1e-12
    true = torch.linalg.vector_norm(matrix @ pairs.vectors - pairs.vectors * pairs.values, dim=0)
    assert (true <= pairs.residual_norms + 1e-13).all()
    total = float(eigenvalues[:42].sum()) - 1e-6
    held = leading_eigenpairs(lambda u: matrix @ u, start, holding(total), tolerance=1e-6, max_basis=max_basis)
    assert len(held.values) == 42


def test_copies_that_do_not_fit_are_said() -> None:
    matrix, _ = prescribed(np.concatenate([np.repeat([4.0, 2.0], [30, 30]), np.linspace(1, 0, 140)]))
    pairs = leading_eigenpairs(lambda u: matrix @ u, start_block(200, 8), leading(40), max_basis=50)
    assert not pairs.converged
    assert "copies" in pairs.remedy or "max_basis" in pairs.remedy


def test_copies_are_counted_where_more_of_them_would_matter() -> None:
    values = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    limits = torch.full_like(values, 1e-9)
    assert most_copies(values, limits, 1e-9) == 4
    assert most_copies(values[:8], limits[:8], 1e-9) == 3
    assert most_copies(values[:0], limits[:0], 1e-9) == 0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 1, allow_subnormal=False).map(lambda x: x**4), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(0, 10**6),
)
@example(values=[0.0, 1.0, 1.0, 0.0625, 0.25**4, 0.25**4], block=1, seed=0)  # copies come in by random vectors
def test_every_ritz_value_is_within_its_residual_of_an_eigenvalue(values: list[float], block: int, seed: int) -> None:
    matrix, eigenvalues = prescribed(values, seed)
    pairs = leading_eigenpairs(lambda u: matrix @ u, start_block(len(matrix), block, seed), leading(4))
    gaps = (pairs.values[:, None] - eigenvalues).abs().min(dim=1).values
    assert (gaps <= pairs.residual_norms + 1e-13).all()
    assert pairs.vectors is not None
    leading_ones = eigenvalues[: len(pairs.values)]
    projected = torch.linalg.eigvalsh(pairs.vectors.T @ matrix @ pairs.vectors).flip(0)
    assert (projected <= leading_ones + 1e-13).all()  # Cauchy: eigenvalues of a projection interlace
    # What random vectors leave out of T is in the residual norms, and moves no eigenvalue further (Weyl).
    left_out = pairs.residual_norms.max() if pairs.num_restarts else 0.0
    assert (pairs.values <= leading_ones + left_out + 1e-13).all()


def test_agrees_with_scipy() -> None:
    matrix, _ = prescribed(np.logspace(0, -3, 300))
    truth = scipy.sparse.linalg.eigsh(matrix.numpy(), k=10, which="LA", return_eigenvectors=False)[::-1]
    pairs = leading_eigenpairs(lambda u: matrix @ u, start_block(300, 4), leading(10), tolerance=1e-8)
    np.testing.assert_allclose(pairs.values.numpy(), truth, rtol=1e-12)


def test_no_ghosts_in_a_long_run() -> None:
    # Without reorthogonalisation this spectrum brings copies of the largest eigenvalue after some 40 steps.
    eigenvalues = np.concatenate([[1e6, 1e4], np.linspace(1, 0, 198)])
    matrix, truth = prescribed(eigenvalues)
    result = tridiagonalise(lambda u: matrix @ u, start_block(200, 1)[:, 0], 150)
    ritz = torch.linalg.eigvalsh(result.projected)
    assert int((ritz > 5e5).sum()) == 1
    assert int((ritz > 5e3).sum()) == 2
    assert (result.basis @ result.basis.T - torch.eye(150, dtype=torch.float64)).abs().max() <= 1e-13
    assert (ritz.flip(0) <= truth[:150] + 1e-9).all()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["linear", "decay from 1 to 1e-12", "rank 9 of 160", "identity", "two"])
def test_energy_of_a_known_trace(name: str, block: int) -> None:
    matrix, eigenvalues = prescribed(SPECTRA[name])
    trace = float(eigenvalues.sum())
    expected = int((eigenvalues.cumsum(0) < 0.9 * trace * (1 - 1e-12)).sum()) + 1
    pairs = leading_eigenpairs(
        lambda u: matrix @ u, start_block(len(matrix), block), holding(0.9 * (1 - 1e-12) * trace), tolerance=1e-6
    )
    assert pairs.converged
    assert len(pairs.values) == expected


def test_float32_products_converge_to_their_own_accuracy() -> None:
    matrix, eigenvalues = prescribed(np.logspace(0, -6, 200))
    single = matrix.float()
    pairs = leading_eigenpairs(lambda u: single @ u.float(), start_block(200, 4), leading(60), tolerance=1e-8)
    assert pairs.converged
    assert (pairs.values - eigenvalues[:60]).abs().max() <= 32 * torch.finfo(torch.float32).eps
    assert (pairs.vectors.T @ pairs.vectors - torch.eye(60, dtype=torch.float64)).abs().max() <= 1e-12


@pytest.mark.parametrize("block", [1, 3])
def test_rounding_within_the_basis_does_not_cost_its_orthogonality(block: int) -> None:
    # centred, rounded to float32, one eigenvalue but for zero: soon nothing is left of a product but that rounding
    q, _ = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    rows = torch.cat([q, q]).float()
    rounded = rows @ rows.T

    def centred(v: Tensor) -> Tensor:
        product = (rounded @ (v - v.mean(0)).float()).double()
        return product - product.mean(0)

    result = tridiagonalise(centred, start_block(120, block), 120)
    torch.testing.assert_close(result.basis @ result.basis.T, torch.eye(120, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(result.projected)[-1] < 2 + 1e-5


def test_the_basis_bound_is_kept_and_its_shortage_is_said() -> None:
    matrix, eigenvalues = prescribed(SPECTRA["linear"])
    widest = 0

    def matvec(block: Tensor) -> Tensor:
        nonlocal widest
        widest = max(widest, block.shape[1])
        return matrix @ block

    pairs = leading_eigenpairs(
        matvec, start_block(120, 4), holding(0.9 * float(eigenvalues.sum())), max_basis=30, max_matvecs=4000
    )
    assert widest == 4
    assert not pairs.converged
    assert "max_basis" in pairs.remedy
    assert len(pairs.values) <= 30


def test_a_spent_budget_is_said() -> None:
    matrix, _ = prescribed(SPECTRA["linear"])
    pairs = leading_eigenpairs(lambda u: matrix @ u, start_block(120, 1), leading(5), max_matvecs=10)
    assert not pairs.converged
    assert pairs.num_matvecs == 10
    assert "max_matvecs" in pairs.remedy


def test_the_forecast_of_what_is_needed_comes_early_and_is_near() -> None:
    # A power law like those of networks: 90 % of the trace lies in 60 of 800 eigenvalues.
    matrix, eigenvalues = prescribed(np.arange(1, 801) ** -1.5 + 1e-4)
    wanted = holding(0.9 * float(eigenvalues.sum()))
    forecasts: list[tuple[int, int]] = []

    def noted(spent: int, needed: int) -> bool:
        forecasts.append((spent, needed))
        return False

    trace = float(eigenvalues.sum())
    pairs = leading_eigenpairs(
        lambda u: matrix @ u, start_block(800, 8), wanted, trace=trace, give_up=noted, vectors=False
    )
    assert pairs.converged
    assert pairs.vectors is None
    assert [spent for spent, _ in forecasts[:2]] == [3 * 8, 4 * 8]
    assert 0.5 <= forecasts[0][1] / pairs.num_matvecs <= 3
    assert 0.5 <= forecasts[1][1] / pairs.num_matvecs <= 2
    assert all(0.75 <= needed / pairs.num_matvecs <= 1.33 for _, needed in forecasts[2:])


def test_a_hopeless_run_is_given_up() -> None:
    matrix, eigenvalues = prescribed(SPECTRA["linear"])
    total = float(eigenvalues.sum())
    pairs = leading_eigenpairs(
        lambda u: matrix @ u,
        start_block(120, 2),
        holding(0.9 * total),
        trace=total,
        give_up=lambda spent, needed: needed - spent > 60,
    )
    assert not pairs.converged
    assert pairs.num_matvecs == 6
    assert pairs.remedy


def test_repeats_bit_for_bit() -> None:
    matrix, _ = prescribed(SPECTRA["identity"])
    first, second = (leading_eigenpairs(lambda u: matrix @ u, start_block(40, 3), leading(20)) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)


def test_what_does_not_fit_is_refused() -> None:
    matrix, _ = prescribed(SPECTRA["linear"])
    with pytest.raises(ValueError, match="block"):
        leading_eigenpairs(lambda u: matrix @ u, torch.zeros(3, 5, dtype=torch.float64), leading(1))
    with pytest.raises(ValueError, match="3 blocks"):
        leading_eigenpairs(lambda u: matrix @ u, start_block(120, 8), leading(1), max_basis=20)
    with pytest.raises(ValueError, match="multiple"):
        tridiagonalise(lambda u: matrix @ u, start_block(120, 8), 9)
    with pytest.raises(RuntimeError, match="finite"):
        tridiagonalise(lambda u: u * float("nan"), start_block(120, 1), 2)


@pytest.mark.parametrize("seed", [2, 5, 11, 17])
def test_no_copies_are_lost_where_directions_vanish(seed: int) -> None:
    """Four eigenvalues with up to 45 copies each and a block of 16, which is used up after a few products."""
    generator = torch.Generator().manual_seed(seed)
    copies = torch.randint(5, 45, (4,), generator=generator).tolist()
    values = torch.cat([torch.full((count,), float(4 - place)) for place, count in enumerate(copies)]).double()
    values = torch.nn.functional.pad(values, (0, 200 - len(values)))
    start = torch.randn(200, 16, generator=generator, dtype=torch.float64)
    wanted = sum(copies[:3]) - 3
    pairs = leading_eigenpairs(lambda block: values[:, None] * block, start, leading(wanted))
    assert pairs.converged
    torch.testing.assert_close(pairs.values, values[:wanted], rtol=1e-9, atol=1e-12)
