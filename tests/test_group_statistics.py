"""Groups: activities against all minibatches, uniform and stratified; cosines against all splits."""

import itertools
import math

import numpy as np
import oracles_ensemble as oracle
import pytest
import torch
from oracles_ensemble import gradients

from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.order_parameters import activity_exact, activity_stratified, cosine_null, order_parameters
from sgdkern.statistics import statistics


def matrix(G, dtype=torch.float64):
    return GradientMatrix.from_dense(torch.as_tensor(np.asarray(G)).to(dtype))


GROUPS = [np.array([0, 0, 0, 1, 1, 1, 1, 1]), np.array([0, 1, 1, 2, 2, 2, 0, 1]), np.array([0, 1, 1, 1, 1, 1, 1, 2])]


@pytest.mark.parametrize("route", ["gram", "passes"])
@pytest.mark.parametrize("members", GROUPS, ids=["two", "three", "single"])
@pytest.mark.parametrize(("batch_size", "replacement"), [(3, False), (1, False), (8, False), (3, True)])
def test_groups_are_those_of_all_minibatches(members, batch_size, replacement, route):
    G = gradients(8)
    batches = oracle.minibatches(8, batch_size, replacement)
    source = matrix(G)
    measured = order_parameters(
        source,
        batch_size=batch_size,
        replacement=replacement,
        num_minibatches=0,
        groups=members,
        statistics=statistics(source, route=route),
    )
    truth = oracle.order_parameters(G, batches)
    shares = np.bincount(members) / 8
    for group in range(members.max() + 1):
        mean = G[members == group].mean(0)
        assert measured[f"A_{group}"] == pytest.approx(oracle.group_activity(G, batches, members, group), rel=1e-11)
        assert measured[f"A0_{group}"] == pytest.approx(shares[group] ** 2 * (mean @ mean), rel=1e-11)
    np.testing.assert_allclose(measured.cosines.numpy(), oracle.cosines(G, members), rtol=1e-11)
    total = activity_exact(measured.statistics, batch_size=batch_size, replacement=replacement)
    assert total == pytest.approx(truth["A"], rel=1e-11)
    # A0 = Σ A0_g + Σ_{g≠h} √(A0_g A0_h) R_gh, exactly.
    lengths = np.sqrt(measured.groups.A0)
    assert lengths @ measured.cosines.numpy()[:-1, :-1] @ lengths == pytest.approx(truth["A0"], rel=1e-11)


@pytest.mark.parametrize(("members", "batch_counts"), [(GROUPS[0][[0, 1, 3, 4]], (1, 1)), (GROUPS[1][:6] // 1, None)])
def test_stratified_activity_is_that_of_all_stratified_minibatches(members, batch_counts):
    members = np.array([0, 0, 0, 0, 1, 1]) if batch_counts is None else members
    batch_counts = batch_counts or (2, 1)
    G = gradients(len(members))
    batches = oracle.stratified_minibatches(members, batch_counts)
    truth = oracle.order_parameters(G, batches)["A"]
    measured = statistics(matrix(G), groups=members)
    assert activity_stratified(measured, batch_size=sum(batch_counts)) == pytest.approx(truth, rel=1e-11)


def test_three_stratified_groups():
    members = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    G = gradients(10)
    truth = oracle.order_parameters(G, oracle.stratified_minibatches(members, (2, 2, 1)))["A"]
    measured = statistics(matrix(G), groups=members)
    assert activity_stratified(measured, batch_size=5) == pytest.approx(truth, rel=1e-11)
    with pytest.raises(ValueError, match="every group needs a sample in the batch"):
        activity_stratified(measured, batch_size=3)


def test_random_splits_explain_cosines_where_there_is_no_mean():
    G = gradients(60, 200, signal=0.0)
    G = G - G.mean(0) + 1e-3
    source = matrix(G)
    measured = statistics(source)
    null = cosine_null(source, measured, (30, 30), num_splits=50)
    assert null.mean[0, 1] < -0.9  # for any split: A0 ≈ 0 forces it
    assert null.quantiles[0, 0, 1] <= null.expected[0, 1] <= null.quantiles[2, 0, 1]
    by_passes = cosine_null(source, statistics(source, route="passes"), (30, 30), num_splits=50)
    torch.testing.assert_close(by_passes.mean, null.mean)
    torch.testing.assert_close(by_passes.quantiles, null.quantiles)
    assert null.quantiles.shape == (3, 3, 3)
    assert bool((null.quantiles[0] <= null.quantiles[2] + 1e-12).all())
    with pytest.raises(ValueError, match="sum to 60"):
        cosine_null(source, measured, (30, 20))


def test_random_splits_are_all_splits_on_average():
    G = gradients(6)
    source = matrix(G)
    every = [
        oracle.cosines(G, np.isin(np.arange(6), chosen).astype(int))[0, 1]
        for chosen in itertools.combinations(range(6), 2)
    ]
    null = cosine_null(source, statistics(source), (4, 2), num_splits=4000)
    assert float(null.mean[0, 1]) == pytest.approx(np.mean(every), abs=5 * np.std(every) / math.sqrt(4000))
