"""watch: the loop's own passes give the very gradients that a measurement of its own would."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sgdkern as sk
from sgdkern.substitutes import narrow
from sgdkern.watching import watch


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.LayerNorm(8), nn.Linear(8, 3))


def _batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(10, 6, generator=generator), torch.randint(0, 3, (10,), generator=generator)) for _ in range(count)
    ]


def _train(model, loss, batches, *, around=None):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in batches:
        optimiser.zero_grad()
        loss(model(inputs), targets).backward()
        if around is not None:
            around(inputs, targets)
        optimiser.step()


def test_training_is_the_same_to_the_bit_where_measurements_run_other_functions(monkeypatch):
    monkeypatch.setattr(narrow, "FEWEST_PRODUCTS", 0)
    trained = []
    for watching in (False, True):
        torch.manual_seed(0)
        model, loss = nn.Sequential(nn.Linear(784, 50), nn.Tanh(), nn.Linear(50, 3)), nn.CrossEntropyLoss()
        batches = [(torch.randn(64, 784), torch.arange(64) % 3) for _ in range(4)]
        with watch(model, loss, every=1) if watching else nullcontext():
            _train(model, loss, batches)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*trained)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), F.cross_entropy])
def test_gradients_are_those_of_a_measurement(loss):
    model, seen = _model(), []

    def compare(inputs, targets):
        expected = sk.per_sample_gradients(model, loss, inputs, targets)
        torch.testing.assert_close(watched.gradients.dense(), expected.dense())
        torch.testing.assert_close(watched.gradients.losses, expected.losses)
        seen.append(len(inputs))

    with watch(model, loss, every=1) as watched:
        _train(model, loss, _batches(), around=compare)
    assert len(seen) == len(watched.history) == 4
    assert watched.history.steps.tolist() == [0, 1, 2, 3]


def test_training_is_the_same_to_the_bit_and_no_hook_stays():
    plain, watched_model, loss = _model(), _model(), nn.CrossEntropyLoss()
    _train(plain, loss, _batches())
    with watch(watched_model, loss, every=2) as watched:
        _train(watched_model, loss, _batches())
    assert len(watched.history) == 2
    for one, other in zip(plain.parameters(), watched_model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not (watched_model._forward_hooks)
    assert not (watched_model._forward_pre_hooks)
    assert not (loss._forward_hooks)


def test_a_scaled_loss_and_accumulated_steps_give_the_same_gradients():
    model, loss = _model(), nn.CrossEntropyLoss()
    (inputs, targets), _ = _batches(2)
    with watch(model, loss, every=1) as watched:
        (loss(model(inputs), targets) * 1024 / 4).backward()
    expected = sk.per_sample_gradients(model, loss, inputs, targets)
    torch.testing.assert_close(watched.gradients.dense(), expected.dense())


def test_a_loss_of_ones_own():
    def loss(outputs, targets):
        return (outputs[torch.arange(len(outputs)), targets] - 1).square()

    model = _model()
    (inputs, targets), _ = _batches(2)
    with watch(model, loss, every=1) as watched:
        watched.loss_fn(model(inputs), targets).backward()
    expected = sk.per_sample_gradients(model, loss, inputs, targets)
    torch.testing.assert_close(watched.gradients.dense(), expected.dense())


def test_groups_and_values_are_the_minibatch_s():
    model, loss = _model(), nn.CrossEntropyLoss()
    with watch(model, loss, every=1, batch_size=4, groups=lambda _, targets: (targets > 0).long()) as watched:
        _train(model, loss, _batches(1))
    values = watched.history.records[0].values
    assert {"A", "A0", "sigma_lambda2", "A_0", "A_1"} <= values.keys()


def test_passes_without_a_gradient_are_left_alone():
    model, loss = _model(), nn.CrossEntropyLoss()
    (inputs, targets), _ = _batches(2)
    with watch(model, loss, every=1) as watched:
        with torch.no_grad():
            loss(model(inputs), targets)
        loss(model(inputs), targets).backward()
    assert len(watched.history) == 1


def test_another_loss_is_refused():
    model, loss = _model(), nn.CrossEntropyLoss()
    (inputs, targets), _ = _batches(2)
    with watch(model, loss, every=1):
        outputs = model(inputs)
        total = loss(outputs, targets) + outputs.square().sum()
        with pytest.raises(ValueError, match="multiple of loss_fn"):
            total.backward()
        other = F.mse_loss(model(inputs), torch.zeros(10, 3))
        with pytest.raises(ValueError, match="must be seen"):
            other.backward()


def test_what_has_no_fast_route_is_refused():
    class Powers(nn.Module):
        def __init__(self):
            super().__init__()
            self.exponent = nn.Parameter(torch.rand(3))

        def forward(self, inputs):
            return inputs[:, :3].abs().pow(self.exponent)

    (inputs, targets), _ = _batches(2)
    model, loss = Powers(), nn.CrossEntropyLoss()
    with watch(model, loss, every=1), pytest.raises(ValueError, match="fast route"):
        loss(model(inputs), targets).backward()


def test_hooks_go_after_an_exception():
    model, loss = _model(), nn.CrossEntropyLoss()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="mat1"), watch(model, loss, every=1):
        model(torch.randn(2, 7))
    assert not model._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
