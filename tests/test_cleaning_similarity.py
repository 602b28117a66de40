"""Scores from similarities against loops over samples."""

import numpy as np
import pytest

from sgdkern.cleaning.similarity import combine_ranks, gradient_alignment, neighbour_agreement


def test_alignment_by_a_loop():
    rng = np.random.default_rng(0)
    gradients, labels, right = rng.normal(size=(12, 5)), rng.integers(0, 3, 12), rng.random(12) < 0.7
    found = gradient_alignment(gradients @ gradients.T, labels, right)
    for n in range(12):
        others = [m for m in range(12) if m != n and labels[m] == labels[n] and right[m]]
        mean = gradients[others].sum(axis=0)
        cosine = gradients[n] @ mean / np.linalg.norm(gradients[n]) / np.linalg.norm(mean) if others else 0.0
        assert found[n] == pytest.approx(cosine, abs=1e-12)


def test_a_sample_alone_has_no_alignment():
    found = gradient_alignment(np.eye(3), np.array([0, 1, 1]), np.array([True, True, False]))
    np.testing.assert_array_equal(found, [0, 0, 0])


def test_neighbours_by_a_loop():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    found = neighbour_agreement(features, labels, num_neighbours=5)
    for n in range(30):
        distances = np.linalg.norm(features - features[n], axis=1)
        distances[n] = np.inf
        nearest = np.argsort(distances)[:5]
        assert found[n] == pytest.approx(np.mean(labels[nearest] == labels[n]))


def test_duplicates_do_not_vouch_for_themselves():
    found = neighbour_agreement(np.zeros((4, 1)), np.array([0, 1, 1, 1]), num_neighbours=3)
    assert found[0] == 0


def test_ranks_do_not_see_monotone_maps():
    rng = np.random.default_rng(2)
    one, two = rng.normal(size=(2, 20))
    np.testing.assert_array_equal(combine_ranks(one, two), combine_ranks(np.exp(one), 3 * two - 7))
    np.testing.assert_allclose(combine_ranks(one, -one), (20 + 1) / 2 / 20)


def test_bad_input_is_told_in_words():
    with pytest.raises(ValueError, match="must be 1 to 3, got 4"):
        neighbour_agreement(np.zeros((4, 1)), np.zeros(4), num_neighbours=4)
    with pytest.raises(ValueError, match=r"\[N, N\]"):
        gradient_alignment(np.eye(2), np.zeros(3), np.ones(3, bool))
    with pytest.raises(ValueError, match=r"got \[2, 3\]"):
        combine_ranks(np.zeros(2), np.zeros(3))
