"""Direction: whether minibatch gradients agree with each other, and with their mean."""

from __future__ import annotations

from torch import Tensor

from sgdkern.order_parameters import order_parameter
from sgdkern.order_parameters.moments import Moments


@order_parameter(
    "R",
    symbol="R",
    unit="1",
    reference="Feng & Tu 2021",
    meaning="alignment: mean cosine between two independent minibatch gradients",
    degree=0,
    invariances=("permutation", "rotation", "duplication"),
    sampled=True,
)
def alignment(moments: Moments) -> Tensor:
    """R = ⟨cos(g^µ, g^ν)⟩ over independent pairs of minibatches; no closed form, so measured over drawn minibatches."""
    return moments.minibatch_cosine


@order_parameter(
    "sigma_lambda2",
    symbol="σ_λ²",
    unit="1",
    reference="Feng & Tu 2021",
    meaning="variance of λ = g^µ·ḡ / ‖ḡ‖², the minibatch gradient's share of the mean gradient",
    degree=0,
    invariances=("permutation", "rotation", "duplication"),
    signal=True,
)
def projection_variance(moments: Moments) -> Tensor:
    """σ_λ² = φ (mean s² / A0² − 1)."""
    return moments.noise_factor * (moments.squared_projection / moments.directed_activity_squared - 1)


@order_parameter(
    "noise_scale",
    symbol="B_noise",
    unit="samples",
    reference="McCandlish et al. 2018, 'simple'",
    meaning="simple gradient noise scale tr Σ / ‖ḡ‖²: below this batch size noise dominates the step",
    degree=0,
    invariances=("permutation", "rotation", "duplication"),
    signal=True,
    reciprocal=True,
)
def noise_scale(moments: Moments) -> Tensor:
    """B_noise = tr Σ / ‖ḡ‖²."""
    return moments.squared_norm / moments.directed_activity - 1
