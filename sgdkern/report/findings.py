"""The findings in words: which phases a run went through and when, what each means, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sgdkern.report.figures.panel import when
from sgdkern.report.run_folder import Phase, RunFolder


@dataclass(frozen=True)
class Fact:
    """One number of the summary strip."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class PhaseFinding:
    """One phase in words."""

    name: str
    title: str
    when: str
    confidence: str
    meaning: str
    advice: str


@dataclass(frozen=True)
class Findings:
    """What the reader should know first.

    Attributes:
        headline: The run in one sentence.
        standfirst: What was trained on what, and the verdict's reason.
        facts: The numbers that matter most.
        phases: One entry a phase.
        phase_note: What there is to say of the phases as a whole.
        labels: Paragraphs on the wrong labels.
        scoring: How the findings compare with the truth, where that is known; the tool never sees it.
        alarm: What was said while the network was trained; None where the run did not tell.
    """

    headline: str
    standfirst: str
    facts: tuple[Fact, ...]
    phases: tuple[PhaseFinding, ...]
    phase_note: str
    labels: tuple[str, ...]
    scoring: tuple[str, ...]
    alarm: str | None


_TITLES = {
    "I": "Fast learning of the pattern",
    "II": "Exploration: the best time",
    "III": "Memorising wrong labels",
    "IV": "After memorising",
    "fast": "Fast learning",
    "exploration": "Exploration",
}
_MEANINGS = {
    "I": "Minibatches agree on a direction and the rightly labelled samples set it: the network picks up the pattern "
    "that most samples share.",
    "II": "Right and wrong labels pull against each other and nearly cancel. The network holds the pattern, not the "
    "exceptions: wrongly labelled samples stand out by their loss.",
    "III": "The wrong labels now drive the mean gradient and the network learns them one by one: the training error "
    "falls while the test error climbs.",
    "IV": "Every label, wrong ones too, is fitted; the gradients die out and the losses of right and wrong samples "
    "look alike.",
    "fast": "Minibatches agree on a direction: loss and error fall quickly.",
    "exploration": "Minibatches no longer agree: the network wanders among solutions that fit about "
    "equally and improves slowly.",
}
_ADVICE = {
    "I": "Let it run. It is too early to judge single labels.",
    "II": "Stop here, or use this phase’s losses to find the wrong labels and train again without them.",
    "III": "Do not train into this phase: go back to a checkpoint of phase II, or clean the labels and train again.",
    "IV": "Do not use these weights, and do not look for wrong labels with these losses.",
    "fast": "Let it run.",
    "exploration": "Train on as long as the validation error still falls; no memorising of wrong labels was seen.",
}
_HEADLINES = {
    "two phases": "No sign that the network memorised wrong labels",
    "no phase II": "Too many wrong labels: the network never held the pattern before it memorised them",
    "not enough of a run": "Too short a run to tell its phases",
}
_METHODS = {
    "aum": "the area under the margin: the logit of the given label minus the largest other one, averaged over "
    "{span}; where it is negative the label looks wrong",
    "mean_loss": "their loss, averaged over {span}",
    "loss": "their loss at the cleaning time",
    "paper": "their loss where the two components of a mixture fitted to the losses are farthest apart",
}
_VERDICT_ADVICE = {
    "no phase II": (
        "There was no stretch in which right and wrong labels could be told apart. Do not rely on the label issues "
        "below; "
        "get more reliable labels for a part of the data, or train a model that learns the pattern faster."
    ),
    "not enough of a run": "Train for longer, or measure more often, and label the phases again.",
}


def describe(run: RunFolder) -> Findings:
    """Put a run into words.

    Args:
        run: The run.

    Returns:
        The findings; parts of which nothing is known are empty.
    """
    return Findings(
        headline=_headline(run),
        standfirst=_standfirst(run),
        facts=tuple(_facts(run)),
        phases=tuple(_phase(run, phase) for phase in _trusted(run)),
        phase_note=_phase_note(run),
        labels=tuple(_labels(run)),
        scoring=tuple(_scoring(run)),
        alarm=_alarm(run),
    )


def percent(share: float) -> str:
    """Write a share as a percentage.

    Args:
        share: 0 … 1.

    Returns:
        `49.7 %`.
    """
    return f"{100 * share:.1f}\u202f%"


