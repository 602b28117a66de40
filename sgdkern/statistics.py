"""Statistics: all that an order parameter may read of the gradient matrix G, as a few small float64 arrays.

Two routes lead to the same numbers. *gram* sums the N × N matrix K = G Gᵀ where that is cheap;
*passes* needs only per-sample norms, one Gᵀ w and one G v, O(N P) work, and never forms K. What only K can give
(`Statistics.pairs`, for unbiased estimates of σ_λ²) is None on the second route.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from sgdkern.losses import all_finite
from sgdkern.partition import Groups, partition
from sgdkern.source import GradientSource, GramSource

__all__ = [
    "GradientSource",
    "GramSource",
    "GroupMeans",
    "Groups",
    "PairSums",
    "Route",
    "Statistics",
    "chosen_route",
    "gram_products",
    "partition",
    "statistics",
    "weighted_gram",
]

Route: TypeAlias = Literal["auto", "gram", "passes"]

# K in float32 takes 4 N² bytes, 16 MiB at N = 2048: about a last-level cache, so that the sums over it cost little, and
# it alone gives unbiased estimates and a spectrum. Beyond this N it has to be the cheaper way.
LARGEST_GRAM = 2048
# Group means are P numbers each; this many bytes of them are held at once.
_GROUP_BYTES = 256 * 2**20
# Rows of K that are converted to float64 at once: 512 · 2048 · 8 bytes = 8 MiB.
_BLOCK_ROWS = 512
# Parameters of a mean gradient that are converted to float64 at once.
_BLOCK_PARAMS = 2**16


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sums over the off-diagonal of K that need every K_ij (r_i = Σ_{j≠i} K_ij).

    Attributes:
        row_squares: Σ_{j≠i} K_ij², [N].
        row_products: Σ_{j≠i} K_ij r_j, [N].
        norm_products: Σ_{j≠i} K_ij q_j, [N].
    """

    row_squares: Tensor
    row_products: Tensor
    norm_products: Tensor


