"""The routes to K, to squared norms and to minibatches' norms, against the rows of each kind of factors."""

import pytest
import torch
from test_factors import KINDS, N, T, close, normal, pair  # noqa: F401

from sgdkern import gram_routes
from sgdkern.factors import Dense, Explicit, Lookup, Patches, gram_products
from sgdkern.gram_routes import add_grams, norms_and_products, norms_of_sums, squared_norms


def test_gram(pair):  # noqa: F811
    factors, rows = pair
    gram = torch.ones(N, N, dtype=torch.float64)
    add_grams(gram, [factors, factors])
    close(gram, 1 + 2 * rows @ rows.T)


def test_gram_of_several(pair):  # noqa: F811
    factors, rows = pair
    close(gram_routes.gram_of([factors, factors], rows), 2 * rows @ rows.T)
    assert gram_routes.gram_of([], rows).equal(torch.zeros(N, N, dtype=torch.float64))


def test_the_first_operations_result_is_the_gram_matrix(monkeypatch):
    given = []
    monkeypatch.setattr(gram_routes.ops, "gram", lambda *args: given.append(torch.zeros(N, N)) or given[-1])
    assert gram_routes.gram_of([Dense(normal(N, 1, 2), normal(N, 1, 3))], normal(N, 2)) is given[0]


def test_wide_rows_are_not_packed(monkeypatch):
    factors, rows = KINDS["explicit"]()
    monkeypatch.setattr(gram_routes, "PACKED_COLUMNS", 3)
    gram = torch.zeros(N, N, dtype=torch.float64)
    add_grams(gram, [factors])
    close(gram, rows @ rows.T)


def test_squared_norms(pair):  # noqa: F811
    factors, rows = pair
    close(squared_norms(factors), rows.square().sum(1))


@pytest.mark.parametrize("outputs", [2, 60])
def test_squared_norms_of_convolutions_by_pairs_and_by_gradients(outputs):
    factors = Patches(normal(N, 1, 4, 3, 3), normal(N, 1, outputs, 2, 2), (2, 2), (1, 1), (1, 1))
    close(squared_norms(factors), factors.rows(0, N).square().sum(1))


def test_norms_of_sums(pair):  # noqa: F811
    factors, rows = pair
    indices = torch.tensor([[0, 1, 2], [4, 4, 0]])
    close(norms_of_sums([factors, factors], indices, rows), 2 * rows[indices].sum(1).square().sum(1))


def test_sums_of_many_samples_are_formed(monkeypatch):
    monkeypatch.setattr(gram_routes, "CALL_PRODUCTS", 0)
    factors = Dense(normal(N, 1, 2), normal(N, 1, 3), bias=True)
    indices = torch.arange(20).remainder(N)[None]
    close(norms_of_sums([factors], indices, factors.inputs), factors.rows(0, N)[indices].sum(1).square().sum(1))


def test_products_with_k_in_parts(pair, monkeypatch):  # noqa: F811
    factors, rows = pair
    weights = normal(N, 2)
    for size in (1, 2**20):
        monkeypatch.setattr("sgdkern.factors.protocol.SUM_BYTES", size)
        close(gram_products(factors, weights), rows @ (rows.T @ weights))


@pytest.mark.parametrize("num_columns", [1, 3])
def test_norms_and_products(pair, num_columns, monkeypatch):  # noqa: F811
    factors, rows = pair
    weights = normal(N, num_columns)
    truth = torch.cat([rows.square().sum(1, keepdim=True), rows @ (rows.T @ weights)], 1)
    close(norms_and_products([factors, factors], weights), 2 * truth)
    close(norms_and_products([factors], weights, norms=False)[:, 1:], truth[:, 1:])
    monkeypatch.setattr(gram_routes, "FEWEST_SAMPLES", 0)
    monkeypatch.setattr(gram_routes, "FEWEST_POSITIONS", 0)
    for size in (1, 2**20):
        monkeypatch.setattr(gram_routes, "SLICE_BYTES", size)
        close(norms_and_products([factors], weights), truth)


