"""PaperFigure: what a figure of the paper needs, what is found in it, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sgdkern.reproduce.job import Job, Load
from sgdkern.reproduce.plan import Plan


@dataclass(frozen=True)
class Row:
    """One line of the table beside a figure.

    Attributes:
        quantity: What is compared.
        paper: What the paper has, on MNIST: a number or its statement.
        here: What was measured.
        reference: What an independent implementation measured with the same settings on MNIST; empty where unknown.
    """

    quantity: str
    paper: str
    here: str
    reference: str = ""


@dataclass(frozen=True)
class Findings:
    """What was found for a figure.

    Attributes:
        data: All that is drawn, as JSON holds it.
        rows: The table.
    """

    data: dict[str, Any]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper.

    Attributes:
        name: As it is asked for, ``fig1``.
        title: What it shows.
        caption: What is drawn, and how to read it.
        jobs: The jobs that it needs.
        findings: What is found in their results.
        draw: The drawing of the findings' data alone.
    """

    name: str
    title: str
    caption: str
    jobs: Callable[[Plan], Sequence[Job]]
    findings: Callable[[Plan, Load], Findings]
    draw: Callable[[Mapping[str, Any]], Figure]


def spread(values: Sequence[float | None], form: str = ".3g") -> str:
    """Mean and standard deviation over seeds, in words.

    Args:
        values: One a seed; None and NaN where it could not be measured.
        form: How the numbers are written.

    Returns:
        ``0.139 ± 0.002``, the number alone where there is one seed, with the count where some lack it.

    Example:
        >>> spread([1.0, 2.0, 3.0]), spread([2.5]), spread([1.0, None, 1.0]), spread([None])
        ('2 ± 1', '2.5', '1 ± 0 (2 of 3 seeds)', '–')
    """
    known = [value for value in values if value is not None and np.isfinite(value)]
    if not known:
        return "–"
    text = f"{np.mean(known):{form}}"
    if len(known) > 1:
        text += f" ± {np.std(known, ddof=1):{form if 'f' in form else '.1g'}}"
    text = text.replace("-", "−")
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"


def extent(values: Sequence[float], form: str = "g") -> str:
    """Smallest and largest value, in words.

    Args:
        values: The values.
        form: How the numbers are written.

    Returns:
        ``33–55``, or the number alone.

    Example:
        >>> extent([55, 33]), extent([7]), extent([])
        ('33–55', '7', '–')
    """
    if not len(values):
        return "–"
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low}–{high}"
