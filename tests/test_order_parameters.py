"""Order parameters: closed forms against the enumeration of all minibatches, declared invariances executed."""

import itertools
import math
from pathlib import Path

import numpy as np
import oracles_ensemble as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdkern.capture import per_sample_gradients
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.order_parameters import (
    REGISTRY,
    activity_exact,
    activity_stratified,
    cosine_null,
    draw_minibatches,
    minibatch_alignment,
    noise_factor,
    order_parameter,
    order_parameters,
    population_moments,
    sample_moments,
    table,
)
from sgdkern.order_parameters.confidence import population_estimates, student_quantile
from sgdkern.statistics import statistics
from sgdkern.streaming import StreamingGradients

CLOSED = [name for name, parameter in REGISTRY.items() if not parameter.sampled]


def gradients(num_samples, num_params=6, seed=0, signal=1.0):
    generator = np.random.default_rng(seed)
    scales = generator.uniform(
        0.3, 3, size=(num_samples, 1)
    )  # norms differ, so that R is not a function of the moments
    return scales * generator.normal(size=(num_samples, num_params)) + signal * generator.normal(size=num_params)


def matrix(G, dtype=torch.float64):
    return GradientMatrix.from_dense(torch.as_tensor(np.asarray(G)).to(dtype))


@pytest.mark.parametrize("route", ["gram", "passes"])
@pytest.mark.parametrize(
    ("num_samples", "batch_size", "replacement"),
    [(8, 3, False), (10, 4, False), (6, 1, False), (6, 6, False), (4, 3, True), (3, 5, True), (5, 1, True)],
)
def test_closed_forms_are_those_of_all_minibatches(num_samples, batch_size, replacement, route):
    G = gradients(num_samples)
    truth = oracle.order_parameters(G, oracle.minibatches(num_samples, batch_size, replacement))
    source = matrix(G)
    measured = order_parameters(
        source,
        batch_size=batch_size,
        replacement=replacement,
        num_minibatches=0,
        statistics=statistics(source, route=route),
    )
    for name in CLOSED:
        assert measured[name] == pytest.approx(truth[name], rel=1e-11, abs=1e-12 * truth["A"]), name


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


# Laws that the registry declares.

LAWS = {
    "permutation": lambda G, rng: rng.permutation(G),
    "rotation": lambda G, rng: G @ np.linalg.qr(rng.normal(size=(G.shape[1], G.shape[1])))[0],
    "duplication": lambda G, rng: np.concatenate([G, G]),
    "translation": lambda G, rng: G + rng.normal(size=G.shape[1]),
}


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("law", LAWS)
def test_declared_invariances_hold_and_no_other(name, law):
    # With replacement and B = 2, so that the sampled ones can be enumerated as well.
    def value(G):
        if REGISTRY[name].sampled:
            return oracle.order_parameters(G, oracle.minibatches(len(G), 2, True))[name]
        return order_parameters(matrix(G), batch_size=2, num_minibatches=0, replacement=True)[name]

    G = gradients(7, seed=5)
    before, after = value(G), value(LAWS[law](G, np.random.default_rng(1)))
    holds = after == pytest.approx(before, rel=1e-9)
    assert holds == (law in REGISTRY[name].invariances)


@pytest.mark.parametrize("factor", [3.0, -0.5, 1e-3])
def test_values_scale_with_the_loss_as_declared(factor):
    G = gradients(11)
    before = order_parameters(matrix(G), batch_size=3).as_dict()
    after = order_parameters(matrix(factor * G), batch_size=3).as_dict()
    for name, parameter in REGISTRY.items():
        for end in ("", "_low", "_high") if parameter.sampled else ("", "_unbiased", "_low", "_high"):
            expected = abs(factor) ** parameter.degree * before[name + end]
            assert after[name + end] == pytest.approx(expected, rel=1e-9, nan_ok=True), name + end


