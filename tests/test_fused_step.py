"""The step written out against the one by autograd: the same weights at any depth; other models are left alone."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdkern.fused_step import fusible_layers
from sgdkern.training import Trainer, build_model

NUM_SAMPLES, NUM_CLASSES = 23, 4
LABELS = torch.randint(0, NUM_CLASSES, (NUM_SAMPLES,), generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(NUM_SAMPLES, 1, 3, 4, generator=torch.Generator().manual_seed(2))


def by_autograd(outputs: Tensor, targets: Tensor) -> Tensor:
    """The same loss under a name that the trainer does not know."""
    return functional.cross_entropy(outputs, targets)


def trained(model: nn.Module, loss_fn, *, dtype: torch.dtype, steps: int = 23, **settings: float) -> Tensor:
    model = copy.deepcopy(model).to(dtype)
    generator = torch.Generator().manual_seed(3)
    options = {"lr": 0.1, "batch_size": 5, "generator": generator, **settings}
    trainer = Trainer(model, loss_fn, IMAGES.to(dtype), LABELS, **options)
    trainer.advance(7)
    trainer.advance(steps - 7)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def an_mlp(*hidden: int, activation: str = "relu") -> nn.Module:
    return build_model(
        "mlp", input_shape=(1, 3, 4), num_classes=NUM_CLASSES, hidden=hidden or (8,), activation=activation
    )


@pytest.mark.parametrize("hidden", [(1,), (8,), (9, 6), (5, 4, 7)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.9}, {"weight_decay": 0.01}, {"momentum": 0.5, "weight_decay": 0.1}]
)
def test_the_weights_are_those_of_autograd(
    hidden: tuple[int, ...], activation: str, settings: dict[str, float]
) -> None:
    model = an_mlp(*hidden, activation=activation)
    truth = trained(model, by_autograd, dtype=torch.float64, **settings)
    fused = trained(model, functional.cross_entropy, dtype=torch.float64, **settings)
    assert torch.allclose(fused, truth, rtol=1e-12, atol=1e-14)
    # in float32: no further from the truth than twice autograd, plus one rounding of the largest weight
    plain = (trained(model, by_autograd, dtype=torch.float32, **settings) - truth).abs().max()
    error = (trained(model, nn.CrossEntropyLoss(), dtype=torch.float32, **settings) - truth).abs().max()
    assert error <= 2 * plain + torch.finfo(torch.float32).eps * truth.abs().max()


def test_a_single_layer_needs_no_flatten() -> None:
    layer = nn.Sequential(nn.Linear(12, NUM_CLASSES))
    assert fusible_layers(layer, functional.cross_entropy, IMAGES.flatten(1), LABELS) == ([layer[0]], [])
    assert fusible_layers(layer, functional.cross_entropy, IMAGES, LABELS) is None


class Doubled(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


def hooked() -> nn.Module:
    model = an_mlp()
    model[1].register_forward_hook(lambda *_: None)
    return model


def frozen() -> nn.Module:
    model = an_mlp()
    model[1].bias.requires_grad_(False)
    return model


def tied() -> nn.Module:
    layer = nn.Linear(12, 12)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(12, NUM_CLASSES))


def normalised() -> nn.Module:
    model = an_mlp()
    nn.utils.parametrizations.weight_norm(model[1])
    return model


OTHERS = {
    "a forward of its own": Doubled(*an_mlp()),
    "a hook": hooked(),
    "a frozen bias": frozen(),
    "a layer twice": tied(),
    "a parametrisation": normalised(),
    "no bias": nn.Sequential(nn.Flatten(), nn.Linear(12, NUM_CLASSES, bias=False)),
    "another activation": nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, NUM_CLASSES)),
    "two layers without one": nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, NUM_CLASSES)),
    "an activation at the end": nn.Sequential(nn.Flatten(), nn.Linear(12, NUM_CLASSES), nn.ReLU()),
    "convolutions": build_model("cnn", input_shape=(1, 3, 4), num_classes=NUM_CLASSES, hidden=(3,)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_left_to_autograd(name: str) -> None:
    model = OTHERS[name]
    assert fusible_layers(model, functional.cross_entropy, IMAGES, LABELS) is None
    if name != "a parametrisation":  # which cannot be copied once it was used
        fused = trained(model, functional.cross_entropy, dtype=torch.float64)
        assert torch.equal(fused, trained(model, by_autograd, dtype=torch.float64))


@pytest.mark.parametrize(
    "loss_fn",
    [nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(torch.ones(4)),
     nn.CrossEntropyLoss(ignore_index=2), by_autograd],
)  # fmt: skip
def test_other_losses_are_left_to_autograd(loss_fn) -> None:
    assert fusible_layers(an_mlp(), loss_fn, IMAGES, LABELS) is None


def test_labels_that_are_no_classes_are_left_to_autograd() -> None:
    ignored = LABELS.clone()
    ignored[3] = -100
    assert fusible_layers(an_mlp(), functional.cross_entropy, IMAGES, ignored) is None
    assert fusible_layers(an_mlp(), functional.cross_entropy, IMAGES, functional.one_hot(LABELS).float()) is None
    with pytest.raises(IndexError):
        Trainer(
            an_mlp(), functional.cross_entropy, IMAGES, LABELS + 1, lr=0.1, batch_size=5, generator=torch.Generator()
        ).advance(5)


def test_a_hook_that_comes_later_is_called() -> None:
    model, calls = an_mlp(), []
    trainer = Trainer(
        model, functional.cross_entropy, IMAGES, LABELS, lr=0.1, batch_size=5, generator=torch.Generator()
    )
    trainer.advance(2)
    model[1].register_forward_hook(lambda *_: calls.append(1))
    trainer.advance(3)
    assert len(calls) == 3
