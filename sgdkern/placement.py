"""placement: where the samples are in a gradient, told by what weights of their losses do to it.

The gradient's elements grow with the weight of the sample that they belong to. Weights are powers of two, which scale
every floating-point format without rounding.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sgdkern.layers import Layout

# Where the samples are: regularly; in rows to be found out pass by pass; unknown, since no gradient came by that could
# tell; or nowhere to be told.
Place = Layout | Literal["scattered", "silent"] | None
# Largest relative difference between a gradient and itself under other weights: only sums in no fixed order differ.
SAME_GRADIENT = {torch.float64: 1e-8, torch.float32: 2e-3, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def negligible(dtype: torch.dtype) -> float:
    """The largest gradient that counts as none: its square is not a number of the dtype that products are kept in."""
    kept = torch.finfo(torch.promote_types(dtype, torch.float32))
    return math.sqrt(kept.smallest_normal * kept.eps)


class Placement:
    """Where the samples may be in one gradient; each weighting leaves fewer places.

    Args:
        plain: the gradient of the plain sum of losses; None where there is none.
        num_samples: N.
    """

    def __init__(self, plain: Tensor | None, num_samples: int) -> None:
        self._plain = plain
        self._silent = plain is None or plain.numel() == 0 or bool(plain.abs().max() <= negligible(plain.dtype))
        axes = range(0 if plain is None or self._silent else plain.ndim)
        layouts = [Layout(num_samples, axis, minor) for axis in axes for minor in (False, True)]
        self._layouts = [layout for layout in layouts if plain is not None and layout.fits(plain.shape)]
        self._in_rows = len(axes) > 0
        self.mixed = False
        self.norm = 0.0

    def see(self, weighted: Tensor, weights: Tensor) -> None:
        """Leave what agrees with a gradient under weights of the losses, [N]."""
        self.norm = max(self.norm, float(_norm(weighted)))
        if self._plain is None or self._silent:
            return
        plain, values = self._plain, weights.unique().to(self._plain.dtype)
        tolerance = SAME_GRADIENT.get(plain.dtype, 2e-3)
        self._layouts = [layout for layout in self._layouts if _carries(layout, plain, weighted, weights, tolerance)]
        if self._layouts:
            return
        error = torch.full_like(plain, torch.inf)
        for value in values:
            error = torch.minimum(error, (weighted - plain * value).abs())
        self.mixed = self.mixed or bool(_norm(error) > max(tolerance, 1e-5) * _norm(weighted))
        if self._in_rows:
            errors = torch.stack([row_norms(weighted - plain * value) for value in values])
            self._in_rows = bool((errors.amin(0) <= tolerance * row_norms(weighted)).all())

    @property
    def place(self) -> Place:
        """The first place that is left."""
        if self._silent:
            return "silent"
        return self._layouts[0] if self._layouts else "scattered" if self._in_rows else None

    @property
    def underflows(self) -> bool:
        """Whether the gradient is too small for its dtype to tell: float16 has no small numbers."""
        if self._plain is None or self._plain.dtype != torch.float16:
            return False
        return bool(self._plain.abs().max() < torch.finfo(torch.float16).smallest_normal)


def _carries(layout: Layout, plain: Tensor, weighted: Tensor, weights: Tensor, tolerance: float) -> bool:
    """Whether the samples' weights show along a layout's axis."""
    one, other = layout.split(plain), layout.split(weighted)
    scaled = one * weights.view(-1, *[1] * (one.ndim - 1)).to(one.dtype)
    return bool(_norm(other - scaled) <= tolerance * _norm(other))


def _norm(tensor: Tensor) -> Tensor:
    """The norm in float64, where squares of small numbers are not lost."""
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float64))
    return norm


def row_norms(tensor: Tensor) -> Tensor:
    """Norms along the first axis, in float64."""
    kept = torch.promote_types(tensor.dtype, torch.float64)
    norms: Tensor = torch.linalg.vector_norm(tensor.reshape(len(tensor), -1), dim=1, dtype=kept)
    return norms
