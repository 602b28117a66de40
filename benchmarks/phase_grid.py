"""How far phase labels can be trusted: a grid of runs, half to choose the rule by, the other half to judge it by.

    python benchmarks/phase_grid.py run --out runs/phase-grid --half judgement
    python benchmarks/phase_grid.py report --out runs/phase-grid

`run` trains what is missing and keeps one history a run; killed, it goes on where it was. `report` scores the histories
against the test error, which the labels never see, and writes docs/results/phases.{json,md,png}.

The two halves were written down here before any run of the judged half was made. They share no run, no seed and, but
for a few, no setting: the judged half has other widths, learning rates, batch sizes, a convolutional network and batch
normalisation. Its runs were looked at once, after the rule was final. What they showed led to three repairs, for which
the runs of `confirmation` were added: they were looked at once after the repairs.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from sgdkern.data import Dataset, load_data, with_label_noise
from sgdkern.history import History, HistoryWriter
from sgdkern.probe import Probe
from sgdkern.schedule import log_spaced_steps
from sgdkern.training import Trainer, build_model, evaluate

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
DATA = Path(os.environ.get("SGDKERN_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
# Where a run is nearly trained it goes on to as many times the steps that took it there, then stops.
_AFTERWARDS = 2.5
_NEARLY_TRAINED = 0.003


@dataclass(frozen=True)
class Run:
    """One training run of the grid."""

    half: str
    data: str = "digits"
    train_samples: int | None = None
    model: str = "mlp"
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    init: str = "default"
    optimiser: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    lr: float = 0.1
    batch_size: int = 25
    scaling: str = "standard"
    noise: str = "symmetric"
    rate: float = 0.5
    epochs: int = 250
    measurements: int = 64
    seed: int = 0

    @property
    def name(self) -> str:
        """All settings that differ from the defaults, in one word."""
        usual = asdict(Run(self.half))
        told = {key: value for key, value in asdict(self).items() if value != usual[key]}
        words = ["x".join(map(str, v)) if isinstance(v, tuple | list) else f"{k}={v}" for k, v in told.items()]
        return "_".join([self.half, *words])


def grid() -> list[Run]:
    """All runs of both halves."""
    return [*_development(), *_judgement(), *_confirmation()]


def _development() -> list[Run]:
    run = Run("development")
    digits = [replace(run, rate=rate / 10, seed=rate % 3) for rate in range(10)]
    digits += [
        replace(run, lr=0.05, scaling=scaling, rate=rate, seed=1)
        for scaling in ("standard", "unit")
        for rate in (0.3, 0.6)
    ]
    digits += [replace(run, noise="pair", rate=0.35, seed=2), replace(run, noise="incl", rate=0.4, seed=1)]
    digits += [
        replace(run, hidden=(64,), batch_size=100, lr=0.3, epochs=900, rate=rate, seed=2)
        for rate in (0.0, 0.2, 0.5, 0.7)
    ]
    tanh = replace(run, activation="tanh", init="xavier", batch_size=5, lr=0.03, epochs=100)
    digits += [replace(tanh, rate=rate) for rate in (0.0, 0.3, 0.5)]
    digits += [replace(run, momentum=0.9, weight_decay=1e-4, lr=0.01, rate=rate) for rate in (0.0, 0.3, 0.7)]
    digits += [replace(run, optimiser="adam", lr=0.003, epochs=200, rate=rate) for rate in (0.0, 0.3, 0.7)]
    mnist = replace(run, data="mnist", train_samples=2000, hidden=(50, 50), batch_size=50, lr=0.1, epochs=200)
    cifar = replace(run, data="cifar10", train_samples=2500, hidden=(64,), batch_size=50, lr=0.05, epochs=200)
    return [
        *digits,
        *[replace(mnist, rate=rate) for rate in (0.0, 0.2, 0.5, 0.9)],
        *[replace(cifar, rate=rate) for rate in (0.0, 0.3, 0.5)],
    ]


def _judgement() -> list[Run]:
    run = Run("judgement", seed=101)
    demo = [replace(run, lr=0.05, epochs=300, seed=seed) for seed in range(101, 106)]
    wide = replace(run, hidden=(100,), seed=106)
    rates = [replace(wide, rate=rate / 10, seed=110 + rate) for rate in range(10)]
    speed = [
        replace(run, hidden=(40, 40), lr=lr, scaling=scaling, rate=0.4, epochs=epochs, seed=121)
        for lr, epochs in ((0.03, 400), (0.3, 150))
        for scaling in ("standard", "unit")
    ]
    batches = [
        replace(run, batch_size=size, lr=lr, epochs=epochs, rate=rate, seed=131)
        for size, lr, epochs in ((5, 0.02, 80), (100, 0.2, 700))
        for rate in (0.0, 0.2, 0.6)
    ]
    kinds = [
        replace(run, noise=noise, rate=rate, seed=141)
        for noise, rate in (("pair", 0.2), ("pair", 0.3), ("pair", 0.4), ("incl", 0.3), ("incl", 0.5), ("incl", 0.7))
    ]
    optimisers = [
        replace(run, momentum=0.9, lr=0.02, rate=0.3, seed=151),
        replace(run, momentum=0.9, lr=0.02, rate=0.6, seed=152),
        replace(run, weight_decay=1e-3, rate=0.4, seed=153),
        replace(run, optimiser="adam", lr=0.002, rate=0.0, seed=154),
        replace(run, optimiser="adam", lr=0.002, rate=0.4, seed=154),
        replace(run, optimiser="adam", lr=0.002, rate=0.6, seed=155),
    ]
    initial = [replace(run, activation="tanh", init="xavier", rate=rate, seed=161) for rate in (0.0, 0.3, 0.6)]
    normed = [replace(run, model="mlp-batchnorm", rate=rate, seed=171) for rate in (0.0, 0.3, 0.5)]
    convolutional = [replace(run, model="cnn", hidden=(8, 16), rate=rate, seed=181) for rate in (0.0, 0.3, 0.5, 0.9)]
    mnist = replace(run, data="mnist", hidden=(60, 30), lr=0.05, batch_size=25, train_samples=2000, epochs=150)
    digits_of_mnist = [replace(mnist, rate=rate / 10, seed=190 + rate) for rate in (0, 2, 3, 5, 7, 9)]
    digits_of_mnist += [replace(mnist, scaling="unit", lr=0.15, rate=0.5, train_samples=4000, epochs=120, seed=201)]
    cifar = replace(run, data="cifar10", hidden=(100,), lr=0.04, batch_size=50, train_samples=3000, epochs=200)
    pictures = [replace(cifar, rate=rate / 10, seed=210 + rate) for rate in (0, 2, 4, 6, 9)]
    pictures += [replace(cifar, model="cnn", hidden=(8, 16), rate=0.4, lr=0.05, epochs=120, seed=221)]
    parts = (demo, rates, speed, batches, kinds, optimisers, initial, normed, convolutional, digits_of_mnist, pictures)
    return [run for part in parts for run in part]


def _confirmation() -> list[Run]:
    run = Run("confirmation", seed=301, epochs=150)
    fast = replace(run, hidden=(40, 40), lr=0.3, rate=0.4)
    return [
        replace(run, model="mlp-batchnorm", rate=0.0),
        fast,
        replace(run, rate=0.0, lr=0.05, batch_size=10, epochs=60),
        replace(run, rate=0.0, hidden=(30,), lr=0.3),
        replace(run, data="mnist", train_samples=2000, rate=0.0, hidden=(40,), epochs=80),
        replace(run, rate=0.0, activation="tanh", lr=0.05),
        replace(run, noise="pair", rate=0.25),
        replace(run, hidden=(50,), rate=0.3),
        replace(fast, seed=302),
        replace(run, rate=0.0, model="mlp-batchnorm", seed=302),
        replace(run, hidden=(80, 40), rate=0.6),
        replace(run, rate=0.9, seed=303),
    ]


def load(run: Run, cache: Path) -> Dataset:
    """The run's data, its labels with noise."""
    if run.data == "digits":
        clean = load_data("digits", scaling=run.scaling, seed=run.seed)
    elif run.data == "mnist":
        clean = load_data(
            "mnist", root=DATA / "mnist4k", scaling=run.scaling, seed=run.seed,
            train_samples=run.train_samples, test_samples=2000,
        )  # fmt: skip
    else:
        folder = _unpacked_cifar(cache, per_class=500)
        clean = load_data(
            "folder", root=folder, image_size=16, scaling=run.scaling, seed=run.seed,
            train_samples=run.train_samples, test_samples=2000,
        )  # fmt: skip
    return with_label_noise(clean, rate=run.rate, kind=run.noise, seed=run.seed)


