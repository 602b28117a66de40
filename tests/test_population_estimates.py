"""Population estimates: unbiased over all subsets, bounds that cover, silence below the noise floor."""

import itertools
import math

import numpy as np
import oracles_ensemble as oracle
import pytest
import torch
from oracles_ensemble import gradients

from sgdkern.capture import per_sample_gradients
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.order_parameters import REGISTRY, order_parameters, population_moments, sample_moments
from sgdkern.order_parameters.confidence import population_estimates, student_quantile
from sgdkern.statistics import statistics

CLOSED = [name for name, parameter in REGISTRY.items() if not parameter.sampled]


def matrix(G, dtype=torch.float64):
    return GradientMatrix.from_dense(torch.as_tensor(np.asarray(G)).to(dtype))


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


def test_two_samples_give_estimates_but_no_bounds():
    measured = order_parameters(matrix([[3.0, 4.0], [3.0, 5.0]]), batch_size=1)
    assert measured["A0_unbiased"] == pytest.approx(29)
    assert math.isnan(measured["A0_low"])
    assert "no bounds" in measured.notes["A0_unbiased"]
    assert math.isnan(measured["noise_scale_unbiased"])
    assert "too few samples" in measured.notes["noise_scale_unbiased"]


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
