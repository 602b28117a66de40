"""Small problems and the probe that tests of it share."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdkern.probe import Probe

NUM_SAMPLES, NUM_CLASSES = 40, 3


def a_problem(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, NUM_CLASSES))
    return model, torch.randn(NUM_SAMPLES, 5), torch.randint(0, NUM_CLASSES, (NUM_SAMPLES,))


def a_probe(**options: object) -> Probe:
    model, inputs, targets = a_problem()
    return Probe(model, functional.cross_entropy, inputs, targets, **{"batch_size": 5, **options})


def a_noisy_problem() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Two clouds, a quarter of the labels wrong, and a network that has learnt the right ones."""
    torch.manual_seed(0)
    true = torch.arange(200) % 2
    inputs = torch.randn(200, 2) + 6.0 * true[:, None]
    wrong = torch.randperm(200) < 50
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-0.6, -0.6], [0.6, 0.6]]))
        model[0].bias.copy_(torch.tensor([3.6, -3.6]))
    return model, inputs, torch.where(wrong, 1 - true, true), wrong


def slow_gradients(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """G, row by row, float64."""
    rows = []
    for sample, target in zip(inputs, targets):
        loss = functional.cross_entropy(model(sample[None]), target[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows).double()
