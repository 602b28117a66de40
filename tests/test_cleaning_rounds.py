"""Rounds of training: what is averaged, what is evaluated at all, and the stacked networks against plain autograd."""

import numpy as np
import torch
from torch import nn

from sgdkern.cleaning.members import SeparateModels, StackedMLP
from sgdkern.cleaning.rounds import Schedule, leave_out, train_round


class Oracle:
    """Members whose output for a sample is fixed by member, kind of pass and epoch; what is asked is noted."""

    def __init__(self, num_members, num_samples, num_classes=3, seed=0):
        self.num_members = num_members
        generator = torch.Generator().manual_seed(seed)
        shape = (2, 50, num_members, num_samples, num_classes)  # trained on or evaluated; epoch; ...
        self.table = torch.randn(shape, generator=generator)
        self.orders, self.places = [], []

    def train_epoch(self, inputs, labels, orders, batch_size):
        self.orders.append(orders)
        return self._answers(0, len(self.orders) - 1, orders)

    def logits(self, inputs, places):
        self.places.append(places)
        return self._answers(1, len(self.places) - 1, places)

    def _answers(self, kind, epoch, places):
        return torch.stack([self.table[kind, epoch, member, mine] for member, mine in enumerate(places)])


def margin(outputs, label):
    """The logit of the label minus the largest other one."""
    others = [value for place, value in enumerate(outputs.tolist()) if place != label]
    return outputs[label].item() - max(others)


def test_margins_are_those_of_the_visits_and_only_unseen_samples_are_evaluated():
    num_samples, num_folds, num_members = 37, 5, 3
    labels = torch.arange(num_samples) % 3
    kept = torch.ones(num_samples, dtype=torch.bool)
    kept[[4, 11, 30]] = False  # dropped by an earlier round
    members = Oracle(num_members, num_samples)
    found = train_round(
        members,
        torch.zeros(num_samples, 1),
        labels,
        kept,
        Schedule(num_folds, 4, 3, min_steps=9),
        generator=torch.Generator().manual_seed(1),
    )
    left_out = leave_out(num_samples, num_members, num_folds, torch.Generator().manual_seed(1))
    for member in range(num_members):
        unseen = set((left_out[member] | ~kept).nonzero().squeeze(1).tolist())
        assert all(set(places[member].tolist()) == unseen for places in members.places)
        assert all(not unseen & set(orders[member].tolist()) for orders in members.orders)
    assert found.last_epoch == 3
    for sample in range(num_samples):
        visits = [
            margin(members.table[0, epoch, member, sample], labels[sample].item())
            for epoch in range(found.last_epoch)
            for member in range(num_members)
            for place in members.orders[epoch][member].tolist()
            if place == sample
        ]
        evaluations = [
            margin(members.table[1, epoch, member, sample], labels[sample].item())
            for epoch in range(found.last_epoch)
            for member in range(num_members)
            for place in members.places[epoch][member].tolist()
            if place == sample
        ]
        np.testing.assert_allclose(found.margins[sample].item(), np.mean(visits or evaluations), rtol=1e-6)
        if left_out[:, sample].any():  # predictions are those of the members that left it out, dropped or not
            member = int(left_out[:, sample].nonzero()[0])
            expected = members.table[1, :3, member, sample].mean(dim=0)
            torch.testing.assert_close(found.held_out_logits[sample], expected)
        assert bool(found.trained_logits[sample].any()) == bool(visits)
    assert torch.equal(found.held_out, left_out.any(dim=0))


def test_stacked_networks_are_separate_networks():
    generator = torch.Generator().manual_seed(0)
    stacked = StackedMLP([4, 6, 5, 3], 2, generator=generator, lr=0.1, momentum=0.5, device=torch.device("cpu"))
    models = []
    for member in range(2):
        layers = [nn.Linear(a, b) for a, b in ((4, 6), (6, 5), (5, 3))]
        for layer, weight, bias in zip(layers, stacked.weights, stacked.biases, strict=True):
            layer.weight.data, layer.bias.data = weight[member].T.clone(), bias[member, 0].clone()
        models.append(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]))
    separate = SeparateModels(
        models, lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.5), device=torch.device("cpu")
    )
    inputs, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    for _ in range(3):
        orders = torch.stack([torch.randperm(30, generator=generator)[:24] for _ in range(2)])
        visited = [members.train_epoch(inputs, labels, orders, 8) for members in (stacked, separate)]
        torch.testing.assert_close(*visited)
    places = torch.tensor([[0, 5, 5], [29, 1, 2]])
    torch.testing.assert_close(stacked.logits(inputs, places), separate.logits(inputs, places))
    # the outputs of a visit are those before its own step: the first minibatch's are the fresh networks'
    fresh = StackedMLP([4, 6, 5, 3], 2, generator=generator, lr=0.1, momentum=0.5, device=torch.device("cpu"))
    before = fresh.logits(inputs, orders[:, :8])
    torch.testing.assert_close(fresh.train_epoch(inputs, labels, orders, 8)[:, :8], before)


def test_margins_of_the_first_epochs_are_never_all_that_is_averaged():
    labels = torch.arange(40) % 3
    members = Oracle(5, 40)  # its outputs are noise: the best epoch is one by accident
    found = train_round(
        members,
        torch.zeros(40, 1),
        labels,
        torch.ones(40, dtype=torch.bool),
        Schedule(5, 4, 30, min_steps=1),
        generator=torch.Generator().manual_seed(1),
    )
    assert found.best_epoch < 4
    assert found.last_epoch == 6 <= len(found.held_out_accuracy)
