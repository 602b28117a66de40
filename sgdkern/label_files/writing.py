"""What `clean_data_set` leaves: the ranked table, the list of samples to keep, a cleaned copy, a gallery, a summary."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sgdkern.cleaning.table import LabelIssues
from sgdkern.label_files.reading import LabelledData

GALLERY_COLUMNS, GALLERY_ROWS = 8, 4


def write_keep_list(data: LabelledData, issues: LabelIssues, path: Path) -> Path:
    """Write the names of the samples that are no issues, one a line, in the order of the data."""
    kept = data.names[~issues.is_label_issue]
    path.write_text("".join(f"{name}\n" for name in kept), encoding="utf-8")
    return path


def write_cleaned_copy(data: LabelledData, issues: LabelIssues, folder: Path) -> Path:
    """Write a copy of the data without the issues; the original stays as it is.

    Args:
        data: what was read.
        issues: the table of issues.
        folder: where to write.

    Returns:
        The copy: a folder for images, else a file of the same kind.
    """
    kept = ~issues.is_label_issue
    if data.origin.is_dir():
        for name in data.names[kept]:
            target = folder / "cleaned" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(data.origin / name, target)
        return folder / "cleaned"
    path = folder / f"cleaned{data.origin.suffix}"
    if data.origin.suffix == ".npz":
        with np.load(data.origin, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        np.savez_compressed(path, **{name: _rows(values, kept) for name, values in arrays.items()})
    elif data.origin.suffix in (".parquet", ".pq"):
        import pandas

        pandas.read_parquet(data.origin)[kept].to_parquet(path)
    else:
        delimiter = "\t" if data.origin.suffix == ".tsv" else ","
        with data.origin.open(newline="", encoding="utf-8-sig") as source:
            rows = [row for row in csv.reader(source, delimiter=delimiter) if row]
        with path.open("w", newline="", encoding="utf-8") as target:
            writer = csv.writer(target, delimiter=delimiter, lineterminator="\n")
            writer.writerow(rows[0])
            writer.writerows(row for row, keep in zip(rows[1:], kept, strict=True) if keep)
    return path


def write_gallery(data: LabelledData, issues: LabelIssues, path: Path) -> Path | None:
    """Draw the most suspicious images with their given and suggested labels; None without images or matplotlib."""
    if data.images is None or issues.num_issues == 0:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    worst = issues.ranking[: min(GALLERY_COLUMNS * GALLERY_ROWS, issues.num_issues)]
    rows = -(-len(worst) // GALLERY_COLUMNS)
    figure = Figure(figsize=(1.35 * GALLERY_COLUMNS, 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, GALLERY_COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, index in zip(axes.flat, worst, strict=False):
        axis.imshow(data.images[index], cmap="gray")
        axis.set_title(f"{_short(issues.given_label[index])} → {_short(issues.predicted_label[index])}", fontsize=9)
    figure.suptitle("Most suspicious labels: given → suggested", fontsize=11)
    figure.savefig(path)
    return path


def write_summary(summary: dict[str, Any], path: Path) -> Path:
    """Write the summary as strict JSON."""
    path.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _rows(values: Any, kept: Any) -> Any:
    """Select the rows kept of an array with one row a sample; leave any other array alone."""
    return values[kept] if values.ndim > 0 and len(values) == len(kept) else values


def _short(label: Any) -> str:
    """A label of at most ten letters."""
    text = str(label)
    return text if len(text) <= 10 else text[:9] + "…"