def test_sampled_alignment_obeys_the_laws_for_the_same_draw():
    G = gradients(11)
    rotated = LAWS["rotation"](G, np.random.default_rng(0))
    assert order_parameters(matrix(rotated), batch_size=3)["R"] == pytest.approx(
        order_parameters(matrix(G), batch_size=3)["R"], rel=1e-10
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6), st.booleans(), st.data())
def test_identities_hold_everywhere(num_samples, num_params, seed, replacement, data):
    batch_size = data.draw(st.integers(1, 12 if replacement else num_samples))
    members = np.array(data.draw(st.lists(st.integers(0, 2), min_size=num_samples, max_size=num_samples)))
    measured = order_parameters(
        matrix(gradients(num_samples, num_params, seed)),
        batch_size=batch_size,
        groups=members,
        replacement=replacement,
        num_minibatches=16,
    )
    value = measured.as_dict()
    scale = value["A"]
    assert value["A"] == pytest.approx(value["A0"] + value["D"], rel=1e-12)
    assert value["A"] == pytest.approx(value["A0"] + value["A_perp"] + value["D_par"], rel=1e-11)
    assert value["A_par"] == pytest.approx((1 + value["sigma_lambda2"]) * value["A0"], rel=1e-11)
    assert value["D_par"] >= -1e-12 * scale
    assert value["A_perp"] >= -1e-12 * scale
    assert -1 - 1e-12 <= value["R"] <= 1 + 1e-12
    exact = activity_exact(measured.statistics, batch_size=batch_size, replacement=replacement)
    assert exact == pytest.approx(scale, rel=1e-10)
    lengths = np.sqrt(measured.groups.A0)
    assert lengths @ measured.cosines.numpy()[:-1, :-1] @ lengths == pytest.approx(value["A0"], rel=1e-9)


# Unbiased estimates and their bounds.


def moment_values(moments):
    return {
        "squared_norm": moments.squared_norm,
        "directed_activity": moments.directed_activity,
        "directed_activity_squared": moments.directed_activity_squared,
        "squared_projection": moments.squared_projection,
    }


@pytest.mark.parametrize("num_drawn", [4, 5, 7])
def test_unbiased_moments_averaged_over_all_subsets_are_the_populations(num_drawn):
    population = gradients(7)
    truth = moment_values(sample_moments(statistics(matrix(population)), 1.0))
    drawn = [
        moment_values(population_moments(statistics(matrix(population[list(chosen)])), 1.0, population_size=7))
        for chosen in itertools.combinations(range(7), num_drawn)
    ]
    for name, value in truth.items():
        assert np.mean([float(one[name][0]) for one in drawn]) == pytest.approx(float(value), rel=1e-10), name


def test_unbiased_moments_averaged_over_all_iid_draws_are_the_distributions():
    support = gradients(3)  # uniform on three gradients: its moments are those of the three
    truth = moment_values(sample_moments(statistics(matrix(support)), 1.0))
    drawn = [
        moment_values(population_moments(statistics(matrix(support[list(chosen)])), 1.0))
        for chosen in itertools.product(range(3), repeat=5)
    ]
    for name, value in truth.items():
        assert np.mean([float(one[name][0]) for one in drawn]) == pytest.approx(float(value), rel=1e-10), name


@pytest.mark.parametrize("replacement", [False, True])
def test_unbiased_order_parameters_averaged_over_all_subsets(replacement):
    population = gradients(8)
    truth = order_parameters(matrix(population), batch_size=3, replacement=replacement, num_minibatches=0)
    drawn = [
        population_estimates(
            statistics(matrix(population[list(chosen)])), batch_size=3, replacement=replacement, population_size=8
        )
        for chosen in itertools.combinations(range(8), 5)
    ]
    for name in ("A", "D"):
        assert np.mean([one[name].value for one in drawn]) == pytest.approx(truth[name], rel=1e-10)


@pytest.mark.parametrize("route", ["gram", "passes"])
@pytest.mark.parametrize("num_samples", [1, 2, 3, 9])
def test_the_whole_population_needs_no_estimate(num_samples, route):
    source = matrix(gradients(num_samples))
    measured = order_parameters(
        source, batch_size=1, population_size=num_samples, statistics=statistics(source, route=route)
    )
    for name in CLOSED:
        estimate = measured.unbiased[name]
        assert estimate.value == measured[name], name
        assert estimate.low == pytest.approx(measured[name], abs=1e-12 * measured["A"])
        assert estimate.high == pytest.approx(measured[name], abs=1e-12 * measured["A"])


def test_u_statistics_are_averages_over_distinct_samples():
    G = gradients(6)
    K = G @ G.T
    moments = population_moments(statistics(matrix(G)), 1.0)
    pair = oracle.distinct_average(lambda i, j: K[i, j], 6, 2)
    chain = oracle.distinct_average(lambda i, j, k: K[i, j] * K[i, k], 6, 3)
    disjoint = oracle.distinct_average(lambda i, j, k, m: K[i, j] * K[k, m], 6, 4)
    assert float(moments.directed_activity[0]) == pytest.approx(pair, rel=1e-11)
    assert float(moments.squared_projection[0]) == pytest.approx(chain, rel=1e-11)
    assert float(moments.directed_activity_squared[0]) == pytest.approx(disjoint, rel=1e-11)


