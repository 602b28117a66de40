"""From a labelled data set on disk to a ranked list of suspicious labels beside it; the data are never changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sgdkern.cleaning import LabelCleaner, LabelIssues, NoiseRate
from sgdkern.label_files.reading import LabelledData, read_labelled
from sgdkern.label_files.writing import write_cleaned_copy, write_gallery, write_keep_list, write_summary

__all__ = ["CleaningReport", "LabelledData", "clean_data_set", "read_labelled"]


@dataclass(frozen=True)
class CleaningReport:
    """What was found in a data set, and the files that say so.

    Attributes:
        issues: one row a sample.
        names: [N] what each sample is called: its path in the folder, or its row.
        noise_rate: estimated share of wrong labels, with an interval.
        class_noise_rates: by given label.
        source_noise_rates: by source; empty where no source column was named.
        confused_pairs: (true label, given label, samples), most frequent first.
        budget: how many samples a person will review; None where not said.
        expected_precision: the share of wrong labels to expect among those; None without a budget.
        files: what was written, by kind.
        seconds: how long it took.
    """

    issues: LabelIssues
    names: Any
    noise_rate: NoiseRate
    class_noise_rates: dict[Any, NoiseRate]
    source_noise_rates: dict[Any, NoiseRate]
    confused_pairs: list[tuple[Any, Any, float]]
    budget: int | None
    expected_precision: float | None
    files: dict[str, Path]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as plain numbers and strings, ready for JSON."""
        return {
            "schema_version": 1,
            "num_samples": self.issues.num_samples,
            "num_issues": self.issues.num_issues,
            "method": self.issues.method,
            "noise_rate": _plain(self.noise_rate),
            "class_noise_rates": {str(name): _plain(rate) for name, rate in self.class_noise_rates.items()},
            "source_noise_rates": {str(name): _plain(rate) for name, rate in self.source_noise_rates.items()},
            "confused_pairs": [
                {"true": str(true), "given": str(given), "samples": samples}
                for true, given, samples in self.confused_pairs
            ],
            "budget": self.budget,
            "expected_precision": self.expected_precision,
            "files": {kind: path.name for kind, path in self.files.items()},
        }


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
    ``summary.json``, with a budget ``review.csv`` (the so many worst), with images ``gallery.png`` (needs matplotlib),
    and on demand a cleaned copy. The data themselves are only read.

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
    report = CleaningReport(
        issues=issues,
        names=data.names,
        noise_rate=cleaner.noise_rate_,
        class_noise_rates=dict(cleaner.class_noise_rates_),
        source_noise_rates=dict(cleaner.source_noise_rates_) if data.sources is not None else {},
        confused_pairs=cleaner.noise_matrix_.confused_pairs(),
        budget=budget,
        expected_precision=None if budget is None else issues.expected_precision(budget),
        files=files | {"summary": folder / "summary.json"},
        seconds=time.perf_counter() - start,
    )
    write_summary(report.as_dict(), folder / "summary.json")
    tell(1.0, "done")
    return report


def _share_of(cleaner: LabelCleaner, tell: Callable[[float, str], None]) -> Callable[[int, int], None]:
    """Turn rounds and epochs into a share of the work, at most 0.95: training may stop early, never late."""
    _, rounds = cleaner.effort()

    def on_epoch(number: int, epoch: int) -> None:
        done = number - 1 + epoch / cleaner.most_epochs(number)
        tell(0.05 + 0.9 * done / rounds, f"round {number} of {rounds}, epoch {epoch}")

    return on_epoch


def _plain(rate: NoiseRate) -> dict[str, float]:
    """A rate as numbers."""
    return {"estimate": rate.estimate, "low": rate.low, "high": rate.high}
