"""substitutes.classes: torch's cross entropy within rounding, its gradients and errors; other calls left to torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sgdkern
from sgdkern.substitutes import classes
from sgdkern.substitutes.classes import cross_entropy


@pytest.fixture(autouse=True)
def however_few(monkeypatch):
    """Few samples go along columns too."""
    monkeypatch.setattr(classes, "FEWEST_NUMBERS", 0)


@pytest.fixture
def columns(monkeypatch):
    """What `_is_faster` answers."""
    found, is_faster = [], classes._is_faster
    monkeypatch.setattr(classes, "_is_faster", lambda *args: found.append(is_faster(*args)) or found[-1])
    return found


def batch(num_samples, num_classes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(num_samples, num_classes, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.randint(num_classes, (num_samples,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [1, 2, 10, 15])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"ignore_index": 0}, {"weight": True}, {"weight": True, "label_smoothing": 0.3}],
)
def test_values_and_gradients_are_torch_s(dtype, num_classes, options, columns):
    logits, target = batch(40, num_classes, dtype)
    if "weight" in options:
        options = {**options, "weight": torch.arange(1, num_classes + 1, dtype=dtype)}
    found = []
    for function in (cross_entropy, F.cross_entropy):
        losses = function(logits, target, reduction="none", **options)
        (grad,) = torch.autograd.grad((torch.arange(40) * losses.square()).sum(), logits, create_graph=True)
        # In float32 second derivatives are small differences of what rounding has touched.
        seconds = torch.autograd.grad(grad.square().sum(), logits) if dtype == torch.float64 else ()
        found.append((losses, grad, *seconds))
    assert columns == [True]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_losses_may_change_in_place():
    logits, target = batch(12, 3)
    losses = cross_entropy(logits, target, reduction="none")
    (grad,) = torch.autograd.grad(losses.mul_(2).sum(), logits)
    torch.testing.assert_close(grad, 2 * torch.autograd.grad(F.cross_entropy(logits, target).mul(12), logits)[0])


@pytest.mark.parametrize(
    "target",
    [torch.tensor([0, 1, 3]), torch.tensor([0, -1, 1]), torch.tensor([0, 1]), torch.tensor([0, 1, 2]).int()],
)
def test_errors_are_torch_s(target):
    said = []
    for function in (cross_entropy, F.cross_entropy):
        with pytest.raises((RuntimeError, IndexError, ValueError)) as caught:
            function(torch.zeros(3, 3), target, reduction="none")
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


@pytest.mark.parametrize("weight", [torch.rand(3, 1), torch.rand(2), torch.rand(3).double()])
def test_errors_about_weights_are_torch_s(weight):
    said = []
    for function in (cross_entropy, F.cross_entropy):
        with pytest.raises(RuntimeError) as caught:
            function(torch.zeros(3, 3), torch.arange(3), weight, reduction="none")
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_calls_that_torch_answers(columns):
    logits, target = (tensor.detach() for tensor in batch(30, 10))
    for given in [
        (logits.repeat(1, 2), target),  # many classes
        (logits, logits.softmax(1)),
        (logits.view(3, 10, 10), target.view(3, 10)),
        (logits[0], target[0]),
    ]:
        assert torch.equal(cross_entropy(*given, reduction="none"), F.cross_entropy(*given, reduction="none"))
    assert torch.equal(cross_entropy(logits, target), F.cross_entropy(logits, target))
    half = logits.bfloat16()
    assert torch.equal(cross_entropy(half, target, reduction="none"), F.cross_entropy(half, target, reduction="none"))
    with torch.device("cpu"):  # a mode
        cross_entropy(logits, target, reduction="none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cross_entropy(logits.float(), target, reduction="none")
    by_vmap = torch.vmap(lambda one, label: cross_entropy(one, label, reduction="none"))(
        logits[:, None], target[:, None]
    )
    torch.testing.assert_close(by_vmap[:, 0], F.cross_entropy(logits, target, reduction="none"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        cross_entropy(logits.requires_grad_(), target, reduction="none")
    assert kept
    assert not any(columns)


class OwnLoss(nn.Module):
    """Computes its own losses, behind a checkpoint that runs again outside of the recorder."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x, y):
        return checkpoint(lambda rows: F.cross_entropy(self.layer(rows), y, reduction="none"), x, use_reentrant=False)


def test_rows_are_autograd_s(columns):
    torch.manual_seed(0)
    model, x, y = OwnLoss().double(), torch.randn(5, 6).double(), torch.arange(5) % 3
    by_itself = sgdkern.per_sample_gradients(model, batch_loss=lambda model, part: model(*part), batch=(x, y)).dense()
    assert not any(columns)
    rows = sgdkern.per_sample_gradients(model.layer, nn.CrossEntropyLoss(), x, y).dense()
    assert any(columns)
    for n in range(5):
        loss = F.cross_entropy(model.layer(x[n : n + 1]), y[n : n + 1])
        grad = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))])
        torch.testing.assert_close(rows[n], grad)
        torch.testing.assert_close(by_itself[n], grad)