@pytest.mark.parametrize("population_size", [math.inf, 40])
def test_leave_one_out_is_what_leaving_one_out_gives(population_size):
    G = gradients(8)
    closed = moment_values(population_moments(statistics(matrix(G)), 1.0, population_size))
    for name, values in closed.items():
        brute = oracle.leave_one_out(
            lambda rest, name=name: float(
                moment_values(population_moments(statistics(matrix(rest)), 1.0, population_size))[name][0]
            ),
            G,
        )
        np.testing.assert_allclose(values[1:].numpy(), brute, rtol=1e-9, err_msg=name)


def test_bounds_are_the_jackknifes():
    G = gradients(9, signal=3.0)
    measured = order_parameters(matrix(G), batch_size=3, num_minibatches=0, confidence=0.9)

    def unbiased(rest, name):
        return order_parameters(matrix(rest), batch_size=3, num_minibatches=0)[f"{name}_unbiased"]

    for name in ("A", "A0", "D", "D_par", "A_par", "A_perp", "sigma_lambda2"):
        error = oracle.jackknife_error(oracle.leave_one_out(lambda rest, name=name: unbiased(rest, name), G))
        assert measured.unbiased[name].standard_error == pytest.approx(error, rel=1e-8), name
        reach = student_quantile(0.95, 8) * error
        assert measured[f"{name}_high"] == pytest.approx(measured[f"{name}_unbiased"] + reach, rel=1e-8)
    error = oracle.jackknife_error(oracle.leave_one_out(lambda rest: 1 / unbiased(rest, "noise_scale"), G))
    low = 1 / measured["noise_scale_unbiased"] - student_quantile(0.95, 8) * error
    assert measured["noise_scale_high"] == pytest.approx(1 / low, rel=1e-8)


def test_bounds_cover_the_population_as_often_as_they_say():
    generator = np.random.default_rng(0)
    mean = np.full(5, 0.6)
    hits = dict.fromkeys(("A0", "D", "noise_scale", "sigma_lambda2"), 0)
    # g = mean + ε, ε normal of covariance 1: σ_λ² = φ meanᵀΣmean / ‖mean‖⁴ = φ / ‖mean‖², φ = 1/B.
    activity = float(mean @ mean)
    truth = {"A0": activity, "D": 5 / 4, "noise_scale": 5 / activity, "sigma_lambda2": 1 / (4 * activity)}
    for _ in range(300):
        G = mean + generator.normal(size=(100, 5))
        measured = order_parameters(matrix(G), batch_size=4, num_minibatches=0).as_dict()
        for name in hits:
            hits[name] += measured[f"{name}_low"] <= truth[name] <= measured[f"{name}_high"]
    least = 300 * 0.95 - 5 * math.sqrt(300 * 0.95 * 0.05)  # five deviations of a binomial
    assert min(hits.values()) >= least, hits


def test_a_signal_below_the_noise_floor_is_said_to_be_below_it():
    generator = np.random.default_rng(4)
    for _ in range(20):
        G = generator.normal(size=(50, 4))
        measured = order_parameters(matrix(G), batch_size=5, num_minibatches=0)
        flat = measured.as_dict()
        assert all(not flat[f"{name}_unbiased"] < 0 and not flat[f"{name}_low"] < 0 for name in CLOSED)
        if flat["A0_low"] == 0:
            assert "noise floor" in measured.notes["A0_unbiased"]
            assert math.isnan(flat["noise_scale_unbiased"])
            assert flat["noise_scale_high"] == math.inf
            assert 0 < flat["noise_scale_low"] < math.inf
            assert math.isnan(flat["sigma_lambda2_unbiased"])
            assert "noise floor" in measured.notes["sigma_lambda2_unbiased"]


@pytest.mark.parametrize(
    ("probability", "degrees", "tabulated"),  # Abramowitz & Stegun, table 26.10
    [
        (0.975, 5, 2.571),
        (0.975, 7, 2.365),
        (0.995, 7, 3.499),
        (0.975, 20, 2.086),
        (0.995, 20, 2.845),
        (0.95, 60, 1.671),
    ],
)
def test_student_quantile(probability, degrees, tabulated):
    assert student_quantile(probability, degrees) == pytest.approx(tabulated, abs=0.01)


