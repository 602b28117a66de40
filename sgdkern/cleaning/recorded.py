"""What a run recorded of each sample, from a History whose records are of all samples or of known minibatches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdkern.history import History

Array = npt.NDArray[Any]
NAMES = ("losses", "margins", "predictions")


@dataclass(frozen=True)
class Recorded:
    """What is known of each sample: losses or margins [T, N] at steps [T], predictions [T', N] if any."""

    steps: Array
    losses: Array | None
    margins: Array | None
    predictions: Array | None


def from_history(history: History, num_samples: int, samples: Sequence[Array] | None) -> Recorded:
    """Collect the records that carry per-sample values.

    Args:
        history: the records.
        num_samples: N.
        samples: which samples each of those records holds, in order; None where each holds all of them.

    Returns:
        Losses, margins and predictions [T, N]. Of minibatches there is one row a pass over the data, with the latest
        value of each sample.

    Raises:
        ValueError: if there are no per-sample values, or the records do not hold the samples they should.
    """
    carriers = [record for record in history.records if record.losses is not None or record.margins is not None]
    if not carriers:
        raise ValueError(
            "find_label_issues: the history must hold per-sample losses or margins, got none. "
            "Record them with the probe (it does unless told not to)."
        )
    known = {name for name in NAMES if getattr(carriers[0], name) is not None}
    if any({name for name in NAMES if getattr(record, name) is not None} != known for record in carriers):
        raise ValueError(
            "find_label_issues: losses, margins and predictions must be in the same records, they are not."
        )
    lengths = [len(next(getattr(record, name) for name in NAMES if name in known)) for record in carriers]
    if samples is None:
        if set(lengths) != {num_samples}:
            raise ValueError(
                f"find_label_issues: every record must hold the same {num_samples} samples as the labels, got records "
                f"of {sorted(set(lengths))[:5]}. Those of `watch` are of one minibatch each: pass samples=, the "
                "samples of each record, or record with a Probe on all samples."
            )
        stacked = {name: np.stack([getattr(record, name) for record in carriers]) for name in known}
        return Recorded(np.array([record.step for record in carriers]), *(stacked.get(name) for name in NAMES))
    places = _checked(samples, lengths, num_samples)
    rows: dict[str, list[Array]] = {name: [] for name in known}
    latest = {name: np.zeros(num_samples, getattr(carriers[0], name).dtype) for name in known}
    steps: list[int] = []
    seen, visits = np.zeros(num_samples, dtype=bool), 0
    for record, where in zip(carriers, places, strict=True):
        for name in known:
            latest[name][where] = getattr(record, name)
        seen[where] = True
        visits += len(where)
        if seen.all() and visits >= num_samples:  # another pass over the data is complete
            visits = 0
            steps.append(record.step)
            for name in known:
                rows[name].append(latest[name].copy())
    if not steps:
        raise ValueError(
            f"find_label_issues: the records must hold every sample at least once, sample {int(np.argmin(seen))} is in "
            "none of them. Record every step of a pass over the data (every=1)."
        )
    return Recorded(np.array(steps), *(np.stack(rows[name]) if name in known else None for name in NAMES))


def _checked(samples: Sequence[Array], lengths: list[int], num_samples: int) -> list[Array]:
    """Return the samples of each record as integer arrays, after checking that they fit."""
    if len(samples) != len(lengths):
        raise ValueError(
            f"find_label_issues: samples must have one entry for each of the {len(lengths)} records with per-sample "
            f"values, got {len(samples)}. Note the minibatch of every step, and record every step (every=1)."
        )
    places = [np.asarray(entry) for entry in samples]
    for place, (where, length) in enumerate(zip(places, lengths, strict=True)):
        if where.shape != (length,) or (length and where.dtype.kind not in "iu"):
            raise ValueError(
                f"find_label_issues: samples[{place}] must be the {length} places among the {num_samples} labels of "
                f"the samples in that record, got {where.dtype} {list(where.shape)}."
            )
        if length and not 0 <= where.min() <= where.max() < num_samples:
            raise ValueError(
                f"find_label_issues: samples[{place}] must be places from 0 to {num_samples - 1}, got {where.min()} to "
                f"{where.max()}. Count from 0, and pass the labels of all samples."
            )
    return [where.astype(np.int64) for where in places]
