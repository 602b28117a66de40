"""Principal angles against scipy, and what they should say of subspaces known beforehand."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from sgdkern.capture import per_sample_gradients
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.spectrum import Spectrum, noise_spectrum
from sgdkern.subspace import subspace_overlap


def spectrum(rows: Tensor, **options: object) -> Spectrum:
    return noise_spectrum(GradientMatrix.from_dense(rows), eigenvectors=True, **options)


def rows(num_samples: int, num_params: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, num_params, dtype=torch.float64)
    return torch.randn(num_samples, num_params, dtype=torch.float64, generator=generator) * scales


def test_agrees_with_scipy() -> None:
    one, other = spectrum(rows(50, 30, 0)), spectrum(rows(60, 30, 1))
    found = subspace_overlap(one, other, num_directions=5)
    truth = scipy.linalg.subspace_angles(one.eigenvectors[:, :5].numpy(), other.eigenvectors[:, :5].numpy())[::-1]
    np.testing.assert_allclose(found.angles.numpy(), truth, atol=1e-12)
    np.testing.assert_allclose(found.cosines.numpy(), np.cos(truth), atol=1e-12)
    assert found.overlap == pytest.approx(float(np.mean(np.cos(truth) ** 2)))


def test_the_same_subspace_and_an_orthogonal_one() -> None:
    G = rows(80, 20, 0)
    same = subspace_overlap(spectrum(G), spectrum(3 * G))
    assert same.overlap == pytest.approx(1)
    assert (same.angles <= 1e-7).all()
    left = torch.cat([G, torch.zeros_like(G)], 1)
    right = torch.cat([torch.zeros_like(G), G], 1)
    apart = subspace_overlap(spectrum(left), spectrum(right))
    assert apart.overlap == pytest.approx(0, abs=1e-20)


def test_random_subspaces_overlap_by_chance() -> None:
    overlaps = []
    for seed in range(20):
        one, other = (torch.randn(40, 200, generator=torch.Generator().manual_seed(2 * seed + k)) for k in (0, 1))
        found = subspace_overlap(spectrum(one), spectrum(other), num_directions=20)
        assert found.chance == pytest.approx(0.1)
        overlaps.append(found.overlap)
    standard_error = np.std(overlaps, ddof=1) / np.sqrt(len(overlaps))
    assert abs(np.mean(overlaps) - 0.1) <= 4 * standard_error


def test_layers_groups_and_checkpoints() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 4)).double()
    inputs, targets = torch.randn(60, 8, dtype=torch.float64), torch.arange(60) % 4
    G = per_sample_gradients(model, nn.CrossEntropyLoss(), inputs, targets)
    layers = {name: noise_spectrum(layer, eigenvectors=True) for name, layer in G.layers.items()}
    whole = noise_spectrum(G)
    assert sum(layer.trace for layer in layers.values()) == pytest.approx(whole.trace)
    groups = [noise_spectrum(G.select(targets == c), eigenvectors=True) for c in (0, 1)]
    between = subspace_overlap(*groups)
    assert 0 < between.overlap < 1
    with torch.no_grad():
        model[0].weight += 1e-9 * torch.randn_like(model[0].weight)
    later = per_sample_gradients(model, nn.CrossEntropyLoss(), inputs, targets)
    assert (
        subspace_overlap(noise_spectrum(G, eigenvectors=True), noise_spectrum(later, eigenvectors=True)).overlap > 0.999
    )
    with pytest.raises(ValueError, match="same parameters"):
        subspace_overlap(*layers.values())
    with pytest.raises(ValueError, match="eigenvectors=True"):
        subspace_overlap(whole, whole)
