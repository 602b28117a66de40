"""LabelIssues: what a cleaning method found, one row a sample, in the column names of cleanlab."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

UPPER_BOUND = (
    "every rate up to an upper bound: the networks err even where they are surest, so that the rate cannot be told"
)
COLUMNS = ("is_label_issue", "label_quality", "given_label", "predicted_label", "p_wrong")


class NoiseRate(float):
    """The estimated share of wrong labels: a float, with an interval and what the interval covers.

    Attributes:
        estimate: the number itself.
        low: lower end of the interval.
        high: upper end of the interval.
        covers: in words, which errors the interval allows for.
    """

    estimate: float
    low: float
    high: float
    covers: str

    def __new__(cls, estimate: float, low: float, high: float, covers: str = "sampling of the samples") -> NoiseRate:
        """Make the number."""
        rate = super().__new__(cls, estimate)
        rate.estimate, rate.low, rate.high, rate.covers = estimate, low, high, covers
        return rate

    @property
    def is_upper_bound(self) -> bool:
        """Whether the rate could not be told and the number is only an upper bound of it."""
        return self.covers == UPPER_BOUND

    def __repr__(self) -> str:
        """Say the number with its interval."""
        return f"NoiseRate({self.estimate:.4g}, low={self.low:.4g}, high={self.high:.4g})"

    def __reduce__(self) -> tuple[type[NoiseRate], tuple[float, float, float, str]]:
        """Let copies and pickles keep the interval."""
        return NoiseRate, (self.estimate, self.low, self.high, self.covers)


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """One row a sample: is its label wrong, and how sure is that.

    Reads like a table of columns: ``issues["label_quality"]``, ``dict(issues)``, ``issues.to_pandas()``.

    Attributes:
        is_label_issue: [N] bool, True where the label should be looked at or dropped.
        label_quality: [N] float64 in [0, 1]; lower is more suspicious. Samples are issues where it is below 0.5.
        given_label: [N] the labels as given.
        predicted_label: [N] the label that the model would give, in the same vocabulary; -1 (or "") where nothing
            recorded can tell.
        p_wrong: [N] float64, estimated probability that the given label is wrong.
        noise_rate: estimated share of wrong labels with its interval.
        method: the rule that scored the samples.
        cleaning_step: training step (as recorded) at which, or up to which, the samples were scored; None where the
            scores do not come from one.
    """

    is_label_issue: Array
    label_quality: Array
    given_label: Array
    predicted_label: Array
    p_wrong: Array
    noise_rate: NoiseRate
    method: str
    cleaning_step: float | None = None

    def __post_init__(self) -> None:
        """Check that the columns belong together."""
        lengths = {name: len(getattr(self, name)) for name in COLUMNS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"LabelIssues: the columns must have one entry a sample each, got {lengths}.")

    def __getitem__(self, column: str) -> Array:
        """Return one column, [N]."""
        if column not in COLUMNS:
            raise KeyError(f"LabelIssues: no column {column!r}; the columns are {', '.join(COLUMNS)}.")
        values: Array = getattr(self, column)
        return values

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the columns."""
        return iter(COLUMNS)

    def __len__(self) -> int:
        """Return the number of samples N."""
        return self.num_samples

    def keys(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return COLUMNS

    @property
    def num_samples(self) -> int:
        """The number of samples N."""
        return len(self.label_quality)

    @property
    def num_issues(self) -> int:
        """The number of samples flagged."""
        return int(np.count_nonzero(self.is_label_issue))

    @property
    def ranking(self) -> Array:
        """[N] int64, all samples from the most suspicious to the least."""
        return np.argsort(self.label_quality, kind="stable")

    def expected_precision(self, budget: int) -> float:
        """Estimate which share of the ``budget`` most suspicious samples is wrong: the mean of their p_wrong.

        Where ``noise_rate.is_upper_bound`` this is no more than an upper bound either: review some and count.

        Args:
            budget: how many samples a person can review, 1 ... N.

        Returns:
            The expected precision at ``budget``.

        Raises:
            ValueError: if the budget is not between 1 and N.
        """
        if not 1 <= budget <= self.num_samples:
            raise ValueError(f"expected_precision: budget must be between 1 and {self.num_samples}, got {budget}.")
        return float(self.p_wrong[self.ranking[:budget]].mean())

    def to_pandas(self) -> Any:
        """Return the columns as a pandas DataFrame, one row a sample in the order of the data.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("LabelIssues.to_pandas: needs pandas. Install it with `pip install pandas`.") from error
        return pandas.DataFrame({name: self[name] for name in COLUMNS})

    def to_csv(self, path: str | Path, *, limit: int | None = None, **extra: Array) -> Path:
        """Write ``index``, the columns, ``suggested_label`` and any extra columns, worst sample first.

        ``suggested_label`` is the predicted label where the sample is an issue, the given one elsewhere.

        Args:
            path: file to write.
            limit: how many of the worst to write; None for all.
            **extra: further columns by name, [N] each (``true_label`` or ``path``, say).

        Returns:
            The path written.

        Raises:
            ValueError: if an extra column has not one entry a sample.
        """
        for name, values in extra.items():
            if len(values) != self.num_samples:
                raise ValueError(f"to_csv: column {name!r} must have {self.num_samples} entries, got {len(values)}.")
        known = np.array([label not in (-1, "") for label in self.predicted_label.tolist()])
        suggested = np.where(self.is_label_issue & known, self.predicted_label, self.given_label)
        columns: dict[str, Array] = {name: self[name] for name in COLUMNS}
        columns |= {"suggested_label": suggested, **extra}
        path = Path(path)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["index", *columns])
            for index in self.ranking[:limit]:
                writer.writerow([int(index), *(_text(values[index]) for values in columns.values())])
        return path


def _text(value: Any) -> str:
    """One cell: floats to six digits, everything else as it prints."""
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)
