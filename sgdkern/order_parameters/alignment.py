"""Alignment R: the mean cosine of independently drawn minibatch gradients, with its standard error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import nan

import torch
from torch import Tensor

from sgdkern.order_parameters.confidence import jackknife_error, student_quantile
from sgdkern.order_parameters.moments import noise_factor
from sgdkern.statistics import GradientSource, GramSource, Statistics, gram_products
from sgdkern.substitutes.plain import are_modes_active

# Random keys that are drawn and ranked at once: 2²² · 4 bytes = 16 MiB.
_KEYS_AT_ONCE = 2**22
# Entries of K that are gathered at once.
_ENTRIES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Alignment:
    """R over drawn minibatches; its error is that of the draw, the N samples being given.

    Attributes:
        value: R^ = (‖Σ ĝ^µ‖² − M) / (M (M−1)).
        standard_error: Jackknife over minibatches.
        low: Lower confidence bound.
        high: Upper confidence bound.
        num_minibatches: M, those with a gradient that is not zero.
        num_zero: Minibatches left out because their gradient is zero within rounding: they have no direction.
        reason: Empty, or why there is no value.
    """

    value: float
    standard_error: float
    low: float
    high: float
    num_minibatches: int
    num_zero: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Minibatches:
    """Drawn minibatches, of which R is the mean cosine.

    Attributes:
        indices: Their members, int64 [M, B].
        squared_norms: ‖g^µ‖², float64 [M].
    """

    indices: Tensor
    squared_norms: Tensor

    @cached_property
    def scales(self) -> Tensor:
        """What the sum of a minibatch's rows is multiplied with to give ĝ^µ, [M]; 0 for a sum that is zero."""
        lengths = self.indices.shape[1] * self.squared_norms.clamp_min(0).sqrt()
        return torch.where(lengths > 0, 1 / lengths, 0)

    def weights(self, num_samples: int) -> Tensor:
        """W with S = Σ ĝ^µ = Gᵀ w, float64 [N]."""
        weights = torch.zeros(num_samples, dtype=torch.float64)
        return weights.index_add_(0, self.indices.flatten(), self.scales.repeat_interleave(self.indices.shape[1]))

    def only(self, chosen: Tensor) -> Minibatches:
        """Some of them, by a mask [M]."""
        return self if bool(chosen.all()) else Minibatches(self.indices[chosen], self.squared_norms[chosen])


def measured_minibatches(
    source: GradientSource,
    *,
    batch_size: int,
    num_minibatches: int,
    generator: torch.Generator | None = None,
    replacement: bool = False,
) -> Minibatches:
    """Minibatches drawn, with their norms from the gradients, not from K.

    Args:
        source: The gradients.
        batch_size: B.
        num_minibatches: M.
        generator: As for `draw_minibatches`.
        replacement: Whether a minibatch may hold a sample twice.

    Returns:
        The minibatches.
    """
    indices = draw_minibatches(
        source.num_samples, batch_size, num_minibatches, generator=generator, replacement=replacement
    )
    return Minibatches(indices, source.minibatch_squared_norms(indices.to(source.device)).cpu().double())


@torch.no_grad()
def minibatch_alignment(
    source: GradientSource,
    statistics: Statistics,
    *,
    batch_size: int,
    num_minibatches: int = 512,
    generator: torch.Generator | None = None,
    replacement: bool = False,
    confidence: float = 0.95,
    minibatches: Minibatches | None = None,
) -> Alignment:
    """R = ⟨cos(g^µ, g^ν)⟩ over pairs of M independently drawn minibatches.

    With S = Σ ĝ^µ: R^ = (‖S‖² − M) / (M (M−1)). Leaving out µ needs ĝ^µ · S only. Both come from K, or from the
    minibatches' norms, one Gᵀ w (= S) and one G S.

    Args:
        source: The gradients.
        statistics: Of the same samples.
        batch_size: B.
        num_minibatches: M; 0 for no estimate.
        generator: Randomness; None draws from a fresh generator of seed 0, so that repeated calls use the same
            minibatches.
        replacement: Whether a minibatch may hold a sample twice.
        confidence: Coverage of the bounds.
        minibatches: Those to take, if they are drawn already; the statistics' `products` are those with their weights.

    Returns:
        The estimate.

    Raises:
        ValueError: If `num_minibatches` is 1, 2 or negative, or no minibatch of this size exists.
    """
    if num_minibatches == 0:
        return Alignment(nan, nan, nan, nan, 0, 0, "not measured: num_minibatches=0")
    if num_minibatches < 3:
        raise ValueError(
            f"order_parameters: num_minibatches must be 0 (no R) or at least 3, got {num_minibatches}. Take 512."
        )
    drawn = minibatches or _drawn(source, statistics, batch_size, num_minibatches, generator, replacement)
    # The mean of B gradients is known to within a rounding of the mean of their squared norms.
    rounding = statistics.resolution / max(statistics.mean_squared_norm, torch.finfo(torch.float64).tiny)
    has_direction = drawn.squared_norms > rounding * statistics.squared_norms[drawn.indices].mean(1)
    kept = drawn.only(has_direction)
    count = len(kept.indices)
    if count < 3:
        return Alignment(
            nan, nan, nan, nan, count, num_minibatches - count, "the minibatch gradients are zero within rounding"
        )
    if kept is minibatches and statistics.products is not None:
        products = statistics.products[:, -1]
    else:
        products = _sum_products(source, statistics, kept.weights(statistics.num_samples))  # G S
    agreement = products[kept.indices].sum(1) * kept.scales  # ĝ^µ · S
    total = float(agreement.sum())  # ‖S‖²
    value = (total - count) / (count * (count - 1))
    without = (total - 2 * agreement + 1 - (count - 1)) / ((count - 1) * (count - 2))
    error = float(jackknife_error(without))
    reach = student_quantile((1 + confidence) / 2, count - 1) * error
    return Alignment(value, error, max(value - reach, -1.0), min(value + reach, 1.0), count, num_minibatches - count)


