"""Label cleaning on 4,000 MNIST images: LabelCleaner against cleanlab, blind, by noise rate and kind.

Run: ``python benchmarks/cleaning.py --seeds 20 21 22 --out benchmarks/results/cleaning.json`` (needs ``sgdkern[peers]``
for cleanlab, and SGDKERN_DATA). Nobody is told the noise rate, nor which labels are wrong. Measured: the AUROC of the
wrong labels, precision and recall of the automatic threshold, CPU seconds on one thread, and
Q = (a_c - a_n) / (a_p - a_n), the accuracies of one and the same network (784-50-50-10, plain SGD, 25 a step) trained
to the end on the labels kept, on all labels, and on the labels that are right.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torchvision.datasets import MNIST

from sgdkern.cleaning import LabelCleaner
from sgdkern.cleaning.members import StackedMLP

SIZES = [784, 50, 50, 10]
CONDITIONS = {
    "none": ("none", 0.0),
    **{f"symmetric-{rate}": ("symmetric", rate) for rate in (0.2, 0.4, 0.6, 0.8)},
    "pair-0.35": ("pair", 0.35),
}
Array = Any


def mnist(root: Path) -> tuple[Array, Array, Array, Array]:
    """Return training and test inputs, standardised and flat, with their labels."""
    parts: list[Array] = []
    for train in (True, False):
        data = MNIST(root, train=train)
        parts += [((data.data.float() / 255 - 0.1307) / 0.3081).flatten(1), data.targets.numpy()]
    return parts[0], parts[1], parts[2], parts[3]


def with_noise(labels: Array, kind: str, rate: float, seed: int, num_classes: int = 10) -> Array:
    """Give exactly round(rate N) samples another label: any other one, or the next one ("pair")."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(labels))[: round(rate * len(labels))]
    shift = 1 if kind == "pair" else rng.integers(1, num_classes, len(chosen))
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + shift) % num_classes
    return noisy


def network() -> nn.Module:
    """The network that cleanlab's folds train."""
    layers: list[nn.Module] = []
    for width_in, width_out in zip(SIZES, SIZES[1:]):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(model: nn.Module, inputs: Any, labels: Any, *, epochs: int, lr: float, batch_size: int, seed: int) -> None:
    """Plain SGD, shuffled each epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()


def cleanlab_issues(inputs: Any, given: Array, seed: int) -> tuple[Array, Array]:
    """Score and flag by cleanlab's defaults on out-of-fold probabilities: 5 folds of 20 epochs (15 to 20 are best)."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    torch.manual_seed(seed)
    labels = torch.from_numpy(given)
    probabilities = np.zeros((len(given), 10))
    for fold, (rest, held_out) in enumerate(StratifiedKFold(5, shuffle=True, random_state=seed).split(inputs, given)):
        model = network()
        train(model, inputs[rest], labels[rest], epochs=20, lr=0.01, batch_size=25, seed=seed + fold)
        with torch.no_grad():
            probabilities[held_out] = torch.softmax(model(inputs[held_out]), dim=1).numpy()
    quality = get_label_quality_scores(given, probabilities)
    return quality, find_label_issues(given, probabilities)


def ours(**options: Any) -> Callable[[Any, Array, int], tuple[Array, Array]]:
    """Score and flag by LabelCleaner."""

    def issues(inputs: Any, given: Array, seed: int) -> tuple[Array, Array]:
        cleaner = LabelCleaner(random_state=seed, **options).fit(inputs, given)
        return cleaner.label_quality_, cleaner.is_label_issue_, cleaner.noise_rate_  # type: ignore[return-value]

    return issues


METHODS: dict[str, Callable[[Any, Array, int], Any]] = {
    "LabelCleaner": ours(),
    "LabelCleaner(mode='fast')": ours(mode="fast"),
    "cleanlab": cleanlab_issues,
}


def visits(subset: Any, length: int, generator: torch.Generator) -> Any:
    """Visit a subset in random order, again and again, until so many samples are visited."""
    passes = [subset[torch.randperm(len(subset), generator=generator)] for _ in range(length // len(subset) + 1)]
    return torch.cat(passes)[:length]


def accuracies(inputs: Any, labels: list[Array], kept: list[Array], test: Any, truth: Array, seed: int) -> list[float]:
    """Final test accuracies of the network, trained 70 epochs on each set of kept labels, all side by side."""
    generator = torch.Generator().manual_seed(seed)
    members = StackedMLP(SIZES, len(kept), generator=generator, lr=0.03, momentum=0.0, device=torch.device("cpu"))
    subsets = [torch.from_numpy(np.flatnonzero(mask)) for mask in kept]
    targets = torch.from_numpy(np.stack(labels))
    steps = len(inputs) // 25
    for _ in range(70):
        orders = torch.stack([visits(subset, steps * 25, generator) for subset in subsets])
        for batch in orders.split(25, dim=1):
            members.step(inputs[batch], targets.gather(1, batch))
    everything = torch.arange(len(test)).expand(len(kept), -1)
    return (members.logits(test, everything).argmax(dim=2) == torch.from_numpy(truth)).double().mean(dim=1).tolist()


def measure(
    data: tuple[Array, ...], kind: str, rate: float, seed: int, names: list[str], *, retrain: bool
) -> dict[str, Any]:
    """Run every method on one corrupted data set; the accuracies after retraining only if asked."""
    inputs, truth, test, test_truth = data
    given = with_noise(truth, kind, rate, seed)
    wrong = given != truth
    rows: dict[str, Any] = {}
    flags = []
    for name in names:
        start = time.process_time()
        quality, flagged, *rate_found = METHODS[name](inputs, given, seed)
        rows[name] = {
            "cpu_seconds": time.process_time() - start,
            "auroc": float(roc_auc_score(~wrong, quality)) if wrong.any() else None,
            "flagged": float(flagged.mean()),
            "precision": float(wrong[flagged].mean()) if flagged.any() else None,
            "recall": float(flagged[wrong].mean()) if wrong.any() else None,
            "noise_rate": float(rate_found[0] if rate_found else flagged.mean()),
            "noise_rate_interval": [rate_found[0].low, rate_found[0].high] if rate_found else None,
        }
        flags.append(flagged)
    found = {"kind": kind, "rate": rate, "seed": seed, "methods": rows}
    if not retrain:
        return found
    everything = np.ones(len(given), dtype=bool)
    final = accuracies(
        inputs, [given] * (2 + len(names)), [everything, ~wrong, *[~flag for flag in flags]], test, test_truth, seed
    )
    a_n, a_p = final[:2]
    for name, a_c in zip(names, final[2:]):
        rows[name] |= {"accuracy": a_c, "Q": (a_c - a_n) / (a_p - a_n) if wrong.any() else None}
    return found | {"accuracy_noisy": a_n, "accuracy_perfect": a_p}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--no-retraining", action="store_true", help="leave Q out, which takes half of the time")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cleaning.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = mnist(Path(os.environ.get("SGDKERN_DATA", "../shared/data")) / "mnist4k")
    machine = {"machine": platform.machine(), "threads": 1, "torch": torch.__version__, "numpy": np.__version__}
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name in options.conditions:
            runs.append(measure(data, *CONDITIONS[name], seed, options.methods, retrain=not options.no_retraining))
            print(json.dumps(runs[-1]), flush=True)
            options.out.write_text(json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