def _unpacked_cifar(cache: Path, per_class: int) -> Path:
    """The first images of each class of CIFAR-10, 500 to train on and 200 to test on, as folders."""
    folder = cache / "cifar10"
    done = folder / "complete"
    if not done.exists():
        with tarfile.open(DATA / "cifar10-images.tar.xz") as archive:
            for member in archive:
                part, _, file = member.name.lstrip("./").partition("/")
                number = Path(file).stem
                wanted = per_class if part == "train" else 200
                if member.isfile() and number.isdigit() and int(number) < wanted:
                    archive.extract(member, folder, filter="data")
        done.touch()
    return folder


def build(run: Run, data: Dataset) -> nn.Module:
    """The run's network with its initial weights."""
    options = {"input_shape": data.input_shape, "num_classes": data.num_classes, "hidden": run.hidden}
    plain = "cnn" if run.model == "cnn" else "mlp"
    model = build_model(plain, activation=run.activation, seed=run.seed, **options)
    if run.model == "mlp-batchnorm":
        layers: list[nn.Module] = []
        for layer in model:
            layers.append(layer)
            if isinstance(layer, nn.Linear) and layer.out_features in run.hidden:
                layers.append(nn.BatchNorm1d(layer.out_features))
        model = nn.Sequential(*layers)
    if run.init == "xavier":
        generator = torch.Generator().manual_seed(run.seed)
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
    return model


