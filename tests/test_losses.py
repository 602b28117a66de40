"""Reductions undone, for torch's losses and for the user's own, against the loss's own formula sample by sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import flat_gradient
from torch import Tensor, nn

from sgdkern.capture import per_sample_gradients
from sgdkern.losses import loss_identity, unreduced

N = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOGITS = torch.randn(N, 4, generator=seeded(), dtype=torch.float64)
CLASSES = torch.tensor([0, 3, 1, 1, 2])
TOKENS = torch.randn(N, 4, 6, generator=seeded(), dtype=torch.float64)  # [N, classes, T]
LABELS = torch.randint(0, 4, (N, 6), generator=seeded()).masked_fill(
    torch.arange(6) >= torch.tensor([[6], [3], [1], [5], [2]]), -100
)
REAL = torch.randn(N, 4, generator=seeded(1), dtype=torch.float64)
SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)


def alone(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of batches of one sample."""
    return torch.stack([loss(outputs[n : n + 1], targets[n : n + 1]) for n in range(N)])


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (nn.CrossEntropyLoss(), LOGITS, CLASSES),
        (nn.CrossEntropyLoss(reduction="sum"), LOGITS, CLASSES),
        (nn.CrossEntropyLoss(label_smoothing=0.1), LOGITS, CLASSES),
        (nn.CrossEntropyLoss(), LOGITS, REAL.softmax(1)),
        (nn.CrossEntropyLoss(), TOKENS, LABELS),
        (nn.CrossEntropyLoss(reduction="sum"), TOKENS, LABELS),
        (nn.CrossEntropyLoss(ignore_index=2), TOKENS, LABELS.clamp_min(0)),
        (nn.NLLLoss(), LOGITS.log_softmax(1), CLASSES),
        (nn.MSELoss(), LOGITS, REAL),
        (nn.MSELoss(reduction="sum"), TOKENS, TOKENS.flip(0)),
        (nn.L1Loss(), LOGITS, REAL),
        (nn.SmoothL1Loss(beta=0.5), LOGITS, REAL),
        (nn.HuberLoss(), TOKENS, TOKENS.flip(0)),
        (nn.BCEWithLogitsLoss(), LOGITS, REAL.sigmoid()),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), LOGITS, REAL.sigmoid()),
        (nn.BCELoss(), LOGITS.sigmoid(), REAL.sigmoid()),
        (nn.PoissonNLLLoss(), LOGITS, REAL.exp()),
        (nn.SoftMarginLoss(), LOGITS, REAL.sign()),
        (nn.MultiMarginLoss(), LOGITS, CLASSES),
        (nn.MultiLabelSoftMarginLoss(), LOGITS, (REAL > 0).double()),
        (nn.HingeEmbeddingLoss(), LOGITS[:, 0], SIGNS),
        (nn.KLDivLoss(reduction="batchmean"), LOGITS.log_softmax(1), REAL.softmax(1)),
        (nn.KLDivLoss(reduction="sum"), LOGITS.log_softmax(1), REAL.softmax(1)),
        (F.cross_entropy, LOGITS, CLASSES),
        (F.cross_entropy, TOKENS, LABELS),
        (F.mse_loss, LOGITS, REAL),
        (F.binary_cross_entropy_with_logits, LOGITS, REAL.sigmoid()),
        (F.nll_loss, LOGITS.log_softmax(1), CLASSES),
        (F.smooth_l1_loss, LOGITS, REAL),
    ],
)
def test_a_sample_alone(loss: Any, outputs: Tensor, targets: Tensor) -> None:
    """An unreduced loss is what the loss gives for a batch of this one sample."""
    torch.testing.assert_close(unreduced(loss)(outputs, targets), alone(loss, outputs, targets), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(), nn.L1Loss(reduction="sum"), nn.HuberLoss()])
def test_adds_up_to_the_reduced_loss(loss: Any) -> None:
    targets = CLASSES if isinstance(loss, nn.CrossEntropyLoss) else REAL
    losses = unreduced(loss)(LOGITS, targets)
    expected = losses.sum() if loss.reduction == "sum" else losses.mean()
    torch.testing.assert_close(loss(LOGITS, targets), expected, rtol=1e-12, atol=0)