# Edges.


def test_one_sample():
    measured = order_parameters(matrix([[3.0, 4.0]]), batch_size=1)
    assert measured["A"] == measured["A0"] == 25
    assert measured["D"] == measured["sigma_lambda2"] == measured["noise_scale"] == 0
    assert measured["R"] == pytest.approx(1)
    assert math.isnan(measured["A0_unbiased"])
    assert "more than 1 sample" in measured.notes["A0_unbiased"]


def test_two_samples_give_estimates_but_no_bounds():
    measured = order_parameters(matrix([[3.0, 4.0], [3.0, 5.0]]), batch_size=1)
    assert measured["A0_unbiased"] == pytest.approx(29)
    assert math.isnan(measured["A0_low"])
    assert "no bounds" in measured.notes["A0_unbiased"]
    assert math.isnan(measured["noise_scale_unbiased"])
    assert "too few samples" in measured.notes["noise_scale_unbiased"]


def test_whole_batch_has_no_noise():
    measured = order_parameters(matrix(gradients(7)), batch_size=7)
    assert measured["D"] == 0
    assert measured["A"] == measured["A0"]
    assert measured["R"] == pytest.approx(1)


def test_no_mean_gradient_has_no_direction():
    measured = order_parameters(matrix([[1.0, 2.0], [-1.0, -2.0]]), batch_size=1)
    assert measured["A0"] == 0
    for name in ("sigma_lambda2", "noise_scale", "D_par", "A_par", "A_perp"):
        assert math.isnan(measured[name])
        assert "direction" in measured.notes[name]
    assert measured["A"] == measured["D"] == 5


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


def test_float32_gram_keeps_a_weak_signal():
    G = gradients(400, 300, signal=0.0)
    G = G - G.mean(0) + 1e-2 * np.random.default_rng(1).normal(size=300)
    for route in ("gram", "passes"):
        exact = statistics(matrix(G), route=route)
        rough = statistics(matrix(G, torch.float32), route=route)
        assert exact.directed_activity / exact.mean_squared_norm < 1e-4
        # Rounding of K_ij: half an ulp of ‖g_i‖‖g_j‖, at random over N² entries, and worst case all of one sign.
        assert abs(rough.directed_activity - exact.directed_activity) < 6e-8 * exact.mean_squared_norm
        assert rough.directed_activity == pytest.approx(exact.directed_activity, rel=1e-3)


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


def test_repeated_calls_repeat_to_the_bit():
    source = matrix(gradients(30), torch.float32)
    first, second = (order_parameters(source, batch_size=4).as_dict() for _ in range(2))
    assert first == second


def test_random_splits_explain_cosines_where_there_is_no_mean():
    G = gradients(60, 200, signal=0.0)
    G = G - G.mean(0) + 1e-3
    source = matrix(G)
    measured = statistics(source)
    null = cosine_null(source, measured, (30, 30), num_splits=50)
    assert null.mean[0, 1] < -0.9  # for any split: A0 ≈ 0 forces it
    assert null.expected[0, 1] == pytest.approx(float(null.mean[0, 1]), abs=0.02)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"batch_size": 9}, "pass replacement=True"),
        ({"batch_size": 2, "num_minibatches": 2}, "num_minibatches must be 0"),
        ({"batch_size": 2, "confidence": 1.0}, "confidence must lie"),
        ({"batch_size": 2, "population_size": 5}, "population_size must be at least"),
        ({"batch_size": 2, "groups": {"perp": [True] * 4 + [False] * 4, "b": [False] * 4 + [True] * 4}}, "Rename"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        order_parameters(matrix(gradients(8)), **options)


def test_statistics_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="same 8 samples"):
        order_parameters(matrix(gradients(8)), batch_size=2, statistics=statistics(matrix(gradients(7))))


def test_what_cannot_be_tested_cannot_be_registered():
    with pytest.raises(TypeError):
        order_parameter("new", symbol="x", unit="1")
    with pytest.raises(ValueError, match="unique"):
        order_parameter("A", symbol="A", unit="1", reference="", meaning="", degree=0, invariances=())


