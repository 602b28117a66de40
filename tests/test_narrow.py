"""substitutes.narrow: torch's linear layer within rounding, its gradients, and every other call left to torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import sgdkern
from sgdkern import ops
from sgdkern.substitutes import narrow
from sgdkern.substitutes.narrow import linear

pytestmark = pytest.mark.skipif(not ops.narrow_linear.is_compiled("cpu"), reason="the CPU library is not built")


@pytest.fixture(autouse=True)
def however_few(monkeypatch):
    """Small layers go by the operation too."""
    monkeypatch.setattr(narrow, "FEWEST_PRODUCTS", 0)


@pytest.fixture
def calls(monkeypatch):
    """Arguments of every call of the operation."""
    found, overload = [], ops.narrow_linear.overload
    monkeypatch.setattr(ops.narrow_linear, "overload", lambda *args: found.append(args) or overload(*args))
    return found


def layer(num_samples):
    """Inputs, and a weight and a bias that are differentiated."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((num_samples, 70), (9, 70), (9,))
    )
    return inputs, weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("num_samples", [0, 1, 11])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_torch_s(num_samples, biased, calls):
    inputs, *parameters = layer(num_samples)[: 2 + biased]
    found = []
    for function in (linear, F.linear):
        out = function(inputs, *parameters)
        weights = torch.arange(out.numel()).view_as(out).double() + 1
        grads = torch.autograd.grad((weights * out.square()).sum(), parameters, create_graph=True)
        found.append([out, *grads, *torch.autograd.grad(sum(grad.square().sum() for grad in grads), parameters)])
    assert len(calls) == 1
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_gradcheck(calls):
    arguments = layer(3)
    assert torch.autograd.gradcheck(linear, arguments)
    assert torch.autograd.gradgradcheck(linear, arguments)
    assert calls


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(4, 70), torch.ones(9, 71)),
        (torch.ones(4, 70), torch.ones(9, 70), torch.ones(8)),
        (torch.ones(4, 70), torch.ones(9, 70).double()),
        (torch.ones(4, 70), "weight"),
        (torch.ones(4, 70),),
    ],
)
def test_errors_are_torch_s(arguments):
    said = []
    for function in (linear, F.linear):
        with pytest.raises((RuntimeError, TypeError)) as caught:
            function(*arguments)
        said.append((type(caught.value), str(caught.value).replace("linear()", "").partition("missing")[0]))
    assert said[0][0] is said[1][0]


class Wrapped(torch.Tensor):
    """A subclass, whose functions may mean something else."""

    @staticmethod
    def __new__(cls, tensor):
        return tensor.as_subclass(cls)


class Shifting(TorchFunctionMode):
    """Somebody's own linear layers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out + torch.arange(out.shape[1]) if func is F.linear else out


class Counting(TorchDispatchMode):
    """Sees each operation of torch's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_calls_that_torch_answers(calls):
    inputs, weight, bias = (tensor.detach() for tensor in layer(8))
    broad = torch.ones(40, 70).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(inputs.float(), weight.float(), bias.float()).dtype == torch.bfloat16
    assert torch.equal(linear(inputs, broad), F.linear(inputs, broad))  # many outputs
    wanted = inputs.clone().requires_grad_()
    assert torch.equal(linear(wanted, weight, bias), F.linear(wanted, weight, bias))
    for shape in ((70,), (4, 2, 70)):
        some = inputs.flatten()[: 8 * 70 if len(shape) > 1 else 70].view(shape)
        assert torch.equal(linear(some, weight, bias), F.linear(some, weight, bias))
    assert torch.equal(linear(inputs.half(), weight.half(), None), F.linear(inputs.half(), weight.half()))
    assert torch.equal(linear(inputs.T.contiguous().T, weight, bias), F.linear(inputs.T.contiguous().T, weight, bias))
    for kind in (Wrapped, lambda tensor: tensor.to_sparse()):
        torch.testing.assert_close(linear(kind(inputs), weight, bias), F.linear(inputs, weight, bias))
    for mode in (Shifting(), Counting()):
        with mode:
            seen, expected = linear(inputs, weight, bias), F.linear(inputs, weight, bias)
        assert torch.equal(seen, expected)
    by_vmap = torch.vmap(lambda one: linear(one, weight, bias))(inputs[:, None])
    torch.testing.assert_close(by_vmap[:, 0], F.linear(inputs, weight, bias))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        linear(inputs, weight.requires_grad_(), bias)
    assert kept
    assert not calls


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, of its formulas
def test_torch_differentiates_forwards(calls):
    inputs, weight, bias = (tensor.detach() for tensor in layer(8))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs, torch.ones_like(inputs))
        tangent = torch.autograd.forward_ad.unpack_dual(linear(dual, weight, bias)).tangent
    torch.testing.assert_close(tangent, weight.sum(1).expand(8, 9))
    assert not calls


class Checkpointed(nn.Module):
    """Its first layer runs again in the backward pass, outside of the recorder."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Sequential(nn.Linear(80, 9), nn.Tanh()), nn.Linear(9, 4)

    def forward(self, x):
        return self.outer(checkpoint(self.inner, x, use_reentrant=False))


class InPlace(nn.Module):
    """Changes its first layer's outputs, and its inputs before."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(80, 9), nn.Linear(9, 4)

    def forward(self, x):
        return self.outer(F.relu_(self.inner(x.clone().mul_(2))))


@pytest.mark.parametrize("make", [Checkpointed, InPlace, lambda: nn.Linear(80, 4)])
def test_rows_are_autograd_s(make):
    torch.manual_seed(0)
    model, x, y = make().double(), torch.randn(5, 80).double(), torch.arange(5) % 4
    rows = sgdkern.per_sample_gradients(model, nn.CrossEntropyLoss(), x, y).dense()
    for n in range(5):
        grads = torch.autograd.grad(F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]), list(model.parameters()))
        torch.testing.assert_close(rows[n], torch.cat([grad.flatten() for grad in grads]))


def test_measurements_under_a_mode_are_of_what_it_makes(calls):
    torch.manual_seed(0)
    model, x, y = nn.Linear(80, 4), torch.randn(9, 80), torch.arange(9) % 4
    for mode in (Shifting(), Counting()):
        with mode:
            losses = F.cross_entropy(model(x), y, reduction="none")
            found = sgdkern.per_sample_gradients(model, nn.CrossEntropyLoss(), x, y).losses
        torch.testing.assert_close(found, losses.detach())
    assert not calls


def test_torch_that_does_not_tell_of_its_hooks_is_left_to_itself(calls, monkeypatch):
    monkeypatch.setattr("sgdkern.substitutes.plain.TOP_HOOKS", None)
    inputs, weight, bias = layer(8)
    assert torch.equal(linear(inputs, weight, bias), F.linear(inputs, weight, bias))
    assert not calls


def test_products_with_g_go_by_the_operation(calls):
    model, x, y = nn.Linear(80, 4).double(), torch.randn(9, 80).double(), torch.arange(9) % 4
    G = sgdkern.per_sample_gradients(model, nn.CrossEntropyLoss(), x, y)
    calls.clear()
    vector = torch.randn(G.num_params).double()
    torch.testing.assert_close(G.matvec(vector), G.dense() @ vector)
    assert len(calls) == 1


def test_measurements_go_by_the_operation(calls):
    model = nn.Sequential(nn.Linear(80, 9), nn.ReLU(), nn.Linear(9, 3))
    sgdkern.gram_matrix(model, nn.CrossEntropyLoss(), torch.randn(6, 80), torch.arange(6) % 3)
    assert calls
    assert all(len(weight) == 9 for _, weight, _ in calls)