def test_class_weights_stay_factors() -> None:
    """A weighted mean divides by the weights of the batch, which are no one sample's: they are factors here."""
    losses = unreduced(nn.CrossEntropyLoss(weight=WEIGHTS))(LOGITS, CLASSES)
    plain = F.cross_entropy(LOGITS, CLASSES, reduction="none")
    torch.testing.assert_close(losses, WEIGHTS[CLASSES] * plain, rtol=1e-12, atol=0)


def test_a_sequence_that_is_all_padding_has_no_loss() -> None:
    labels = LABELS.clone()
    labels[2] = -100
    losses = unreduced(nn.CrossEntropyLoss())(TOKENS, labels)
    assert losses[2] == 0
    assert torch.isfinite(losses).all()


def test_the_loss_module_is_not_changed() -> None:
    loss = nn.CrossEntropyLoss()
    unreduced(loss)(LOGITS, CLASSES)
    assert loss.reduction == "mean"


def test_callables_give_one_number_a_sample() -> None:
    assert torch.equal(unreduced(lambda out, y: out[:, 0])(LOGITS, CLASSES), LOGITS[:, 0])
    with pytest.raises(ValueError, match=r"one loss a sample, \[N\], got shape \[5, 4\]\. Drop its reduction"):
        unreduced(lambda out, y: out)(LOGITS, CLASSES)
    with pytest.raises(ValueError, match="got float"):
        unreduced(lambda out, y: 1.0)(LOGITS, CLASSES)
    with pytest.raises(TypeError, match="loss_fn must be a loss module or a function"):
        unreduced(3)  # type: ignore[arg-type]


@dataclass
class Heads:
    """What a model with two outputs returns."""

    classes: Tensor
    values: Tensor


class TwoHeads(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.body = form, nn.Linear(3, 6)
        self.classes, self.values = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x).tanh()
        classes, values = self.classes(hidden), self.values(hidden)
        return {
            "tuple": (classes, values),
            "dict": {"classes": classes, "values": values},
            "dataclass": Heads(classes, values),
        }[self.form]


def two_losses(outputs: Any, targets: Any) -> Tensor:
    if isinstance(outputs, Heads):
        outputs = (outputs.classes, outputs.values)
    classes, values = outputs.values() if isinstance(outputs, dict) else outputs
    labels, numbers = targets.values() if isinstance(targets, dict) else targets
    return F.cross_entropy(classes, labels, reduction="none") + (values - numbers).square().mean(1)


class Pairwise(nn.Module):
    """A loss module of the user's, one number a sample."""

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        return two_losses(outputs, targets)


def rows(model: nn.Module, loss_of: Callable[[int], Tensor]) -> Tensor:
    return torch.stack([flat_gradient(loss_of(n).sum(), list(model.parameters())) for n in range(N)])


@pytest.mark.parametrize("form", ["tuple", "dict", "dataclass"])
@pytest.mark.parametrize("targets", ["tuple", "dict"])
@pytest.mark.parametrize("loss", [two_losses, Pairwise()])
def test_several_outputs_and_targets(form: str, targets: str, loss: Any) -> None:
    torch.manual_seed(0)
    model, x = TwoHeads(form).double(), torch.randn(N, 3, dtype=torch.float64)
    labels, numbers = CLASSES, REAL[:, :2]
    given: Any = (labels, numbers) if targets == "tuple" else {"labels": labels, "numbers": numbers}
    G = per_sample_gradients(model, loss, x, given)
    one = slice(None)
    expected = rows(model, lambda n: two_losses(model(x[[n]]), (labels[[n]][one], numbers[[n]])))
    torch.testing.assert_close(G.dense(), expected, rtol=1e-10, atol=1e-14)


