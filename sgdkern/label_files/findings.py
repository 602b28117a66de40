"""What was found in a labelled data set on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdkern.cleaning import LabelIssues, NoiseMatrix, NoiseRate


@dataclass(frozen=True)
class CleaningReport:
    """What was found in a data set, and the files that say so.

    Attributes:
        issues: one row a sample.
        names: [N] what each sample is called: its path in the folder, or its row.
        noise_rate: estimated share of wrong labels, with an interval.
        noise_matrix: which label is given for which.
        class_noise_rates: by given label.
        source_noise_rates: by source; empty where no source column was named.
        budget: how many samples a person will review; None where not said.
        expected_precision: the share of wrong labels to expect among those; None without a budget.
        files: what was written, by kind.
        seconds: how long it took.
    """

    issues: LabelIssues
    names: Any
    noise_rate: NoiseRate
    noise_matrix: NoiseMatrix
    class_noise_rates: dict[Any, NoiseRate]
    source_noise_rates: dict[Any, NoiseRate]
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
            "noise_rate_covers": self.noise_rate.covers,
            "class_noise_rates": {str(name): _plain(rate) for name, rate in self.class_noise_rates.items()},
            "source_noise_rates": {str(name): _plain(rate) for name, rate in self.source_noise_rates.items()},
            "confused_pairs": [
                {"true": str(true), "given": str(given), "samples": samples}
                for true, given, samples in self.noise_matrix.confused_pairs()
            ],
            "budget": self.budget,
            "expected_precision": self.expected_precision,
            "files": {kind: path.name for kind, path in self.files.items()},
        }


def _plain(rate: NoiseRate) -> dict[str, float]:
    """A rate as numbers."""
    return {"estimate": rate.estimate, "low": rate.low, "high": rate.high}
