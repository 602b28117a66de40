"""Blind groups on scores whose groups are known."""

import numpy as np
import pytest

from sgdkern.blind_groups import presumed_wrong


def scores_of(counts: tuple[int, int], *, gap: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.normal(0.0, 1.0, counts[0]), generator.normal(gap, 1.0, counts[1])])


@pytest.mark.parametrize("counts", [(500, 500), (900, 100), (300, 700)])
def test_two_groups_far_apart_are_told_apart(counts: tuple[int, int]) -> None:
    wrong = presumed_wrong(scores_of(counts, gap=10.0))
    assert wrong is not None
    assert wrong.tolist() == [False] * counts[0] + [True] * counts[1]


def test_the_boundary_is_where_the_posteriors_are_equal() -> None:
    scores = scores_of((20_000, 20_000), gap=4.0)
    wrong = presumed_wrong(scores)
    assert wrong is not None
    assert scores[wrong].min() == pytest.approx(2.0, abs=0.1)
    assert scores[~wrong].max() == pytest.approx(2.0, abs=0.1)


def test_the_groups_follow_the_samples_not_their_order() -> None:
    scores = scores_of((60, 40), gap=5.0)
    order = np.random.default_rng(1).permutation(100)
    first, second = presumed_wrong(scores), presumed_wrong(scores[order])
    assert first is not None
    assert second is not None
    assert np.array_equal(first[order], second)


@pytest.mark.parametrize(
    "scores", [np.ones(50), np.array([0.0, 1.0]), np.array([np.nan] * 9), np.r_[np.zeros(49), 9.0]]
)
def test_where_there_are_no_two_groups_there_are_none(scores: np.ndarray) -> None:
    assert presumed_wrong(scores) is None


@pytest.mark.parametrize("gap", [2.5, 4.0, 10.0])
def test_the_groups_are_those_of_scikit_learns_mixture(gap: float) -> None:
    mixture = pytest.importorskip("sklearn.mixture")
    scores = scores_of((1_000, 600), gap=gap)
    reference = mixture.GaussianMixture(2, means_init=[[0.0], [gap]], tol=1e-9, max_iter=2_000).fit(scores[:, None])
    wrong = presumed_wrong(scores)
    assert wrong is not None
    differ = wrong != (reference.predict(scores[:, None]) == 1)
    assert differ.mean() < 0.005  # samples at the very boundary
