"""Order parameters: closed forms against the enumeration of all minibatches, declared invariances executed."""

import math
from pathlib import Path

import numpy as np
import oracles_ensemble as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_ensemble import gradients

from sgdkern.capture import per_sample_gradients
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.order_parameters import (
    REGISTRY,
    activity_exact,
    noise_factor,
    order_parameter,
    order_parameters,
    table,
)
from sgdkern.statistics import statistics
from sgdkern.streaming import StreamingGradients

CLOSED = [name for name, parameter in REGISTRY.items() if not parameter.sampled]
MEMBERS = np.array([0, 0, 0, 1, 1, 1, 1, 1])


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


# Edges.


def test_one_sample():
    measured = order_parameters(matrix([[3.0, 4.0]]), batch_size=1)
    assert measured["A"] == measured["A0"] == 25
    assert measured["D"] == measured["sigma_lambda2"] == measured["noise_scale"] == 0
    assert measured["R"] == pytest.approx(1)
    assert math.isnan(measured["A0_unbiased"])
    assert "more than 1 sample" in measured.notes["A0_unbiased"]


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


def test_repeated_calls_repeat_to_the_bit():
    source = matrix(gradients(30), torch.float32)
    first, second = (order_parameters(source, batch_size=4).as_dict() for _ in range(2))
    assert first == second


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
    measured = order_parameters(matrix(gradients(8)), batch_size=2, groups={"c": MEMBERS == 0, "w": MEMBERS == 1})
    flat = measured.scalars()
    wanted = {"A", "A0", "A_perp", "A_par", "D", "D_par", "R", "sigma_lambda2", "noise_scale", "R_se"}
    wanted |= {f"{name}{end}" for name in CLOSED for end in ("_unbiased", "_low", "_high")}
    assert set(flat) == wanted | {"R_low", "R_high", "A_c", "A_w", "A0_c", "A0_w", "R_cw", "R_ac", "R_aw"}
    assert flat["A0"] == measured.A0
    assert all(type(value) is float for value in flat.values())
    assert measured.as_dict() == {**flat, "cosines": measured.groups.cosines}


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
    for name, value in first.scalars().items():
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
        assert second.scalars() == pytest.approx(first.scalars(), rel=1e-9, nan_ok=True)
