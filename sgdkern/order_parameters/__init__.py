"""Order parameters of SGD: each is one registered formula over the moments of the per-sample gradients.

The registry is a dict that the decorator fills; tests, tables and plots walk it. A closed form is read three times: at
the moments of the N samples (the value), at unbiased moments of the population that they were drawn from
(`*_unbiased`), and at those with one sample left out (the confidence bounds).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from sgdkern.order_parameters.moments import Moments, noise_factor, population_moments, sample_moments

Invariance: TypeAlias = Literal["permutation", "rotation", "duplication", "translation"]
Formula: TypeAlias = Callable[[Moments], Tensor]


@dataclass(frozen=True)
class OrderParameter:
    """One row of the registry.

    Attributes:
        name: The code word, and the key in `OrderParameters.as_dict()`.
        formula: From the moments to the value.
        symbol: As printed.
        unit: In words of the loss and the parameters.
        reference: Where it is defined.
        meaning: One sentence for a reader of the table.
        degree: The value scales as c to this power where the loss is multiplied by c.
        invariances: What leaves the value as it is: "permutation" of the samples, "rotation" of the parameters,
            "duplication" of every sample (minibatches drawn with replacement), "translation" of every gradient by the
            same vector.
        sampled: Whether it is estimated over drawn minibatches, so that its bounds are those of that estimate.
        signal: Whether A0 stands in its denominator, so that it means nothing where A0 is below the noise floor.
        reciprocal: Whether its bounds are those of its reciprocal, turned back: a ratio to A0 is symmetrically
            distributed that way up, and has no upper bound where A0 may be zero.
    """

    name: str
    formula: Formula
    symbol: str
    unit: str
    reference: str
    meaning: str
    degree: int
    invariances: tuple[Invariance, ...]
    sampled: bool
    signal: bool
    reciprocal: bool


REGISTRY: dict[str, OrderParameter] = {}


def order_parameter(
    name: str,
    *,
    symbol: str,
    unit: str,
    reference: str,
    meaning: str,
    degree: int,
    invariances: tuple[Invariance, ...],
    sampled: bool = False,
    signal: bool = False,
    reciprocal: bool = False,
) -> Callable[[Formula], Formula]:
    """Register a formula; what lacks a unit, a reference or its invariances is a TypeError by signature.

    Args:
        name: The key of the value, see `OrderParameter` for this and all others.
        symbol: As printed.
        unit: In words of the loss and the parameters.
        reference: Where it is defined.
        meaning: One sentence.
        degree: Power of a factor on the loss.
        invariances: What leaves it as it is.
        sampled: Whether it is estimated over drawn minibatches.
        signal: Whether A0 stands in its denominator.
        reciprocal: Whether its bounds are those of its reciprocal.

    Returns:
        The decorator, which gives the formula back unchanged.

    Raises:
        ValueError: If the name is taken.
    """
    if name in REGISTRY:
        raise ValueError(f"order_parameter: names must be unique, got {name!r} twice. Choose another.")

    def register(formula: Formula) -> Formula:
        REGISTRY[name] = OrderParameter(
            name, formula, symbol, unit, reference, meaning, degree, invariances, sampled, signal, reciprocal
        )
        return formula

    return register


def table() -> str:
    """The registry as a Markdown table, for the README and docs/order_parameters.md.

    Returns:
        One line for each order parameter, below two header lines.

    Example:
        >>> from sgdkern.order_parameters import table
        >>> print(table().splitlines()[0])
        | key | symbol | unit | meaning | reference |
    """
    lines = ["| key | symbol | unit | meaning | reference |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| `{p.name}` | {p.symbol} | {p.unit} | {p.meaning} | {p.reference} |" for p in REGISTRY.values()]
    return "\n".join(lines) + "\n"


# The rooms of the registry, in the order of its rows; they need the decorator above.
from sgdkern.order_parameters import activity as activity  # noqa: E402
from sgdkern.order_parameters import direction as direction  # noqa: E402
from sgdkern.order_parameters.alignment import Alignment, draw_minibatches, minibatch_alignment  # noqa: E402
from sgdkern.order_parameters.confidence import Estimate  # noqa: E402
from sgdkern.order_parameters.groups import (  # noqa: E402
    CosineNull,
    GroupStatistics,
    activity_exact,
    activity_stratified,
    cosine_null,
    group_statistics,
)
from sgdkern.order_parameters.measurement import OrderParameters, order_parameters  # noqa: E402

__all__ = [
    "REGISTRY",
    "Alignment",
    "CosineNull",
    "Estimate",
    "GroupStatistics",
    "Moments",
    "OrderParameter",
    "OrderParameters",
    "activity_exact",
    "activity_stratified",
    "cosine_null",
    "draw_minibatches",
    "group_statistics",
    "minibatch_alignment",
    "noise_factor",
    "order_parameter",
    "order_parameters",
    "population_moments",
    "sample_moments",
    "table",
]
