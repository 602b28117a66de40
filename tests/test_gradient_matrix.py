"""Every case by every law, against plain autograd sample by sample in float64."""

import dataclasses

import numpy as np
import pytest
import torch
from cases import CASES, parameters
from measured import Measured, measure
from snapshot import Snapshot
from torch import Tensor, nn

from sgdkern.capture import per_sample_gradients
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.gram_pass import gram_matrix
from sgdkern.tiled_gram import cross_gram


@pytest.fixture(scope="module", params=parameters(CASES))
def measured(request: pytest.FixtureRequest) -> Measured:
    return measure(request.param)


def test_dense(measured: Measured) -> None:
    measured.agrees(measured.G.dense(), lambda rows: rows)


def test_losses(measured: Measured) -> None:
    assert measured.G.losses.shape == (measured.num_samples,)
    assert not measured.G.losses.requires_grad


def test_gram(measured: Measured) -> None:
    measured.agrees(measured.G.gram(), lambda rows: rows @ rows.T)


def test_gram_during_the_backward_pass(measured: Measured) -> None:
    """The same K without G; losses, outputs and routes are G's, and the model is as before."""
    before = Snapshot(measured.model, seeded_grads=True)
    K = measured.gram_matrix()
    assert before.changes() == []
    measured.agrees(K.gram(), lambda rows: rows @ rows.T)
    assert K.shape == measured.G.shape
    assert K.coverage == measured.G.coverage
    assert torch.equal(K.losses, measured.G.losses)
    assert (K.outputs is None) == (measured.G.outputs is None)
    if K.outputs is not None:
        assert torch.equal(K.outputs, measured.G.outputs)


def test_gram_is_symmetric_and_positive_semidefinite(measured: Measured) -> None:
    gram = measured.G.gram().double()
    rounding = torch.finfo(measured.G.dtype).eps * gram.diagonal().sum()
    assert (gram - gram.T).norm() <= rounding
    assert torch.linalg.eigvalsh((gram + gram.T) / 2).min() >= -2 * measured.num_samples * rounding


def test_squared_norms(measured: Measured) -> None:
    measured.agrees(measured.G.squared_norms(), lambda rows: rows.square().sum(1))


def test_diagonal_of_gram(measured: Measured) -> None:
    measured.agrees(measured.G.gram().diagonal(), lambda rows: rows.square().sum(1))


def test_mean(measured: Measured) -> None:
    measured.agrees(measured.G.mean(), lambda rows: rows.mean(0))


def test_matvec(measured: Measured) -> None:
    v = measured.normal(measured.G.num_params, 2)
    measured.agrees(measured.G.matvec(v), lambda rows: rows @ v.double(), lambda rows: rows @ v.double().abs())
    assert torch.equal(measured.G.matvec(v[:, 0]), measured.G.matvec(v[:, :1])[:, 0])


def test_rmatvec(measured: Measured) -> None:
    w = measured.normal(measured.num_samples, 2)
    measured.agrees(measured.G.rmatvec(w), lambda rows: rows.T @ w.double(), lambda rows: rows.T @ w.double().abs())
    assert torch.equal(measured.G.rmatvec(w[:, 0]), measured.G.rmatvec(w[:, :1])[:, 0])


def test_adjoint(measured: Measured) -> None:
    G, v, w = measured.G, measured.normal(measured.G.num_params), measured.normal(measured.num_samples)
    one, other = (G.matvec(v) * w).double().sum(), (v * G.rmatvec(w)).double().sum()
    scale = (v.abs().double() @ measured.truth.abs().T) @ w.abs().double()
    assert (one - other).abs() <= 2 * torch.finfo(G.dtype).eps * scale


def test_gram_matvec(measured: Measured) -> None:
    w = measured.normal(measured.num_samples, 2)
    fresh = measured.G.select(torch.arange(measured.num_samples))  # nothing cached: K is applied as G (Gᵀ w)
    applied = lambda rows, weights: rows @ (rows.T @ weights.double())  # noqa: E731
    measured.agrees(fresh.gram_matvec(w), lambda rows: applied(rows, w), lambda rows: applied(rows, w.abs()))


def test_covariance_matvec(measured: Measured) -> None:
    v = measured.normal(measured.G.num_params)

    def applied(rows: Tensor) -> Tensor:
        projections = rows @ v.double()
        return rows.T @ (projections - projections.mean()) / len(rows)

    def size(rows: Tensor) -> Tensor:
        projections = rows @ v.double().abs()
        return rows.T @ (projections + projections.mean()) / len(rows)

    measured.agrees(measured.G.covariance_matvec(v), applied, size)


def minibatches(num_samples: int) -> Tensor:
    """Pairs of samples, one of them with itself."""
    first = torch.arange(num_samples)
    return torch.stack([first, first.roll(1)], 1).index_fill(0, torch.tensor([0]), 0)


def test_minibatch_squared_norms(measured: Measured) -> None:
    indices = minibatches(measured.num_samples)
    norms = lambda rows: rows[indices].mean(1).square().sum(1)  # noqa: E731
    fresh = measured.G.select(torch.arange(measured.num_samples))
    measured.agrees(fresh.minibatch_squared_norms(indices), norms)
    fresh.gram()
    measured.agrees(fresh.minibatch_squared_norms(indices), norms)


