"""The probe: what it records is what the slow definitions give, and the model does not notice it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdkern.alarm import Alarm
from sgdkern.blind_groups import presumed_wrong
from sgdkern.history import History
from sgdkern.non_finite import NonFiniteError
from sgdkern.phase_detector import PhaseEvent
from sgdkern.probe import Probe
from sgdkern.record import record_line
from sgdkern.schedule import log_spaced_steps

NUM_SAMPLES, NUM_CLASSES = 40, 3


def a_problem(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, NUM_CLASSES))
    return model, torch.randn(NUM_SAMPLES, 5), torch.randint(0, NUM_CLASSES, (NUM_SAMPLES,))


def a_probe(**options: object) -> Probe:
    model, inputs, targets = a_problem()
    return Probe(model, functional.cross_entropy, inputs, targets, **{"batch_size": 5, **options})


def slow_gradients(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """G, row by row, float64."""
    rows = []
    for sample, target in zip(inputs, targets):
        loss = functional.cross_entropy(model(sample[None]), target[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows).double()


def test_order_parameters_and_per_sample_values_are_those_of_the_definitions() -> None:
    model, inputs, targets = a_problem()
    half = torch.arange(NUM_SAMPLES) < 20
    probe = Probe(model, functional.cross_entropy, inputs, targets, batch_size=5, groups={"c": half, "w": ~half})
    record = probe.measure(3)
    rows = slow_gradients(model, inputs, targets)
    mean, phi = rows.mean(0), (NUM_SAMPLES - 5) / (5 * (NUM_SAMPLES - 1))
    directed = float(mean @ mean)
    noise = phi * (float((rows**2).sum(1).mean()) - directed)
    assert record.values["A0"] == pytest.approx(directed, rel=1e-5)
    assert record.values["D"] == pytest.approx(noise, rel=1e-5)
    correct, wrong = rows[half].mean(0), rows[~half].mean(0)
    given = record.groups["given"]
    assert given.names == ("c", "w")
    assert pytest.approx((0.25 * float(correct @ correct), 0.25 * float(wrong @ wrong)), rel=1e-5) == given.A0
    expected = float(correct @ wrong / (correct.norm() * wrong.norm()))
    assert record.scalars("given")["R_cw"] == pytest.approx(expected, rel=1e-4)
    assert record.values["A0_c"] == given.A0[0]

    logits = model(inputs).detach().double()
    losses = -logits.log_softmax(1)[torch.arange(NUM_SAMPLES), targets]
    assert record.losses is not None
    assert record.margins is not None
    assert record.predictions is not None
    assert np.allclose(record.losses, losses.numpy(), atol=1e-6)
    assert record.predictions.tolist() == logits.argmax(1).tolist()
    others = logits.clone()
    others[torch.arange(NUM_SAMPLES), targets] = -torch.inf
    assert np.allclose(record.margins, (logits[torch.arange(NUM_SAMPLES), targets] - others.amax(1)).numpy(), atol=1e-6)


def test_the_model_comes_back_untouched() -> None:
    model, inputs, targets = a_problem()
    model.insert(1, nn.Dropout(0.5))
    model.train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    probe = Probe(model, functional.cross_entropy, inputs, targets, batch_size=5, spectrum_every=1)
    probe.measure(0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_batch_norm_in_training_mode_is_measured_in_evaluation_mode() -> None:
    model, inputs, targets = a_problem()
    model.insert(1, nn.BatchNorm1d(7))
    probe = Probe(model.train(), functional.cross_entropy, inputs, targets, batch_size=5)
    probe.measure(0)
    assert model[1].training
    assert model[1].num_batches_tracked == 0


def test_it_measures_where_it_is_due() -> None:
    probe = a_probe(every=4, blind=False)
    records = [probe(step) for step in range(10)]
    assert [record.step for record in records if record is not None] == [0, 4, 8]
    assert probe(8) is None
    assert probe.history.steps.tolist() == [0, 4, 8]
    assert probe.seconds > 0


def test_a_record_does_not_depend_on_which_others_were_made() -> None:
    first, second = a_probe(blind=False), a_probe(blind=False)
    first.measure(2)
    assert first.measure(9).values == second.measure(9).values
    assert a_probe(blind=False, seed=1).measure(9).values["R"] != second.history.records[0].values["R"]


def test_spectrum_at_every_so_many_records() -> None:
    probe = a_probe(spectrum_every=3, blind=False)
    for step in range(5):
        probe.measure(step)
    assert [record.spectrum is not None for record in probe.history] == [True, False, False, True, False]
    spectrum = probe.history.records[0].spectrum
    assert spectrum is not None
    model, inputs, targets = a_problem()
    rows = slow_gradients(model, inputs, targets)
    centred = rows - rows.mean(0)
    phi = (NUM_SAMPLES - 5) / (5 * (NUM_SAMPLES - 1))
    expected = torch.linalg.eigvalsh(phi * centred.T @ centred / NUM_SAMPLES).flip(0)
    assert spectrum.eigenvalues[0] == pytest.approx(float(expected[0]), rel=1e-4)
    shares = expected.cumsum(0) / expected.sum()
    assert spectrum.effective_dimension == int((shares < 0.9).sum()) + 1


def test_params_restrict_the_gradient() -> None:
    record = a_probe(params=["2.weight"], spectrum_every=1, blind=False).measure(0)
    model, inputs, targets = a_problem()
    mean = slow_gradients(model, inputs, targets)[:, 5 * 7 + 7 : -NUM_CLASSES].mean(0)
    assert record.values["A0"] == pytest.approx(float(mean @ mean), rel=1e-5)
    assert record.spectrum is not None
    assert record.spectrum.params == "2.weight"


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


def test_blind_groups_find_the_wrong_labels_without_being_told() -> None:
    model, inputs, targets, wrong = a_noisy_problem()
    record = Probe(model, functional.cross_entropy, inputs, targets).measure(0)
    assert set(record.groups) == {"blind", "random"}
    assert record.losses is not None
    found = torch.from_numpy(presumed_wrong(record.losses.astype(np.float64)))
    assert bool(found[wrong].all())
    # Right labels come with them only from the border between the clouds, where losses are largest.
    assert record.losses[found].min() > record.losses[~found].max()
    assert int(found.sum()) < 2 * int(wrong.sum())  # most of those found are wrong
    assert record.groups["blind"].counts == (int((~found).sum()), int(found.sum()))
    assert record.groups["random"].counts == record.groups["blind"].counts
    rows = slow_gradients(model, inputs, targets)
    correct, presumed = rows[~found].mean(0), rows[found].mean(0)
    expected = float(correct @ presumed / (correct.norm() * presumed.norm()))
    assert record.scalars("blind")["R_cw"] == pytest.approx(expected, rel=1e-4)


def test_without_two_kinds_of_losses_there_are_no_blind_groups() -> None:
    model, inputs, targets = a_problem()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    assert Probe(model, functional.cross_entropy, inputs, targets, batch_size=5).measure(0).groups == {}


def test_further_numbers_and_the_callback() -> None:
    seen = []
    probe = a_probe(metrics=lambda: {"test_error": 0.25}, on_record=seen.append, blind=False, steps_per_epoch=8)
    record = probe.measure(4, metrics={"lr": 0.1})
    assert dict(record.metrics) == {"lr": 0.1, "test_error": 0.25}
    assert record.epoch == 0.5
    assert seen == [record]


def test_records_are_on_the_disk_at_once_and_can_be_gone_on_from(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    with a_probe(path=whole) as probe:
        for step in range(6):
            probe.measure(step)
            assert len(History.load(whole)) == step + 1
    with a_probe(path=path) as probe:
        for step in range(5):
            probe.measure(step)
    history = History.load(path)
    history.records = history.records[:3]  # a checkpoint of step 2
    with a_probe(path=path, history=history) as probe:
        for step in range(3, 6):
            probe.measure(step)
    assert path.read_bytes() == whole.read_bytes()


def test_regression_has_no_margins() -> None:
    torch.manual_seed(0)
    probe = Probe(nn.Linear(3, 2), nn.MSELoss(), torch.randn(12, 3), torch.randn(12, 2), batch_size=4, blind=False)
    record = probe.measure(0)
    assert record.margins is None
    assert record.predictions is None


def test_inputs_may_be_nested() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.one(left) + self.two(right)

    torch.manual_seed(0)
    pair = (torch.randn(12, 3), torch.randn(12, 4))
    probe = Probe(Both(), nn.CrossEntropyLoss(), pair, torch.arange(12) % 2, batch_size=4, blind=False)
    named = Probe(Both(), nn.CrossEntropyLoss(), dict(zip(("left", "right"), pair)), torch.arange(12) % 2, batch_size=4)
    assert probe.measure(0).values["A"] > 0
    assert named.measure(0).values["A"] > 0


# --- what is not finite -----------------------------------------------------------------------------------------------


def test_a_broken_sample_is_named_with_step_and_layer() -> None:
    model, inputs, targets = a_problem()
    inputs[[4, 11]] = torch.nan
    probe = Probe(model, functional.cross_entropy, inputs, targets, batch_size=5)
    with pytest.raises(
        NonFiniteError, match=r"nan at step 7 for samples 4, 11\. It shows first in layer '0'"
    ) as caught:
        probe.measure(7)
    assert (caught.value.step, caught.value.layer, caught.value.samples) == (7, "0", (4, 11))
    assert len(probe.history) == 0


def test_a_diverged_layer_is_named() -> None:
    model, inputs, targets = a_problem()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"layer '2'"):
        Probe(model, functional.cross_entropy, inputs, targets, batch_size=5).measure(1)


def test_a_gradient_that_is_not_finite_is_reported_with_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("gradients must be finite, but those at ['0.weight'] are not for 1 samples (first: [8])")

    monkeypatch.setattr("sgdkern.probe.gram_matrix", broken)
    with pytest.raises(RuntimeError, match=r"at step 3: gradients must be finite.*0\.weight.*\[8\]"):
        a_probe().measure(3)


# --- wrong use --------------------------------------------------------------------------------------------------------


def test_wrong_use_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"batch_size must lie in 1 … 40"):
        a_probe(batch_size=41)
    with pytest.raises(ValueError, match=r"spectrum_every"):
        a_probe(spectrum_every=0)
    with pytest.raises(ValueError, match=r"groups"):
        a_probe(groups=torch.zeros(3, dtype=torch.int64))
    probe = a_probe(blind=False)
    probe.measure(5)
    with pytest.raises(ValueError, match=r"steps must increase, got 5 after 5"):
        probe.measure(5)


def test_a_measurement_that_fails_counts_for_nothing():
    torch.manual_seed(0)
    model, failing = torch.nn.Linear(4, 3), [True]
    inputs, labels = torch.randn(60, 4), torch.arange(60) % 3

    def metrics():
        if failing:
            raise KeyError(failing.pop())
        return {}

    once = Probe(model, torch.nn.CrossEntropyLoss(), inputs, labels, batch_size=10)
    again = Probe(model, torch.nn.CrossEntropyLoss(), inputs, labels, batch_size=10, metrics=metrics)
    with pytest.raises(KeyError):
        again.measure(0)
    assert again.measure(0).groups == once.measure(0).groups
    assert again.measure(1).groups == once.measure(1).groups


# --- the alarm --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is not switched off here; syncing every file would be most of the time."""
    monkeypatch.setattr("sgdkern.atomic.os.fsync", lambda descriptor: None)


