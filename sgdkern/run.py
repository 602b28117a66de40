"""The main job: train on data with wrong labels, watch the phases, find the labels, train again without them, report.

``run`` is that story; each stage writes its files into the run folder, whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgdkern.atomic import replacing, write_json
from sgdkern.cleaning import LabelIssues, find_label_issues
from sgdkern.data import Dataset, load_data, with_label_noise
from sgdkern.observed_training import (
    BEST_WEIGHTS,
    CHECKPOINT,
    HISTORY,
    OnProgress,
    Progress,
    named_groups,
    new_trainer,
    observe_training,
)
from sgdkern.phases import label_phases
from sgdkern.report import write_report
from sgdkern.run_config import RunConfig
from sgdkern.run_summary import phases_as_dict, summarise
from sgdkern.training import evaluate, threads

CONFIG, SUMMARY, PHASES, ISSUES, SAMPLES = (
    "config.json",
    "summary.json",
    "phases.json",
    "label_issues.csv",
    "samples.npz",
)

_FILES = (CONFIG, HISTORY, CHECKPOINT, BEST_WEIGHTS, PHASES, ISSUES, SAMPLES, SUMMARY, "report.html")

# Pictures kept for the report: the most suspicious samples, and some of the least suspicious to compare them with.
_SUSPICIOUS_PICTURES, _CLEAN_PICTURES = 64, 16
_STEPS_AT_ONCE = 500
_RETRAINING = {"cleaned": "training without them", "perfect": "training on right labels only"}


class RunRefusedError(ValueError):
    """What was asked for does not fit the run folder or this machine; nothing was done."""


def run(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Mapping[str, Any]:
    """Run the main job and write its run folder.

    Args:
        config: The settings.
        folder: The run folder; made if it is not there.
        resume: Go on with a folder that a killed run left; its own settings must be these.
        overwrite: Replace what an earlier run wrote into the folder.
        on_progress: Told how far it is.

    Returns:
        What ``summary.json`` holds.

    Raises:
        FileExistsError: If the folder holds something and neither ``resume`` nor ``overwrite`` is given.
        RunRefusedError: If the settings are not those of the folder to resume, or there is no such device.
        ValueError: If the data cannot be used.
        NonFiniteError: If training diverges.
    """
    began = time.perf_counter()
    _refuse_folder(folder, config, resume=resume, overwrite=overwrite)
    _refuse_device(config.device)
    with threads(config.threads):
        data = run_data(config).to(torch.device(config.device))
        named_groups(config, data)  # what cannot be used is refused before anything is written
        _open_folder(folder, config, overwrite=overwrite)
        observed = observe_training(config, data, folder, resume=resume, on_progress=on_progress)
        phases = label_phases(observed.history)
        write_json(folder / PHASES, phases_as_dict(phases, observed.history))
        issues = find_label_issues(observed.history, labels=data.train_labels.cpu().numpy(), phases=phases)
        _write_issues(folder, data, issues)
        retrained = _retrain(config, data, issues, on_progress)
        seconds = {
            "train": observed.train_seconds,
            "probe": observed.probe_seconds,
            "retrain": retrained.seconds,
            "total": time.perf_counter() - began,
        }
        summary = summarise(config, data, observed, phases, issues, retrained.test_errors, seconds)
        write_json(folder / SUMMARY, summary)
    write_report(folder, progress=_reporting(on_progress))
    return summary


def run_data(config: RunConfig) -> Dataset:
    """The data set of a run, label noise included.

    Args:
        config: The settings.

    Returns:
        The data set, on the CPU.
    """
    data = load_data(
        config.dataset,
        root=config.data_root,
        download=config.download,
        train_samples=config.kept_train_samples,
        test_samples=config.test_samples,
        image_size=config.image_size,
        scaling=config.scaling,
        seed=config.seed_for("split"),
    )
    return with_label_noise(data, rate=config.noise_rate, kind=config.noise, seed=config.seed_for("noise"))


def _refuse_folder(folder: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse to lose or to mix anything; nothing is written yet."""
    if resume and overwrite:
        raise RunRefusedError("run: a run is either resumed or overwritten, got both. Choose --resume or --overwrite.")
    if resume and not (folder / CONFIG).exists():
        raise RunRefusedError(
            f"run: there must be a run to resume, got none in {folder}. Leave out --resume to begin one."
        )
    if not folder.exists() or all(path.suffix == ".tmp" for path in folder.iterdir()):
        return
    if not (folder / CONFIG).exists() or not (resume or overwrite):
        raise FileExistsError(
            f"run: the run folder must be new or empty, got {folder}. Go on with an unfinished run by "
            "--resume, replace an earlier one by --overwrite (it must hold a config.json), or choose another --out."
        )
    if resume:
        _refuse_other_settings(folder / CONFIG, config)


