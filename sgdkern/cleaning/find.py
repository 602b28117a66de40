"""find_label_issues: from what a run recorded of each sample to a table of suspicious labels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from sgdkern.classification import margins
from sgdkern.cleaning.mixture import fit_mixture, probability_wrong, rate_of
from sgdkern.cleaning.recorded import NAMES, Recorded, from_history
from sgdkern.cleaning.scores import cross_entropy, memorisation_onset, quality, time_average
from sgdkern.cleaning.silence import nothing_to_tell
from sgdkern.cleaning.table import LabelIssues, NoiseRate
from sgdkern.history import History

Array = npt.NDArray[Any]
Kind = Literal["losses", "margins", "logits", "probabilities"]
Method = Literal["auto", "aum", "mean_loss", "loss", "paper"]


class PhasesLike(Protocol):
    """What cleaning needs to know of a run's phases: when phase II ends, and the blind cleaning time."""

    @property
    def t23(self) -> float | None:
        """Last step of phase II."""

    @property
    def cleaning_step(self) -> float | None:
        """Step between the fast phase and memorisation at which single-step scores are best."""


def find_label_issues(
    recorded: Array | History,
    *,
    labels: Array | None = None,
    kind: Kind = "losses",
    steps: Array | None = None,
    samples: Sequence[Array] | None = None,
    predictions: Array | None = None,
    phases: PhasesLike | None = None,
    method: Method = "auto",
    threshold: Literal["midpoint", "equal_density"] = "midpoint",
    classes: Array | None = None,
) -> LabelIssues:
    """Find wrong labels from per-sample losses, margins or logits recorded while a model was trained on them.

    A network learns samples with right labels first and memorises wrong ones later, so a sample's margin (or loss)
    averaged over the time before memorisation tells them apart. Record it at a few, say 10 to 50, log-spaced steps
    from early on, for all training samples.

    Methods (each gives a label quality in [0, 1], lower is more suspicious, below 0.5 is an issue):

    - ``aum``: margin averaged over phases I and II; issue where negative. Where no phases are given, up to where the
      margins themselves show memorisation; where they show none, over all log-time.
    - ``mean_loss``: the same average of the losses; issue above the midpoint of a two-component mixture and log 2.
    - ``loss``: the losses at the cleaning step of ``phases``; issue as above.
    - ``paper``: the losses at the step where the means of the two-component mixture differ most; issue above the
      midpoint, even where there is only one group.
    - ``auto``: ``aum`` where margins are known, else ``mean_loss``.

    Where losses or margins cannot tell right labels from wrong ones (nothing has been learned yet, or
    there is one group), no method but ``paper`` flags a label, the noise rate's interval is (0, 1), its ``covers`` says
    why, and so does a warning, unless the phases of a History are passed, whose verdict has said it.

    Args:
        recorded: float array [T, N] or [N] of losses or margins, [T, N, C] or [N, C] of logits or probabilities
            (``kind`` says which), or a History whose records carry losses, margins and predictions.
        labels: [N] given labels, integers or strings; may be left out where a History's header has ``given_labels``.
        kind: what the array holds. Probabilities should be those of models that have not seen the sample.
        steps: [T] increasing training steps (or epochs) of the rows; default 1 ... T.
        samples: for a History whose records are of one minibatch each (`watch`): the places among the labels of the
            samples of each record, in order.
        predictions: [N] or [T, N] predicted labels where the array holds losses or margins.
        phases: the phases of the run (`label_phases`); None where unknown.
        method: see above.
        threshold: where a mixture decides: half-way between its means, or where the two densities are equal.
        classes: [C] the labels that the logits' columns stand for; default the sorted labels.

    Returns:
        The table of issues, one row a sample.

    Raises:
        ValueError: if shapes do not fit, values are not finite, or the method needs what was not recorded.

    Reference:
        Feng and Tu 2021, "Phases of learning dynamics in artificial neural networks", section on cleansing;
        Pleiss et al. 2020, "Identifying mislabeled data using the area under the margin ranking".

    Example:
        >>> losses = np.array([[0.7, 0.6, 0.8, 0.7], [0.3, 0.2, 2.9, 0.4], [0.1, 0.1, 2.5, 0.1]])
        >>> issues = find_label_issues(losses, labels=np.array([0, 1, 1, 0]), predictions=np.array([0, 1, 0, 0]))
        >>> issues["is_label_issue"]
        array([False, False,  True, False])
    """
    if isinstance(recorded, History):
        labels = recorded.header.get("given_labels") if labels is None else labels
        given = _checked_labels(labels)
        data = from_history(recorded, len(given), samples)
    else:
        if samples is not None:
            raise ValueError("find_label_issues: samples belong to a History, got them with an array. Leave them out.")
        given = _checked_labels(labels)
        classes = np.unique(given) if classes is None else np.asarray(classes)
        data = _from_array(np.asarray(recorded), given, kind, steps, classes)
    if predictions is not None:
        data = Recorded(data.steps, data.losses, data.margins, np.atleast_2d(np.asarray(predictions)))
    _check(data, given)
    scores, cut, name, step = _score(data, phases, method, threshold)
    silence = None if name == "paper" else nothing_to_tell(scores, given, margins=name == "aum")
    if silence is not None:
        if phases is None or not isinstance(recorded, History):  # else the verdict of the phases has said why
            warnings.warn(
                f"find_label_issues: {silence}, so that no label is flagged and the noise rate is unknown.",
                UserWarning,
                stacklevel=2,
            )
        cut = float(scores.min())
    p_wrong = probability_wrong(scores, cut)
    return LabelIssues(
        is_label_issue=scores < cut,
        label_quality=quality(scores, cut),
        given_label=given,
        predicted_label=_predicted(data, given, step),
        p_wrong=p_wrong,
        noise_rate=rate_of(p_wrong) if silence is None else NoiseRate(0.0, 0.0, 1.0, f"everything: {silence}"),
        method=name,
        cleaning_step=step,
    )


