"""The probe: what it records is what the slow definitions give, and the model does not notice it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from probing import NUM_CLASSES, NUM_SAMPLES, a_noisy_problem, a_probe, a_problem, slow_gradients
from torch import Tensor, nn
from torch.nn import functional

from sgdkern.blind_groups import presumed_wrong
from sgdkern.history import History
from sgdkern.non_finite import NonFiniteError
from sgdkern.probe import Probe


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


# --- further partitions, and what chance gives ------------------------------------------------------------------------