@dataclass(frozen=True, eq=False)
class GroupMeans:
    """The groups' mean gradients, as their inner products.

    Attributes:
        names: The groups' names, [groups].
        counts: N_g, [groups].
        gram: Inner products of the groups' mean gradients, the mean of all samples last, [groups + 1, groups + 1].
        mean_squared_norms: q̄_g, the mean of ‖g_n‖² in each group, [groups].
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    gram: Tensor
    mean_squared_norms: Tensor


@dataclass(frozen=True, eq=False)
class Statistics:
    """What an order parameter may read: float64 on the CPU, at most a few numbers a sample.

    Attributes:
        squared_norms: q_n = ‖g_n‖², [N].
        projections: s_n = g_n · ḡ, [N].
        directed_activity: A0 = ‖ḡ‖².
        resolution: What rounding in G's dtype leaves of the mean q: an A0 below it is not a signal.
        route: "gram" or "passes".
        pairs: Sums over pairs of samples, where K was at hand.
        groups: The groups' mean gradients, where groups were given.
        products: K w = G (Gᵀ w), [N, k], for the weights that were given besides.
    """

    squared_norms: Tensor
    projections: Tensor
    directed_activity: float
    resolution: float
    route: Literal["gram", "passes"]
    pairs: PairSums | None = None
    groups: GroupMeans | None = None
    products: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.squared_norms)

    @property
    def mean_squared_norm(self) -> float:
        """q̄, the mean of ‖g_n‖²."""
        return float(self.squared_norms.mean())

    @property
    def trace(self) -> float:
        """Tr Σ = q̄ − A0, the total variance of the per-sample gradients."""
        return max(self.mean_squared_norm - self.directed_activity, 0.0)

    @torch.no_grad()
    def with_groups(self, source: GradientSource, groups: Groups | None) -> Statistics:
        """The same statistics for another partition of the same samples: one more sum over K, or one more Gᵀ w.

        Args:
            source: The gradients that these statistics were taken from.
            groups: As in `statistics`.

        Returns:
            A copy whose `groups` are those given.
        """
        if groups is None:
            return replace(self, groups=None)
        names, members = partition(groups, self.num_samples)
        weights = _mean_weights(members, len(names))
        gram = weighted_gram(source, weights[None], through_gram=self.route == "gram")[0]
        return replace(self, groups=_group_means(names, weights, gram, self.squared_norms))


@torch.no_grad()
def statistics(
    source: GradientSource, *, groups: Groups | None = None, route: Route = "auto", weights: Tensor | None = None
) -> Statistics:
    """Per-sample norms, projections on the mean gradient and, with `groups`, the groups' mean gradients.

    Args:
        source: A `GradientMatrix` (N × P), or `StreamingGradients` for data that does not fit in memory.
        groups: A partition of the samples: integers [N] (a group's name is the text of its integer) or {name: boolean
            mask [N]}. Every sample belongs to exactly one group: the identities that tie the groups to the whole hold
            for nothing else.
        route: "gram" sums over K; "passes" needs O(N P) work and no K; "auto" takes K for N up to 2048, where it is
            there, and where it costs less (few samples beside the widths of the layers).
        weights: w, float64 [N, k]: K w is wanted besides, which the same pass gives.

    Returns:
        The statistics, float64 on the CPU.

    Raises:
        TypeError: If the source is neither.
        ValueError: If there are no samples, a gradient is not finite, the groups are not a partition, the route is
            unknown, or K is asked of a source that cannot give it.

    Example:
        >>> import torch, sgdkern as sk
        >>> from sgdkern.statistics import statistics
        >>> G = sk.GradientMatrix.from_dense(torch.tensor([[1.0, 2.0], [3.0, -2.0]]))
        >>> statistics(G).projections.tolist()  # the mean gradient is (2, 0)
        [2.0, 6.0]
    """
    if not hasattr(source, "num_samples"):
        raise TypeError(
            f"statistics: the source must be a GradientMatrix or StreamingGradients, got {type(source).__name__}. "
            "Make one by per_sample_gradients, or of explicit rows by GradientMatrix.from_dense."
        )
    if source.num_samples < 1:
        raise ValueError("statistics: the source must hold at least one sample, got 0. Is the data set empty?")
    if chosen_route(source, route) == "passes":
        return _by_passes(source, groups, weights)
    if not isinstance(source, GramSource):
        raise ValueError(
            f"statistics: route='gram' needs a source with K, got {type(source).__name__}. Take route='passes'."
        )
    found = _by_gram(source, groups)
    return found if weights is None else replace(found, products=gram_products(source.gram(), weights))


def chosen_route(source: GradientSource, route: Route) -> Literal["gram", "passes"]:
    """What "auto" means for these gradients."""
    if route not in get_args(Route):
        raise ValueError(f"statistics: route must be one of {', '.join(get_args(Route))}, got {route!r}. Take 'auto'.")
    if route != "auto":
        return route
    small = source.num_samples <= LARGEST_GRAM
    return "gram" if isinstance(source, GramSource) and (small or source.prefers_gram) else "passes"


def weighted_gram(source: GradientSource, weights: Tensor, *, through_gram: bool) -> Tensor:
    """Inner products wᵀ K w' of weighted sums of the rows of G, for several sets of weights.

    Args:
        source: The gradients.
        weights: Float64 [S, N, C]: S sets of C weightings of the samples.
        through_gram: Whether to sum K rather than to form the sums Gᵀ w of length P.

    Returns:
        Float64 [S, C, C].
    """
    num_sets, num_samples, num_columns = weights.shape
    if through_gram and isinstance(source, GramSource):
        columns = weights.permute(1, 0, 2).reshape(num_samples, -1)
        products = gram_products(source.gram(), columns).view(num_samples, num_sets, num_columns)
        return torch.einsum("sna,nsb->sab", weights, products)
    width = max(1, _GROUP_BYTES // (source.num_params * source.dtype.itemsize))
    if num_columns <= width:  # all sums of a set fit: multiply them with each other
        blocks = weights.split(max(1, width // num_columns))
        return torch.cat([_gram_of_sums(source, block) for block in blocks])
    result = weights.new_empty(num_sets, num_columns, num_columns)  # else K w = G (Gᵀ w), some columns at a time
    for which, columns in enumerate(weights):
        for start in range(0, num_columns, width):
            block = columns[:, start : start + width].to(source.device, source.dtype)
            products = source.matvec(source.rmatvec(block)).cpu().double()
            result[which, :, start : start + width] = columns.T @ products
    return (result + result.mT) / 2


def gram_products(gram: Tensor, columns: Tensor) -> Tensor:
    """K w in float64 without a float64 copy of K, [N, N] × [N, k] → [N, k] on the CPU."""
    across = columns.T.contiguous().to(gram.device)  # [k, N] @ [N, rows] is two times faster than the other way round
    return torch.cat([across @ rows.double().mT for rows in gram.split(_BLOCK_ROWS)], dim=1).T.cpu()


def _products_and_squares(gram: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """K w together with Σ_j K_ij², [N, N] × [N, k] → [N, k] and [N], in one sweep."""
    across = columns.T.contiguous().to(gram.device)
    products, squares = [], []
    for rows in gram.split(_BLOCK_ROWS):
        block = rows.double()
        products.append(across @ block.mT)
        squares.append(torch.linalg.vecdot(block, block))
    return torch.cat(products, dim=1).T.cpu(), torch.cat(squares).cpu()


def _gram_of_sums(source: GradientSource, weights: Tensor) -> Tensor:
    """Wᵀ K W = (Gᵀ W)ᵀ (Gᵀ W) for each of S sets, [S, N, C] → [S, C, C], by one pass."""
    num_sets, num_samples, num_columns = weights.shape
    columns = weights.permute(1, 0, 2).reshape(num_samples, -1)
    sums = source.rmatvec(columns.to(source.device, source.dtype)).view(-1, num_sets, num_columns)
    result = torch.zeros(num_sets, num_columns, num_columns, dtype=torch.float64)
    for rows in sums.split(_BLOCK_PARAMS):
        part = rows.double().permute(1, 2, 0)
        result += (part @ part.mT).cpu()
    return result


def _by_gram(source: Any, groups: Groups | None) -> Statistics:
    gram = source.gram()
    num_samples = len(gram)
    squared_norms = gram.diagonal().cpu().double()
    _refuse_non_finite(squared_norms)
    columns = [torch.full((num_samples, 1), 1 / num_samples, dtype=torch.float64), squared_norms[:, None]]
    if groups is not None:
        names, members = partition(groups, num_samples)
        weights = _mean_weights(members, len(names))
        columns.append(weights)
    products, squares = _products_and_squares(gram, torch.cat(columns, dim=1))
    projections = products[:, 0].clone()
    off_diagonal_sums = num_samples * projections - squared_norms
    pairs = PairSums(
        row_squares=squares - squared_norms**2,
        row_products=gram_products(gram, off_diagonal_sums[:, None])[:, 0] - squared_norms * off_diagonal_sums,
        norm_products=products[:, 1] - squared_norms**2,
    )
    means = None
    if groups is not None:
        means = _group_means(names, weights, weights.T @ products[:, 2:], squared_norms)
    return Statistics(
        squared_norms=squared_norms,
        projections=projections,
        directed_activity=max(float(projections.mean()), 0.0),  # a squared norm, whatever the rounding
        resolution=torch.finfo(gram.dtype).eps * float(squared_norms.mean()),
        route="gram",
        pairs=pairs,
        groups=means,
    )


def _by_passes(source: GradientSource, groups: Groups | None, weights: Tensor | None) -> Statistics:
    if isinstance(source, GramSource):  # a layer at a time, with the squared norms where they cost nothing more
        columns = torch.full((source.num_samples, 1), 1 / source.num_samples, dtype=torch.float64)
        columns = columns if weights is None else torch.cat([columns, weights], 1)
        products = source.gram_matvec(columns.to(source.device, source.dtype)).cpu().double()
        directed_activity = max(float(products[:, 0].mean()), 0.0)
    else:
        mean = source.mean()  # a stream knows it from its first pass
        others = [] if weights is None else [source.rmatvec(weights.to(source.device, source.dtype))]
        products = source.matvec(torch.cat([mean[:, None], *others], 1)).cpu().double()
        directed_activity = sum(float(part.double().square().sum()) for part in mean.split(_BLOCK_PARAMS))
    squared_norms = source.squared_norms().cpu().double()
    _refuse_non_finite(squared_norms)
    result = Statistics(
        squared_norms=squared_norms,
        projections=products[:, 0].clone(),
        directed_activity=directed_activity,
        resolution=torch.finfo(source.dtype).eps * float(squared_norms.mean()),
        route="passes",
        products=None if weights is None else products[:, 1:],
    )
    return result.with_groups(source, groups)


def _mean_weights(members: Tensor, num_groups: int) -> Tensor:
    """Columns 1_g / N_g, so that Gᵀ W are the groups' means: [N] → float64 [N, groups]."""
    one_hot = torch.nn.functional.one_hot(members, num_groups).double()
    return one_hot / one_hot.sum(0)


def _group_means(names: tuple[str, ...], weights: Tensor, gram: Tensor, squared_norms: Tensor) -> GroupMeans:
    """Add the row of the whole mean: ḡ = Σ (N_g / N) g_g."""
    counts = weights.count_nonzero(0)
    shares = counts.double() / len(weights)
    to_mean = torch.cat([torch.eye(len(names), dtype=torch.float64), shares[None]])
    return GroupMeans(
        names=names,
        counts=tuple(counts.tolist()),
        gram=to_mean @ ((gram + gram.T) / 2) @ to_mean.T,
        mean_squared_norms=weights.T @ squared_norms,
    )


def _refuse_non_finite(squared_norms: Tensor) -> None:
    if not all_finite(squared_norms):
        broken = (~squared_norms.isfinite()).nonzero().flatten().tolist()
        raise ValueError(
            f"statistics: every per-sample gradient must be finite, got {len(broken)} that are not, first samples "
            f"{broken[:5]}. Look at these samples' losses, or lower the learning rate."
        )