def _headline(run: RunFolder) -> str:
    if not len(run.history):
        return "Nothing was measured yet"
    if _learned_nothing(run):
        return "The network learned nothing that holds on the test data"
    if run.phases is None:
        return "A run without phase labels"
    if run.phases.verdict in _HEADLINES:
        return _HEADLINES[run.phases.verdict]
    third = next((phase for phase in run.phases.phases if phase.name == "III"), None)
    rate = run.number("noise_rate", "estimate")
    share = "Some" if rate is None else f"About {100 * rate:.0f}\u202f%"
    if third is None:
        return (
            f"The run went through phase {_join([phase.name for phase in run.phases.phases])}"
            if run.phases.phases
            else ("No phases were found")
        )
    return f"{share} of the labels look wrong, and the network began to memorise them at {when(run, third.start)}"


def _trusted(run: RunFolder) -> tuple[Phase, ...]:
    """The phases that the reader is given advice on."""
    return () if run.phases is None or _learned_nothing(run) else run.phases.phases


def _learned_nothing(run: RunFolder) -> bool:
    """Whether the test error never fell below nine tenths of that of guessing: what was called phase II was none."""
    best, classes = run.number("test_error", "best"), run.number("dataset", "num_classes")
    return best is not None and classes is not None and best > 0.9 * (1 - 1 / classes)


def _standfirst(run: RunFolder) -> str:
    dataset, model = run.summary.get("dataset") or {}, run.summary.get("model") or {}
    parts = []
    if model.get("text") and dataset.get("name"):
        size = f", {dataset['num_train']:,} samples" if isinstance(dataset.get("num_train"), int) else ""
        parts.append(f"A network ({model['text']}) trained on {dataset['name']}{size}.")
    if len(run.history):
        end = when(run, float(run.history.steps[-1]))
        parts.append(f"{len(run.history)} measurements of every sample’s gradient, up to {end}.")
    return " ".join(parts)


def _facts(run: RunFolder) -> list[Fact]:
    facts = []
    rate, low, high = (run.number("noise_rate", key) for key in ("estimate", "low", "high"))
    if rate is not None:
        between = (
            f"95\u202f% interval {100 * low:.1f} to {percent(high)}" if low is not None and high is not None else ""
        )
        facts.append(Fact("wrong labels, estimated", percent(rate), between))
    if run.issues is not None:
        found = int(run.issues.is_label_issue.sum())
        facts.append(Fact("labels to look at", f"{found:,}", f"of {len(run.issues.index):,} training samples"))
    if run.cleaning_step is not None and not _learned_nothing(run):
        error = run.number("test_error", "at_cleaning_step")
        note = f"test error there: {percent(error)}" if error is not None else ""
        facts.append(Fact("best time to clean or stop", when(run, run.cleaning_step), note))
    final, cleaned = run.number("test_error", "final"), run.number("test_error", "cleaned")
    if final is not None:
        facts.append(Fact("test error at the end", percent(final), _best_note(run)))
    if cleaned is not None:
        facts.append(Fact("test error after cleaning", percent(cleaned), "retrained without the issues found"))
    return facts


def _best_note(run: RunFolder) -> str:
    best, step = run.number("test_error", "best"), run.number("test_error", "best_step")
    if best is None:
        return ""
    return f"lowest: {percent(best)}" + (f", at {when(run, step)}" if step is not None else "")


def _phase(run: RunFolder, phase: Phase) -> PhaseFinding:
    advice = _ADVICE.get(phase.name, "")
    if phase.name == "II" and run.cleaning_step is not None:
        advice = f"Stop at {when(run, run.cleaning_step)}, or use the losses up to there to find the wrong labels and "
        advice += "train again without them."
    return PhaseFinding(
        name=phase.name,
        title=_TITLES.get(phase.name, phase.name),
        when=_stretch(run, phase),
        confidence="" if phase.confidence is None else f"confidence {phase.confidence:.2f}",
        meaning=_MEANINGS.get(phase.name, ""),
        advice=advice,
    )


def _stretch(run: RunFolder, phase: Phase) -> str:
    start, end = (_short(run.at(step)) for step in (phase.start, phase.end))
    return f"{'epochs' if run.in_epochs else 'steps'} {start} to {end}"


def _short(time: float) -> str:
    return f"{time:.1f}" if 0 < time < 10 else f"{time:,.0f}"


def _phase_note(run: RunFolder) -> str:
    if run.phases is None:
        return "The phases of this run were not labelled, so the figures below carry no shading."
    reason = run.phases.reason.strip()
    reason = reason if not reason or reason.endswith(".") else reason + "."
    advice = _VERDICT_ADVICE.get(run.phases.verdict, "")
    if _learned_nothing(run):
        advice = (
            "But the test error never fell far below that of guessing: do not rely on these phases, nor on the label "
            "issues below. The labels may be too wrong, or the training too short or unsuitable, to learn anything."
        )
    return " ".join(filter(None, [f"Verdict: {run.phases.verdict}.", reason[:1].upper() + reason[1:], advice]))


