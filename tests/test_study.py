"""The study: where samples lie, whether they are coupled, and for how long a plan holds."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sgdkern as sk
from sgdkern.recorded_pass import weightings


class Experts(nn.Module):
    """Rows are routed to one of two experts: no regular order, and no fixed number."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 2)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, inputs):
        gates = self.gate(inputs).softmax(-1)
        out = torch.zeros_like(inputs, dtype=gates.dtype)
        for number, expert in enumerate(self.experts):
            chosen = gates.argmax(-1) == number
            out[chosen] = expert(inputs[chosen]).to(out.dtype) * gates[chosen, number, None]
        return out


def squares(outputs, targets):
    return outputs.float().sin().sum(1)


def rows_by_autograd(model, inputs, loss=squares):
    parameters = list(model.parameters())
    rows = []
    for one in inputs.split(1):
        grads = torch.autograd.grad(loss(model(one), None).sum(), parameters, allow_unused=True)
        rows.append(
            torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(grads, parameters)])
        )
    return torch.stack(rows)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 600])
def test_weightings_tell_all_samples_apart(count):
    weights = weightings(count, torch.zeros(count))
    assert len({tuple(column) for column in torch.stack(weights).T.tolist()}) == count
    assert all(((weight >= 2) & (weight <= 256)).all() for weight in weights)


