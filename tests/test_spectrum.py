"""Noise spectra against the dense covariance in float64: every route, every edge."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgdkern import spectrum as spectrum_module
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.spectrum import noise_spectrum

METHODS = ["gram", "lanczos", "auto"]


def rows(num_samples: int, num_params: int, decay: float = 2.0, mean: float = 0.3, seed: int = 0) -> Tensor:
    """Gradients with a decaying covariance and a common direction, float64."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -decay, num_params, dtype=torch.float64)
    return torch.randn(num_samples, num_params, dtype=torch.float64, generator=generator) * scales + mean


def dense_spectrum(G: Tensor, batch_size: int | None = None) -> tuple[np.ndarray, float]:
    """Eigenvalues of C, descending, and its trace, from P × P in float64."""
    n = len(G)
    centred = (G - G.mean(0)).double().numpy()
    phi = 1.0 if batch_size is None else (n - batch_size) / (batch_size * (n - 1)) if n > 1 else 0.0
    covariance = phi * centred.T @ centred / n
    return np.linalg.eigvalsh(covariance)[::-1], float(np.trace(covariance))


def effective_dimension(G: Tensor, energy: float = 0.9) -> int:
    eigenvalues, trace = dense_spectrum(G)
    return int((np.cumsum(eigenvalues) < energy * trace * (1 - 1e-12)).sum()) + 1


