"""Statistics: the two routes, whole or in chunks, give the same numbers; partitions are what they say."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from sgdkern import per_sample_gradients
from sgdkern import statistics as module
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.order_parameters import cosine_null, order_parameters
from sgdkern.statistics import partition, statistics


class Chunked:
    """A source of passes only: rows in unequal chunks, no K."""

    def __init__(self, G, sizes):
        self.parts = [GradientMatrix.from_dense(part) for part in G.split(sizes)]
        self.sizes = sizes
        self.num_samples, self.num_params = G.shape
        self.dtype, self.device = G.dtype, G.device

    def squared_norms(self):
        return torch.cat([part.squared_norms() for part in self.parts])

    def mean(self):
        return self.rmatvec(torch.full((self.num_samples,), 1 / self.num_samples, dtype=self.dtype))

    def rmatvec(self, w):
        return sum(part.rmatvec(rows) for part, rows in zip(self.parts, w.split(self.sizes)))

    def matvec(self, v):
        return torch.cat([part.matvec(v) for part in self.parts])

    def minibatch_squared_norms(self, indices):
        return torch.cat([part.dense() for part in self.parts])[indices].mean(1).square().sum(1)


@pytest.fixture
def G():
    return torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5


GROUPS = torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 1])


def assert_same(first, second, rtol=1e-12, atol=1e-12):
    close = {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(first.squared_norms, second.squared_norms, **close)
    torch.testing.assert_close(first.projections, second.projections, **close)
    assert first.directed_activity == pytest.approx(second.directed_activity, rel=rtol, abs=atol)
    assert (first.groups.names, first.groups.counts) == (second.groups.names, second.groups.counts)
    torch.testing.assert_close(first.groups.gram, second.groups.gram, **close)
    torch.testing.assert_close(first.groups.mean_squared_norms, second.groups.mean_squared_norms, **close)


def test_every_route_gives_the_definitions(G):
    mean = G.mean(0)
    means = torch.stack([G[g == GROUPS].mean(0) for g in range(3)] + [mean])
    for source, route in (
        (GradientMatrix.from_dense(G), "gram"),
        (GradientMatrix.from_dense(G), "passes"),
        (Chunked(G, [2, 4, 3]), "auto"),
    ):
        measured = statistics(source, groups=GROUPS, route=route)
        torch.testing.assert_close(measured.squared_norms, G.square().sum(1))
        torch.testing.assert_close(measured.projections, G @ mean)
        assert measured.directed_activity == pytest.approx(float(mean @ mean))
        assert measured.trace == pytest.approx(float((G - mean).square().sum() / 9))
        torch.testing.assert_close(measured.groups.gram, means @ means.T)
        assert measured.groups.counts == (3, 4, 2)


def test_auto_takes_the_gram_matrix_where_it_costs_less(monkeypatch):
    monkeypatch.setattr("sgdkern.statistics.LARGEST_GRAM", 3)
    wide, narrow = (
        per_sample_gradients(nn.Linear(width, width), nn.MSELoss(), torch.randn(5, width), torch.randn(5, width))
        for width in (50, 2)
    )
    assert [statistics(source).route for source in (wide, narrow)] == ["gram", "passes"]
    narrow.gram()  # there it costs nothing more
    assert statistics(narrow).route == "gram"


def test_only_the_gram_route_has_pair_sums(G):
    K = G @ G.T
    off = K - K.diag().diag()
    pairs = statistics(GradientMatrix.from_dense(G)).pairs
    torch.testing.assert_close(pairs.row_squares, off.square().sum(1))
    torch.testing.assert_close(pairs.row_products, off @ off.sum(1))
    torch.testing.assert_close(pairs.norm_products, off @ K.diag())
    assert statistics(GradientMatrix.from_dense(G), route="passes").pairs is None


def test_routes_agree_in_float32():
    rows = torch.randn(300, 40, generator=torch.Generator().manual_seed(1)) + 0.1
    members = torch.arange(300) % 4
    source = GradientMatrix.from_dense(rows)
    # A float32 sum of 40 products is within 40 roundings of the lengths' product; a chain of two such sums within 80.
    rounding = 80 * torch.finfo(torch.float32).eps * float(rows.square().sum(1).max())
    by_gram = statistics(source, groups=members)
    assert_same(by_gram, statistics(source, groups=members, route="passes"), 0, rounding)
    assert_same(by_gram, statistics(Chunked(rows, [100, 150, 50]), groups=members), 0, rounding)


def test_many_groups_are_taken_some_at_a_time(G, monkeypatch):
    source = GradientMatrix.from_dense(G)
    whole = statistics(source, groups=GROUPS, route="passes")
    monkeypatch.setattr(module, "_GROUP_BYTES", 2 * 5 * 8)  # room for two means of five parameters
    assert_same(statistics(source, groups=GROUPS, route="passes"), whole)


def test_blocks_of_the_gram_matrix_join(G, monkeypatch):
    whole = statistics(GradientMatrix.from_dense(G), groups=GROUPS)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 2)
    assert_same(statistics(GradientMatrix.from_dense(G), groups=GROUPS), whole)


@pytest.mark.parametrize("route", ["gram", "passes"])
def test_further_partitions_reuse_the_statistics(G, route):
    source = GradientMatrix.from_dense(G)
    alone = statistics(source, route=route)
    assert alone.groups is None
    assert_same(alone.with_groups(source, GROUPS), statistics(source, groups=GROUPS, route=route))
    assert alone.with_groups(source, GROUPS).with_groups(source, None).groups is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        alone.route = "passes"


def test_chunked_sources_serve_everything_but_what_needs_the_gram_matrix(G):
    whole, chunked = GradientMatrix.from_dense(G), Chunked(G, [4, 5])
    options = {"batch_size": 3, "groups": GROUPS, "num_minibatches": 50}
    first, second = (order_parameters(source, **options).scalars() for source in (whole, chunked))
    for name, value in second.items():
        if not name.startswith(("sigma_lambda2_", "D_par_", "A_par_", "A_perp_")):
            assert value == pytest.approx(first[name], rel=1e-9, nan_ok=True), name
    assert np.isnan(second["sigma_lambda2_unbiased"])
    null = cosine_null(chunked, statistics(chunked), (4, 5), num_splits=5)
    torch.testing.assert_close(null.mean, cosine_null(whole, statistics(whole), (4, 5), num_splits=5).mean)
    with pytest.raises(ValueError, match="a source with K"):
        statistics(chunked, route="gram")


def test_an_unknown_route_is_refused(G):
    source = GradientMatrix.from_dense(G)
    for measure in (statistics, lambda source, **route: order_parameters(source, batch_size=2, **route)):
        with pytest.raises(ValueError, match="route must be one of auto, gram, passes, got 'pass'"):
            measure(source, route="pass")


def test_products_with_weights_besides(G):
    weights = torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, chunked = GradientMatrix.from_dense(G), Chunked(G, [4, 5])
    for source, route in ((whole, "gram"), (whole, "passes"), (chunked, "passes")):
        measured = statistics(source, route=route, weights=weights)
        torch.testing.assert_close(measured.products, G @ (G.T @ weights))
        torch.testing.assert_close(measured.projections, G @ G.mean(0))


def test_partitions():
    names, members = partition(np.array([3, -1, 3]), 3)
    assert names == ("-1", "3")
    assert members.tolist() == [1, 0, 1]
    names, members = partition({"w": [False, True, True], "c": [True, False, False]}, 3)
    assert names == ("w", "c")
    assert members.tolist() == [1, 0, 0]
    assert partition(torch.tensor([True, False]), 2)[0] == ("0", "1")


@pytest.mark.parametrize(
    ("groups", "kind", "message"),
    [
        ([0, 1], ValueError, "one integer for each of the 3 samples"),
        ([0.0, 1.0, 1.0], TypeError, "integers or"),
        ({"a": [1, 0, 0], "b": [False, True, True]}, TypeError, "must be boolean"),
        ({"a": [True, False], "b": [False, True]}, ValueError, "must have shape"),
        ({"a": [True, True, True], "b": [False, False, False]}, ValueError, "got none in 'b'"),
        ({"a": [True, True, False], "b": [False, True, True]}, ValueError, "got sample 1 in 2"),
        ({"a": [True, False, False], "b": [False, True, False]}, ValueError, "got sample 2 in 0"),
        ({}, ValueError, "got sample 0 in 0"),
    ],
)
def test_what_is_no_partition_is_refused(groups, kind, message):
    with pytest.raises(kind, match=message):
        partition(groups, 3)


@pytest.mark.parametrize("route", ["gram", "passes"])
def test_a_gradient_that_is_not_finite_is_named(G, route):
    G[4, 2] = float("nan")
    with pytest.raises(ValueError, match=r"first samples \[4\]"):
        statistics(GradientMatrix.from_dense(G), route=route)


def test_no_samples():
    with pytest.raises(ValueError, match="at least one sample"):
        statistics(GradientMatrix.from_dense(torch.zeros(0, 3)))