def test_parts_of_unlike_numbers_of_groups(monkeypatch):
    factors = Patches(normal(40, 1, 6, 4, 4), normal(40, 1, 12, 3, 3), (2, 2), (1, 1), (1, 1), groups=3)
    monkeypatch.setattr(gram_routes, "SLICE_BYTES", 4 * 40 * 8 * 4 * 2)  # two groups, then one
    assert [part.groups for part in factors.slices(gram_routes.SLICE_BYTES)] == [2, 1]
    rows, weights = factors.rows(0, 40), normal(40, 1)
    truth = torch.cat([rows.square().sum(1, keepdim=True), rows @ (rows.T @ weights)], 1)
    close(norms_and_products([factors], weights), truth)


def test_each_layer_is_multiplied_by_what_costs_least(monkeypatch):
    used = []
    for name in ("gram_matvec", "linear_gram_matvec", "patch_gram_matvec"):
        op = getattr(gram_routes.ops, name)
        noted = lambda *args, run=op.overload, name=name: used.append(name) or run(*args)  # noqa: E731
        monkeypatch.setattr(op, "overload", noted)
    for num_samples, positions, outputs, kind in [
        (20, 1, 20, ["gram_matvec"]),
        (80, 1, 20, ["linear_gram_matvec"]),
        (80, 1, 600, []),
        (80, 8, 20, ["patch_gram_matvec"]),
    ]:
        used.clear()
        factors = Dense(normal(num_samples, positions, 20), normal(num_samples, positions, outputs))
        weights = normal(num_samples, 1)
        found = norms_and_products([factors], weights)
        assert used == kind
    monkeypatch.setattr(type(gram_routes.ops.patch_gram_matvec), "is_compiled", lambda *_: False)
    close(norms_and_products([factors], weights), found)  # its reference would hold all gradients
    assert used == kind


@pytest.mark.parametrize(
    ("indices", "shared"),
    [([[3, 0, 2]] * N, True), ([[3, 3, 2]] * N, False), ([[3, -1, 2]] * N, False), ([[3, 0, 2], [0, 3, 2]], False)],
)
def test_a_table_of_positions_is_rows(indices, shared):
    factors = Lookup(torch.tensor(indices), normal(len(indices), T, 4), 6)
    assert factors.is_shared == shared
    gram = torch.zeros(len(indices), len(indices), dtype=torch.float64)
    add_grams(gram, [factors])
    rows = factors.rows(0, len(indices))
    close(gram, rows @ rows.T)


def test_biases_and_rows_share_one_operation(monkeypatch):
    """Those of sequence layers whose gradients are formed, scales and shifts, a table of positions."""
    calls, plain = [], gram_routes.ops.gram.overload
    monkeypatch.setattr(gram_routes.ops.gram, "overload", lambda *args: calls.append(len(args[0])) or plain(*args))
    layers = [
        Dense(normal(N, 9, 4), normal(N, 9, 3), bias=True),
        Explicit(normal(N, 7)),
        Dense(normal(N, 1, 4), normal(N, 1, 3)),
    ]
    layers.append(Lookup(torch.tensor([[3, 0, 2]] * N), normal(N, 3, 4), 6))
    gram = torch.zeros(N, N, dtype=torch.float64)
    add_grams(gram, layers)
    rows = torch.cat([factors.rows(0, N) for factors in layers], 1)
    close(gram, rows @ rows.T)
    assert calls == [4]


def network(num_samples, *widths):
    """A network's factors without numbers."""
    factors = [torch.empty(num_samples, 1, width, device="meta") for width in widths]
    return [Dense(inputs, grads, bias=True) for inputs, grads in zip(factors, factors[1:], strict=False)]


@pytest.mark.parametrize(
    ("num_samples", "widths", "cheaper"),
    [
        (1024, (784, 1024, 1024, 10), True),
        (8192, (784, 1024, 1024, 10), False),
        (4096, (784, 4096, 4096, 10), True),
        (4000, (784, 50, 50, 10), False),
        (0, (3, 2), True),
    ],
)
def test_k_is_cheaper_for_few_samples_of_wide_layers(num_samples, widths, cheaper):
    assert gram_routes.gram_is_cheaper(network(num_samples, *widths)) == cheaper


def test_costs_of_every_kind(pair):  # noqa: F811
    factors, _ = pair
    many = factors.select(torch.arange(400).remainder(N))
    assert not gram_routes.gram_is_cheaper([many])