def test_keys_are_those_of_the_contract():
    flat = order_parameters(
        matrix(gradients(8)), batch_size=2, groups={"c": GROUPS[0] == 0, "w": GROUPS[0] == 1}
    ).as_dict()
    wanted = {"A", "A0", "A_perp", "A_par", "D", "D_par", "R", "sigma_lambda2", "noise_scale", "R_se"}
    wanted |= {f"{name}{end}" for name in CLOSED for end in ("_unbiased", "_low", "_high")}
    assert set(flat) == wanted | {"R_low", "R_high", "A_c", "A_w", "A0_c", "A0_w"}
    assert all(type(value) is float for value in flat.values())


def test_table_has_a_row_for_each():
    rows = table().splitlines()[2:]
    assert [row.split("|")[1].strip(" `") for row in rows] == list(REGISTRY)


def test_noise_factor_of_an_infinite_population():
    assert noise_factor(4, math.inf) == noise_factor(4, 7, replacement=True) == 0.25


def test_documented_table_is_the_registrys():
    text = (Path(__file__).parents[1] / "docs" / "order_parameters.md").read_text(encoding="utf-8")
    shown = text.split("<!-- table: begin -->\n")[1].split("<!-- table: end -->")[0]
    assert shown == table()


def test_a_network_streamed_or_whole_or_as_explicit_rows():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (60,), generator=generator)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    loss = torch.nn.CrossEntropyLoss()
    whole = per_sample_gradients(model, loss, inputs, targets)
    stream = StreamingGradients(model, loss, list(zip(inputs.split(25), targets.split(25))))
    options = {"batch_size": 10, "groups": targets, "num_minibatches": 64}
    first = order_parameters(whole, **options)
    second = order_parameters(GradientMatrix.from_dense(whole.dense()), **options)
    third = order_parameters(stream, **options)
    assert third.statistics.route == "passes"
    for name, value in first.as_dict().items():
        assert second[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
        if not math.isnan(third[name]):
            assert third[name] == pytest.approx(value, rel=1e-9), name
    torch.testing.assert_close(first.cosines, third.cosines)


@pytest.mark.gpu
def test_the_same_on_the_gpu():
    G = torch.as_tensor(gradients(50))
    groups = torch.arange(50) % 2
    for route in ("gram", "passes"):
        here, there = GradientMatrix.from_dense(G), GradientMatrix.from_dense(G.cuda())
        first = order_parameters(here, batch_size=5, statistics=statistics(here, groups=groups, route=route))
        second = order_parameters(there, batch_size=5, statistics=statistics(there, groups=groups, route=route))
        assert second.as_dict() == pytest.approx(first.as_dict(), rel=1e-9, nan_ok=True)


def test_bounds_of_a_probe_cover_the_training_set_on_real_data():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(targets), generator=generator) < 0.5
    targets = torch.where(wrong, (targets + torch.randint(1, 10, targets.shape, generator=generator)) % 10, targets)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    loss = torch.nn.CrossEntropyLoss()
    for _ in range(8):
        for batch in torch.randperm(len(targets), generator=generator).split(25):
            parameters = list(model.parameters())
            gradients_of_batch = torch.autograd.grad(loss(model(inputs[batch]), targets[batch]), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients_of_batch):
                    parameter -= 0.1 * gradient
    G = per_sample_gradients(model, loss, inputs, targets)
    truth = order_parameters(G, batch_size=25, num_minibatches=0)
    names = ("A", "A0", "D", "D_par", "noise_scale", "sigma_lambda2")
    hits, plain = dict.fromkeys(names, 0), []
    for _ in range(100):
        probe = G.select(torch.randperm(len(targets), generator=generator)[:400])
        measured = order_parameters(probe, batch_size=25, num_minibatches=0, population_size=len(targets))
        plain.append(measured["A0"])
        for name in names:
            low, high = measured[f"{name}_low"], measured[f"{name}_high"]
            hits[name] += not (truth[name] < low or truth[name] > high)
    # The jackknife is asymptotic and gradients have heavy tails: .9 is asked of bounds that say .95, less 4 deviations.
    assert min(hits.values()) >= 100 * 0.9 - 4 * math.sqrt(100 * 0.9 * 0.1), hits
    # A probe's own value is biased by tr Σ (1/400 − 1/N), exactly.
    bias = truth.statistics.trace * (1 / 400 - 1 / len(targets)) * len(targets) / (len(targets) - 1)
    error = np.std(plain) / math.sqrt(len(plain))
    assert np.mean(plain) == pytest.approx(truth["A0"] + bias, abs=5 * error)
    assert bias > 5 * error
