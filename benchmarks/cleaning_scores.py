"""Scores of wrong labels beside each other on 4,000 MNIST images: one plain run read in several ways, and LabelCleaner.

Run: ``python benchmarks/cleaning_scores.py`` (needs SGDKERN_DATA). Noise seeds 0 and 1, which are for choosing, not for
judging. The plain run is 784-50-50-10 by SGD at .02, 25 a step, 20 epochs, a record an epoch; gradients are those at
the cleaning time that the margins give. Prints the mean AUROC of the wrong labels and CPU seconds of one thread.
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleaning import CONDITIONS, mnist, network, with_noise
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from torch import nn

import sgdkern as sk
from sgdkern.cleaning import combine_ranks, gradient_alignment, neighbour_agreement

SEEDS, EPOCHS, BATCH_SIZE = (0, 1), 20, 25


def plain_run(inputs: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[np.ndarray, list[nn.Module]]:
    """Logits [epochs, N, 10] of one run, and the network after every epoch."""
    torch.manual_seed(seed)
    model, loss = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    logits, models = [], []
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            logits.append(model(inputs).numpy())
        models.append(copy.deepcopy(model))
    return np.stack(logits), models


def scores(inputs: torch.Tensor, given: np.ndarray, seed: int) -> dict[str, tuple[Any, float]]:
    """Name -> (score, lower is more suspicious; CPU seconds)."""
    found: dict[str, tuple[Any, float]] = {}
    labels, clock = torch.as_tensor(given), time.process_time
    start = clock()
    logits, models = plain_run(inputs, labels, seed)
    run = clock() - start
    steps = np.arange(1, EPOCHS + 1) * (len(given) // BATCH_SIZE)
    issues = {
        m: sk.find_label_issues(logits, labels=given, kind="logits", steps=steps, method=m) for m in ("aum", "paper")
    }
    found["margins of one run (`aum`)"] = issues["aum"].label_quality, run
    found["the paper's losses (`paper`)"] = issues["paper"].label_quality, run
    start = clock()
    epoch = int(np.searchsorted(steps, issues["aum"].cleaning_step).clip(0, EPOCHS - 1))
    gram = sk.gram_matrix(models[epoch], nn.CrossEntropyLoss(), inputs, labels).gram().numpy()
    aligned = gradient_alignment(gram, given, ~issues["aum"].is_label_issue)
    run += clock() - start
    found["gradients, leave-one-out cosine"] = aligned, run
    start = clock()
    near = neighbour_agreement(PCA(50, random_state=0).fit_transform(inputs.numpy()), given)
    asked = clock() - start
    found["30 nearest neighbours"] = near, asked
    found["ranks of margins, gradients, neighbours"] = (
        combine_ranks(issues["aum"].label_quality, aligned, near),
        run + asked,
    )
    for name, cleaner in (
        ('`LabelCleaner(mode="fast")`', sk.LabelCleaner(mode="fast")),
        ("`LabelCleaner()`: out of fold, iterated", sk.LabelCleaner()),
    ):
        start = clock()
        found[name] = cleaner.fit(inputs.numpy(), given).label_quality_, clock() - start
    return found


def main() -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    inputs, truth, *_ = mnist(Path(os.environ.get("SGDKERN_DATA", "../shared/data")) / "mnist4k")
    noisy = {name: kind for name, kind in CONDITIONS.items() if name != "none"}
    table: dict[str, dict[str, list[float]]] = {}
    for name, (kind, rate) in noisy.items():
        for seed in SEEDS:
            given = with_noise(truth, kind, rate, seed)
            for score, (values, seconds) in scores(inputs, given, seed).items():
                row = table.setdefault(score, {})
                row.setdefault(name, []).append(roc_auc_score(given == truth, values))
                row.setdefault("CPU s", []).append(seconds)
    print(f"| score | {' | '.join(noisy)} | CPU s |\n{'| --- ' * (len(noisy) + 2)}|")
    for score, row in table.items():
        cells = [f"{np.mean(row[name]):.3f}".lstrip("0") for name in noisy]
        print(f"| {score} | {' | '.join(cells)} | {np.mean(row['CPU s']):.1f} |")


if __name__ == "__main__":
    main()
