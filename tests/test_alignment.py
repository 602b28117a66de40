"""Alignment R: the mean over pairs of minibatches, its error, and how the minibatches are drawn."""

import math

import numpy as np
import oracles_ensemble as oracle
import pytest
import torch
from oracles_ensemble import gradients
from torch._subclasses.fake_tensor import FakeTensorMode

from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.order_parameters import draw_minibatches, minibatch_alignment, order_parameters
from sgdkern.statistics import statistics


def matrix(G, dtype=torch.float64):
    return GradientMatrix.from_dense(torch.as_tensor(np.asarray(G)).to(dtype))


@pytest.mark.parametrize("route", ["gram", "passes"])
@pytest.mark.parametrize(("num_samples", "batch_size", "replacement"), [(8, 3, False), (10, 4, False), (4, 3, True)])
def test_alignment_agrees_with_enumeration_within_its_error(num_samples, batch_size, replacement, route):
    G = gradients(num_samples)
    truth = oracle.order_parameters(G, oracle.minibatches(num_samples, batch_size, replacement))["R"]
    source = matrix(G)
    measured = statistics(source, route=route)
    deviations = []
    for seed in range(20):
        estimate = minibatch_alignment(
            source,
            measured,
            batch_size=batch_size,
            num_minibatches=256,
            replacement=replacement,
            generator=torch.Generator().manual_seed(seed),
        )
        deviations.append((estimate.value - truth) / estimate.standard_error)
    # 20 standard normal deviates: their mean within 4.4 deviations, their mean square within χ²₂₀'s range (1e-5 each).
    assert abs(np.mean(deviations)) < 4.4 / math.sqrt(20)
    assert 0.15 < np.mean(np.square(deviations)) < 3.2


def test_alignment_covers_the_truth_as_often_as_it_says():
    G = gradients(12, signal=0.4)
    truth = oracle.order_parameters(G, oracle.minibatches(12, 3))["R"]
    source = matrix(G)
    measured = statistics(source)
    hits = 0
    for seed in range(400):
        estimate = minibatch_alignment(
            source, measured, batch_size=3, num_minibatches=64, generator=torch.Generator().manual_seed(seed)
        )
        hits += estimate.low <= truth <= estimate.high
    assert 400 * 0.95 - 5 * math.sqrt(400 * 0.95 * 0.05) < hits  # five deviations of a binomial


def test_alignment_and_its_error_equal_the_pairwise_definition():
    G = gradients(9)
    generator = torch.Generator().manual_seed(3)
    batches = draw_minibatches(9, 4, 20, generator=torch.Generator().manual_seed(3)).numpy()
    measured = order_parameters(matrix(G), batch_size=4, num_minibatches=20, generator=generator)
    assert measured["R"] == pytest.approx(oracle.alignment_estimate(G, batches), rel=1e-11)
    without = np.array([oracle.alignment_estimate(G, np.delete(batches, i, axis=0)) for i in range(20)])
    assert measured["R_se"] == pytest.approx(oracle.jackknife_error(without), rel=1e-9)


@pytest.mark.parametrize("route", ["gram", "passes"])
def test_minibatches_without_a_gradient_are_left_out(route):
    G = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    source = matrix(G, torch.float32)
    estimate = minibatch_alignment(source, statistics(source, route=route), batch_size=2, num_minibatches=4000)
    batches = oracle.minibatches(4, 2)
    g = G[batches].mean(1)
    units = g[(g != 0).any(1)]
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    assert estimate.num_zero == pytest.approx(4000 / 3, abs=5 * math.sqrt(4000 * 2 / 9))  # a third of the pairs cancel
    assert estimate.num_minibatches + estimate.num_zero == 4000
    assert estimate.value == pytest.approx((units.mean(0) ** 2).sum(), abs=5 * estimate.standard_error)
    nothing = matrix(np.zeros((3, 2)))
    measured = order_parameters(nothing, batch_size=2)
    assert math.isnan(measured["R"])
    assert measured.notes["R"]
    assert measured["A"] == 0


@pytest.mark.parametrize("zero", [False, True])
def test_one_pass_gives_what_two_give(zero):
    rows = torch.as_tensor(gradients(60))
    if zero:  # minibatches without a direction: the products are taken again without them
        rows[:30] = 0
    source = matrix(rows)
    together = order_parameters(source, batch_size=2, num_minibatches=12, route="passes")
    measured = statistics(matrix(rows), route="passes")
    apart = order_parameters(matrix(rows), batch_size=2, num_minibatches=12, statistics=measured)
    assert together.alignment.num_zero == apart.alignment.num_zero
    assert (together.alignment.num_zero > 0) == zero
    for key, value in apart.as_dict().items():
        assert together[key] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True)


def test_minibatches_are_uniform_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for num_samples, batch_size in ((40, 3), (12, 10)):  # Floyd's algorithm, then ranked keys
        batches = draw_minibatches(num_samples, batch_size, 6000)
        assert batches.shape == (6000, batch_size)
        assert all(len(set(batch)) == batch_size for batch in batches[:500].tolist())
        counts = batches.flatten().bincount(minlength=num_samples).double()
        share = batch_size / num_samples
        deviations = (counts - 6000 * share) / math.sqrt(6000 * share * (1 - share))
        assert deviations.abs().max() < 5
        # Every pair of samples is equally likely: a shuffle that is not uniform fails here.
        together = torch.zeros(num_samples, num_samples)
        hot = torch.nn.functional.one_hot(batches, num_samples).sum(1).float()
        together = hot.T @ hot
        pair = share * (batch_size - 1) / (num_samples - 1)
        off = together[~torch.eye(num_samples, dtype=torch.bool)]
        assert ((off - 6000 * pair) / math.sqrt(6000 * pair * (1 - pair))).abs().max() < 5.5
    assert draw_minibatches(5, 9, 4, replacement=True).max() < 5
    assert torch.equal(draw_minibatches(40, 3, 8), draw_minibatches(40, 3, 8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [3, 50])  # by Floyd's algorithm, and by random keys
def test_a_draw_does_not_depend_on_what_came_before(batch_size):
    expected = draw_minibatches(101, batch_size, 8, generator=torch.Generator().manual_seed(0))
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(draw_minibatches(101, batch_size, 8), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with FakeTensorMode():
        draw_minibatches(102, batch_size, 8)
    assert draw_minibatches(102, batch_size, 8).unique().numel() > 1
    draw_minibatches(101, batch_size, 8).zero_()  # whoever changes what was drawn changes nobody else's
    assert torch.equal(draw_minibatches(101, batch_size, 8), expected)
