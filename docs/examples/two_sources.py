"""Two sources of labels, one of them bad: which one it is, found from how their gradients agree.

python docs/examples/two_sources.py FOLDER --seeds 70 71 72     every case and seed: a table and figures

The page beside this file, two_sources.md, tells what it shows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sgdkern as sk
from sgdkern.data import Dataset, load_data
from sgdkern.report import group_alignment_figures
from sgdkern.schedule import log_spaced_steps
from sgdkern.training import Trainer, build_model, evaluate

# What is wrong with source b, and whether there is anything to find.
CASES = {
    "b: 60 % of the labels wrong": True,
    "b: 30 % of the labels wrong": True,
    "neither": False,
    "both: 30 % of the labels wrong": False,
    "b: noisy images, right labels": False,
}
SPLITS = 10  # random splits of the same samples, followed as if they were sources: how often does chance accuse one?


def case_of(name: str, seed: int) -> tuple[Dataset, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The digits with every sample given to one of two sources at random: data, inputs, labels, whether from b."""
    data, generator = load_data("digits", seed=seed), torch.Generator().manual_seed(seed)
    inputs, labels = data.train_inputs.clone(), data.train_labels.clone()
    from_b = torch.randperm(len(labels), generator=generator) % 2 == 1
    rate = 0.6 if "60 %" in name else 0.3 if "30 %" in name else 0.0
    spoiled = (from_b | ("both" in name)) & (torch.rand(len(labels), generator=generator) < rate)
    others = torch.randint(1, 10, labels.shape, generator=generator)
    labels[spoiled] = (labels + others)[spoiled] % 10
    if "noisy images" in name:
        inputs[from_b] += torch.randn(inputs[from_b].shape, generator=generator)
    return data, inputs, labels, from_b


def observe(name: str, seed: int, *, epochs: int) -> sk.History:
    """Train on what both sources gave, under a probe that is told which sample came from where, and nothing else."""
    data, inputs, labels, from_b = case_of(name, seed)
    generator = torch.Generator().manual_seed(seed)
    model = build_model("mlp", input_shape=data.input_shape, num_classes=10, hidden=(64, 64), seed=seed)
    trainer = Trainer(model, nn.functional.cross_entropy, inputs, labels, lr=0.1, batch_size=25, generator=generator)
    partitions = {"sources": {"a": ~from_b, "b": from_b}}
    for number in range(SPLITS):
        partitions[f"split {number}"] = torch.randperm(len(labels), generator=generator) % 2
    probe = sk.Probe(
        model, nn.CrossEntropyLoss(), inputs, labels, batch_size=25, partitions=partitions, null_every=3,
        blind=False, num_minibatches=0, population_size=len(labels), steps_per_epoch=trainer.steps_per_epoch,
        metrics=lambda: {"test_error": evaluate(model, data.test_inputs, data.test_labels).error},
    )  # fmt: skip
    for step in log_spaced_steps(epochs * trainer.steps_per_epoch, count=45):
        trainer.advance(step - trainer.step)
        probe.measure(step)
    return probe.history


def share_below_chance(history: sk.History, partition: str = "sources") -> dict[str, float]:
    """In how much of phase I a group's cosine with the mean of all lies below what random splits give."""
    # In phase I the network learns what most labels say. A group whose labels say something else pulls another way.
    end = sk.label_phases(history).t12 or history.steps[-1]
    found: dict[str, list[bool]] = {}
    for record in history:
        if partition in record.nulls and (record.epoch or 0.0) >= 0.1 and record.step <= end:
            with_all, lowest = record.groups[partition].cosines[-1], record.nulls[partition].lower[-1]
            for name, cosine, bound in zip(record.groups[partition].names, with_all, lowest):
                found.setdefault(name, []).append(cosine < bound)
    return {name: float(np.mean(below)) for name, below in found.items()}


def accused(history: sk.History, partition: str = "sources") -> list[str]:
    """The groups below chance in more than half of phase I, if wrong labels were seen and most groups are not below."""
    if sk.label_phases(history).verdict == "two phases":
        return []
    shares = share_below_chance(history, partition)
    found = [name for name, share in shares.items() if share > 0.5]
    return found if 2 * len(found) <= len(shares) else []


def main() -> None:
    """Every case with every seed; the figures are of the first seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[70, 71, 72, 73, 74])
    parser.add_argument("--epochs", type=int, default=40, help="250 pass through all four phases")
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print("| source | seed | below chance in phase I: a | b | accused | random splits accused | phases |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.cases:
        for seed in options.seeds:
            path = options.folder / f"{name.replace(' ', '_').replace(':', '').replace(',', '')}-{seed}.jsonl"
            if not path.exists():
                observe(name, seed, epochs=options.epochs).save(path)
            history = sk.History.load(path)
            share, found = share_below_chance(history), accused(history)
            by_chance = sum(bool(accused(history, f"split {number}")) for number in range(SPLITS))
            told = f"{share['a']:.2f} | {share['b']:.2f} | {', '.join(found) or 'none'} | {by_chance} of {SPLITS}"
            print(f"| {name} | {seed} | {told} | {sk.label_phases(history).verdict} |", flush=True)
            if seed == options.seeds[0]:
                for kind, figure in group_alignment_figures(history, "sources").items():
                    figure.savefig(path.with_suffix("").with_name(f"{path.stem}-{kind}.png"), dpi=120)


if __name__ == "__main__":
    main()