def _score(
    data: Recorded, phases: PhasesLike | None, method: Method, threshold: str
) -> tuple[Array, float, str, float | None]:
    """Return scores [N] (higher is better), the threshold, the name of the method, and its step."""
    if method == "auto":
        method = "aum" if data.margins is not None else "mean_loss"
    until = None if phases is None else phases.t23
    if until is None and data.margins is not None:
        until = memorisation_onset(data.margins, data.steps)
    if method == "aum":
        values = _needed(data.margins, "margins or logits", method)
        mean = time_average(values, data.steps, until=until, log_time=until is None)
        return mean, 0.0, method, float(data.steps[-1] if until is None else until)
    losses = _needed(data.losses, "losses or logits", method)
    if method == "mean_loss":
        values = time_average(losses, data.steps, until=until, log_time=until is None)
        step = float(data.steps[-1] if until is None else until)
    elif method == "loss":
        if phases is None or phases.cleaning_step is None:
            raise ValueError(
                "find_label_issues: method 'loss' needs phases with a cleaning step, got none. "
                "Pass phases=label_phases(history), or use method 'auto'."
            )
        row = int(np.argmin(np.abs(np.log1p(data.steps) - np.log1p(phases.cleaning_step))))
        values, step = losses[row], float(data.steps[row])
    elif method == "paper":
        row = max(range(len(losses)), key=lambda index: _gap(losses[index]))
        values, step = losses[row], float(data.steps[row])
    else:
        raise ValueError(f"find_label_issues: unknown method {method!r}. Use auto, aum, mean_loss, loss or paper.")
    mixture = fit_mixture(values)
    cut = mixture.midpoint if threshold == "midpoint" else mixture.equal_density
    if method != "paper":
        cut = max(cut, math.log(2))  # a mixture always finds two groups; a loss below log 2 means p(given label) > 1/2
    return -values, -cut, method, step


def _gap(losses: Array) -> float:
    """The distance of the two fitted means, 0 where all losses are equal (before the first step, say)."""
    return fit_mixture(losses).gap if np.ptp(losses) > 0 else 0.0


