"""pooling: torch's max pooling to the bit, values and gradients, and every other call left to torch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sgdkern
from sgdkern import ops
from sgdkern.substitutes.pooling import max_pool2d

compiled = pytest.mark.skipif(not ops.max_places.is_compiled("cpu"), reason="the CPU library is not built")


def images(*shape, dtype=torch.float32):
    """Numbers of which many are equal, as after a ReLU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).relu().to(dtype)


def both(x, *args, **kwargs):
    """Values, gradient and second gradient by either function."""
    found = []
    for function in (max_pool2d, F.max_pool2d):
        inputs = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = function(inputs, *args, **kwargs)
        weights = torch.arange(out.numel()).view_as(out).to(x) + 1
        (grad,) = torch.autograd.grad((weights * out.square()).sum(), inputs, create_graph=True)
        (second,) = torch.autograd.grad(grad.sum(), inputs)
        found.append((out, grad, second))
    return zip(*found, strict=True)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((8, 8), {"kernel_size": 2}),
        ((9, 21), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((9, 7), {"kernel_size": (2, 3), "stride": (1, 2), "ceil_mode": True}),
        ((10, 10), {"kernel_size": 2, "dilation": 3}),
        ((6, 6), {"kernel_size": 3, "stride": (2,), "padding": (1,)}),
    ],
)
def test_values_and_gradients_are_torch_s(dtype, size, window):
    x = images(3, 4, *size, dtype=dtype)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x[::2, :, 1:]):
        for ours, theirs in both(given, **window):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()


@compiled
def test_what_is_no_number_wins():
    x = images(2, 3, 6, 40)
    x[0, 0, 1, ::3], x[1, 2] = torch.nan, -torch.inf
    for ours, theirs in both(x, 2):
        assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))


@pytest.mark.parametrize(
    "args",
    [
        {"kernel_size": 9},
        {"kernel_size": 2, "padding": 2},
        {"kernel_size": 2, "stride": -1},
        {"kernel_size": 2, "padding": -1},
        {"kernel_size": 0},
        {"kernel_size": True},
        {"kernel_size": 2.0},
        {"kernel_size": 2, "stride": "2"},
        {"kernel_size": 2, "ceil_mode": 1},
    ],
)
def test_errors_are_torch_s(args):
    said = []
    for function in (max_pool2d, F.max_pool2d):
        with pytest.raises((RuntimeError, TypeError)) as caught:
            function(images(2, 3, 8, 8), **args)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_calls_that_torch_answers():
    x = images(3, 8, 8)
    assert torch.equal(max_pool2d(x, 2), F.max_pool2d(x, 2))  # no batch
    assert torch.equal(max_pool2d(x[None].int(), 2), F.max_pool2d(x[None].int(), 2))
    for size in (np.int64(2), (np.int64(2), 2)):
        assert torch.equal(max_pool2d(x[None], size), F.max_pool2d(x[None], 2))
    assert torch.equal(max_pool2d(x[None], 2, stride=2**31 - 1), F.max_pool2d(x[None], 2, stride=2**31 - 1))
    assert torch.equal(max_pool2d(x[None], 2, stride=[]), F.max_pool2d(x[None], 2))
    values, places = max_pool2d(x[None], 2, return_indices=True)
    assert torch.equal(places, F.max_pool2d(x[None], 2, return_indices=True)[1])
    assert torch.equal(values, F.max_pool2d(x[None], 2))
    assert torch.equal(torch.vmap(lambda one: max_pool2d(one, 2))(x[None, None]), F.max_pool2d(x, 2)[None, None])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, of its formulas
def test_torch_differentiates_forwards():
    x = images(2, 3, 8, 8)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(max_pool2d(dual, 2)).tangent.eq(1).all()


@pytest.mark.parametrize("first", [nn.Conv2d(2, 3, 3), nn.Identity()])
def test_its_values_may_change_in_place(first):
    torch.manual_seed(0)
    model = nn.Sequential(first, nn.MaxPool2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(4))
    x, y = images(5, 2, 8, 8) - 0.3, torch.arange(5) % 4
    model(x)
    rows = sgdkern.per_sample_gradients(model, nn.CrossEntropyLoss(), x, y).dense()
    for n in range(5):
        grads = torch.autograd.grad(F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]), list(model.parameters()))
        torch.testing.assert_close(rows[n], torch.cat([grad.flatten() for grad in grads]))


class Checkpointed(nn.Module):
    """Its convolution and pooling run again in the backward pass, outside of the recorder."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten())
        self.outer = nn.Linear(27, 4)

    def forward(self, x):
        return self.outer(checkpoint(self.inner, x, use_reentrant=False))


def test_a_pass_may_pool_again_by_torch_s():
    torch.manual_seed(0)
    model, x, y = Checkpointed(), images(5, 2, 8, 8), torch.arange(5) % 4
    rows = sgdkern.per_sample_gradients(model, nn.CrossEntropyLoss(), x, y).dense()
    for n in range(5):
        grads = torch.autograd.grad(F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]), list(model.parameters()))
        torch.testing.assert_close(rows[n], torch.cat([grad.flatten() for grad in grads]))


@compiled
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2), lambda x: torch.max_pool2d(x, 2)])
def test_measurements_pool_by_the_operation(pool, monkeypatch):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 2, 3), nn.Linear(18, 3)

        def forward(self, x):
            return self.out(pool(self.conv(x)).flatten(1))

    calls = []
    monkeypatch.setattr(ops.max_places, "check", lambda *args: calls.append(args))
    sgdkern.gram_matrix(Network(), nn.CrossEntropyLoss(), images(4, 1, 8, 8), torch.arange(4) % 3)
    assert calls
