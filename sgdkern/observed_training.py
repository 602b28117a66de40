"""Training under a probe: measured at log-spaced steps, kept on the disk, and resumable after a kill at any moment.

Order of writing: first the record (one synced line of ``history.jsonl``), then the checkpoint (renamed into place). A
kill between the two leaves a record that the checkpoint does not know; resuming cuts it off and measures it again, to
the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdkern.alarm import Alarm
from sgdkern.atomic import replacing
from sgdkern.best_weights import BestWeights
from sgdkern.capture import per_sample_gradients
from sgdkern.data import Dataset
from sgdkern.history import History
from sgdkern.probe import Probe
from sgdkern.run_config import RunConfig
from sgdkern.schedule import log_spaced_steps
from sgdkern.spectrum import noise_spectrum
from sgdkern.training import Trainer, build_model, evaluate

HISTORY = "history.jsonl"
CHECKPOINT = "checkpoint.pt"
BEST_WEIGHTS = "best_phase_II.pt"

# Steps between two reports of progress: some tens of milliseconds.
_STEPS_AT_ONCE = 200


@dataclass(frozen=True)
class Progress:
    """How far a stage of the run has come.

    Attributes:
        stage: What is being done, in words.
        done: Steps done.
        total: Steps in all.
        phase: The phase that training seems to be in now; empty where it cannot be said.
    """

    stage: str
    done: int
    total: int
    phase: str = ""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class ObservedTraining:
    """A trained network and what was measured on the way.

    Attributes:
        model: As it is after the last step.
        history: All records.
        alarm: What was said when phase III began; None where it was not seen to begin.
        train_seconds: Time spent in training steps.
        probe_seconds: Time spent in measurements.
    """

    model: nn.Module
    history: History
    alarm: Alarm | None
    train_seconds: float
    probe_seconds: float


def new_trainer(
    config: RunConfig, data: Dataset, *, inputs: Tensor | None = None, labels: Tensor | None = None, order_seed: int
) -> Trainer:
    """The run's network with its initial weights, and the trainer that will change it.

    Args:
        config: The settings.
        data: The data set, on the run's device.
        inputs: Training inputs, where they are not all of the data set's.
        labels: Their labels.
        order_seed: Draws the order of the samples.

    Returns:
        A trainer at step 0.
    """
    model = build_model(
        config.model,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        hidden=config.hidden,
        activation=config.activation,
        seed=config.seed_for("weights"),
    )
    return Trainer(
        model.to(data.train_inputs.device),
        functional.cross_entropy,
        data.train_inputs if inputs is None else inputs,
        data.train_labels if labels is None else labels,
        lr=config.lr,
        batch_size=config.batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        generator=torch.Generator().manual_seed(order_seed),
        num_threads=config.threads,
    )


def hidden_parameters(model: nn.Module) -> list[str]:
    """Weights between two hidden layers: every weight but the first and the last.

    Args:
        model: A network whose parameters are in the order of its layers.

    Returns:
        Their names; none in a network with a single hidden layer.
    """
    weights = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    return weights[1:-1]


def observe_training(
    config: RunConfig, data: Dataset, folder: Path, *, resume: bool = False, on_progress: OnProgress | None = None
) -> ObservedTraining:
    """Train to the end, or to the alarm, measuring on the way; what is measured is in the folder at once.

    Args:
        config: The settings.
        data: The data set, on the run's device.
        folder: Receives ``history.jsonl``, ``checkpoint.pt`` and, where asked for, ``best_phase_II.pt``.
        resume: Go on from the folder's checkpoint, if there is one.
        on_progress: Told how far it is.

    Returns:
        The network and its history.

    Raises:
        ValueError: If the folder's history does not reach its checkpoint.
        NonFiniteError: If training diverges.
    """
    trainer = new_trainer(config, data, order_seed=config.seed_for("order"))
    total = config.epochs * trainer.steps_per_epoch
    history, seconds = None, {"train": 0.0, "probe": 0.0}
    if resume and (folder / CHECKPOINT).exists():
        history, seconds = _restore(folder, trainer)
    else:
        _begin_anew(folder)
    probe = _probe(config, data, trainer, folder, history)
    try:
        for step in log_spaced_steps(total, count=config.measurements):
            if config.stop_at_alarm and probe.alarm is not None:
                break
            if history is not None and step <= history.records[-1].step:
                continue
            began = time.perf_counter()
            while trainer.step < step:
                trainer.advance(min(_STEPS_AT_ONCE, step - trainer.step))
                if on_progress is not None:
                    on_progress(Progress("training", trainer.step, total, probe.phase))
            trained = time.perf_counter()
            probe.measure(step)
            seconds["train"] += trained - began
            seconds["probe"] += time.perf_counter() - trained
            with replacing(folder / CHECKPOINT) as file:
                torch.save({"trainer": trainer.state_dict(), "seconds": seconds}, file)
    finally:
        probe.close()
    if probe.alarm is None:
        BestWeights(folder / BEST_WEIGHTS).clear()  # none was the best: there is no phase II to go back to
    return ObservedTraining(trainer.model, probe.history, probe.alarm, seconds["train"], seconds["probe"])


def _begin_anew(folder: Path) -> None:
    """Nothing that an earlier attempt measured or kept is gone on from."""
    (folder / HISTORY).unlink(missing_ok=True)
    (folder / BEST_WEIGHTS).unlink(missing_ok=True)
    BestWeights(folder / BEST_WEIGHTS).clear()


def _probe(config: RunConfig, data: Dataset, trainer: Trainer, folder: Path, history: History | None) -> Probe:
    wrong = None if data.true_labels is None else data.train_labels != data.true_labels
    known = wrong is not None and bool(wrong.any()) and not bool(wrong.all())
    probe = Probe(
        trainer.model,
        functional.cross_entropy,
        data.train_inputs,
        data.train_labels,
        batch_size=min(config.batch_size, data.num_train),
        groups={"c": ~wrong.cpu(), "w": wrong.cpu()} if known and wrong is not None else None,
        partitions=named_groups(config, data),
        null_every=None if config.groups == "none" else config.spectrum_every,
        spectrum_every=config.spectrum_every,
        population_size=data.num_train,
        steps_per_epoch=trainer.steps_per_epoch,
        seed=config.seed_for("probe"),
        metrics=lambda: _metrics(config, data, trainer.model, with_spectrum=probe.spectrum_is_due),
        path=folder / HISTORY,
        history=history,
        checkpoint=folder / BEST_WEIGHTS if config.keep_best else None,
        keep=config.measurements + 2,  # all: the networks of a run are small
    )
    return probe


def named_groups(config: RunConfig, data: Dataset) -> dict[str, dict[str, Tensor]]:
    """Say whose alignment is asked for: that of the classes, or of the groups that a file names.

    Args:
        config: The settings; ``groups`` is ``none``, ``classes`` or a file.
        data: The data set, with labels as given.

    Returns:
        Partition to group to samples, boolean [N]; groups without a sample are left out.

    Raises:
        ValueError: If there is no such file, it does not hold one group for each image of the source, or its groups
            have fewer than two samples in the mean.
    """
    if config.groups == "none":
        return {}
    if config.groups == "classes":
        labels = data.train_labels.cpu().numpy()
        return {"classes": _masks(np.array(data.class_names)[labels], data.class_names)}
    path = Path(config.groups)
    if not path.is_file():
        raise ValueError(f"run: groups must be none, classes or a file, got {config.groups!r}. Is the path right?")
    try:
        names = (
            np.load(path, allow_pickle=False).astype(str)
            if path.suffix == ".npy"
            else np.array(path.read_text(encoding="utf-8-sig").splitlines())
        )
    except ValueError as error:
        raise ValueError(
            f"run: groups must be text in UTF-8 or a .npy array of strings or numbers, {path} cannot be read: {error}. "
            "Save it anew."
        ) from error
    if names.shape != (data.num_source,):
        raise ValueError(
            f"run: groups must hold one group for each of the {data.num_source} images of {data.name}, in their order "
            f"and before any split, got {list(names.shape)} in {path}. A .npy file holds an array, any other file one "
            "group a line."
        )
    kept = names[data.train_indices]
    groups = np.unique(kept).tolist()
    if 2 * len(groups) > len(kept):
        raise ValueError(
            f"run: groups must be shared by samples, got {len(groups)} names for the {len(kept)} training images in "
            f"{path}. Name what images have in common: a source, an annotator, a site."
        )
    return {path.stem: _masks(kept, groups)}


def _masks(groups: np.ndarray[Any, Any], names: Sequence[str]) -> dict[str, Tensor]:
    """The samples of each group that has any."""
    masks = {name: torch.from_numpy(groups == name) for name in names}
    return {name: mask for name, mask in masks.items() if bool(mask.any())}


def _metrics(config: RunConfig, data: Dataset, model: nn.Module, *, with_spectrum: bool) -> dict[str, float]:
    """Losses and errors on both parts of the data and, where asked for, D_s between the hidden layers."""
    train = evaluate(model, data.train_inputs, data.train_labels)
    test = evaluate(model, data.test_inputs, data.test_labels)
    found = {"train_loss": train.loss, "train_error": train.error, "test_loss": test.loss, "test_error": test.error}
    names = hidden_parameters(model)
    return found | (_hidden_dimension(config, data, model, names) if with_spectrum and names else {})


def _hidden_dimension(config: RunConfig, data: Dataset, model: nn.Module, names: list[str]) -> dict[str, float]:
    """D_s of the noise in the weights between hidden layers, which is what the paper's spectra cover."""
    gradients = per_sample_gradients(
        model, functional.cross_entropy, data.train_inputs, data.train_labels, params=names
    )
    dimension = noise_spectrum(gradients).effective_dimension  # whatever the batch size
    return {} if dimension is None else {"effective_dimension_hidden": float(dimension)}


def _restore(folder: Path, trainer: Trainer) -> tuple[History, dict[str, float]]:
    """The checkpoint into the trainer, and the history up to it."""
    state: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True, map_location="cpu")
    trainer.load_state_dict(state["trainer"])
    history = History.load(folder / HISTORY)
    history.records = [record for record in history if record.step <= trainer.step]
    if not history.records or history.records[-1].step != trainer.step:
        raise ValueError(
            f"run: {folder / HISTORY} must reach the checkpoint's step {trainer.step}, got "
            f"{history.records[-1].step if history.records else 'no record'}. Begin anew with --overwrite."
        )
    return history, {"train": float(state["seconds"]["train"]), "probe": float(state["seconds"]["probe"])}