@pytest.mark.parametrize("half", [False, True])
def test_rows_routed_to_experts_belong_to_their_samples(half):
    torch.manual_seed(0)
    model, inputs = Experts(), torch.randn(300, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        G = sk.per_sample_gradients(model, squares, inputs, torch.zeros(300))
        expected = rows_by_autograd(model, inputs)
    error = (G.dense() - expected).norm(dim=1) / expected.norm(dim=1)
    rounding = torch.finfo(torch.bfloat16 if half else torch.float32).eps
    assert error.max() < 8 * rounding  # a row at the wrong sample would be off by about 1


def test_a_layer_without_gradients_takes_no_room():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    nn.init.zeros_(model[2].weight)
    inputs, labels = torch.randn(60, 4), torch.arange(60) % 3
    G = sk.per_sample_gradients(model, nn.CrossEntropyLoss(), inputs, labels)
    assert sum(entry.factors.output_grads.numel() for entry in G.entries) <= 60 * 8
    assert not G.restrict(["0.weight", "0.bias"]).dense().any()
    assert G.restrict(["2.weight"]).squared_norms().min() > 0
    nn.init.normal_(model[2].weight)  # and the next measurement learns what the first could not
    again = sk.per_sample_gradients(model, nn.CrossEntropyLoss(), inputs, labels)
    assert again.restrict(["0.weight"]).squared_norms().min() > 0


def test_coupling_at_any_distance_is_refused():
    def pairs(outputs, targets):
        return (outputs + outputs.roll(len(outputs) // 2, 0).square()).sum(1)

    model, inputs = nn.Linear(3, 2), torch.randn(16, 3)
    with pytest.raises(ValueError, match="must not"):
        sk.per_sample_gradients(model, pairs, inputs, torch.zeros(16))
    watched = sk.watch(model, pairs, every=1)
    with watched, pytest.raises(ValueError, match="coupled"):
        watched.loss_fn(model(inputs), torch.zeros(16)).backward()


def weighted(outputs, targets, *, mix):
    return outputs.sum(1) if not mix else outputs.sum(1) + outputs.square().mean()


@pytest.mark.parametrize(
    "make", [lambda mix: functools.partial(weighted, mix=mix), lambda mix: lambda o, t: weighted(o, t, mix=mix)]
)
def test_another_loss_is_studied_anew(make):
    model, inputs = nn.Linear(3, 2), torch.randn(6, 3)
    sk.per_sample_gradients(model, make(False), inputs, torch.zeros(6))
    with pytest.raises(ValueError, match="must not"):
        sk.per_sample_gradients(model, make(True), inputs, torch.zeros(6))


class Forms(nn.Module):
    """Parameters in calls that are written in unusual ways."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.fill = nn.Parameter(torch.randn(4))
        self.scale = nn.Parameter(1 + torch.rand(4))

    def forward(self, inputs):
        inputs = inputs.where(inputs > 0, self.fill)
        inputs = torch.cat([self.token.expand(len(inputs), -1, -1), inputs], axis=1)
        return torch.div(inputs, self.scale, rounding_mode=None).flatten(1)


def test_unusual_forms_of_a_call_are_right():
    torch.manual_seed(0)
    model, inputs = Forms(), torch.randn(5, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        G = sk.per_sample_gradients(model, squares, inputs, torch.zeros(5))
    torch.testing.assert_close(G.dense(), rows_by_autograd(model, inputs))


class Lazy(nn.Module):
    """Fills a buffer, and adds another, in its first forward pass."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("mask", None)

    def forward(self, inputs):
        if self.mask is None:
            self.mask = torch.ones(2)
            self.register_buffer("seen", torch.ones(1))
        return self.linear(inputs) * self.mask


def test_buffers_made_in_the_forward_pass_go_again():
    model = Lazy()
    sk.per_sample_gradients(model, F.mse_loss, torch.randn(4, 3), torch.randn(4, 2))
    assert model.mask is None
    assert not hasattr(model, "seen")


def test_chunks_of_a_random_model_have_masks_of_their_own():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    inputs, targets = torch.ones(8, 3), torch.ones(8, 2)
    G = sk.per_sample_gradients(model, F.mse_loss, inputs, targets, seed=1, chunk_size=4)
    dense = G.dense()
    assert not torch.equal(dense[:4], dense[4:])
    torch.testing.assert_close(
        dense, sk.per_sample_gradients(model, F.mse_loss, inputs, targets, seed=1, chunk_size=4).dense()
    )


def test_watch_places_routed_rows_and_studies_again_what_had_no_gradient():
    torch.manual_seed(0)
    model, inputs = Experts(), torch.randn(40, 6)
    with sk.watch(model, squares, every=1) as watched:
        watched.loss_fn(model(inputs), None).backward()
    torch.testing.assert_close(watched.gradients.dense(), rows_by_autograd(model, inputs))
    head = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    nn.init.zeros_(head[2].weight)
    loss, labels = nn.CrossEntropyLoss(), torch.arange(40) % 3
    with sk.watch(head, loss, every=1) as watched:
        for _ in range(2):
            head.zero_grad()
            loss(head(inputs), labels).backward()
            with torch.no_grad():
                head[2].weight += 0.1 * torch.randn(3, 5)
        expected = sk.per_sample_gradients(head, loss, inputs, labels)
        loss(head(inputs), labels).backward()
    torch.testing.assert_close(watched.gradients.dense(), expected.dense())


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("chunk_size", [1, None])
def test_batch_statistics_are_refused_and_named_whatever_the_batch(count, chunk_size):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 3))
    inputs, labels = torch.randn(count, 1, 5, 5), torch.arange(count) % 3
    with pytest.raises(ValueError, match=r"\['1'\].*model\.eval\(\)"):
        sk.per_sample_gradients(model, nn.CrossEntropyLoss(), inputs, labels, chunk_size=chunk_size)


def test_a_mean_over_the_batch_is_refused_in_chunks_of_one():
    class Centred(nn.Linear):
        def forward(self, inputs):
            out = super().forward(inputs)
            return out - out.mean(0)

    with pytest.raises(ValueError, match="must not be coupled"):
        sk.per_sample_gradients(Centred(3, 2), F.mse_loss, torch.randn(4, 3), torch.randn(4, 2), chunk_size=1)


def test_one_form_at_a_time():
    model = nn.Linear(3, 2)
    inputs, targets = torch.randn(4, 3), torch.randn(4, 2)
    both = {"batch_loss": lambda m, b: m(b).sum(1), "batch": inputs}
    with pytest.raises(TypeError, match="one of the two forms"):
        sk.per_sample_gradients(model, F.mse_loss, inputs, targets, **both)
    with pytest.raises(TypeError, match="no batch"):
        sk.per_sample_gradients(model, batch_loss=both["batch_loss"])
    with pytest.raises(TypeError, match=r"torch\.as_tensor"):
        sk.per_sample_gradients(model, F.mse_loss, inputs.numpy(), targets.numpy())
