"""Label cleaning on CIFAR-10 with a small convolutional network of the user's own: LabelCleaner against cleanlab.

Run: ``python benchmarks/cleaning_cifar.py --images 5000 --seeds 20 21 22 --out benchmarks/results/cleaning_cifar.json``
(needs ``sgdkern[peers]`` for cleanlab, Pillow, and cifar10-images.tar.xz under SGDKERN_DATA). Nobody is told the noise
rate, nor which labels are wrong. Everybody trains the same network by the same SGD, 128 images a step. cleanlab gets
out-of-fold probabilities of 5 folds; its AUROC is noted after every epoch, so that the table can also say what the
best number of epochs, known only afterwards, would have given it. CPU seconds are of one thread and leave the
evaluations for that note out. Each seed draws the images, the noise and all else; what was measured is added to the
file after every method, and what the file holds is not measured again. ``--split test`` takes the test images, on
which everything that was chosen was chosen.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleaning import with_noise
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch import nn

from sgdkern.cleaning import LabelCleaner

CONDITIONS = {
    "none": ("none", 0.0),
    "symmetric-0.2": ("symmetric", 0.2),
    "symmetric-0.4": ("symmetric", 0.4),
    "pair-0.4": ("pair", 0.4),
}
BATCH_SIZE, LR, MOMENTUM = 128, 0.03, 0.9
Array = Any


class SmallCNN(nn.Sequential):
    """Two convolutions, 5 x 5 at stride 4 and 3 x 3 at stride 2: .08 ms an image and step on one core."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 32, 5, stride=4, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            nn.Flatten(),
            nn.Linear(1024, 10),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify images [B, 3, 32, 32]; channels last is the faster layout."""
        return super().forward(images.contiguous(memory_format=torch.channels_last))


def cifar(archive: Path, split: str) -> tuple[Array, Array]:
    """Read images [N, 3, 32, 32], standardised, and labels [N] of a split from the archive <split>/<class>/<n>.jpg."""
    pixels, names = [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and parts[-3] == split:
                data = tar.extractfile(member)
                assert data is not None
                pixels.append(np.asarray(Image.open(io.BytesIO(data.read())).convert("RGB")))
                names.append((parts[-2], parts[-1]))
    order = sorted(range(len(names)), key=names.__getitem__)
    labels = np.unique([names[i][0] for i in order], return_inverse=True)[1].astype(np.int64)
    images = np.stack([pixels[i] for i in order]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    return (images - 0.473) / 0.251, labels


def ours(**options: Any) -> Callable[..., dict[str, Any]]:
    """Score and flag by LabelCleaner, which finds its number of epochs itself."""

    def run(images: Array, given: Array, wrong: Array, seed: int, *, epochs: int) -> dict[str, Any]:
        start = time.process_time()
        cleaner = LabelCleaner(
            SmallCNN, batch_size=BATCH_SIZE, lr=LR, momentum=MOMENTUM, random_state=seed, **options
        ).fit(images, given)
        spent = time.process_time() - start
        rate = cleaner.noise_rate_
        return verdict(cleaner.label_quality_, cleaner.is_label_issue_, wrong, float(rate)) | {
            "cpu_seconds": spent,
            "noise_rate_interval": [rate.low, rate.high],
            "noise_rate_is_upper_bound": rate.is_upper_bound,
            "epochs": [len(part.held_out_accuracy) for part in cleaner.rounds_],
            "averaged_to": [part.last_epoch for part in cleaner.rounds_],
        }

    return run


def cleanlab_folds(images: Array, given: Array, wrong: Array, seed: int, *, epochs: int) -> dict[str, Any]:
    """Score and flag by cleanlab's defaults on out-of-fold probabilities of 5 folds."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    torch.manual_seed(seed)
    inputs, labels = torch.from_numpy(images), torch.from_numpy(given)
    probabilities = np.zeros((epochs, len(given), 10))
    training, answer = 0.0, 0.0
    for rest, held_out in StratifiedKFold(5, shuffle=True, random_state=seed).split(given, given):
        model = SmallCNN()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        places = torch.from_numpy(rest)
        for epoch in range(epochs):
            start = time.process_time()
            model.train()
            for batch in places[torch.randperm(len(places))].split(BATCH_SIZE):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimizer.step()
            training += time.process_time() - start
            start = time.process_time()
            probabilities[epoch, held_out] = predicted(model, inputs[held_out])
            if epoch + 1 == epochs:
                answer += time.process_time() - start
    start = time.process_time()
    quality = get_label_quality_scores(given, probabilities[-1])
    flagged = find_label_issues(given, probabilities[-1])
    found = verdict(quality, flagged, wrong, float(flagged.mean()))
    found["cpu_seconds"] = training + answer + time.process_time() - start
    found["auroc_by_epoch"] = [auroc(wrong, get_label_quality_scores(given, p)) for p in probabilities]
    return found


@torch.no_grad()
def predicted(model: nn.Module, inputs: torch.Tensor) -> Array:
    """Return the probabilities of the classes."""
    model.eval()
    return torch.cat([torch.softmax(model(chunk), dim=1) for chunk in inputs.split(512)]).numpy()


def auroc(wrong: Array, quality: Array) -> float | None:
    """Return the share of pairs of a wrong and a right label in the right order; None where none is wrong."""
    return float(roc_auc_score(~wrong, quality)) if wrong.any() else None


def verdict(quality: Array, flagged: Array, wrong: Array, rate: float) -> dict[str, Any]:
    """Compare scores and flags with the truth."""
    return {
        "auroc": auroc(wrong, quality),
        "precision": float(wrong[flagged].mean()) if flagged.any() else None,
        "recall": float(flagged[wrong].mean()) if wrong.any() else None,
        "flagged": float(flagged.mean()),
        "noise_rate": rate,
    }


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "LabelCleaner": ours(),
    "LabelCleaner(mode='fast')": ours(mode="fast"),
    "cleanlab": cleanlab_folds,
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--split", choices=["train", "test"], default="train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--epochs", type=int, default=10, help="of each of cleanlab's folds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cleaning_cifar.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ.get("SGDKERN_DATA", "../shared/data"))
    images, labels = cifar(root / "cifar10-images.tar.xz", options.split)
    machine = {"machine": platform.machine(), "threads": 1, "torch": torch.__version__, "numpy": np.__version__}
    runs: list[dict[str, Any]] = json.loads(options.out.read_text())["runs"] if options.out.exists() else []
    for seed in options.seeds:
        chosen = np.sort(np.random.default_rng([seed, 1]).permutation(len(labels))[: options.images])
        for condition in options.conditions:
            given = with_noise(labels[chosen], *CONDITIONS[condition], seed)
            wrong = given != labels[chosen]
            for name in options.methods:
                what = {
                    "split": options.split,
                    "images": len(chosen),
                    "condition": condition,
                    "seed": seed,
                    "method": name,
                }
                if any(what.items() <= run.items() for run in runs):
                    continue
                runs.append(what | METHODS[name](images[chosen], given, wrong, seed, epochs=options.epochs))
                print(json.dumps(runs[-1]), flush=True)
                options.out.write_text(json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
