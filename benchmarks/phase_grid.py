"""How far phase labels can be trusted: runs to choose the rule by, and other runs to judge it by.

    python benchmarks/phase_grid.py run --out runs/phase-grid --half second
    python benchmarks/phase_grid.py report --out runs/phase-grid

`run` trains what is missing and keeps one history a run; killed, it goes on where it was. `report` scores the histories
against the test error, which the labels never see, and writes docs/results/phases.{json,md,png}.

The runs are listed in phase_runs.py, with what each half is for and when it was written down.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from phase_runs import HALVES, Run, grid
from torch import nn
from torch.nn import functional

from sgdkern.data import Dataset, load_data, with_label_noise
from sgdkern.history import History, HistoryWriter
from sgdkern.probe import Probe
from sgdkern.schedule import log_spaced_steps
from sgdkern.training import Trainer, build_model, evaluate

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
DATA = Path(os.environ.get("SGDKERN_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
_NEARLY_TRAINED = 0.003


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

    def advance(self, num_steps: int) -> None:
        """Take some steps."""
        if self.step == 0:
            self._adam = torch.optim.Adam(self._parameters, lr=self._lr)
        self.model.train()
        for _ in range(num_steps):
            batch = self._next_batch()
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
        if trained and step > run.afterwards * trained:
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
    parser.add_argument("--half", choices=HALVES, help="only these runs")
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
