"""A model comes back as it went in, to the bit: after success, after failure, in two threads, and while training."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import CASES, Case, parameters
from measured import captured
from snapshot import Snapshot
from torch import Tensor, nn

from sgdkern.capture import per_sample_gradients
from sgdkern.gram_pass import gram_matrix
from sgdkern.probe import Probe

# After success: tests/test_gradient_matrix.py::test_untouched, for every case.
pytestmark = pytest.mark.filterwarnings("ignore")

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def prepared(case: Case) -> tuple[nn.Module, object, int]:
    model, inputs = case.made()
    return model, inputs, len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0])


@contextmanager
def interrupted(model: nn.Module) -> Iterator[None]:
    """The last leaf of the model is interrupted in its forward pass."""
    leaves = [module for module in model.modules() if not list(module.children())]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = (
        model.register_forward_pre_hook(interrupt)
        if leaves[-1] is model
        else leaves[-1].register_forward_pre_hook(interrupt)
    )
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("case", parameters(CASES))
def test_after_a_loss_that_raises(case: Case) -> None:
    model, inputs, num_samples = prepared(case)
    before = Snapshot(model, seeded_grads=True)

    def loss(outputs: object, _: Tensor) -> Tensor:
        torch.rand(1)  # the generator has moved on when the error comes
        raise ArithmeticError("of the user")

    with pytest.raises(ArithmeticError, match="of the user"):
        per_sample_gradients(model, loss, inputs, torch.zeros(num_samples))
    assert before.changes() == []


@pytest.mark.parametrize("case", [param for param in parameters(CASES) if param.id != "scripted"])
def test_after_a_keyboard_interrupt_in_the_forward_pass(case: Case) -> None:
    model, inputs, num_samples = prepared(case)
    called = any(module.training for module in model.modules())  # some leaves are only called in training, some never
    before = Snapshot(model, seeded_grads=True)
    with interrupted(model):
        try:
            captured(case, model, inputs, num_samples)
        except KeyboardInterrupt:
            called = True
    assert called or before.changes() == []
    assert before.changes() == []


class Broken(torch.autograd.Function):
    """Raises in the backward pass, in the middle of a measurement."""

    @staticmethod
    def forward(context: Any, values: Tensor, error: BaseException) -> Tensor:
        context.error = error
        return values.clone()

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> Tensor:
        torch.rand(1)
        raise context.error


class Breaking(nn.Module):
    """Breaks in the middle of the backward pass, behind a batch norm and a seen layer; sound in the forward pass."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(self.norm(Broken.apply(hidden, self.error) if len(x) > 3 else hidden).relu())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("of the device"), MemoryError()])
@pytest.mark.parametrize("function", [per_sample_gradients, gram_matrix])
def test_after_an_error_in_the_backward_pass(error: BaseException, function: Callable[..., object]) -> None:
    """Three samples are studied in peace; the pass over all of them breaks."""
    torch.manual_seed(0)
    model = Breaking(error).eval()
    before = Snapshot(model, seeded_grads=True)
    with pytest.raises(type(error)):
        function(model, nn.CrossEntropyLoss(), X, Y)
    assert before.changes() == []
    expected = per_sample_gradients(model, nn.CrossEntropyLoss(), X[:3], Y[:3])
    assert torch.isfinite(expected.gram()).all(), "and the next measurement is as good as any"


def batch_norm_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def test_running_statistics_after_the_refusal() -> None:
    model = batch_norm_network()
    before = Snapshot(model, seeded_grads=True)
    with pytest.raises(ValueError, match="batch"):
        per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y)
    assert before.changes() == []


def test_a_buffer_that_the_model_replaces() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return self.linear(x)

    model = Counting()
    before = Snapshot(model)
    per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y)
    assert before.changes() == []


def test_hooks_of_the_user_are_called_and_kept() -> None:
    model, seen = nn.Sequential(nn.Linear(4, 3)), []
    model[0].register_forward_hook(lambda *_: seen.append("forward"))
    model[0].weight.register_hook(lambda grad: seen.append("backward"))
    before = Snapshot(model)
    per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y)
    assert "forward" in seen
    assert before.changes() == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_modes(mode: Callable[[], object]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    expected = per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y).dense()
    with mode():  # type: ignore[attr-defined]
        before = Snapshot(model)
        found = per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y).dense()
        assert before.changes() == []
    assert torch.equal(found, expected)


def test_under_autocast() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = Snapshot(model)
        per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y).gram()
        assert before.changes() == []


def test_a_graph_of_the_user_survives() -> None:
    """Between the user's own forward and backward, a measurement does not break the graph."""
    model = batch_norm_network()
    loss = nn.functional.cross_entropy(model(X), Y)
    with pytest.raises(ValueError, match="batch"):
        per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y)
    model.eval()
    per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y)
    model.train()
    loss.backward()


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case.name in ("linear-2", "tied", "lstm", "attention-causal", "weight-norm", "physics-informed")
    ],
    ids=lambda case: case.name,
)
def test_two_threads(case: Case) -> None:
    model, inputs, num_samples = prepared(case)
    expected = captured(case, model, inputs, num_samples).dense()
    before = Snapshot(model, seeded_grads=True)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: captured(case, model, inputs, num_samples).dense(), range(6)))
    assert before.changes() == []
    for each in found:
        assert torch.equal(each, expected)


def trained(measure: Callable[[nn.Module], object]) -> list[Tensor]:
    """Weights and running statistics after some steps of training with dropout, momentum and batch norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        measure(model)
        optimizer.step()
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_training_with_measurements_is_training_without() -> None:
    def measure(model: nn.Module) -> None:
        model.eval()
        per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y).gram()
        model.train()
        with pytest.raises(ValueError, match="random numbers"):
            per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y)
        with pytest.raises(ValueError, match="batch"):
            per_sample_gradients(model, nn.CrossEntropyLoss(), X, Y, seed=7)

    for with_probe, without in zip(trained(measure), trained(lambda model: None), strict=True):
        assert torch.equal(with_probe, without)


def test_training_with_a_probe_attached_is_training_without() -> None:
    """Weights and running statistics, to the bit, with the first measurement's study among the steps."""
    probes: list[Probe] = []

    def measure(model: nn.Module) -> None:
        if not probes:
            probes.append(Probe(model, nn.CrossEntropyLoss(), X, Y, batch_size=4, every=1))
        probes[0].measure(len(probes[0].history))

    for with_probe, without in zip(trained(measure), trained(lambda model: None), strict=True):
        assert torch.equal(with_probe, without)
    assert len(probes[0].history) == 5
