"""Activity: how far the minibatch gradients reach, split into what the mean does and what the noise does."""

from __future__ import annotations

from torch import Tensor

from sgdkern.order_parameters import order_parameter
from sgdkern.order_parameters.moments import Moments

_UNIT = "(loss / parameter)²"


@order_parameter(
    "A",
    symbol="A",
    unit=_UNIT,
    reference="Feng & Tu 2021",
    meaning="activity: mean squared length of a minibatch gradient",
    degree=2,
    invariances=("permutation", "rotation", "duplication"),
)
def activity(moments: Moments) -> Tensor:
    """A = ⟨‖g^µ‖²⟩ = A0 + D."""
    return moments.directed_activity + noise_strength(moments)


@order_parameter(
    "A0",
    symbol="A₀",
    unit=_UNIT,
    reference="Feng & Tu 2021",
    meaning="directed activity: squared length of the mean gradient",
    degree=2,
    invariances=("permutation", "rotation", "duplication"),
)
def directed_activity(moments: Moments) -> Tensor:
    """A0 = ‖ḡ‖²."""
    return moments.directed_activity


@order_parameter(
    "A_perp",
    symbol="A⊥",
    unit=_UNIT,
    reference="Feng & Tu 2021",
    meaning="activity across the mean gradient: D − D∥",
    degree=2,
    invariances=("permutation", "rotation", "duplication"),
    signal=True,
)
def activity_across(moments: Moments) -> Tensor:
    """A⊥ = D − D∥."""
    return noise_strength(moments) - noise_along(moments)


@order_parameter(
    "A_par",
    symbol="A∥",
    unit=_UNIT,
    reference="Feng & Tu 2021",
    meaning="activity along the mean gradient: (1 + σ_λ²) A₀",
    degree=2,
    invariances=("permutation", "rotation", "duplication"),
    signal=True,
)
def activity_along(moments: Moments) -> Tensor:
    """A∥ = (1 + σ_λ²) A0 = A0 + D∥."""
    return moments.directed_activity + noise_along(moments)


@order_parameter(
    "D",
    symbol="D",
    unit=_UNIT,
    reference="Feng & Tu 2021",
    meaning="noise strength: trace of the covariance C of the minibatch gradients",
    degree=2,
    invariances=("permutation", "rotation", "duplication", "translation"),
)
def noise_strength(moments: Moments) -> Tensor:
    """D = tr C = φ (q̄ − A0)."""
    return moments.noise_factor * (moments.squared_norm - moments.directed_activity)


@order_parameter(
    "D_par",
    symbol="D∥",
    unit=_UNIT,
    reference="Feng & Tu 2021",
    meaning="noise along the mean gradient: σ_λ² A₀",
    degree=2,
    invariances=("permutation", "rotation", "duplication"),
    signal=True,
)
def noise_along(moments: Moments) -> Tensor:
    """D∥ = σ_λ² A0 = φ ḡᵀΣḡ / A0."""
    along = moments.squared_projection - moments.directed_activity_squared
    return moments.noise_factor * along / moments.directed_activity
