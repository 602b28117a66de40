"""Loss and errors over the run: the paper's Figs. 1A and 3A."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from sgdkern.report import style
from sgdkern.report.figures.panel import Array, Line, Panel, column, over_time, when
from sgdkern.report.run_folder import RunFolder


def errors(run: RunFolder) -> Panel | None:
    """Training and test error with the phases and the cleaning time (Fig. 3A).

    Args:
        run: The run.

    Returns:
        The panel, None where no error was measured.
    """
    lines = []
    if (train := column(run, "train_error")) is not None:
        lines.append(Line("training, as labelled", train, style.WHOLE))
    if (test := column(run, "test_error")) is not None:
        lines.append(Line("test", test, style.TEST, width=2.4))
    if not lines:
        return None
    split = _errors_by_truth(run)
    if split is not None:
        lines.append(Line("training, right labels*", split[0], style.CORRECT, (0, (4, 1.5)), 1.4))
        lines.append(Line("training, wrong labels*", split[1], style.WRONG, (0, (1.5, 1.2)), 1.4))
    figures = []
    for width, height, columns in ((10.6, 4.2, 5), (4.5, 4.1, 2)):
        figure = over_time(
            run, "Errors over the run", "samples misclassified", lines, ylim=(-0.07, 1.03), percent=True,
            columns=columns, width=width, height=height,
        )  # fmt: skip
        if test is not None:
            _mark_best(run, figure.axes[0], test)
        figures.append(figure)
    words = ["Share of samples that the network gets wrong, judged by the labels as given."]
    if split is not None:
        words.append("*Curves that use the true labels are for scoring only; nothing that the tool decides sees them.")
    return Panel("fig3a_errors", "phases", figures[0], " ".join(words), _alt(run, train, test), figures[1], "wide")


def loss(run: RunFolder) -> Panel | None:
    """Training loss, training error and test error, both axes logarithmic (Fig. 1A).

    Args:
        run: The run.

    Returns:
        The panel, None where no loss was measured.
    """
    names = (
        ("train_loss", "training loss", style.WHOLE, "-"),
        ("test_loss", "test loss", style.TEST, "-"),
        ("train_error", "training error", style.WHOLE, (0, (3, 1.5))),
        ("test_error", "test error", style.TEST, (0, (3, 1.5))),
    )
    lines = [
        Line(label, values, colour, dashes)
        for name, label, colour, dashes in names
        if (values := column(run, name)) is not None
    ]
    if not lines:
        return None
    figure = over_time(run, "Loss and errors", "loss (nats), error (share)", lines, log=True, columns=3)
    caption = (
        "Mean loss and error, both axes logarithmic (the paper’s Fig. 1A). Zeros cannot be drawn: a curve that stops "
        "reached zero."
    )
    return Panel("fig1a_loss", "training", figure, caption, f"Curves over time of {_list([x.label for x in lines])}.")


def _errors_by_truth(run: RunFolder) -> tuple[Array, Array] | None:
    """Training error, by the given labels, of the rightly and of the wrongly labelled samples, [T] each."""
    wrong = run.issues.wrong if run.issues else None
    if run.issues is None or wrong is None or not wrong.any() or wrong.all():
        return None
    given = np.empty(len(wrong), dtype=object)
    given[run.issues.index] = run.issues.given_label
    right_error, wrong_error = (np.full(len(run.history), np.nan) for _ in range(2))
    for row, record in enumerate(run.history):
        if record.predictions is not None and len(record.predictions) == len(wrong):
            missed = record.predictions.astype(str).astype(object) != given
            right_error[row], wrong_error[row] = missed[~wrong].mean(), missed[wrong].mean()
    return (right_error, wrong_error) if np.isfinite(right_error).any() else None


def _mark_best(run: RunFolder, axes: Axes, test: Array) -> None:
    """Mark the lowest test error and the last one, with their values."""
    finite = np.flatnonzero(np.isfinite(test) & (run.time > 0))
    if len(finite) < 2:
        return
    best, last = int(finite[np.argmin(test[finite])]), int(finite[-1])
    late = run.time[best] > run.time[last] / 3  # then there is no room on its right
    marks = [(best, "right" if late else "left", (-5 if late else 5, -12))] if best != last else []
    for row, align, shift in (*marks, (last, "right", (-4, 9))):
        axes.plot(run.time[row], test[row], "o", color=style.TEST, markersize=5, zorder=4, clip_on=False)
        axes.annotate(
            f"{100 * test[row]:.1f} %", (run.time[row], test[row]), xytext=shift, textcoords="offset points", ha=align,
            va="center", fontsize=9.5, color=style.INK, zorder=5,
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip


def _alt(run: RunFolder, train: Array | None, test: Array | None) -> str:
    words = "Line chart of errors over the logarithm of time, with the phases shaded."
    if test is not None and np.isfinite(test).any():
        best = int(np.nanargmin(test))
        words += (
            f" The test error is lowest, {test[best]:.1%}, at {when(run, float(run.history.steps[best]))} and ends at "
            f"{test[np.flatnonzero(np.isfinite(test))[-1]]:.1%}."
        )
    if train is not None and np.isfinite(train).any():
        words += f" The training error ends at {train[np.flatnonzero(np.isfinite(train))[-1]]:.1%}."
    return words


def _list(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
