"""Inputs as the small default network likes them: few principal components of one overall size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """An affine map of flat features, z = (x - mean) @ matrix.

    Attributes:
        mean: [F].
        matrix: [F, d].
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map inputs [N, ...] with F numbers a sample to [N, d]."""
        return (inputs.flatten(1) - self.mean) @ self.matrix


def fit_projection(inputs: Tensor, *, max_features: int, norm: float) -> Projection:
    """Fit the map to leading principal components, scaled so that E|z|^2 = norm^2.

    Components are kept to their natural proportions (no whitening). Features are brought to unit variance first only
    where the largest standard deviation is more than ten times the median one, that is, where they have different
    units; pixels, of which some hardly ever change, are left as they are.

    Args:
        inputs: [N, ...] floating point.
        max_features: d at most.
        norm: the root mean square length of the mapped inputs.

    Returns:
        The projection.
    """
    flat = inputs.flatten(1).double()
    mean = flat.mean(dim=0)
    centred = flat - mean
    deviations = centred.square().mean(dim=0).sqrt()
    alive = deviations > 0
    scale = torch.zeros_like(deviations)
    mixed_units = bool(alive.any()) and bool(deviations.max() > 10 * deviations[alive].median())
    scale[alive] = 1 / deviations[alive] if mixed_units else 1.0
    matrix = torch.diag(scale)
    if flat.shape[1] > max_features:
        scaled = centred * scale
        _, vectors = torch.linalg.eigh(scaled.T @ scaled)
        matrix = matrix @ vectors[:, -max_features:].flip(1)
    length = (centred @ matrix).square().sum(dim=1).mean().sqrt()
    matrix = matrix * (norm / length.clamp(min=torch.finfo(torch.float64).tiny))
    return Projection(mean.float(), matrix.float())
