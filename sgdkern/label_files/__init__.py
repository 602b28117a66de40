"""From a labelled data set on disk to a ranked list of suspicious labels beside it; the data are never changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from sgdkern.cleaning import LabelCleaner
from sgdkern.label_files.findings import CleaningReport
from sgdkern.label_files.page import page_is_possible, write_page
from sgdkern.label_files.reading import LabelledData, read_labelled
from sgdkern.label_files.writing import write_cleaned_copy, write_gallery, write_keep_list, write_summary

__all__ = ["CleaningReport", "LabelledData", "clean_data_set", "read_labelled"]


def clean_data_set(
    path: str | Path,
    *,
    out: str | Path | None = None,
    label_column: str | None = None,
    source_column: str | None = None,
    ignore: Sequence[str] = (),
    image_size: int = 32,
    mode: Literal["default", "fast"] = "default",
    budget: int | None = None,
    copy: bool = False,
    device: str | None = None,
    random_state: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> CleaningReport:
    """Find the wrong labels of a data set on disk and write what was found to a folder of its own.

    Writes ``label_issues.csv`` (worst first, with the suggested label), ``keep.txt`` (names of the samples to keep),
    ``summary.json``, ``report.html`` (one page that needs no other file; needs matplotlib and jinja2), with a budget
    ``review.csv`` (the so many worst), with images ``gallery.png``, and on demand a cleaned copy. The data themselves
    are only read.

    Args:
        path: a folder with one subfolder of images a class, or a .csv, .tsv, .parquet or .npz file.
        out: folder to write to, new or empty; default ``<name>-label-issues`` beside the data.
        label_column: column (array of an npz) with the labels; None to look for a usual name.
        source_column: column (array) that says who gave each label, for noise rates by source.
        ignore: columns that are no features.
        image_size: side in pixels to which images of a folder are resized.
        mode: "default" or "fast" of `LabelCleaner`.
        budget: how many samples a person can review.
        copy: also write a cleaned copy of the data.
        device: where to compute; None for the CPU.
        random_state: seed.
        progress: called with the share done, 0 to 1, and what is being done.

    Returns:
        The report.

    Raises:
        FileExistsError: if the folder to write to holds something already.
        ValueError: if the data cannot be used, or the folder to write to lies inside them.
    """
    start = time.perf_counter()
    tell = progress or (lambda share, text: None)
    source = Path(path)
    folder = source.with_name(f"{source.stem}-label-issues") if out is None else Path(out)
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"clean_data_set: out must not lie inside the data {source}, got {folder}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"clean_data_set: {folder} holds something already. Choose another folder with out.")
    tell(0.0, "reading")
    data = read_labelled(
        source, label_column=label_column, source_column=source_column, ignore=ignore, image_size=image_size
    )
    if budget is not None and not 1 <= budget <= len(data.labels):
        raise ValueError(f"clean_data_set: budget must be between 1 and {len(data.labels)}, got {budget}.")
    cleaner = LabelCleaner(mode=mode, device=device, random_state=random_state)
    cleaner.fit(data.inputs, data.labels, sources=data.sources, on_epoch=_share_of(cleaner, tell))
    tell(0.95, "writing")
    issues = cleaner.issues_
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "issues": issues.to_csv(folder / "label_issues.csv", name=data.names),
        "keep": write_keep_list(data, issues, folder / "keep.txt"),
    }
    if budget is not None:
        files["review"] = issues.to_csv(folder / "review.csv", limit=budget, name=data.names)
    gallery = write_gallery(data, issues, folder / "gallery.png")
    if gallery is not None:
        files["gallery"] = gallery
    if copy:
        files["cleaned"] = write_cleaned_copy(data, issues, folder)
    files["summary"] = folder / "summary.json"
    if page_is_possible():
        files["report"] = folder / "report.html"
    report = CleaningReport(
        issues=issues,
        names=data.names,
        noise_rate=cleaner.noise_rate_,
        noise_matrix=cleaner.noise_matrix_,
        class_noise_rates=dict(cleaner.class_noise_rates_),
        source_noise_rates=dict(cleaner.source_noise_rates_) if data.sources is not None else {},
        budget=budget,
        expected_precision=None if budget is None else issues.expected_precision(budget),
        files=files,
        seconds=time.perf_counter() - start,
    )
    write_summary(report.as_dict(), files["summary"])
    if "report" in files:
        write_page(data, report, files["report"])
    tell(1.0, "done")
    return report


def _share_of(cleaner: LabelCleaner, tell: Callable[[float, str], None]) -> Callable[[int, int], None]:
    """Turn rounds and epochs into a share of the work, at most 0.95: training may stop early, never late."""
    effort = cleaner.effort()

    def on_epoch(number: int, epoch: int) -> None:
        done = number - 1 + epoch / effort.epochs(number)
        tell(0.05 + 0.9 * done / effort.rounds, f"round {number} of {effort.rounds}, epoch {epoch}")

    return on_epoch
