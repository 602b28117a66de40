"""Scores from how alike samples are, in features or in gradients, and the combination of scores by rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def neighbour_agreement(features: Array, labels: Array, *, num_neighbours: int = 30) -> Array:
    """Return the share of a sample's nearest neighbours that carry its label, the sample itself left out.

    Args:
        features: [N, F], compared by Euclidean distance.
        labels: [N].
        num_neighbours: how many neighbours to ask, at most N - 1.

    Returns:
        [N] in [0, 1], lower is more suspicious.

    Raises:
        ValueError: if there are not more samples than neighbours.

    Example:
        >>> features = np.array([[0.0], [0.1], [0.2], [5.0], [5.1]])
        >>> neighbour_agreement(features, np.array([0, 0, 1, 1, 1]), num_neighbours=1)
        array([1., 1., 0., 1., 1.])
    """
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= num_neighbours < len(features):
        raise ValueError(
            f"neighbour_agreement: num_neighbours must be 1 to {len(features) - 1}, got {num_neighbours}. "
            "Ask fewer neighbours."
        )
    # without a query the samples are their own queries and are left out of their neighbours, duplicates or not
    neighbours = NearestNeighbors(n_neighbors=num_neighbours).fit(features).kneighbors(return_distance=False)
    shares: Array = (labels[neighbours] == labels[:, None]).mean(axis=1)
    return shares


def gradient_alignment(gram: Array, labels: Array, presumed_right: Array) -> Array:
    """Return the cosine of each per-sample gradient with the mean over right samples of the same label.

    cos(g_n, sum of g_m over m != n with the same label and presumed right), from K = G G^T alone.

    Args:
        gram: [N, N], K.
        labels: [N].
        presumed_right: [N] bool, samples not suspected so far.

    Returns:
        [N] in [-1, 1], lower is more suspicious; 0 where no other such sample exists.

    Raises:
        ValueError: if the shapes do not fit.
    """
    count = len(labels)
    if gram.shape != (count, count) or presumed_right.shape != (count,):
        raise ValueError(
            f"gradient_alignment: gram must be [N, N] and presumed_right [N] for {count} labels, "
            f"got {list(gram.shape)} and {list(presumed_right.shape)}."
        )
    products = np.asarray(gram, dtype=np.float64)
    own = np.diag(products)
    alignment = np.zeros(count)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        right = np.flatnonzero((labels == label) & presumed_right)
        with_right = products[np.ix_(mine, right)].sum(axis=1)
        counted = presumed_right[mine]  # a sample of the group is taken out of it before it is compared
        dot = with_right - counted * own[mine]
        square = products[np.ix_(right, right)].sum() + counted * (own[mine] - 2 * with_right)
        norm = np.sqrt(np.clip(square, 0, None) * own[mine])
        alignment[mine] = np.divide(dot, norm, out=np.zeros(len(mine)), where=norm > 0)
    return np.clip(alignment, -1, 1)


def combine_ranks(*scores: Array) -> Array:
    """Return the mean rank of each sample over several scores, divided by N, ties sharing their mean rank.

    Args:
        *scores: [N] each, higher is better.

    Returns:
        [N] in (0, 1], lower is more suspicious.

    Raises:
        ValueError: if there are no scores, or their lengths differ.

    Example:
        >>> combine_ranks(np.array([0.1, 0.5, 0.9]), np.array([3.0, 1.0, 7.0]))
        array([0.5, 0.5, 1. ])
    """
    from scipy.stats import rankdata

    if not scores or len({len(score) for score in scores}) > 1:
        raise ValueError(f"combine_ranks: scores must be of one length, got {[len(score) for score in scores]}.")
    ranks: Array = np.mean([rankdata(score) / len(score) for score in scores], axis=0)
    return ranks
