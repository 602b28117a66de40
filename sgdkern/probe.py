"""Probe: measures a model at chosen steps of anybody's training loop, and leaves no trace in it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from sgdkern.alarm import Alarm, Lookout
from sgdkern.best_weights import BestWeights
from sgdkern.blind_groups import presumed_wrong
from sgdkern.capture import per_sample_gradients
from sgdkern.classification import margins_and_predictions
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.gram_pass import GramMatrix, gram_matrix
from sgdkern.history import History, HistoryWriter
from sgdkern.non_finite import non_finite
from sgdkern.order_parameters import cosine_null, group_statistics, order_parameters
from sgdkern.phase_detector import PhaseEvent
from sgdkern.record import GroupRecord, NullRecord, Record, SpectrumRecord
from sgdkern.schedule import Every, schedule
from sgdkern.spectrum import noise_spectrum
from sgdkern.statistics import LARGEST_GRAM, Groups, Statistics, partition, statistics

Metrics: TypeAlias = "Mapping[str, float]"
Gradients: TypeAlias = GradientMatrix | GramMatrix
_NULL_LEVELS = (0.025, 0.975)


class Probe:
    """Measures a model on a fixed set of samples, again and again over a training run.

    In a loop, ``probe(step)`` measures where a measurement is due; ``probe.measure(step)`` measures in any case. The
    model comes back untouched to the bit. Everything measured is in ``probe.history``, every change of phase in
    ``probe.events``; once the network begins to memorise wrong labels, ``probe.alarm`` says so.

    Besides the whole set, partitions of the samples are followed: ``given`` (``groups``) and those of ``partitions``
    (classes, sources, annotators), where the user knows any, ``blind`` (c, presumably right, and w, presumably wrong: a
    mixture of two Gaussians fitted to each sample's mean loss over the records so far; no label's truth is asked) and
    ``random`` (a random split of the same sizes, what the blind groups are to be compared with).

    Args:
        model: The network; it is measured in evaluation mode and its training flags come back.
        loss_fn: As for ``sgdkern.per_sample_gradients``.
        inputs: The samples to probe, [N, ...]; tensors, or nested tuples and dicts of tensors.
        targets: Their targets, [N, ...].
        batch_size: B, the size of the minibatches whose noise is asked for.
        groups: A partition of the samples: integers [N] or {name: boolean mask [N]}.
        partitions: Further partitions by name, each as ``groups``.
        null_every: Draw at every so many records, the first included, what the cosines between the groups of ``given``
            and of ``partitions`` would be for random splits of the same sizes; None draws nothing.
        null_splits: How many random splits to draw then; the middle 95 % of them are kept.
        every: When to measure: None for 16 steps a decade, a number of steps, a collection of steps, or a function of
            the step.
        spectrum_every: Measure the noise spectrum at every so many records, the first included; None measures none.
        blind: Whether to follow blind groups and their random split.
        params: Restricts the gradient to parameters, as for ``sgdkern.per_sample_gradients``.
        metrics: A function that is asked for further numbers at each record (test error, say); it must leave the model
            alone.
        num_minibatches: Minibatches drawn for the alignment R; 0 leaves it out.
        population_size: Size of the set that the samples were drawn from, for the unbiased estimates; None for a
            population without end. Pass N where the samples are the whole training set.
        steps_per_epoch: Gives records their epoch; None leaves it out.
        seed: Every record draws from a generator of its own, made from this and its step, so that a record does not
            depend on which others were made.
        path: A file that receives every record at once, one line each (closed by ``close`` or at the end of ``with``).
        history: Records to go on from (with ``path``: records after its last step are cut off the file); None
            begins anew.
        on_record: Called with each new record.
        on_event: Called with each change of phase; that to phase III is an ``Alarm``.
        checkpoint: A file that receives, at the alarm, the weights of phase II's best moment (``best_phase_II.pt``,
            say): what ``model.load_state_dict`` takes. Until then the weights of past records are held beside it, in
            ``<checkpoint>.candidates``.
        keep: How many candidates are held there at most. The best moment's weights are among them, or those of a step
            within a factor (s + 1)^(1 / (keep − 1)), s being the steps so far: with 32 of them 1.35 after 10,000 steps.

    Attributes:
        history: All records so far.
        seconds: Time spent in measurements so far.

    Raises:
        ValueError: If the groups are not a partition of the samples, or a number is out of range.
        FileExistsError: If ``path`` or ``checkpoint`` holds something and no history is given to go on from.

    Example:
        >>> import torch, sgdkern as sk
        >>> model = torch.nn.Linear(4, 2)
        >>> inputs, targets = torch.randn(60, 4), torch.arange(60) % 2
        >>> loss_fn = torch.nn.CrossEntropyLoss()
        >>> optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> probe = sk.Probe(model, loss_fn, inputs, targets, batch_size=10, every=5)
        >>> for step in range(11):
        ...     record = probe(step)
        ...     optimiser.zero_grad()
        ...     loss_fn(model(inputs[step::11]), targets[step::11]).backward()
        ...     optimiser.step()
        >>> probe.history.steps.tolist()
        [0, 5, 10]
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Any],
        inputs: Any,
        targets: Any,
        *,
        batch_size: int = 25,
        groups: Groups | None = None,
        partitions: Mapping[str, Groups] | None = None,
        null_every: int | None = None,
        null_splits: int = 100,
        every: Every = None,
        spectrum_every: int | None = None,
        blind: bool = True,
        params: Any = None,
        metrics: Callable[[], Metrics] | None = None,
        num_minibatches: int = 512,
        population_size: int | None = None,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
        history: History | None = None,
        on_record: Callable[[Record], object] | None = None,
        on_event: Callable[[PhaseEvent], object] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        keep: int = 32,
    ) -> None:
        num_samples = _first_axis(inputs)
        if not 1 <= batch_size <= num_samples:
            raise ValueError(
                f"Probe: batch_size must lie in 1 … {num_samples}, the number of samples to probe, got {batch_size}. "
                "Probe more samples or ask for smaller minibatches."
            )
        if spectrum_every is not None and spectrum_every < 1:
            raise ValueError(f"Probe: spectrum_every must be at least 1 record, got {spectrum_every}.")
        if null_every is not None and (null_every < 1 or null_splits < 1):
            raise ValueError(
                f"Probe: null_every and null_splits must be at least 1, got {null_every} and {null_splits}."
            )
        self._known = _known_partitions(groups, partitions or {}, num_samples)
        self._null_every, self._null_splits = null_every, null_splits
        self._model, self._loss_fn, self._inputs, self._targets = model, loss_fn, inputs, targets
        self._batch_size, self._groups, self._params = batch_size, groups, params
        self._is_due = schedule(every)
        self._spectrum_every, self._blind = spectrum_every, blind
        self._metrics, self._on_record, self._on_event = metrics, on_record, on_event
        self._num_minibatches, self._population_size = num_minibatches, population_size
        self._steps_per_epoch, self._seed = steps_per_epoch, seed
        self.seconds = 0.0
        self.history = History(self._header(num_samples)) if history is None else history
        self._summed_losses = np.zeros(num_samples)
        weights = None if checkpoint is None else _best_weights(Path(checkpoint), keep=keep, anew=history is None)
        self._lookout = Lookout(self.history.header, weights=weights)
        seen = History(self.history.header)
        for record in self.history:
            self._summed_losses = self._with_losses(record.losses)
            self._lookout.hold(record.step, None)
            seen.append(record)
            self._lookout.update(seen)
        self._writer: HistoryWriter | None = None
        if path is not None and self.history.records:
            self._writer = HistoryWriter.resume(path, self.history.records[-1].step)
        elif path is not None:
            self._writer = HistoryWriter(path, self.history.header)

    def __call__(self, step: int, metrics: Metrics | None = None) -> Record | None:
        """Measure where a measurement is due.

        Args:
            step: Optimiser steps taken so far.
            metrics: Further numbers to keep with the record.

        Returns:
            The record, or None where none was due or the step has been measured.
        """
        done = bool(self.history.records) and step <= self.history.records[-1].step
        return None if done or not self._is_due(step) else self.measure(step, metrics=metrics)

    def measure(self, step: int, *, metrics: Metrics | None = None) -> Record:
        """Measure now.

        Args:
            step: Optimiser steps taken so far; larger than that of the last record.
            metrics: Further numbers to keep with the record.

        Returns:
            The record, which is in ``history`` as well.

        Raises:
            ValueError: If the step does not increase.
            RuntimeError: If a loss (``NonFiniteError``) or a gradient is not finite; step, layer and samples are named.
        """
        if self.history.records and step <= self.history.records[-1].step:
            last = self.history.records[-1].step
            raise ValueError(f"Probe: steps must increase, got {step} after {last}. Measure a step once.")
        began = time.perf_counter()
        record = self._record(step, dict(metrics or {}))
        self._lookout.hold(step, self._model)  # before the record: where the record is, the weights are
        self.history.append(record)
        self._summed_losses = self._with_losses(record.losses)
        if self._writer is not None:
            self._writer.append(record)
        event = self._lookout.update(self.history)
        self.seconds += time.perf_counter() - began
        if self._on_record is not None:
            self._on_record(record)
        if event is not None and self._on_event is not None:
            self._on_event(event)
        return record

    @property
    def phase(self) -> str:
        """The phase that training is in, as far as told: `I`, `II`, `III`, `IV` or `exploration`."""
        return self._lookout.phase

    @property
    def events(self) -> tuple[PhaseEvent, ...]:
        """All changes of phase so far, those of the history that was gone on from included."""
        return tuple(self._lookout.events)

    @property
    def alarm(self) -> Alarm | None:
        """What there is to know once the network begins to memorise wrong labels; None before that."""
        return self._lookout.alarm

    @property
    def spectrum_is_due(self) -> bool:
        """Whether the next record is to hold the noise spectrum."""
        return self._spectrum_every is not None and len(self.history) % self._spectrum_every == 0

    def close(self) -> None:
        """Close the file of ``path``."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _header(self, num_samples: int) -> dict[str, Any]:
        header: dict[str, Any] = {"num_samples": num_samples, "batch_size": self._batch_size, "seed": self._seed}
        if isinstance(self._targets, Tensor) and not self._targets.is_floating_point() and self._targets.ndim == 1:
            header["given_labels"] = self._targets.cpu().numpy()
        if self._steps_per_epoch is not None:
            header["steps_per_epoch"] = self._steps_per_epoch
        return header

    def _record(self, step: int, metrics: dict[str, float]) -> Record:
        """One capture of the gradients, and everything that is read from it."""
        gradients = self._gradients(step)
        losses = gradients.losses.detach().cpu().numpy().astype(np.float32)
        found = statistics(gradients)
        measured = order_parameters(
            gradients,
            batch_size=self._batch_size,
            groups=self._groups,
            num_minibatches=self._num_minibatches,
            generator=self._generator(step),
            population_size=float("inf") if self._population_size is None else self._population_size,
            statistics=found,
        )
        partitions = self._partitions(self._with_losses(losses))
        margins, predictions = margins_and_predictions(gradients.outputs, self._targets)
        return Record(
            step=step,
            epoch=None if self._steps_per_epoch is None else step / self._steps_per_epoch,
            values=measured.scalars(),
            metrics={**metrics, **(self._metrics() if self._metrics is not None else {})},
            groups={name: self._group_record(gradients, found, groups) for name, groups in partitions.items()},
            nulls=self._nulls(step, gradients, found),
            spectrum=self._spectrum(gradients),
            losses=losses,
            margins=margins,
            predictions=predictions,
        )

    def _gradients(self, step: int) -> Gradients:
        """G, or K alone, in evaluation mode; what is not finite is an error that names step, layer and samples."""
        problem = (self._model, self._loss_fn, self._inputs, self._targets)
        with _evaluation_mode(self._model):
            try:
                # Where K is what all is read from, G need not stay.
                measure = gram_matrix if len(self._summed_losses) <= LARGEST_GRAM else per_sample_gradients
                gradients = measure(*problem, params=self._params)
            except RuntimeError as error:
                found = non_finite(step, *problem)
                raise found or RuntimeError(f"Probe: at step {step}: {error}") from error
            if not bool(gradients.losses.isfinite().all()) and (found := non_finite(step, *problem)) is not None:
                raise found
        return gradients

    def _with_losses(self, losses: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
        """The sums that the blind groups are formed from, with a further record's losses."""
        return self._summed_losses if losses is None else self._summed_losses + losses.astype(np.float64)

    def _generator(self, step: int) -> torch.Generator:
        """A generator that depends on the seed and the step only."""
        return torch.Generator().manual_seed((self._seed * 1_000_003 + step) % 2**63)

    def _partitions(self, summed_losses: np.ndarray[Any, Any]) -> dict[str, Groups]:
        """The partitions to follow at this record."""
        partitions: dict[str, Groups] = dict(self._known)
        wrong = presumed_wrong(np.divide(summed_losses, len(self.history) + 1)) if self._blind else None
        if wrong is not None:
            shuffled = torch.randperm(len(wrong), generator=self._generator(-1)).numpy()
            drawn = np.zeros_like(wrong)
            drawn[shuffled[: int(wrong.sum())]] = True
            partitions["blind"] = {"c": torch.from_numpy(~wrong), "w": torch.from_numpy(wrong)}
            partitions["random"] = {"c": torch.from_numpy(~drawn), "w": torch.from_numpy(drawn)}
        return partitions

    def _group_record(self, gradients: Gradients, found: Statistics, groups: Groups) -> GroupRecord:
        measured = group_statistics(found.with_groups(gradients, groups), batch_size=self._batch_size)
        return GroupRecord(measured.names, measured.counts, measured.A, measured.A0, measured.cosines)

    def _nulls(self, step: int, gradients: Gradients, found: Statistics) -> dict[str, NullRecord]:
        """What chance would give for each known partition, where it is this record's turn."""
        if self._null_every is None or len(self.history) % self._null_every:
            return {}
        nulls: dict[str, NullRecord] = {}
        drawn: dict[tuple[int, ...], NullRecord] = {}  # partitions of the same sizes have the same null
        for name, groups in self._known.items():
            counts = tuple(partition(groups, found.num_samples)[1].bincount().tolist())
            if counts not in drawn:
                null = cosine_null(
                    gradients, found, counts, num_splits=self._null_splits, generator=self._generator(step),
                    levels=_NULL_LEVELS,
                )  # fmt: skip
                lower, upper = (tuple(map(tuple, matrix.tolist())) for matrix in null.quantiles)
                drawn[counts] = NullRecord(lower, upper, _NULL_LEVELS, null.num_splits)
            nulls[name] = drawn[counts]
        return nulls

    def _spectrum(self, gradients: Gradients) -> SpectrumRecord | None:
        """The noise spectrum, where it is this record's turn."""
        if not self.spectrum_is_due:
            return None
        spectrum = noise_spectrum(gradients, batch_size=self._batch_size)
        dimension = spectrum.effective_dimension
        return SpectrumRecord(
            eigenvalues=tuple(spectrum.eigenvalues.tolist()),
            trace=spectrum.trace,
            effective_dimension=float("nan") if dimension is None else float(dimension),
            method=spectrum.method,
            converged=spectrum.converged,
            params="all" if self._params is None else ", ".join(gradients.parameters),
        )


def _known_partitions(groups: Groups | None, partitions: Mapping[str, Groups], num_samples: int) -> dict[str, Groups]:
    """The user's partitions by name, each seen to be one."""
    if taken := {"given", "blind", "random"} & set(partitions):
        raise ValueError(f"Probe: partitions must not be called {', '.join(sorted(taken))}. Choose another name.")
    known = ({} if groups is None else {"given": groups}) | dict(partitions)
    for one in known.values():
        partition(one, num_samples)
    return known


def _best_weights(path: Path, *, keep: int, anew: bool) -> BestWeights:
    """The weights to hold; a new run does not mix with what an earlier one left."""
    if anew and (path.exists() or path.with_name(path.name + ".candidates").exists()):
        raise FileExistsError(
            f"Probe: the checkpoint must be a new file, but {path} or its candidates exist. Move them away, or pass "
            "history= to go on with the run that they belong to."
        )
    return BestWeights(path, keep=keep)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own flag comes back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _first_axis(inputs: Any) -> int:
    """Number of samples, of the first tensor in nested tuples, lists and dicts."""
    if isinstance(inputs, Tensor):
        return int(inputs.shape[0])
    members = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    return _first_axis(members[0])
