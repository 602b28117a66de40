"""write_run: a small made-up run folder whose curves have the shapes of a run through all four phases."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from sgdkern.history import History
from sgdkern.record import GroupRecord, Record, SpectrumRecord

NUM_SAMPLES = 120
NUM_CLASSES = 4
BATCH_SIZE = 10
STEPS_PER_EPOCH = NUM_SAMPLES // BATCH_SIZE
BOUNDS = tuple(STEPS_PER_EPOCH * epoch for epoch in (0, 4, 30, 140, 500))


def write_run(
    folder: Path, *, wrong_share: float = 0.5, pictures: bool = True, class_names: list[str] | None = None
) -> Path:
    """Write every file of a run folder; files are then taken away or spoilt by the test that wants it."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(7)
    true = np.arange(NUM_SAMPLES) % NUM_CLASSES
    wrong = np.arange(NUM_SAMPLES) < round(wrong_share * NUM_SAMPLES)
    given = np.where(wrong, (true + 1) % NUM_CLASSES, true)
    history = _history(draws, true, given, wrong)
    history.save(folder / "history.jsonl")
    _write_json(folder / "phases.json", _phases())
    _write_json(folder / "config.json", {"dataset": "made-up", "lr": 0.05, "hidden": [8, 8], "seed": 0})
    _write_json(folder / "summary.json", _summary(history, wrong_share))
    order = _write_issues(folder / "label_issues.csv", true, given, wrong)
    if pictures:
        np.savez(
            folder / "samples.npz",
            images=draws.integers(0, 256, (40, 8, 8), dtype=np.uint8),
            indices=order[:40],
            class_names=np.array(class_names or ["zero", "one", "two", "three"]),
        )
    return folder


def change_json(path: Path, **changes: Any) -> None:
    """Replace top-level entries of a JSON file."""
    _write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def _write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body), encoding="utf-8")


def _rise(epoch: float, middle: float) -> float:
    """0 well before an epoch and 1 well after it."""
    return float(1 / (1 + np.exp(-3 * np.log(max(epoch, 1e-3) / middle))))


def _history(draws: np.random.Generator, true: np.ndarray, given: np.ndarray, wrong: np.ndarray) -> History:
    history = History({"num_samples": NUM_SAMPLES, "batch_size": BATCH_SIZE})
    steps = [0, *np.unique(np.geomspace(2, BOUNDS[-1], 40).astype(int)).tolist()]
    for number, step in enumerate(steps):
        epoch = step / STEPS_PER_EPOCH
        pattern, memory = _rise(epoch, 2), _rise(epoch, 80)
        fade = 1 - 0.999 * _rise(epoch, 180)
        directed, noise = (0.03 + 2 * memory) * fade, (0.3 + 8 * memory) * fade
        spread = 0.1 * 20 ** (_rise(epoch, 4) - _rise(epoch, 60) + _rise(epoch, 180))
        losses = (
            np.where(wrong, 1.4 + pattern - 2.3 * memory, 1.4 - pattern) + 0.1 * draws.standard_normal(len(true)) * fade
        )
        learned = draws.random(len(true)) < np.where(wrong, memory, pattern)
        history.append(
            Record(
                step=int(step),
                epoch=epoch,
                values={
                    "A": directed + noise, "A0": directed, "D": noise, "D_par": spread * directed,
                    "A_perp": noise - spread * directed, "A_par": (1 + spread) * directed,
                    "R": directed / (directed + noise),
                    "sigma_lambda2": spread, "noise_scale": noise / directed,
                },
                metrics={
                    "train_loss": float(losses.mean()), "train_error": float(np.mean(~learned)),
                    "test_loss": 1.5 - pattern + memory, "test_error": 0.75 - 0.65 * pattern + 0.4 * memory,
                },
                groups={
                    "given": _group(directed, -0.7 + memory), "blind": _group(directed, -0.75 + memory),
                    "random": _group(directed, 0.8 - 0.5 * memory),
                },
                spectrum=_spectrum(noise) if number % 6 == 0 else None,
                losses=np.maximum(losses, 1e-4).astype(np.float32),
                margins=-losses.astype(np.float32),
                predictions=np.where(learned, given, true),
            )
        )  # fmt: skip
    return history


def _group(directed: float, cosine: float) -> GroupRecord:
    half = NUM_SAMPLES // 2
    cosines = ((1.0, cosine, 0.5), (cosine, 1.0, 0.4), (0.5, 0.4, 1.0))
    return GroupRecord(("c", "w"), (half, half), (2 * directed, 3 * directed), (directed, 0.5 * directed), cosines)


def _spectrum(noise: float) -> SpectrumRecord:
    eigenvalues = noise * 0.8 ** np.arange(60)
    return SpectrumRecord(tuple(eigenvalues.tolist()), float(eigenvalues.sum()), 11.0, "gram", True)


def _phases() -> dict[str, Any]:
    names = ("I", "II", "III", "IV")
    return {
        "schema_version": 1,
        "verdict": "four phases",
        "reason": "log σ_λ² rises, falls and rises again",
        "t12": BOUNDS[1],
        "t23": BOUNDS[2],
        "t34": BOUNDS[3],
        "cleaning_step": 130,
        "phases": [
            {"name": name, "start": BOUNDS[row], "end": BOUNDS[row + 1], "confidence": 0.9}
            for row, name in enumerate(names)
        ],
        "truth": {"t12": 50, "t23": 350, "t34": 1700, "score": 0.93},
    }


def _summary(history: History, wrong_share: float) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "dataset": {"name": "made-up", "num_train": NUM_SAMPLES, "num_test": 50, "num_classes": NUM_CLASSES},
        "model": {"text": "mlp 8-8, relu", "num_params": 999},
        "noise_rate": {"true": wrong_share, "estimate": 0.487, "low": 0.42, "high": 0.551},
        "test_error": {"final": 0.5, "best": 0.1, "best_step": 130, "at_cleaning_step": 0.11,
                       "cleaned": 0.12, "perfect": 0.09},
        "cleaning": {
            "step": 130, "auroc": 0.981, "auroc_best": 0.99, "auroc_quality": 0.992, "precision": 0.95, "recall": 0.94,
            "num_issues": 59, "method": "margins averaged",
        },
        "phases": _phases(),
        "seconds": {"train": 1.0, "probe": 2.0, "retrain": 0.5, "total": 4.0},
        "versions": {"torch": "2.11.0"},
        "final": dict(history.records[-1].values),
    }  # fmt: skip


def _write_issues(path: Path, true: np.ndarray, given: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Every wrong label is found; returns the order of the rows, worst first."""
    quality = np.where(wrong, 0.1, 0.9) + np.arange(len(wrong)) * 1e-4
    order = np.argsort(quality)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["index", "is_label_issue", "label_quality", "given_label", "predicted_label", "p_wrong", "suggested_label",
             "true_label"]
        )  # fmt: skip
        for index in order:
            label = [quality[index], given[index], true[index], 1 - quality[index], true[index], true[index]]
            writer.writerow([index, bool(wrong[index]), *label])
    return order