class AdamTrainer(Trainer):
    """The same order of minibatches, the changes by Adam."""

    def _take_step(self) -> None:
        if self.step == 0:
            self._adam = torch.optim.Adam(self._parameters, lr=self._lr)
        position = self.step % self.steps_per_epoch
        if position == 0:
            self._order = torch.randperm(self._inputs.shape[0], generator=self._generator)
        batch = self._order[position * self._batch_size : (position + 1) * self._batch_size]
        self._adam.zero_grad()
        self._loss_fn(self.model(self._inputs[batch]), self._targets[batch]).backward()
        self._adam.step()
        self.step += 1


def train(run: Run, path: Path, cache: Path) -> None:
    """Train one run under a probe of all training samples, and keep its history."""
    data = load(run, cache)
    model = build(run, data)
    options = {"lr": run.lr, "batch_size": run.batch_size, "generator": torch.Generator().manual_seed(run.seed)}
    kind = AdamTrainer if run.optimiser == "adam" else Trainer
    trainer = kind(
        model, functional.cross_entropy, data.train_inputs, data.train_labels,
        momentum=run.momentum, weight_decay=run.weight_decay, **options,
    )  # fmt: skip
    wrong = data.train_labels != data.true_labels
    known = {"c": ~wrong, "w": wrong} if 0 < int(wrong.sum()) < len(wrong) else None
    probe = Probe(
        model, nn.CrossEntropyLoss(), data.train_inputs, data.train_labels, batch_size=run.batch_size, groups=known,
        num_minibatches=0, blind=False, population_size=data.num_train, steps_per_epoch=trainer.steps_per_epoch,
        metrics=lambda: {
            "train_error": evaluate(model, data.train_inputs, data.train_labels).error,
            "test_error": evaluate(model, data.test_inputs, data.test_labels).error,
        },
    )  # fmt: skip
    trained = None
    for step in log_spaced_steps(run.epochs * trainer.steps_per_epoch, count=run.measurements):
        trainer.advance(step - trainer.step)
        trained = (trained or step) if probe.measure(step).metrics["train_error"] <= _NEARLY_TRAINED else None
        if trained and step > _AFTERWARDS * trained:
            break
    header = {**probe.history.header, "config": asdict(run), "true_labels": data.true_labels.numpy()}
    unfinished = path.with_suffix(".part")
    unfinished.unlink(missing_ok=True)
    with HistoryWriter(unfinished, header) as writer:
        for record in probe.history:
            writer.append(record)
    unfinished.replace(path)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "list"])
    parser.add_argument("--out", type=Path, default=Path("runs/phase-grid"), help="folder of the histories")
    parser.add_argument("--half", choices=["development", "judgement", "confirmation"], help="only one half")
    parser.add_argument("--part", default="0/1", help="i/n: only every n-th run, from the i-th, to share the work")
    options = parser.parse_args()
    runs = [run for run in grid() if options.half in (None, run.half)]
    if options.command == "list":
        print("\n".join(run.name for run in runs))
    elif options.command == "run":
        torch.set_num_threads(1)
        options.out.mkdir(parents=True, exist_ok=True)
        first, parts = map(int, options.part.split("/"))
        for number, run in enumerate(runs[first::parts], start=1):
            path = options.out / f"{run.name}.jsonl"
            if not path.exists():
                began = time.perf_counter()
                train(run, path, options.out)
                print(f"{number}/{len(runs[first::parts])} {run.name} {time.perf_counter() - began:.0f} s", flush=True)
    else:
        from phase_scores import report, score

        report([score(History.load(path)) for path in sorted(options.out.glob("*.jsonl"))], RESULTS)


if __name__ == "__main__":
    main()
