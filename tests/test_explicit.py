"""Explicit gradients over the smallest module that holds a parameter: right, and the model is not run for them."""

import pytest
import torch
from torch import nn

from sgdkern import explicit, per_sample_gradients

N = 7


class Distances(nn.Module):
    """Two functions that have no rule, on a parameter each."""

    def __init__(self, width):
        super().__init__()
        self.centres = nn.ParameterList([torch.randn(width, width)])
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x, mask=None):
        found = torch.cdist(x, self.centres[0]) * torch.logaddexp(x, self.scale)
        return found if mask is None else found * mask


class Several(Distances):
    """Outputs that are no tensors, not used or not one tensor."""

    def forward(self, x):
        return {"found": super().forward(x), "unused": x * self.scale, "count": 3}, x


class Network(nn.Module):
    def __init__(self, middle, call):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 6), middle, nn.Linear(6, 3)
        self.call, self.runs = call, 0

    def forward(self, x):
        self.runs += 1
        return self.last(self.call(self.middle, self.first(x)))


def in_place(middle, x):
    return middle(x).sigmoid_()


def twice(middle, x):
    return middle(middle(x))


def with_constant(middle, x):
    return middle(x, mask=torch.ones(1, 6, dtype=x.dtype))


CALLS = {
    "a holder that is never called": (Distances, in_place, True),
    "several outputs": (Several, lambda middle, x: middle(x)[0]["found"], True),
    "called twice": (Distances, twice, False),
    "a constant goes in": (Distances, with_constant, False),
}


def measured(make, call):
    torch.manual_seed(0)
    model = Network(make(6), call).double()
    inputs, targets = torch.randn(N, 5).double(), torch.arange(N) % 3
    loss = nn.CrossEntropyLoss()
    with pytest.warns(UserWarning, match="explicit per-sample gradients for 2 parameters"):
        matrix = per_sample_gradients(model, loss, inputs, targets)
    expected = []
    for n in range(N):
        grads = torch.autograd.grad(loss(model(inputs[n : n + 1]), targets[n : n + 1]), list(model.parameters()))
        expected.append(torch.cat([grad.flatten() for grad in grads]))
    return model, matrix, torch.stack(expected), (loss, inputs, targets)


@pytest.mark.parametrize("name", CALLS)
def test_the_smallest_module_that_will_do(name):
    make, call, is_enough = CALLS[name]
    model, matrix, expected, batch = measured(make, call)
    torch.testing.assert_close(matrix.dense(), expected, rtol=1e-10, atol=1e-12)
    method = "module" if is_enough else "vmap"
    assert matrix.coverage["middle.scale"].startswith(f"explicit ({method})")
    assert all(not module._forward_hooks for module in model.modules())
    model.runs = 0
    per_sample_gradients(model, *batch)
    assert model.runs == 1 + is_enough  # one pass tells what goes into the module; under vmap a copy of the model runs


def test_a_parameter_of_the_model_itself_needs_the_model():
    torch.manual_seed(0)
    model = Distances(5)
    with pytest.warns(UserWarning, match="explicit"):
        matrix = per_sample_gradients(model, nn.MSELoss(), torch.randn(N, 5), torch.randn(N, 5))
    assert matrix.coverage["scale"].startswith("explicit (vmap)")


def test_hooks_go_where_the_pass_fails():
    model = Network(Distances(6), in_place)

    def losses(model, batch):
        raise RuntimeError("no loss today")

    problem = explicit.Problem(model, dict(model.named_parameters()), losses, torch.randn(N, 5), N)
    with pytest.raises(RuntimeError, match="no loss today"):
        explicit.explicit_gradients(problem, ["middle.scale"], method="module")
    assert all(not module._forward_hooks for module in model.modules())