def _alarm(run: RunFolder) -> str | None:
    """The alarm, where to go back to, and what that saves."""
    if "alarm" not in run.summary or _learned_nothing(run):
        return None
    seen, best, end = (
        run.number("alarm", "seen_at"),
        run.number("alarm", "best_step"),
        run.number("test_error", "final"),
    )
    if seen is None or best is None:
        return "While the network was trained no alarm was raised: it was not seen to begin to memorise wrong labels."
    name = (run.summary["alarm"] or {}).get("checkpoint")
    weights = f", whose weights are in {name}" if name else ""
    stopped = "Training ended there." if run.config.get("stop_at_alarm") else ""
    errors = [run.number("alarm", key) for key in ("test_error", "test_error_at_best_step")]
    words = [
        f"While the network was trained the alarm was raised at {when(run, seen)}: wrong labels are being memorised.",
        stopped,
        f"The moment to go back to was {when(run, best)}{weights}.",
    ]
    if errors[0] is not None and errors[1] is not None and end is not None:
        last = "" if stopped else f", and {percent(end)} at the end"
        words.append(f"Test error: {percent(errors[1])} at that moment, {percent(errors[0])} at the alarm{last}.")
    if run.phases is not None and not any(phase.name == "III" for phase in run.phases.phases):
        words.append(
            "The finished run does not bear the alarm out: what came after it looks otherwise (see the verdict)."
        )
    return " ".join(filter(None, words))


def _labels(run: RunFolder) -> list[str]:
    if run.issues is None:
        return []
    issues = run.issues
    found, total = int(issues.is_label_issue.sum()), len(issues.index)
    method = (run.summary.get("cleaning") or {}).get("method")
    memorised = run.phases is not None and any(phase.name == "III" for phase in run.phases.phases)
    span = "the run until memorising begins" if memorised else "the run"
    score = _METHODS.get(str(method), str(method)).replace("{span}", span)
    how = f" Samples are ranked by {score}." if method else ""
    share = f"{found:,} of {total:,} labels ({percent(found / total)}) look wrong" if found else "No label looks wrong"
    words = [f"{share}; no true label was used.{how}"]
    rate, low, high = (run.number("noise_rate", key) for key in ("estimate", "low", "high"))
    if rate is not None and low is not None and high is not None:
        words.append(
            f"The share of wrong labels is estimated at {percent(rate)}, between {percent(low)} and {percent(high)} "
            "with 95\u202f% confidence; the interval covers sampling only, not a mixture that does not fit."
        )
    if found and run.phases and run.phases.verdict in ("two phases", "no phase II", "not enough of a run"):
        words.append(
            f"Since the verdict on the phases is “{run.phases.verdict}”, read this list with care: it ranks what is "
            "unusual, and unusual need not be wrong."
        )
    final, cleaned = run.number("test_error", "final"), run.number("test_error", "cleaned")
    if final is not None and cleaned is not None:
        turn = "lowers" if cleaned < final else "does not lower"
        words.append(
            f"Leaving them out and training again {turn} the test error: {percent(final)} before, "
            f"{percent(cleaned)} after."
        )
    return words


def _scoring(run: RunFolder) -> list[str]:
    words = []
    true, rate = run.number("noise_rate", "true"), run.number("noise_rate", "estimate")
    if true is not None:
        words.append(
            f"Wrong labels in truth: {percent(true)}" + (f" (estimate: {percent(rate)})." if rate is not None else ".")
        )
    auroc, best, quality = (run.number("cleaning", key) for key in ("auroc", "auroc_best", "auroc_quality"))
    if auroc is not None:
        more = "" if best is None else f" ({best:.3f} at the best measurement, which only the truth can name)"
        words.append(f"Area under the ROC curve of the losses at the cleaning time: {auroc:.3f}{more}.")
    if quality is not None:
        words.append(f"Area under the ROC curve of the label quality that ranks the samples: {quality:.3f}.")
    precision, recall = run.number("cleaning", "precision"), run.number("cleaning", "recall")
    if precision is not None and recall is not None:
        words.append(
            f"Of the labels flagged {percent(precision)} are wrong; of the wrong labels {percent(recall)} are flagged."
        )
    truth = run.phases.truth if run.phases else None
    if truth and truth.get("score") is not None and np.isfinite(float(truth["score"])):
        share = f"{100 * float(truth['score']):.0f}\u202f%"
        words.append(f"Phases by the test error agree with those found on {share} of the run in log-time.")
    return words


def _join(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