@pytest.fixture
def iterate_from_30(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanczos on the stored K already at small N."""
    monkeypatch.setattr(spectrum_module, "_LAPACK_SAMPLES", 30)
    monkeypatch.setattr(spectrum_module, "_LAPACK_SAMPLES_A_NUMBER", 30)


@pytest.mark.parametrize("num_samples", [64, 257, 640])
def test_bounds_of_the_whole_spectrum_in_float32_hold(num_samples: int) -> None:
    # Orthogonal gradients, whose K is exact: what is off is LAPACK's, up to 1.8 √N ε ‖Σ‖.
    found = noise_spectrum(GradientMatrix.from_dense(torch.eye(num_samples)), method="gram", energy=1.0)
    truth = torch.full((num_samples,), 1 / num_samples, dtype=torch.float64)
    truth[-1] = 0.0
    assert ((found.eigenvalues - truth).abs() <= found.residual_norms).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(2, 3), (20, 7), (7, 20), (60, 200), (200, 60)])
def test_every_route_finds_the_spectrum_of_the_dense_covariance(
    shape: tuple[int, int], method: str, dtype: torch.dtype
) -> None:
    G = rows(*shape)
    truth, trace = dense_spectrum(G, 2)
    found = noise_spectrum(GradientMatrix.from_dense(G.to(dtype)), batch_size=2, method=method)
    k = len(found.eigenvalues)
    scale = 1e-12 if dtype == torch.float64 else 2e-6
    assert found.converged
    assert found.effective_dimension == effective_dimension(G)
    assert k >= found.effective_dimension
    assert k <= min(shape)
    assert found.trace == pytest.approx(trace, rel=max(scale, 1e-12))
    error = np.abs(found.eigenvalues.numpy() - truth[:k])
    assert (error <= found.residual_norms.numpy() + scale * max(truth[0], 1e-30) + 1e-18).all()
    assert (np.diff(found.eigenvalues.numpy()) <= 0).all()
    assert found.reason


def test_iteration_on_the_stored_gram_matrix(iterate_from_30: None) -> None:
    G = rows(600, 300, decay=10)
    truth, _ = dense_spectrum(G)
    found = noise_spectrum(GradientMatrix.from_dense(G), method="gram")
    assert 0 < found.num_matvecs <= 120
    assert found.effective_dimension == len(found.eigenvalues) == effective_dimension(G)
    np.testing.assert_allclose(found.eigenvalues.numpy(), truth[: len(found.eigenvalues)], rtol=1e-6)
    ratio = truth.sum() ** 2 / (truth**2).sum()
    assert found.participation_ratio == pytest.approx(ratio, rel=1e-10)
    assert found.participation_ratio_error == 0


def test_a_few_eigenvalues_of_the_stored_gram_matrix(iterate_from_30: None) -> None:
    G = rows(600, 200, decay=6)
    truth, _ = dense_spectrum(G)
    few = noise_spectrum(GradientMatrix.from_dense(G), method="gram", num_eigenvalues=2, tolerance=1e-6)
    many = noise_spectrum(GradientMatrix.from_dense(G), method="gram", num_eigenvalues=100)
    assert few.num_matvecs > 0
    assert many.num_matvecs == 0
    np.testing.assert_allclose(few.eigenvalues.numpy(), truth[:2], rtol=1e-8)
    np.testing.assert_allclose(many.eigenvalues.numpy(), truth[:100], rtol=1e-8)


def test_a_broad_spectrum_is_diagonalised_whole(iterate_from_30: None) -> None:
    G = rows(300, 500, decay=0)
    found = noise_spectrum(GradientMatrix.from_dense(G), method="gram")
    assert found.num_matvecs == 0
    assert "broad" in found.reason
    assert found.effective_dimension == effective_dimension(G)
    assert len(found.eigenvalues) == 300


def test_a_spectrum_that_pays_is_iterated_to_its_end(iterate_from_30: None) -> None:
    # It takes more than a fifth of N vectors, and still less than LAPACK: the forecast says so after 96 of them.
    G = rows(800, 600, decay=5)
    found = noise_spectrum(GradientMatrix.from_dense(G), method="gram")
    assert 160 < found.num_matvecs < 0.35 * 800  # where both cost the same
    assert found.converged
    assert found.effective_dimension == effective_dimension(G)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", METHODS)
def test_float32_factors_give_the_effective_dimension_to_one(method: str, seed: int, iterate_from_30: None) -> None:
    # A mean ten times the noise: the centring has to cancel a leading eigenvalue a hundred times the rest.
    G = rows(400, 300, decay=1.0, mean=3.0, seed=seed)
    found = noise_spectrum(GradientMatrix.from_dense(G.float()), method=method)
    assert found.converged
    assert found.effective_dimension is not None
    assert abs(found.effective_dimension - effective_dimension(G)) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_the_batch_size_scales_the_spectrum_and_leaves_the_effective_dimension(method: str) -> None:
    G = GradientMatrix.from_dense(rows(50, 80))
    per_sample = noise_spectrum(G, method=method)
    for batch_size in (1, 7, 49, 50):
        phi = (50 - batch_size) / (batch_size * 49)
        found = noise_spectrum(G, batch_size=batch_size, method=method)
        torch.testing.assert_close(found.eigenvalues, phi * per_sample.eigenvalues)
        assert found.trace == pytest.approx(phi * per_sample.trace)
        assert found.effective_dimension == per_sample.effective_dimension


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 25), st.integers(1, 25), st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]))
def test_routes_agree_on_the_effective_dimension(num_samples: int, num_params: int, seed: int, energy: float) -> None:
    G = rows(num_samples, num_params, seed=seed)
    gram = noise_spectrum(GradientMatrix.from_dense(G), method="gram", energy=energy)
    lanczos = noise_spectrum(GradientMatrix.from_dense(G), method="lanczos", energy=energy)
    assert gram.effective_dimension == lanczos.effective_dimension
    assert gram.trace == pytest.approx(lanczos.trace, rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("method", METHODS)
class TestEdges:
    def test_one_sample_has_no_noise(self, method: str) -> None:
        found = noise_spectrum(GradientMatrix.from_dense(rows(1, 5)), method=method, batch_size=1)
        assert found.trace == 0
        assert found.effective_dimension == 0
        assert found.eigenvalues.tolist() == [0]
        assert found.converged

    def test_zero_gradients(self, method: str) -> None:
        found = noise_spectrum(GradientMatrix.from_dense(torch.zeros(6, 4)), method=method, eigenvectors=True)
        assert found.trace == found.stable_rank == found.participation_ratio == 0
        assert found.effective_dimension == 0
        assert not found.eigenvalues.any()

    def test_equal_gradients(self, method: str) -> None:
        found = noise_spectrum(GradientMatrix.from_dense(torch.ones(6, 4, dtype=torch.float64)), method=method)
        assert found.trace == 0
        assert found.effective_dimension == 0

    def test_all_of_the_energy_is_the_rank(self, method: str) -> None:
        G = rows(40, 9, decay=0.5)
        found = noise_spectrum(GradientMatrix.from_dense(G), method=method, energy=1.0)
        assert found.effective_dimension == 9
        assert float(found.eigenvalues.sum()) == pytest.approx(found.trace)

    def test_more_eigenvalues_than_the_rank(self, method: str) -> None:
        G = torch.cat([rows(30, 4), torch.zeros(30, 21, dtype=torch.float64)], dim=1)
        found = noise_spectrum(GradientMatrix.from_dense(G), method=method, num_eigenvalues=20)
        assert found.eigenvalues.shape == (20,)
        assert (found.eigenvalues[4:] <= 1e-14 * found.eigenvalues[0]).all()
        assert found.effective_dimension == effective_dimension(G)
        more = noise_spectrum(GradientMatrix.from_dense(G), method=method, num_eigenvalues=1000)
        assert more.eigenvalues.shape == (25,)

    def test_equal_eigenvalues(self, method: str) -> None:
        # Orthogonal gradients: all 20 eigenvalues are equal, and 18 of them hold exactly 90 %.
        found = noise_spectrum(GradientMatrix.from_dense(torch.eye(21, dtype=torch.float64)), method=method)
        assert found.effective_dimension == 18
        assert found.participation_ratio == pytest.approx(20, abs=found.participation_ratio_error + 1e-9)
        assert found.stable_rank == pytest.approx(20)

    def test_too_few_eigenvalues_to_know(self, method: str) -> None:
        found = noise_spectrum(GradientMatrix.from_dense(rows(50, 50, decay=0.1)), method=method, num_eigenvalues=2)
        assert found.eigenvalues.shape == (2,)
        assert found.effective_dimension is None
        assert found.converged

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_gradients_that_are_not_finite_are_refused(self, method: str, bad: float) -> None:
        G = rows(20, 30)
        G[3, 4] = bad
        with pytest.raises(ValueError, match="finite"):
            noise_spectrum(GradientMatrix.from_dense(G), method=method)

    @pytest.mark.parametrize("size", [1e-22, 1e-30])
    def test_squares_that_underflow_are_refused(self, method: str, size: float) -> None:
        rows = size * torch.randn(6, 3)
        with pytest.raises(ValueError, match=r"must be above 1e-31 in torch.float32.*Scale the loss"):
            noise_spectrum(GradientMatrix.from_dense(rows), method=method)
        wide = noise_spectrum(GradientMatrix.from_dense(rows.double()), method=method)
        scaled = noise_spectrum(GradientMatrix.from_dense(rows * 2.0**80), method=method)
        torch.testing.assert_close(scaled.eigenvalues * 2.0**-160, wide.eigenvalues, rtol=1e-4, atol=0)

    @pytest.mark.parametrize("mean", [30.0, 1e4])
    def test_a_mean_that_drowns_the_noise_widens_the_bounds(self, method: str, mean: float) -> None:
        # In float32 the squares of gradients of length 1e4 hide noise of length 1 whole: nothing is claimed of it.
        G = rows(40, 60, decay=0)
        truth, trace = dense_spectrum(G)
        found = noise_spectrum(GradientMatrix.from_dense((G + mean).float()), method=method)
        error = np.abs(found.eigenvalues.numpy() - truth[: len(found.eigenvalues)])
        assert (error <= found.residual_norms.numpy() + 1e-6 * truth[0]).all()
        if mean == 1e4:
            assert found.trace == found.effective_dimension == 0
            assert not found.eigenvalues.any()
        else:
            assert found.trace == pytest.approx(trace, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_shape_numbers(method: str) -> None:
    G = rows(120, 90)
    truth, _ = dense_spectrum(G)
    found = noise_spectrum(GradientMatrix.from_dense(G), method=method)
    ratio = truth.sum() ** 2 / (truth**2).sum()
    assert abs(found.participation_ratio - ratio) <= found.participation_ratio_error + 1e-9
    assert found.participation_ratio_error <= 0.05 * ratio
    assert found.stable_rank == pytest.approx(truth.sum() / truth[0], rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_eigenvectors_in_parameter_space(method: str) -> None:
    G = rows(80, 50)
    found = noise_spectrum(GradientMatrix.from_dense(G), method=method, eigenvectors=True, tolerance=1e-8)
    centred = G - G.mean(0)
    covariance = centred.T @ centred / len(G)
    v = found.eigenvectors
    assert v is not None
    k = found.effective_dimension
    assert v.shape == (50, k)
    torch.testing.assert_close(v.T @ v, torch.eye(k, dtype=v.dtype), rtol=0, atol=1e-9)
    torch.testing.assert_close(covariance @ v, v * found.eigenvalues[:k], rtol=0, atol=1e-9)
    more = noise_spectrum(GradientMatrix.from_dense(G), method=method, eigenvectors=True, num_eigenvalues=k + 3)
    assert more.eigenvectors is not None
    assert more.eigenvectors.shape == (50, k + 3)


def test_non_convergence_is_a_field_or_an_exception() -> None:
    G = GradientMatrix.from_dense(rows(200, 300, decay=0.5))
    found = noise_spectrum(G, method="lanczos", max_matvecs=20)
    assert not found.converged
    assert "max_matvecs" in found.remedy
    assert found.effective_dimension is None
    with pytest.raises(RuntimeError, match="max_matvecs"):
        noise_spectrum(G, method="lanczos", max_matvecs=20, strict=True)


def test_auto_keeps_the_memory_bound_and_says_why() -> None:
    G = GradientMatrix.from_dense(rows(300, 20))
    roomy = noise_spectrum(G)
    assert roomy.method == "gram"
    assert "within the bound" in roomy.reason
    closer = noise_spectrum(G, memory_bound=10**6)
    assert closer.method == "gram"
    assert closer.num_matvecs > 0
    tight = noise_spectrum(G, memory_bound=600_000)
    assert tight.method == "lanczos"
    assert "above the bound" in tight.reason
    with pytest.raises(ValueError, match="memory_bound"):
        noise_spectrum(G, method="gram", memory_bound=600_000)
    with pytest.raises(ValueError, match="memory_bound"):
        noise_spectrum(G, memory_bound=10**4)


def test_results_repeat_and_are_frozen() -> None:
    G = GradientMatrix.from_dense(rows(100, 60))
    first, second = noise_spectrum(G, method="lanczos"), noise_spectrum(G, method="lanczos")
    assert torch.equal(first.eigenvalues, second.eigenvalues)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.trace = 0.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 6}, "batch_size"),
        ({"energy": 0.0}, "energy"),
        ({"energy": 1.5}, "energy"),
        ({"num_eigenvalues": 0}, "num_eigenvalues"),
        ({"method": "qr"}, "method"),
        ({"block_size": 0}, "block_size"),
        ({"num_passes": 0}, "num_passes"),
        ({"max_matvecs": 0}, "max_matvecs"),
        ({"tolerance": float("nan")}, "tolerance"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise_spectrum(GradientMatrix.from_dense(rows(5, 3)), **options)


def test_a_forecast_that_was_wrong_does_not_keep_an_iteration_going() -> None:
    """Ten eigenvalues and a flat rest, of which a hundred are asked for: none of the rest converges in time."""
    generator = torch.Generator().manual_seed(0)
    n = 1400
    values = torch.cat([
        0.1 + 0.1 * torch.rand(10, generator=generator),
        1e-4 * torch.rand(n - 10, generator=generator),
    ])
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for _ in range(2))
    G = GradientMatrix.from_dense((left * (n * values).sqrt()) @ right.T)
    spectrum = noise_spectrum(G, num_eigenvalues=100)
    assert spectrum.converged
    assert spectrum.num_matvecs < n // 2
