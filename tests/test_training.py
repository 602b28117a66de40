"""The trainer against torch.optim.SGD; it is repeatable, resumable, independent of the number of threads."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sgdkern.training import MODELS, Trainer, build_model, evaluate, threads

NUM_SAMPLES, NUM_CLASSES = 23, 4


def a_trainer(
    seed: int = 0, *, momentum: float = 0.0, weight_decay: float = 0.0, dtype: torch.dtype = torch.float32
) -> Trainer:
    generator = torch.Generator().manual_seed(100)
    inputs = torch.randn(NUM_SAMPLES, 1, 3, 3, generator=generator, dtype=dtype)
    targets = torch.randint(0, NUM_CLASSES, (NUM_SAMPLES,), generator=generator)
    model = build_model("mlp", input_shape=(1, 3, 3), num_classes=NUM_CLASSES, hidden=(8,), seed=seed).to(dtype)
    return Trainer(
        model,
        functional.cross_entropy,
        inputs,
        targets,
        lr=0.1,
        batch_size=5,
        momentum=momentum,
        weight_decay=weight_decay,
        generator=torch.Generator().manual_seed(seed),
    )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.01), (0.8, 0.01)])
def test_steps_are_those_of_torch_sgd(momentum: float, weight_decay: float) -> None:
    trainer = a_trainer(momentum=momentum, weight_decay=weight_decay, dtype=torch.float64)
    other = a_trainer(dtype=torch.float64)
    optimiser = torch.optim.SGD(other.model.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = other._inputs, other._targets
    for _ in range(4):
        for batch in torch.randperm(NUM_SAMPLES, generator=generator).split(5):
            optimiser.zero_grad()
            functional.cross_entropy(other.model(inputs[batch]), targets[batch]).backward()
            optimiser.step()
    trainer.advance(4 * 5)
    assert torch.allclose(weights(trainer.model), weights(other.model), rtol=1e-13, atol=1e-14)


def test_every_epoch_visits_each_sample_once_in_a_new_order() -> None:
    trainer = a_trainer()
    assert trainer.steps_per_epoch == 5
    orders = []
    for _ in range(3):
        trainer.advance(5)
        orders.append(trainer.state_dict()["order"].tolist())
    assert all(sorted(order) == list(range(NUM_SAMPLES)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert trainer.epoch == 3.0


@pytest.mark.parametrize("first", [0, 1, 5, 7, 10])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_resumed_run_is_the_same_to_the_bit(first: int, momentum: float) -> None:
    whole = a_trainer(momentum=momentum)
    whole.advance(17)
    part = a_trainer(momentum=momentum)
    part.advance(first)
    state = part.state_dict()
    part.advance(3)  # what happens after the state was taken must not reach it
    resumed = a_trainer(seed=5, momentum=momentum)
    resumed.load_state_dict(state)
    resumed.advance(17 - first)
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert resumed.step == 17


def test_the_state_passes_through_a_file_without_pickled_objects(tmp_path) -> None:
    trainer = a_trainer(momentum=0.5)
    trainer.advance(3)
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    resumed = a_trainer(seed=9, momentum=0.5)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for each in (trainer, resumed):
        each.advance(4)
    assert torch.equal(weights(trainer.model), weights(resumed.model))


def test_the_number_of_threads_changes_nothing() -> None:
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            trainer = a_trainer()
            trainer.advance(10)
            results.append(weights(trainer.model))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])


def test_threads_are_given_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads(3):
        0 / (torch.get_num_threads() - 3)
    assert torch.get_num_threads() == before


def test_a_state_of_other_settings_is_refused() -> None:
    with_momentum, without = a_trainer(momentum=0.9), a_trainer()
    with_momentum.advance(1)
    with pytest.raises(ValueError, match="momentum buffers"):
        without.load_state_dict(with_momentum.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"lr": 0.0}, "lr must be above 0"), ({"batch_size": 0}, "batch_size"), ({"momentum": 1.0}, "momentum")],
)
def test_impossible_settings_are_refused(options: dict[str, float], words: str) -> None:
    settings = {"lr": 0.1, "batch_size": 2, **options}
    with pytest.raises(ValueError, match=words):
        Trainer(
            nn.Linear(2, 2),
            functional.cross_entropy,
            torch.zeros(4, 2),
            torch.zeros(4, dtype=torch.int64),
            generator=torch.Generator(),
            **settings,
        )


def test_evaluation_is_the_mean_over_all_samples() -> None:
    trainer = a_trainer(dtype=torch.float64)
    inputs, targets = trainer._inputs, trainer._targets
    trainer.model.train()
    evaluation = evaluate(trainer.model, inputs, targets, batch_size=4)
    logits = trainer.model(inputs)
    assert evaluation.loss == pytest.approx(functional.cross_entropy(logits, targets).item(), rel=1e-12)
    assert evaluation.error == float((logits.argmax(1) != targets).double().mean())
    assert trainer.model.training


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_models_map_images_to_logits(name: str, activation: str) -> None:
    state = torch.get_rng_state()
    settings = {"input_shape": (3, 10, 7), "num_classes": 5, "hidden": (4, 6), "activation": activation}
    model = build_model(name, **settings, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert model(torch.zeros(2, 3, 10, 7)).shape == (2, 5)
    assert torch.equal(weights(model), weights(build_model(name, **settings, seed=1)))
    assert not torch.equal(weights(model), weights(build_model(name, **settings, seed=2)))


def test_unknown_models_are_refused() -> None:
    with pytest.raises(ValueError, match="name must be one of mlp, cnn"):
        build_model("transformer", input_shape=(1, 8, 8), num_classes=10)
    with pytest.raises(ValueError, match="activation must be one of"):
        build_model("mlp", input_shape=(1, 8, 8), num_classes=10, activation="gelu")
    with pytest.raises(ValueError, match="hidden widths"):
        build_model("mlp", input_shape=(1, 8, 8), num_classes=10, hidden=(0,))