def _refuse_device(device: str) -> None:
    """Refuse a device that is not there, before anything else is done."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunRefusedError(
            f"run: the device must be there, but {device!r} is not ({reason}). Choose --device cpu; `sgdkern doctor` "
            "tells what this machine has."
        ) from error


def _open_folder(folder: Path, config: RunConfig, *, overwrite: bool) -> None:
    """Make the folder ready and write the settings; files that no run writes are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "figures", ignore_errors=True)
    write_json(folder / CONFIG, config.as_dict())


def _refuse_other_settings(settings: Path, config: RunConfig) -> None:
    """A run is resumed with the settings that it began with."""
    kept = RunConfig.from_dict(json.loads(settings.read_text(encoding="utf-8")))
    differing = [name for name, value in kept.as_dict().items() if config.as_dict()[name] != value]
    if differing:
        told = ", ".join(f"{name}={config.as_dict()[name]!r} (was {kept.as_dict()[name]!r})" for name in differing)
        raise RunRefusedError(
            f"run: a resumed run keeps its settings, got {told}. Leave these options out, or begin anew with "
            "--overwrite."
        )


def _reporting(on_progress: OnProgress | None) -> Callable[[int, int], None] | None:
    """How the report tells how far it is."""
    return None if on_progress is None else lambda done, total: on_progress(Progress("writing the report", done, total))


@dataclass(frozen=True)
class Retrained:
    """Test errors of networks trained anew on some of the samples, the labels as given.

    Attributes:
        test_errors: ``cleaned`` (without the samples found) and, where the truth is known, ``perfect`` (without those
            that are wrong).
        seconds: Time that it took.
    """

    test_errors: dict[str, float]
    seconds: float


def _retrain(config: RunConfig, data: Dataset, issues: LabelIssues, on_progress: OnProgress | None) -> Retrained:
    """Train the same network on what is left of the training set."""
    began = time.perf_counter()
    kept = {"cleaned": torch.from_numpy(~issues.is_label_issue)}
    if data.true_labels is not None:
        kept["perfect"] = (data.train_labels == data.true_labels).cpu()
    errors = {}
    for name, mask in kept.items():
        chosen = mask.nonzero().flatten().to(data.train_inputs.device)
        if len(chosen) < config.batch_size:
            continue
        trainer = new_trainer(
            config,
            data,
            inputs=data.train_inputs[chosen],
            labels=data.train_labels[chosen],
            order_seed=config.seed_for("retraining"),
        )
        total = config.epochs * trainer.steps_per_epoch
        while trainer.step < total:
            trainer.advance(min(_STEPS_AT_ONCE, total - trainer.step))
            if on_progress is not None:
                on_progress(Progress(_RETRAINING[name], trainer.step, total))
        errors[name] = evaluate(trainer.model, data.test_inputs, data.test_labels).error
    return Retrained(errors, time.perf_counter() - began)


def _write_issues(folder: Path, data: Dataset, issues: LabelIssues) -> None:
    """``label_issues.csv``, and pictures of the samples at both of its ends."""
    temporary = folder / (ISSUES + ".tmp")
    if data.true_labels is None:
        issues.to_csv(temporary)
    else:
        issues.to_csv(temporary, true_label=data.true_labels.cpu().numpy())
    temporary.replace(folder / ISSUES)
    ranking = issues.ranking
    shown = np.unique(np.concatenate([ranking[:_SUSPICIOUS_PICTURES], ranking[-_CLEAN_PICTURES:]]))
    with replacing(folder / SAMPLES) as file:
        np.savez(
            file,
            images=data.train_images[shown],
            indices=shown,
            class_names=np.array(data.class_names),
            allow_pickle=False,
        )
