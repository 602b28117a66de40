"""Overlap of leading subspaces: whether the noisy directions of one checkpoint, layer or group are those of another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.spectrum import Spectrum


@dataclass(frozen=True)
class SubspaceOverlap:
    """Principal angles between the spans of two sets of eigenvectors, k = the smaller number of them.

    Attributes:
        cosines: cos θ_i, descending [k]: 1 for a shared direction, 0 for one orthogonal to the other span.
        angles: θ_i in radians, ascending [k].
        overlap: Mean of cos² θ_i, in [0, 1].
        chance: What `overlap` is expected to be between random subspaces of the same dimensions.
    """

    cosines: Tensor
    angles: Tensor
    overlap: float
    chance: float


def subspace_overlap(first: Spectrum, second: Spectrum, *, num_directions: int | None = None) -> SubspaceOverlap:
    """Compare the leading noise directions of two spectra over the same parameters.

    cos θ_i are the singular values of V₁ᵀ V₂ for orthonormal V₁, V₂; small angles are taken from the sines, the
    singular values of V₂ − V₁ V₁ᵀ V₂, since an arc cosine near 1 keeps only half of the digits.

    Args:
        first: A spectrum with eigenvectors [P, k₁].
        second: Another one with eigenvectors [P, k₂].
        num_directions: How many leading directions to take of each; all there are where None.

    Returns:
        The angles.

    Raises:
        ValueError: A spectrum has no eigenvectors, or their lengths differ.

    Reference:
        Björck and Golub (1973), numerical methods for computing angles between linear subspaces.

    Example:
        >>> from sgdkern.gradient_matrix import GradientMatrix
        >>> from sgdkern.spectrum import noise_spectrum
        >>> G = GradientMatrix.from_dense(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
        >>> spectrum = noise_spectrum(G, eigenvectors=True)
        >>> round(subspace_overlap(spectrum, spectrum).overlap, 5)
        1.0
    """
    bases = []
    for spectrum in (first, second):
        if spectrum.eigenvectors is None:
            raise ValueError(
                "subspace_overlap: both spectra must have eigenvectors, got one without."
                " Ask for them: noise_spectrum(..., eigenvectors=True)."
            )
        vectors = spectrum.eigenvectors[:, :num_directions].double()
        bases.append(torch.linalg.qr(vectors)[0])
    one, other = sorted(bases, key=lambda basis: -basis.shape[1])
    if len(one) != len(other):
        raise ValueError(
            f"subspace_overlap: both spectra must be over the same parameters, got {len(bases[0])} and"
            f" {len(bases[1])} of them. Restrict both to the same params."
        )
    products = one.T @ other
    cosines = torch.linalg.svdvals(products).clamp(max=1)
    sines = torch.linalg.svdvals(other - one @ products).clamp(max=1).flip(0)
    angles = torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())
    overlap = float(cosines.square().mean()) if len(cosines) else 0.0
    return SubspaceOverlap(cosines, angles, overlap, one.shape[1] / len(one))
