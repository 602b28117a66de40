"""Integrations: a probe measures in other people's loops, and the loops train as they would without it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import sgdkern as sk
from sgdkern.integrations.scalars import scalars, to_log, to_summary_writer

INPUTS = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(24) % 3


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def _probe(model, **options):
    return sk.Probe(model, nn.CrossEntropyLoss(), INPUTS, TARGETS, batch_size=4, every=2, **options)


class AlarmAtThree:
    """Stands in for a probe: phase II at step 1, the alarm at step 3."""

    def __init__(self):
        self.events, self.alarm = (), None

    def __call__(self, step):
        if step == 1:
            self.events += (sk.PhaseEvent("II", 0, 1, "Go on.", 1.5),)
        if step == 3:
            self.alarm = sk.Alarm("III", 2, 3, "Stop here.", 1.5, best_step=1, checkpoint=None)
            self.events += (self.alarm,)


def test_names_and_numbers_reach_a_logger():
    seen, written = {}, []

    class Writer:
        def add_scalar(self, name, value, step):
            written.append((name, value, step))

    model = _model()
    probe = _probe(model, groups={"c": TARGETS == 0, "w": TARGETS > 0}, spectrum_every=1)
    record = probe.measure(4, metrics={"test_error": 0.25, "broken": float("nan")})
    to_log(lambda values, step: seen.update({step: values}))(record)
    to_summary_writer(Writer())(record)
    assert seen[4] == scalars(record) == {name: value for name, value, _ in written}
    assert seen[4]["sgdkern/metrics/test_error"] == 0.25
    assert {"sgdkern/all/A0", "sgdkern/given/R_cw", "sgdkern/spectrum/effective_dimension"} <= seen[4].keys()
    assert "sgdkern/metrics/broken" not in seen[4]


def test_hugging_face_trainer(tmp_path, caplog):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from sgdkern.integrations.transformers import ProbeCallback

    trainers = []

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = _model()

        def forward(self, inputs, labels):
            return {"loss": nn.functional.cross_entropy(self.network(inputs), labels)}

    def train(callbacks):
        torch.manual_seed(1)
        model = Classifier()
        trainers.append(None)
        options = {"max_steps": 5, "per_device_train_batch_size": 8, "use_cpu": True, "report_to": [], "seed": 1}
        arguments = transformers.TrainingArguments(
            str(tmp_path), save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, **options
        )
        data = [{"inputs": one, "labels": label} for one, label in zip(INPUTS, TARGETS, strict=True)]
        trainers[-1] = transformers.Trainer(model, arguments, train_dataset=data, callbacks=callbacks(model))
        trainers[-1].train()
        return model

    probes = []

    def attach(model):
        probes.append(_probe(model.network))
        return [ProbeCallback(probes[0])]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other libraries deprecate is not our concern
        probed, plain = train(attach), train(lambda model: [])
        with caplog.at_level("WARNING"):
            transformers.utils.logging.enable_propagation()
            train(lambda model: [ProbeCallback(AlarmAtThree(), stop_at_alarm=True)])
            transformers.utils.logging.disable_propagation()
    assert probes[0].history.steps.tolist() == [0, 2, 4]
    assert all(torch.equal(one, other) for one, other in zip(probed.parameters(), plain.parameters(), strict=True))
    assert [trainer.state.global_step for trainer in trainers] == [5, 5, 3]
    told = [entry["sgdkern/phase"] for entry in trainers[-1].state.log_history if "sgdkern/phase" in entry]
    assert told == ["II", "III"]
    assert "step 3: phase III. Stop here." in caplog.text


def test_lightning_trainer(tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from sgdkern.integrations.lightning import ProbeCallback

    steps, logged = [], []

    class Logger(lightning.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.append((metrics, step))

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = _model()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def train(callbacks, logger=False):
        module = Module()
        data = torch.utils.data.TensorDataset(INPUTS, TARGETS)
        quiet = {"logger": logger, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(
            max_steps=5, accelerator="cpu", default_root_dir=tmp_path, callbacks=callbacks(module), **quiet
        )
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8))
        steps.append(trainer.global_step)
        return module

    probes = []

    def attach(module):
        probes.append(_probe(module.network))
        return [ProbeCallback(probes[0])]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probed, plain = train(attach), train(lambda module: [])
        with caplog.at_level("WARNING"):
            train(lambda module: [ProbeCallback(AlarmAtThree(), stop_at_alarm=True)], Logger(tmp_path))
    assert probes[0].history.steps.tolist() == [0, 2, 4]
    assert all(torch.equal(one, other) for one, other in zip(probed.parameters(), plain.parameters(), strict=True))
    assert steps == [5, 5, 3]
    assert [pair for pair in logged if "sgdkern/phase" in pair[0]] == [
        ({"sgdkern/phase": 2}, 1),
        ({"sgdkern/phase": 3}, 3),
    ]
    assert "step 3: phase III. Stop here." in caplog.text
