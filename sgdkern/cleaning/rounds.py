"""Rounds of training: record margins before memorisation, drop the labels they contradict, train again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.classification import margins
from sgdkern.cleaning.members import Members

MIN_EPOCHS = 8  # at high noise the accuracy of the first epochs is chance: its largest value must not be one of them
MIN_AVERAGED = 6  # margins of the first epochs are of networks that know little: not less than six are averaged
STOP_AFTER = 1.5  # margins are averaged to 1.5 times the epoch of the best held-out accuracy, then training stops


@dataclass(frozen=True)
class Schedule:
    """How one round trains.

    Attributes:
        num_folds: each member leaves one of so many parts of the data out.
        batch_size: samples a step.
        max_epochs: most epochs of one round.
        min_steps: least steps an epoch; small data take several passes, or there would be too few to learn anything.
    """

    num_folds: int
    batch_size: int
    max_epochs: int
    min_steps: int


@dataclass(frozen=True)
class Round:
    """What one round of training recorded of each sample.

    Attributes:
        margins: [N] margin of the given label, averaged over all visits up to `last_epoch` by the members that were
            trained on the sample (over evaluations by all members where none was).
        held_out_logits: [N, C] outputs averaged over all epochs and over the members that left the sample out (over
            all members where every one was trained on it).
        trained_logits: [N, C] outputs averaged over all epochs and over the members that were trained on the sample;
            0 where none was.
        held_out: [N] bool, where some member left the sample out; with fewer members than folds, not everywhere.
        held_out_accuracy: one number an epoch, agreement with the given labels of the samples left out.
        steps_per_epoch: how many steps an epoch is here.
        best_epoch: epoch of the largest held-out accuracy, smoothed over three epochs.
        last_epoch: up to where margins were averaged, 1.5 times the best epoch, at least six.
    """

    margins: Tensor
    held_out_logits: Tensor
    trained_logits: Tensor
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
    """Train the members on the kept samples and average the margins of all samples until memorisation.

    A member's margin of a sample that it is trained on is that of the forward pass of its own step; only the samples
    that it does not see are evaluated, once an epoch.

    An epoch is as many steps as all samples would take, whatever share is kept, so that rounds are comparable; more
    where there are few samples.

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
    left_out = leave_out(len(labels), members.num_members, schedule.num_folds, generator)
    kept = kept.cpu()
    seen = [(kept & ~out).nonzero().squeeze(1) for out in left_out]
    length = len(labels) - int(left_out.sum(dim=1).max())
    batch_size = min(schedule.batch_size, length)
    steps = max(length // batch_size, schedule.min_steps)
    record = _Record(labels, left_out, kept)
    for epoch in range(1, schedule.max_epochs + 1):
        orders = torch.stack([_order(subset, steps * batch_size, generator) for subset in seen]).to(labels.device)
        visited = members.train_epoch(inputs, labels, orders, batch_size)
        record.add(orders, visited, members.logits(inputs, record.unseen))
        if on_epoch is not None:
            on_epoch(epoch)
        if epoch >= MIN_EPOCHS and epoch > STOP_AFTER * _best(record.accuracy):
            break
    return record.conclude(steps)


class _Record:
    """What is known of the samples while a round goes on.

    Args:
        labels: [N] the given labels.
        left_out: [E, N] bool, on the CPU, as `leave_out` draws it.
        kept: [N] bool, on the CPU, the samples trained on.
    """

    def __init__(self, labels: Tensor, left_out: Tensor, kept: Tensor) -> None:
        device = labels.device
        unseen = _padded([(~kept | out).nonzero().squeeze(1) for out in left_out])
        outside = left_out.gather(1, unseen)
        self.labels = labels
        self.unseen = unseen.to(device)  # [E, M] the samples that each member is not trained on
        self.held_out = left_out.any(dim=0).to(device)
        self.judges = (outside & kept[unseen]).to(device)  # [E, M] left out, with a label that nothing contradicts
        # [E, M] evaluations that count as predictions: of samples left out, not of those dropped; of all where none was
        self.counted = outside.to(device) | ~self.held_out[self.unseen]
        self.margins = [_Average((len(labels),), torch.float64, device) for _ in range(2)]  # trained on, evaluated
        self.logits: list[_Average] = []  # the same two
        self.running: list[Tensor] = []  # [N] each, mean margins so far
        self.accuracy: list[float] = []

    def add(self, orders: Tensor, visited: Tensor, evaluated: Tensor) -> None:
        """Count an epoch's outputs: visited [E, n, C] at orders [E, n], evaluated [E, M, C] at the samples unseen."""
        of_given = margins(evaluated, self.labels[self.unseen])
        trained, judged = self.margins
        trained.add(orders, margins(visited, self.labels[orders]))
        judged.add(self.unseen, of_given)
        self.running.append(torch.where(trained.counts > 0, trained.mean(), judged.mean()))
        right = (of_given > 0) & self.judges
        self.accuracy.append(float(right.sum() / self.judges.sum().clamp(min=1)))
        if not self.logits:
            shape = (len(self.labels), visited.shape[2])
            self.logits = [_Average(shape, visited.dtype, visited.device) for _ in range(2)]
        self.logits[0].add(orders, visited)
        self.logits[1].add(self.unseen[self.counted], evaluated[self.counted])

    def conclude(self, steps: int) -> Round:
        """Return the record of the round, whose epochs had so many steps."""
        best = _best(self.accuracy)
        last = min(len(self.running), max(MIN_AVERAGED, round(STOP_AFTER * best)))
        trained, judged = (average.mean() for average in self.logits)
        return Round(
            margins=self.running[last - 1],
            held_out_logits=torch.where(self.logits[1].counts[:, None] > 0, judged, trained),
            trained_logits=trained,
            held_out=self.held_out,
            held_out_accuracy=tuple(self.accuracy),
            steps_per_epoch=steps,
            best_epoch=best,
            last_epoch=last,
        )


class _Average:
    """Means of what comes sample by sample; shape is [N] or [N, C]."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.total = torch.zeros(shape, dtype=dtype, device=device)
        self.counts = torch.zeros(shape[0], dtype=torch.int64, device=device)

    def add(self, places: Tensor, values: Tensor) -> None:
        """Count values [..., C] of the samples at places [...]."""
        flat = places.flatten()
        self.total.index_add_(0, flat, values.reshape(len(flat), *self.total.shape[1:]).to(self.total.dtype))
        self.counts += torch.bincount(flat, minlength=len(self.counts))

    def mean(self) -> Tensor:
        """Return the means; 0 for samples that nothing came of."""
        return self.total / self.counts.clamp(min=1).view(-1, *[1] * (self.total.dim() - 1))


def _padded(subsets: list[Tensor]) -> Tensor:
    """Stack subsets of slightly different lengths, [E, M], the shorter ones filled up with repetitions."""
    longest = max(map(len, subsets))
    return torch.stack([subset.repeat(-(-longest // len(subset)))[:longest] for subset in subsets])


def _order(subset: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Visit a subset in random order, again and again, until so many samples are visited."""
    passes = [subset[torch.randperm(len(subset), generator=generator)] for _ in range(-(-length // len(subset)))]
    return torch.cat(passes)[:length]


def _best(accuracy: list[float]) -> int:
    """Return the epoch, from 1, of the largest mean of three neighbouring accuracies (the ends count double)."""
    padded = torch.tensor([accuracy[0], *accuracy, accuracy[-1]], dtype=torch.float64)
    return int(padded.unfold(0, 3, 1).mean(dim=1).argmax()) + 1
