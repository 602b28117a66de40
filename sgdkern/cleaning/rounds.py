"""Rounds of training: record margins before memorisation, drop the labels they contradict, train again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.classification import margins
from sgdkern.cleaning.members import Members

MIN_STEPS = 20  # small data take several passes an epoch, or forty epochs would be too few steps to learn anything
MIN_EPOCHS = 8  # at high noise the accuracy of the first epochs is chance: its largest value must not be one of them
STOP_AFTER = 1.5  # margins are averaged to 1.5 times the epoch of the best held-out accuracy, then training stops


@dataclass(frozen=True)
class Schedule:
    """How one round trains.

    Attributes:
        num_folds: each member leaves one of so many parts of the data out.
        batch_size: samples a step.
        max_epochs: most epochs of one round.
    """

    num_folds: int
    batch_size: int
    max_epochs: int


@dataclass(frozen=True)
class Round:
    """What one round of training recorded of each sample.

    Attributes:
        margins: [N] margin of the given label, averaged over the epochs up to `last_epoch` and over the members that
            were trained on the sample (over all members where none was).
        held_out_logits: [N, C] outputs averaged over all epochs and over the members that left the sample out (over
            all members where every one was trained on it).
        held_out: [N] bool, where some member left the sample out; with fewer members than folds, not everywhere.
        held_out_accuracy: one number an epoch, agreement with the given labels of the samples left out.
        steps_per_epoch: how many steps an epoch is here.
        best_epoch: epoch of the largest held-out accuracy, smoothed over three epochs.
        last_epoch: up to where margins were averaged, 1.5 times the best epoch.
    """

    margins: Tensor
    held_out_logits: Tensor
    held_out: Tensor
    held_out_accuracy: tuple[float, ...]
    steps_per_epoch: int
    best_epoch: int
    last_epoch: int


def leave_out(num_samples: int, num_members: int, num_folds: int, generator: torch.Generator) -> Tensor:
    """Draw which samples each member leaves out: parts of random partitions into folds.

    Args:
        num_samples: N.
        num_members: E; every `num_folds` members share a partition.
        num_folds: parts of a partition.
        generator: draws the partitions.

    Returns:
        [E, N] bool, True where the member does not see the sample.
    """
    left_out = torch.zeros(num_members, num_samples, dtype=torch.bool)
    for member in range(num_members):
        if member % num_folds == 0:
            parts = torch.randperm(num_samples, generator=generator).tensor_split(num_folds)
        left_out[member, parts[member % num_folds]] = True
    return left_out


def train_round(
    members: Members,
    inputs: Tensor,
    labels: Tensor,
    kept: Tensor,
    schedule: Schedule,
    *,
    generator: torch.Generator,
    on_epoch: Callable[[int], None] | None = None,
) -> Round:
    """Train the members on the kept samples and record the margins of all samples after every epoch.

    An epoch is as many steps as all samples would take, whatever share is kept, so that rounds are comparable; at least
    20 where there are few samples.

    Args:
        members: fresh networks.
        inputs: [N, ...].
        labels: [N] int64, the given labels.
        kept: [N] bool, the samples to train on.
        schedule: folds, minibatches and epochs.
        generator: draws folds and the order of samples, on the CPU.
        on_epoch: called with the number of epochs done.

    Returns:
        The record of the round.
    """
    device = labels.device
    left_out = leave_out(len(labels), members.num_members, schedule.num_folds, generator)
    kept = kept.cpu()
    seen = [(kept & ~out).nonzero().squeeze(1) for out in left_out]
    length = len(labels) - int(left_out.sum(dim=1).max())
    batch_size = min(schedule.batch_size, length)
    steps = max(length // batch_size, MIN_STEPS)
    held_out = left_out.to(device)
    trained = (~left_out & kept).to(device)
    judged = (left_out & kept).to(device)
    total = torch.zeros(len(labels), dtype=torch.float64, device=device)
    running: list[Tensor] = []
    accuracy: list[float] = []
    logits_sum: Tensor | float = 0.0
    for epoch in range(1, schedule.max_epochs + 1):
        orders = torch.stack([_order(subset, steps * batch_size, generator) for subset in seen]).to(device)
        members.train_epoch(inputs, labels, orders, batch_size)
        logits = members.logits(inputs)
        of_given = margins(logits, labels)
        total = total + _masked_mean(of_given, trained)
        running.append(total / epoch)
        logits_sum = logits_sum + _masked_mean(logits, held_out)
        accuracy.append(float(((of_given > 0) & judged).sum() / judged.sum().clamp(min=1)))
        if on_epoch is not None:
            on_epoch(epoch)
        if epoch >= MIN_EPOCHS and epoch > STOP_AFTER * _best(accuracy):
            break
    best = _best(accuracy)
    last = min(len(running), round(STOP_AFTER * best))
    assert isinstance(logits_sum, Tensor)
    return Round(running[last - 1], logits_sum / len(running), held_out.any(dim=0), tuple(accuracy), steps, best, last)


def _order(subset: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Visit a subset in random order, again and again, until so many samples are visited."""
    passes = [subset[torch.randperm(len(subset), generator=generator)] for _ in range(-(-length // len(subset)))]
    return torch.cat(passes)[:length]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average values [E, N, ...] over the members where mask [E, N] holds; over all of them where it nowhere does."""
    weights = torch.where(mask.any(dim=0), mask, torch.ones_like(mask)).to(values.dtype)
    weights = weights / weights.sum(dim=0)
    return (values * weights.view(*weights.shape, *[1] * (values.dim() - 2))).sum(dim=0)


def _best(accuracy: list[float]) -> int:
    """Return the epoch, from 1, of the largest mean of three neighbouring accuracies (the ends count double)."""
    padded = torch.tensor([accuracy[0], *accuracy, accuracy[-1]], dtype=torch.float64)
    return int(padded.unfold(0, 3, 1).mean(dim=1).argmax()) + 1