def _drawn(
    source: GradientSource,
    statistics: Statistics,
    batch_size: int,
    num_minibatches: int,
    generator: torch.Generator | None,
    replacement: bool,
) -> Minibatches:
    """Minibatches drawn, with their norms from whatever the statistics came from."""
    if statistics.route == "gram" and isinstance(source, GramSource):
        indices = draw_minibatches(
            statistics.num_samples, batch_size, num_minibatches, generator=generator, replacement=replacement
        )
        return Minibatches(indices, _minibatch_squared_norms(source.gram(), statistics.squared_norms, indices))
    return measured_minibatches(
        source,
        batch_size=batch_size,
        num_minibatches=num_minibatches,
        generator=generator,
        replacement=replacement,
    )


def draw_minibatches(
    num_samples: int,
    batch_size: int,
    num_minibatches: int,
    *,
    generator: torch.Generator | None = None,
    replacement: bool = False,
) -> Tensor:
    """M minibatches of B samples, drawn independently of each other (not one epoch's partition).

    Args:
        num_samples: N.
        batch_size: B.
        num_minibatches: M.
        generator: Randomness; None is a fresh generator of seed 0. The global one is never touched.
        replacement: Whether a minibatch may hold a sample twice.

    Returns:
        Indices, int64 [M, B] on the CPU.

    Raises:
        ValueError: If no minibatch of this size exists.
    """
    noise_factor(batch_size, num_samples, replacement=replacement)  # refuses sizes that do not exist
    shape = (num_minibatches, batch_size)
    if generator is not None:
        return _draw(num_samples, shape, replacement, generator)
    draw = _usual_draw.__wrapped__ if are_modes_active() else _usual_draw  # what a mode makes is nobody else's
    return draw(num_samples, shape, replacement).clone()


@lru_cache(maxsize=4)
def _usual_draw(num_samples: int, shape: tuple[int, int], replacement: bool) -> Tensor:
    """What a fresh generator of seed 0 draws: a probe asks for the same again and again."""
    return _draw(num_samples, shape, replacement, torch.Generator().manual_seed(0))


def _draw(num_samples: int, shape: tuple[int, int], replacement: bool, generator: torch.Generator) -> Tensor:
    """Minibatches [M, B], by the way that costs least."""
    device, (num_minibatches, batch_size) = generator.device, shape
    if replacement:
        return torch.randint(num_samples, shape, generator=generator, device=device).cpu()
    if batch_size**2 <= 8 * num_samples:
        return _floyd(num_samples, shape, generator).cpu()
    rows = max(1, _KEYS_AT_ONCE // num_samples)
    ranked = [
        torch.rand(
            min(rows, num_minibatches - start), num_samples, generator=generator, device=device, dtype=torch.float32
        ).topk(batch_size)[1]
        for start in range(0, num_minibatches, rows)
    ]
    return torch.cat(ranked).cpu()


def _floyd(num_samples: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Floyd's algorithm for all minibatches at once: B² M / 2 comparisons, whatever N is."""
    num_minibatches, batch_size = shape
    members = torch.empty(batch_size, num_minibatches, dtype=torch.int64, device=generator.device)
    for place, last in enumerate(range(num_samples - batch_size, num_samples)):
        drawn = members[place].random_(last + 1, generator=generator)
        drawn.masked_fill_((members[:place] == drawn).any(0), last)
    return members.T.contiguous()


def _minibatch_squared_norms(gram: Tensor, norms: Tensor, indices: Tensor) -> Tensor:
    """‖g^µ‖² = B⁻² (Σ q_i + 2 Σ_{i<j} K_ij) over each minibatch, from K [N, N], q [N] and indices [M, B], [M]."""
    num_minibatches, batch_size = indices.shape
    first, second = torch.triu_indices(batch_size, batch_size, 1)
    flat = gram.reshape(-1)
    total = norms[indices].sum(1)
    at_once = max(1, _ENTRIES_AT_ONCE // max(len(first), 1))
    for start in range(0, num_minibatches, at_once):
        part = indices[start : start + at_once]
        entries = (part * len(gram)).index_select(1, first) + part.index_select(1, second)
        pairs = flat.index_select(0, entries.flatten().to(flat.device)).view(entries.shape)
        total[start : start + at_once] += 2 * pairs.double().sum(1).cpu()
    return total / batch_size**2


def _sum_products(source: GradientSource, statistics: Statistics, weights: Tensor) -> Tensor:
    """G Gᵀ w, float64 [N] → [N]."""
    if isinstance(source, GramSource):
        if statistics.route == "gram":
            return gram_products(source.gram(), weights[:, None])[:, 0]
        return source.gram_matvec(weights.to(source.device, source.dtype)).cpu().double()  # a layer at a time
    return source.matvec(source.rmatvec(weights.to(source.device, source.dtype))).cpu().double()