def _needed(values: Array | None, what: str, method: str) -> Array:
    """Return values, or say what was not recorded."""
    if values is None:
        raise ValueError(f"find_label_issues: method {method!r} needs {what}, got none. Record them, or use 'auto'.")
    return values


def _from_array(values: Array, labels: Array, kind: Kind, steps: Array | None, classes: Array) -> Recorded:
    """Bring an array to [T, N], deriving losses, margins and predictions from logits."""
    wide = kind in ("logits", "probabilities")
    if kind not in ("losses", "margins", "logits", "probabilities"):
        raise ValueError(f"find_label_issues: kind must be losses, margins, logits or probabilities, got {kind!r}.")
    if values.ndim == (2 if wide else 1):
        values = values[None]
    if values.ndim != (3 if wide else 2):
        raise ValueError(
            f"find_label_issues: {kind} must be {'[T, N, C]' if wide else '[T, N]'}, got {list(values.shape)}."
        )
    times = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
    if kind == "losses":
        if (values < 0).any():
            raise ValueError(
                "find_label_issues: losses must not be negative, got some. Are these margins (kind='margins')?"
            )
        return Recorded(times, values, None, None)
    if kind == "margins":
        return Recorded(times, None, values, None)
    if values.shape[2] != len(classes):
        raise ValueError(
            f"find_label_issues: {kind} have {values.shape[2]} columns for {len(classes)} classes. "
            "Pass classes=, the label of each column."
        )
    if kind == "probabilities":
        values = np.log(np.clip(values, 1e-12, None))
    codes = np.searchsorted(classes, labels)
    if not np.array_equal(classes[np.clip(codes, 0, len(classes) - 1)], labels):
        raise ValueError("find_label_issues: every label must be among the sorted `classes`, some are not.")
    of_given = margins(torch.from_numpy(values.astype(np.float64)), torch.from_numpy(codes)).numpy()
    return Recorded(times, cross_entropy(values, codes), of_given, classes[values.argmax(axis=-1)])


def _checked_labels(labels: Array | None) -> Array:
    """Return labels as [N]."""
    if labels is None:
        raise ValueError("find_label_issues: labels must be given, got None. Pass labels=, the label of each sample.")
    given = np.asarray(labels)
    if given.ndim != 1 or len(given) == 0:
        raise ValueError(f"find_label_issues: labels must be [N] with N > 0, got {list(given.shape)}.")
    return given


def _check(data: Recorded, labels: Array) -> None:
    """Check what every method relies on."""
    for name in NAMES:
        values = getattr(data, name)
        if values is None:
            continue
        if values.shape[-1] != len(labels):
            raise ValueError(f"find_label_issues: {name} have {values.shape[-1]} samples for {len(labels)} labels.")
        if name != "predictions":
            if len(values) != len(data.steps):
                raise ValueError(f"find_label_issues: {len(values)} rows of {name} for {len(data.steps)} steps.")
            bad = ~np.isfinite(values).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"find_label_issues: {name} must be finite, got NaN or infinity at step {data.steps[bad][0]}. "
                    "Did training diverge? Lower the learning rate, or leave those steps out."
                )
    if (np.diff(data.steps) <= 0).any():
        raise ValueError("find_label_issues: steps must increase, they do not.")


def _predicted(data: Recorded, labels: Array, step: float | None) -> Array:
    """Return the label predicted most often until the step, [N]; -1 or "" where nothing was recorded."""
    if data.predictions is None:
        return np.full(len(labels), "" if labels.dtype.kind in "UO" else -1)
    rows = data.predictions
    if step is not None and len(rows) == len(data.steps):
        rows = rows[data.steps <= step] if (data.steps <= step).any() else rows[:1]
    vocabulary, codes = np.unique(rows, return_inverse=True)
    votes = np.stack([(codes.reshape(rows.shape) == code).sum(axis=0) for code in range(len(vocabulary))])
    winners: Array = vocabulary[votes.argmax(axis=0)]
    return winners