def train_on_wrong_labels(
    folder: Path, *, steps: list[int], start: int = 0, stop: int | None = None, **options: Any
) -> tuple[Probe, nn.Module]:
    """Digits with two fifths of the labels wrong, by full-batch descent, so that a step decides all that follows."""
    inputs, targets = wrong_digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))
    history = None
    if start:
        model.load_state_dict(torch.load(folder / f"checkpoint{start}.pt", weights_only=True))
        history = History.load(folder / "history.jsonl")
        history.records = [record for record in history if record.step <= start]
    with Probe(
        model, functional.cross_entropy, inputs, targets, batch_size=20, blind=False, num_minibatches=0,
        path=folder / "history.jsonl", history=history, checkpoint=folder / "best_phase_II.pt", **options,
    ) as probe:  # fmt: skip
        for step in range(start, steps[-1] + 1):
            if step in steps and step > (start or -1):
                probe.measure(step)
                torch.save(model.state_dict(), folder / f"checkpoint{step}.pt")
            if step == stop:
                break
            model.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.5 * parameter.grad
    return probe, model


def wrong_digits() -> tuple[Tensor, Tensor]:
    from sgdkern.data import load_data, with_label_noise

    data = with_label_noise(load_data("digits", train_samples=300, seed=0), rate=0.4, kind="symmetric", seed=0)
    return data.train_inputs.flatten(1), data.train_labels


