"""The numbers of a run in one JSON document; where the truth is known, what was found is scored against it."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from sgdkern.alarm import nearest_record
from sgdkern.cleaning import LabelIssues
from sgdkern.data import Dataset
from sgdkern.history import History
from sgdkern.observed_training import ObservedTraining
from sgdkern.phase_truth import phase_agreement, phases_from_test_error
from sgdkern.phases import Phases
from sgdkern.run_config import RunConfig

SCHEMA_VERSION = 1


def summarise(
    config: RunConfig,
    data: Dataset,
    observed: ObservedTraining,
    phases: Phases,
    issues: LabelIssues,
    retrained: dict[str, float],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Put together what ``summary.json`` holds.

    Args:
        config: The settings.
        data: The data set.
        observed: The training and its history.
        phases: The phase labels.
        issues: The label issues.
        retrained: Test errors after retraining.
        seconds: Time by stage.

    Returns:
        The document; what cannot be known is None.
    """
    history = observed.history
    wrong = None if data.true_labels is None else (data.train_labels != data.true_labels).cpu().numpy()
    return {
        "schema_version": SCHEMA_VERSION,
        "config": config.as_dict(),
        "dataset": {
            "name": data.name,
            "num_train": data.num_train,
            "num_test": data.num_test,
            "num_classes": data.num_classes,
            "input_shape": list(data.input_shape),
            "scaling": data.scaling,
        },
        "model": {
            "text": f"{config.model} {'-'.join(map(str, config.hidden))}, {config.activation}",
            "num_params": sum(parameter.numel() for parameter in observed.model.parameters()),
        },
        "noise_rate": {
            "true": None if wrong is None else float(wrong.mean()),
            "estimate": issues.noise_rate.estimate,
            "low": issues.noise_rate.low,
            "high": issues.noise_rate.high,
        },
        "test_error": _test_errors(history, phases) | {"cleaned": None, "perfect": None} | retrained,
        "alarm": _alarm(observed),
        "cleaning": _cleaning(history, phases, issues, wrong),
        "spectra": _spectra(history, phases, config.batch_size),
        "phases": phases_as_dict(phases, history),
        "seconds": seconds,
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
        "final": dict(history.records[-1].values),
    }


def phases_as_dict(phases: Phases, history: History) -> dict[str, Any]:
    """Put together what ``phases.json`` holds: the blind labels and, for scoring only, what the test error says.

    Args:
        phases: The phase labels.
        history: The run, with test errors.

    Returns:
        The document.
    """
    truth = phases_from_test_error(history)
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": phases.verdict,
        "reason": phases.reason,
        "t12": phases.t12,
        "t23": phases.t23,
        "t34": phases.t34,
        "cleaning_step": phases.cleaning_step,
        "phases": [asdict(phase) for phase in phases],
        "truth": {
            "verdict": truth.verdict,
            "t12": truth.t12,
            "t23": truth.t23,
            "t34": truth.t34,
            "score": phase_agreement(phases, truth),
        },
    }


def _test_errors(history: History, phases: Phases) -> dict[str, float | None]:
    errors = history.column("test_error")
    best = int(np.argmin(errors))
    at_cleaning = None if phases.cleaning_step is None else nearest_record(history, phases.cleaning_step)
    return {
        "final": float(errors[-1]),
        "best": float(errors[best]),
        "best_step": int(history.steps[best]),
        "at_cleaning_step": None if at_cleaning is None else float(at_cleaning.metrics["test_error"]),
    }


def _alarm(observed: ObservedTraining) -> dict[str, Any] | None:
    """When phase III was seen to begin, where to go back to, and what that saves."""
    alarm = observed.alarm
    if alarm is None:
        return None
    return {
        "step": alarm.step,
        "seen_at": alarm.seen_at,
        "best_step": alarm.best_step,
        "checkpoint": None if alarm.checkpoint is None else alarm.checkpoint.name,
        "test_error": float(nearest_record(observed.history, alarm.seen_at).metrics["test_error"]),
        "test_error_at_best_step": float(nearest_record(observed.history, alarm.best_step).metrics["test_error"]),
    }


def _cleaning(
    history: History, phases: Phases, issues: LabelIssues, wrong: np.ndarray[Any, Any] | None
) -> dict[str, Any]:
    """What was found and, against the truth, how well: AUROC of the losses at the blind cleaning time and the best."""
    found: dict[str, Any] = {
        "step": phases.cleaning_step,
        "method": issues.method,
        "num_issues": issues.num_issues,
        "auroc": None,
        "auroc_best": None,
        "auroc_best_step": None,
        "auroc_quality": None,
        "precision": None,
        "recall": None,
    }
    if wrong is None or not 0 < wrong.sum() < len(wrong):
        return found
    from sklearn.metrics import roc_auc_score

    aurocs = [roc_auc_score(wrong, record.losses) for record in history]
    best = int(np.argmax(aurocs))
    if phases.cleaning_step is not None:
        found["auroc"] = float(roc_auc_score(wrong, nearest_record(history, phases.cleaning_step).losses))
    hits = int((issues.is_label_issue & wrong).sum())
    return found | {
        "auroc_best": float(aurocs[best]),
        "auroc_best_step": int(history.steps[best]),
        "auroc_quality": float(roc_auc_score(wrong, -issues.label_quality)),
        "precision": hits / issues.num_issues if issues.num_issues else None,
        "recall": hits / int(wrong.sum()),
    }


def _spectra(history: History, phases: Phases, batch_size: int) -> list[dict[str, Any]]:
    """For each phase the noise spectrum measured nearest to its middle in the logarithm of the step."""
    spectra = []
    for phase in phases:
        middle = float(np.sqrt(max(phase.start, 1) * max(phase.end, 1)))
        inside = [r for r in history if r.spectrum is not None and phase.start <= r.step <= phase.end]
        if not inside:
            continue
        record = min(inside, key=lambda r: abs(np.log(max(r.step, 1) / middle)))
        assert record.spectrum is not None
        spectra.append({
            "phase": phase.name,
            "step": record.step,
            "effective_dimension": record.spectrum.effective_dimension,
            "effective_dimension_hidden": record.metrics.get("effective_dimension_hidden"),
            "trace": record.spectrum.trace,
            "batch_size": batch_size,
        })
    return spectra