def test_select(measured: Measured) -> None:
    indices = torch.tensor([measured.num_samples - 1, 0, 0])
    some = measured.G.select(indices)
    measured.agrees(some.dense(), lambda rows: rows[indices])
    assert torch.equal(some.losses, measured.G.losses[indices])
    mask = torch.arange(measured.num_samples) == 0
    measured.agrees(measured.G.select(mask).dense(), lambda rows: rows[mask])
    pairs = minibatches(measured.num_samples)
    measured.agrees(measured.G.select(pairs).dense(), lambda rows: rows[pairs].sum(1))


def test_stack(measured: Measured) -> None:
    half = max(1, measured.num_samples // 2)
    order = torch.arange(measured.num_samples)
    parts = [measured.G.select(part) for part in (order[half:], order[:half]) if len(part)]
    stacked = GradientMatrix.stack(parts)
    order = torch.cat([order[half:], order[:half]])
    measured.agrees(stacked.gram(), lambda rows: rows[order] @ rows[order].T)
    assert torch.equal(stacked.losses, measured.G.losses[order])


def test_layers_add_up(measured: Measured) -> None:
    layers = measured.G.layers
    assert sum(layer.num_params for layer in layers.values()) == measured.G.num_params
    measured.agrees(sum(layer.gram() for layer in layers.values()), lambda rows: rows @ rows.T)


def test_layers_are_the_columns_of_their_parameters(measured: Measured) -> None:
    dense, places = measured.G.dense(), torch.arange(measured.G.num_params)
    for layer in measured.G.layers.values():
        columns = torch.cat([places[measured.G.parameters[name]] for name in layer.parameters])
        assert torch.equal(layer.dense(), dense[:, columns])


def test_chunks_of_samples(measured: Measured) -> None:
    chunked = measured.capture(chunk_size=2)
    measured.agrees(chunked.dense(), lambda rows: rows)
    measured.agrees(chunked.gram(), lambda rows: rows @ rows.T)
    assert dict(chunked.parameters) == dict(measured.G.parameters)


def test_flat_order(measured: Measured) -> None:
    trainable = {name: p.numel() for name, p in measured.model.named_parameters() if p.requires_grad}
    sizes = {name: columns.stop - columns.start for name, columns in measured.G.parameters.items()}
    assert list(sizes.items()) == list(trainable.items())


def test_routes(measured: Measured) -> None:
    explicit = tuple(name for name, route in measured.G.coverage.items() if route.startswith("explicit"))
    assert explicit == measured.case.explicit
    assert list(measured.G.coverage) == list(measured.G.parameters)


def test_warning(measured: Measured) -> None:
    ours = [each for each in measured.warned if "per_sample_gradients" in str(each.message)]
    assert len(ours) == bool(measured.case.explicit)
    for each in ours:
        assert measured.case.explicit[0] in str(each.message)
        assert each.filename.endswith("measured.py"), "the warning points at the user's own line"


def test_untouched(measured: Measured) -> None:
    assert measured.changes == []


def test_repeatable(measured: Measured) -> None:
    again = measured.capture()
    assert torch.equal(again.gram(), measured.capture().gram())


class TestArguments:
    @pytest.fixture
    def G(self) -> GradientMatrix:
        torch.manual_seed(0)
        return per_sample_gradients(nn.Linear(3, 2), nn.MSELoss(), torch.randn(5, 3), torch.randn(5, 2))

    def test_matvec(self, G: GradientMatrix) -> None:
        with pytest.raises(ValueError, match=r"matvec: the vector must be \[P\].*P = 8, got \[7\]"):
            G.matvec(torch.zeros(7))

    def test_rmatvec(self, G: GradientMatrix) -> None:
        with pytest.raises(ValueError, match=r"rmatvec: .*N = 5, got \[4\]"):
            G.rmatvec(torch.zeros(4))

    def test_dense(self, G: GradientMatrix) -> None:
        with pytest.raises(ValueError, match=r"dense: G must fit 100 bytes, got 5 x 8.*restrict params="):
            G.dense(limit_bytes=100)

    def test_minibatches(self, G: GradientMatrix) -> None:
        with pytest.raises(ValueError, match=r"indices must be \[M, B\]"):
            G.minibatch_squared_norms(torch.zeros(3, dtype=torch.int64))

    def test_restrict(self, G: GradientMatrix) -> None:
        with pytest.raises(ValueError, match="names must be parameters of G, got \\['nobody'\\]"):
            G.restrict(["nobody"])

    def test_stack(self, G: GradientMatrix) -> None:
        with pytest.raises(ValueError, match="at least one gradient matrix"):
            GradientMatrix.stack([])
        with pytest.raises(ValueError, match="parts must share their parameters"):
            GradientMatrix.stack([G, G.restrict(["bias"])])

    def test_from_dense(self) -> None:
        rows = torch.randn(4, 3)
        assert torch.equal(GradientMatrix.from_dense(rows).dense(), rows)
        with pytest.raises(ValueError, match="floating-point matrix"):
            GradientMatrix.from_dense(torch.zeros(4, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"losses must be \[N\] = \[4\], got \[3\]"):
            GradientMatrix.from_dense(rows, torch.zeros(3))

    def test_unlike_parts_stack_as_rows(self) -> None:
        torch.manual_seed(0)
        model = nn.Conv1d(2, 3, 3)
        loss = lambda outputs, _: outputs.sin().flatten(1).sum(1)  # noqa: E731
        long, short = torch.randn(2, 2, 9), torch.randn(3, 2, 5)
        parts = [per_sample_gradients(model, loss, x, torch.zeros(len(x))) for x in (long, short)]
        expected = torch.cat([part.dense() for part in parts])
        torch.testing.assert_close(GradientMatrix.stack(parts).dense(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("indices", [[1, 3], range(1, 4), slice(None, None, 2), [-1], np.array([2, 0]), []])
def test_samples_are_chosen_as_of_an_array(indices):
    dense = torch.arange(12.0).view(4, 3)
    chosen = GradientMatrix.from_dense(dense).select(indices)
    assert torch.equal(chosen.dense(), torch.as_tensor(dense.numpy()[indices]))


@pytest.mark.parametrize("indices", [[4], [-5], [0.5], [[[0]]], torch.tensor([True, False])])
def test_samples_that_are_not_there_are_refused(indices):
    with pytest.raises(ValueError, match="select: indices"):
        GradientMatrix.from_dense(torch.ones(4, 3)).select(indices)


def test_arrays_are_vectors_too():
    G = GradientMatrix.from_dense(torch.eye(3))
    assert torch.equal(G.matvec(np.ones(3)), torch.ones(3))
    assert torch.equal(G.rmatvec([1.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 2.0]))
    assert repr(G) == "GradientMatrix(3 samples x 3 parameters, torch.float32, cpu)"


def test_products_with_k_are_detached_and_contiguous():
    G = per_sample_gradients(nn.Linear(3, 2), nn.MSELoss(), torch.randn(5, 3), torch.randn(5, 2))
    products = G.gram_matvec(torch.ones(5, 2, requires_grad=True))
    assert not products.requires_grad
    assert not G.squared_norms().requires_grad
    assert products.is_contiguous()


def test_16_bit_rows_give_the_same_with_k_at_hand():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    before, after = GradientMatrix.from_dense(rows), GradientMatrix.from_dense(rows)
    after.gram()
    for found, expected in (
        (after.gram_matvec(torch.ones(6)), before.gram_matvec(torch.ones(6))),
        (after.squared_norms(), before.squared_norms()),
    ):
        assert found.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected)


class _Sometimes(nn.Module):
    """Its second layer is used for batches of positive inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.always(x) + self.sometimes(x) if bool((x > 0).all()) else self.always(x)


def test_a_layer_that_some_parts_do_not_use_is_covered():
    model, inputs, targets = _Sometimes(), torch.rand(4, 3) + 0.1, torch.tensor([0, 1, 0, 1])
    parts = [per_sample_gradients(model, nn.CrossEntropyLoss(), x, targets) for x in (inputs, -inputs)]
    assert parts[1].coverage["sometimes.weight"].startswith("no gradient")
    for order in (parts, parts[::-1]):
        assert GradientMatrix.stack(order).coverage["sometimes.weight"] == "factors: linear"


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 5)), (40,)),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5)), (2, 6, 6)),
        (nn.Sequential(nn.Linear(8, 9), nn.LayerNorm(9), nn.Flatten(), nn.Linear(63, 5)), (7, 8)),
    ],
    ids=["perceptron", "convolution", "sequence"],
)
def test_autocast_is_the_models_alone(model: nn.Module, shape: tuple[int, ...]) -> None:
    """What is computed from gradients is the same to the bit inside of autocast; it was 16-bit products there."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(60, *shape), torch.arange(60) % 5
    G = per_sample_gradients(model, nn.CrossEntropyLoss(), inputs, targets)
    vector, weights, batches = torch.randn(G.num_params), torch.randn(60, 2), torch.arange(60).reshape(30, 2)

    def everything(G: GradientMatrix) -> list[torch.Tensor]:
        return [
            G.matvec(vector),
            G.rmatvec(weights),
            G.mean(),
            G.covariance_matvec(vector),
            G.gram_matvec(weights),
            G.squared_norms(),
            G.minibatch_squared_norms(batches),
            G.dense(),
            cross_gram(G.select(slice(0, 20)), G.select(slice(20, 60))),
            G.gram(),
            G.gram_matvec(weights),
        ]

    expected = everything(dataclasses.replace(G, _cache={}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything(dataclasses.replace(G, _cache={}))
        K = gram_matrix(model, nn.CrossEntropyLoss(), inputs, targets)
        rounded = per_sample_gradients(model, nn.CrossEntropyLoss(), inputs, targets)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(K.gram(), rounded.gram(), rtol=1e-5, atol=1e-6)