STEPS = log_spaced_steps(600, count=45)


@pytest.fixture(scope="module")
def alarmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Probe, list[PhaseEvent]]:
    folder, events = tmp_path_factory.mktemp("alarm"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sgdkern.atomic.os.fsync", lambda descriptor: None)
        probe, _ = train_on_wrong_labels(folder, steps=STEPS, on_event=events.append)
    return folder, probe, events


def test_the_alarm_says_where_to_go_back_to(alarmed: tuple[Path, Probe, list[PhaseEvent]]) -> None:
    folder, probe, events = alarmed
    assert [event.name for event in events] == ["II", "III", "IV"]
    assert list(probe.events) == events
    assert probe.phase == "IV"
    second, third = events[:2]
    assert probe.alarm is third
    assert isinstance(third, Alarm)
    assert third.checkpoint == folder / "best_phase_II.pt"
    assert second.step < third.best_step < third.step <= third.seen_at
    middle = np.sqrt(second.step * third.step)
    nearest = min(probe.history.steps, key=lambda step: abs(np.log((step + 1) / (middle + 1))))
    assert third.best_step == nearest
    for words in ("begins to memorise wrong labels", f"step {third.best_step}", str(third.checkpoint)):
        assert words in third.advice


def test_the_checkpoint_is_of_the_best_moment(alarmed: tuple[Path, Probe, list[PhaseEvent]]) -> None:
    folder, probe, _ = alarmed
    assert probe.alarm is not None
    found = torch.load(folder / "best_phase_II.pt", weights_only=True)
    then = torch.load(folder / f"checkpoint{probe.alarm.best_step}.pt", weights_only=True)
    assert found.keys() == then.keys()
    assert all(torch.equal(value, then[name]) for name, value in found.items())
    assert not (folder / "best_phase_II.pt.candidates").exists()


@pytest.mark.usefixtures("no_waiting_for_the_disk")
@pytest.mark.parametrize(("where", "behind"), [("before", 4), ("at", 0), ("at", 4), ("after", 4)])
def test_going_on_after_a_kill_gives_the_same_bytes(
    alarmed: tuple[Path, Probe, list[PhaseEvent]], tmp_path: Path, where: str, behind: int
) -> None:
    """Killed around the alarm; the checkpoint that training goes on from is the last one, or some records older."""
    folder, whole, _ = alarmed
    assert whole.alarm is not None
    seen = STEPS.index(whole.alarm.seen_at)
    last = seen + {"before": -1, "at": 0, "after": 3}[where]
    train_on_wrong_labels(tmp_path, steps=STEPS, stop=STEPS[last])
    events: list[PhaseEvent] = []
    probe, _ = train_on_wrong_labels(tmp_path, steps=STEPS, start=STEPS[last - behind], on_event=events.append)
    assert (tmp_path / "history.jsonl").read_bytes() == (folder / "history.jsonl").read_bytes()
    assert (tmp_path / "best_phase_II.pt").read_bytes() == (folder / "best_phase_II.pt").read_bytes()
    assert not (tmp_path / "best_phase_II.pt.candidates").exists()
    assert [event.step for event in probe.events] == [event.step for event in whole.events]
    assert probe.alarm is not None
    assert probe.alarm.best_step == whole.alarm.best_step
    assert all(event.seen_at > STEPS[last - behind] for event in events)  # what was told before is not told again


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_few_candidates_take_little_space(alarmed: tuple[Path, Probe, list[PhaseEvent]], tmp_path: Path) -> None:
    _, whole, _ = alarmed
    held: list[int] = []
    candidates = tmp_path / "best_phase_II.pt.candidates"
    probe, _ = train_on_wrong_labels(
        tmp_path, steps=STEPS, keep=6, on_record=lambda _: held.append(files_in(candidates))
    )
    assert max(held) == 6
    assert probe.alarm is not None
    assert whole.alarm is not None
    factor = (1 + probe.alarm.seen_at) ** (1 / (6 - 1))
    assert abs(np.log((1 + probe.alarm.best_step) / (1 + whole.alarm.best_step))) <= np.log(factor)
    then = torch.load(tmp_path / f"checkpoint{probe.alarm.best_step}.pt", weights_only=True)
    found = torch.load(tmp_path / "best_phase_II.pt", weights_only=True)
    assert all(torch.equal(value, then[name]) for name, value in found.items())


def files_in(folder: Path) -> int:
    return len(list(folder.glob("*.pt"))) if folder.exists() else 0


def test_a_new_run_does_not_mix_with_an_earlier_ones_weights(tmp_path: Path) -> None:
    (tmp_path / "best_phase_II.pt").touch()
    with pytest.raises(FileExistsError, match=r"best_phase_II\.pt or its candidates exist"):
        a_probe(checkpoint=tmp_path / "best_phase_II.pt")
    a_probe(checkpoint=tmp_path / "best_phase_II.pt", history=History())


def test_without_labels_there_is_no_alarm() -> None:
    probe = Probe(nn.Linear(3, 2), nn.MSELoss(), torch.randn(12, 3), torch.randn(12, 2), batch_size=4, blind=False)
    for step in range(20):
        probe.measure(step)
    assert (probe.phase, probe.events, probe.alarm) == ("I", (), None)


# --- further partitions, and what chance gives ------------------------------------------------------------------------


def test_partitions_of_any_number_of_groups_are_followed_each_with_its_null() -> None:
    model, inputs, targets = a_problem()
    site = torch.arange(NUM_SAMPLES) % 4
    probe = Probe(
        model, functional.cross_entropy, inputs, targets, batch_size=5, blind=False, null_every=2, null_splits=40,
        partitions={"classes": targets, "sites": {f"site {name}": site == name for name in range(4)}},
    )  # fmt: skip
    first, second, third = (probe.measure(step) for step in range(3))
    rows = slow_gradients(model, inputs, targets)
    means = torch.stack([*(rows[site == one].mean(0) for one in range(4)), rows.mean(0)])
    lengths = means.norm(dim=1)
    expected = means @ means.T / lengths / lengths[:, None]
    assert first.groups["sites"].names == ("site 0", "site 1", "site 2", "site 3")
    # Each entry of G carries float32's rounding of some sums of ten terms: 10 ε, and a cosine twice that.
    assert np.allclose(first.groups["sites"].cosines, expected, atol=20 * torch.finfo(torch.float32).eps, rtol=0)
    assert first.nulls.keys() == third.nulls.keys() == {"classes", "sites"}
    assert second.nulls == {}
    null = first.nulls["sites"]
    lower, upper = np.array(null.lower), np.array(null.upper)
    assert lower.shape == upper.shape == (5, 5)
    assert (lower <= upper).all()
    assert null.num_splits == 40
    again = Probe(
        model, functional.cross_entropy, inputs, targets, batch_size=5, blind=False, null_every=2, null_splits=40,
        partitions={"sites": site},
    ).measure(0)  # fmt: skip
    assert again.nulls["sites"] == null  # of the step and the sizes only


def test_the_null_holds_what_random_splits_do() -> None:
    """Of 200 further random splits at most so many leave the bounds as chance allows, at five standard deviations."""
    model, inputs, targets = a_problem()
    generator = torch.Generator().manual_seed(1)
    splits = {f"split {one}": torch.randperm(NUM_SAMPLES, generator=generator) % 2 for one in range(200)}
    probe = Probe(
        model, functional.cross_entropy, inputs, targets, batch_size=5, blind=False, null_every=1, null_splits=400,
        partitions=splits,
    )  # fmt: skip
    record = probe.measure(0)
    null = record.nulls["split 0"]
    outside = sum(not null.lower[0][1] <= record.groups[name].cosines[0][1] <= null.upper[0][1] for name in splits)
    # Outside with 5 %; the bounds are quantiles of 400 draws, so that share itself is only known to √(.05 · .95 / 400).
    spread = np.sqrt(200 * 0.05 * 0.95 + 200**2 * 0.05 * 0.95 / 400)
    assert abs(outside - 200 * 0.05) <= 5 * spread


def test_nulls_are_kept_in_the_history(tmp_path: Path) -> None:
    with a_probe(partitions={"classes": a_problem()[2]}, null_every=1, path=tmp_path / "history.jsonl") as probe:
        record = probe.measure(0)
    assert History.load(tmp_path / "history.jsonl").records[0].nulls == record.nulls
    without = a_probe(blind=False).measure(0)
    assert without.nulls == {}
    assert b"nulls" not in record_line(without)


def test_partitions_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be called blind"):
        a_probe(partitions={"blind": torch.arange(NUM_SAMPLES) % 2})
    with pytest.raises(ValueError, match="groups must hold one integer"):
        a_probe(partitions={"classes": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(ValueError, match="null_every and null_splits must be at least 1"):
        a_probe(null_every=0)