def test_masked_tokens() -> None:
    """A sample is a sequence: its loss is the mean over the tokens that its mask keeps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 7)).double()
    tokens, mask = torch.randint(0, 9, (N, 6)), (torch.arange(6) < torch.tensor([[6], [3], [1], [5], [2]])).double()

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        labels, kept = targets
        each = F.cross_entropy(outputs.transpose(1, 2), labels, reduction="none")
        return (each * kept).sum(1) / kept.sum(1)

    G = per_sample_gradients(model, loss, tokens, (tokens.roll(1, 1) % 7, mask))
    expected = rows(model, lambda n: loss(model(tokens[[n]]), ((tokens.roll(1, 1) % 7)[[n]], mask[[n]])))
    torch.testing.assert_close(G.dense(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("labels", [LABELS, LABELS.clamp_min(0)])
def test_ignored_tokens(labels: Tensor) -> None:
    torch.manual_seed(0)
    model, x = nn.Conv1d(3, 4, 1).double(), torch.randn(N, 3, 6, dtype=torch.float64)
    G = per_sample_gradients(model, nn.CrossEntropyLoss(), x, labels)
    expected = rows(model, lambda n: F.cross_entropy(model(x[[n]]), labels[[n]]))
    torch.testing.assert_close(G.dense(), expected, rtol=1e-10, atol=1e-14)


def test_a_model_that_computes_its_own_loss() -> None:
    transformers = pytest.importorskip("transformers", reason="its models compute their own losses")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).eval().double()
    batch = {"input_ids": torch.randint(5, 90, (3, 7)), "labels": torch.tensor([0, 2, 1])}

    def losses(module: nn.Module, part: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(module(input_ids=part["input_ids"]).logits, part["labels"], reduction="none")

    G = per_sample_gradients(model, batch_loss=losses, batch=batch)
    expected = torch.stack([
        flat_gradient(model(**{key: value[[n]] for key, value in batch.items()}).loss, list(model.parameters()))
        for n in range(3)
    ])
    torch.testing.assert_close(G.dense(), expected, rtol=1e-9, atol=1e-14)
    assert G.outputs is None


class TestIdentity:
    """Losses that are the same have one plan: a loss made anew for every measurement is not studied anew."""

    WEIGHT = torch.ones(3)

    @pytest.mark.parametrize(
        "make",
        [
            nn.CrossEntropyLoss,
            lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
            lambda: nn.CrossEntropyLoss(TestIdentity.WEIGHT),
            lambda: nn.MSELoss(reduction="sum"),
            lambda: nn.TripletMarginWithDistanceLoss(distance_function=F.pairwise_distance),
        ],
    )
    def test_a_torch_loss_made_anew_is_the_same(self, make: Callable[[], nn.Module]) -> None:
        assert loss_identity(make()) == loss_identity(make())
        assert hash(loss_identity(make())) == hash(loss_identity(make()))

    def test_other_settings_are_another_loss(self) -> None:
        hooked = nn.CrossEntropyLoss()
        hooked.register_forward_hook(lambda module, args, out: 2 * out)
        losses = [
            nn.CrossEntropyLoss(),
            nn.CrossEntropyLoss(reduction="sum"),
            nn.CrossEntropyLoss(label_smoothing=0.1),
            nn.CrossEntropyLoss(self.WEIGHT),
            nn.CrossEntropyLoss(self.WEIGHT.clone()),
            nn.NLLLoss(),
            hooked,
        ]
        assert len({loss_identity(loss) for loss in losses}) == len(losses)

    def test_keyword_defaults_tell_functions_apart(self) -> None:
        def made(scale: float) -> Callable[..., Tensor]:
            def loss(outputs: Tensor, targets: Tensor, *, scale: float = scale) -> Tensor:
                return scale * F.cross_entropy(outputs, targets, reduction="none")

            return loss

        assert loss_identity(made(1.0)) != loss_identity(made(2.0))

    def test_a_class_of_the_users_own_is_its_object(self) -> None:
        class Own(nn.CrossEntropyLoss):
            pass

        assert loss_identity(Own()) != loss_identity(Own())

    def test_it_is_studied_once(self) -> None:
        model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
        calls = []
        model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        for _ in range(3):
            per_sample_gradients(model, nn.CrossEntropyLoss(), x, y)
        assert calls.count(8) == 3
        assert len(calls) == 4
