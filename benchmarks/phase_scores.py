"""Score the histories of the phase grid: agreement with the test error, verdicts, the live detector, the alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgdkern.history import History
from sgdkern.phase_detector import PhaseDetector, PhaseEvent
from sgdkern.phase_truth import phase_agreement, phases_from_test_error
from sgdkern.phases import Phases, label_phases

RULES = {
    "auto": "blind groups (the rule)",
    "none": "σ_λ² alone",
    "given": "known groups, mended criteria",
}
DATA = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
NAMES = ("I", "II", "III", "IV", "fast", "exploration")
TITLES = {
    "fifth": "The fifth judgement",
    "fourth": "The fourth judgement, seen since",
    "third": "The third judgement, seen since",
    "second": "The second judgement, seen since",
    "development": "The development half",
    "judgement": "The first judgement, seen since",
    "confirmation": "The confirmation, seen since",
    "further": "Further development runs",
}
SLICES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "digits": lambda c: c["data"] == "digits",
    "MNIST": lambda c: c["data"] == "mnist",
    "CIFAR-10": lambda c: c["data"] == "cifar10",
    "pair noise": lambda c: c["noise"] == "pair",
    "noise that may leave a label right": lambda c: c["noise"] == "incl",
    "B = 5": lambda c: c["batch_size"] == 5,
    "B = 100": lambda c: c["batch_size"] == 100,
    "lr .03 to .3, two input scalings": lambda c: c["lr"] in (0.03, 0.3) and c["data"] == "digits",
    "momentum, weight decay": lambda c: bool(c["momentum"] or c["weight_decay"]),
    "Adam": lambda c: c["optimiser"] == "adam",
    "tanh or Xavier": lambda c: c["activation"] == "tanh" or c["init"] == "xavier",
    "batch normalisation": lambda c: c["model"] == "mlp-batchnorm",
    "convolutional": lambda c: c["model"] == "cnn",
}
JUDGED_RATES = (0.15, 0.75)  # the noise rates over which the mean and the worst score are asked for


@dataclass(frozen=True)
class Scored:
    """One run of the grid with its labels, its truth and its events."""

    history: History
    config: dict[str, Any]
    labels: dict[str, Phases]
    truth: Phases
    events: dict[str, PhaseEvent]

    @property
    def is_judged(self) -> bool:
        """Whether the run's noise rate is one that the targets speak of."""
        return JUDGED_RATES[0] < self.config["rate"] < JUDGED_RATES[1]

    def score(self, rule: str) -> float:
        """Share of log-time labelled right."""
        return phase_agreement(self.labels[rule], self.truth)

    def at(self, name: str, step: float) -> float:
        """A metric at the record nearest to a step."""
        distance = np.abs(np.log(np.maximum(self.history.steps, 0.5)) - np.log(max(step, 0.5)))
        return float(self.history.column(name)[distance.argmin()])


def score(history: History) -> Scored:
    """Label one history by every rule, and watch it live."""
    rules = [rule for rule in RULES if rule != "given" or history.has("R_cw", "given")]
    detector = PhaseDetector(history.header)
    events = [event for event in map(detector.update, history) if event is not None]
    return Scored(
        history=history,
        config=history.header["config"],
        labels={rule: label_phases(history, groups=rule) for rule in rules},
        truth=phases_from_test_error(history),
        events={event.name: event for event in events},
    )


def summary(runs: list[Scored]) -> dict[str, Any]:
    """The numbers that the targets speak of, for one half of the grid."""
    judged = [run for run in runs if run.is_judged]
    scores = {rule: [run.score(rule) for run in judged if rule in run.labels] for rule in RULES if judged}
    clean = [run for run in runs if run.config["rate"] == 0.0]
    hopeless = [run for run in runs if run.config["rate"] >= 0.9]
    return {
        "runs": len(runs),
        "judged_runs": len(judged),
        "rules": {
            rule: {"mean": float(np.mean(values)), "worst": float(min(values)), "runs": len(values)}
            for rule, values in scores.items() if values
        },
        "clean_runs": len(clean),
        "clean_runs_with_phase_III": sum("III" in [phase.name for phase in run.labels["auto"]] for run in clean),
        "clean_runs_with_live_alarm": sum("III" in run.events for run in clean),
        "hopeless_runs": len(hopeless),
        "hopeless_runs_with_four_phases": sum(run.labels["auto"].verdict == "four phases" for run in hopeless),
        "hopeless_runs_with_live_alarm": sum("III" in run.events for run in hopeless),
        "live": live(judged),
        "alarm": alarm(judged),
        "alarm_by_data": {data: alarm([run for run in judged if run.config["data"] == data]) for data in DATA},
        "events_held": held(runs),
        "cleaning": cleaning(judged),
    }  # fmt: skip


def live(runs: list[Scored]) -> dict[str, Any]:
    """Delay of the announced phase III behind the truth's, and how often it is missed or far too early."""
    delays, records, early, missed = [], [], 0, 0
    for run in runs:
        event, truth = run.events.get("III"), run.truth.t23
        if truth is None:
            continue
        if event is None:
            missed += 1
            continue
        steps = run.history.steps
        delays.append(event.seen_at / truth)
        records.append(int(np.searchsorted(steps, event.seen_at) - np.searchsorted(steps, truth)))
        early += event.seen_at < 0.5 * truth
    return {
        "announced": len(delays),
        "missed": missed,
        "median_delay_factor": float(np.median(delays)) if delays else None,
        "median_delay_records": float(np.median(records)) if records else None,
        "earlier_than_half_of_T23": early,
    }


def alarm(runs: list[Scored]) -> dict[str, float]:
    """Mean test error at the last epoch, at the alarm, at the blind best moment of phase II, and at the best epoch."""
    rows = []
    for run in runs:
        if "III" in run.events and "II" in run.events:
            event = run.events["III"]
            middle = np.sqrt(max(run.events["II"].step, 1) * max(event.step, 1))
            error = run.history.column("test_error")
            rows.append((error[-1], run.at("test_error", event.seen_at), run.at("test_error", middle), error.min()))
    names = ("last", "at_alarm", "best_phase_II", "best")
    return {"runs": len(rows), **dict(zip(names, np.mean(rows, axis=0).tolist()))} if rows else {}


def held(runs: list[Scored]) -> dict[str, list[int]]:
    """How many events the label of the finished run bears out, within what the event says, and how many there were."""
    dates = {"II": "t12", "III": "t23", "IV": "t34", "exploration": "t12"}
    found: dict[str, list[int]] = {}
    for run in runs:
        label = run.labels["auto"]
        for name, event in run.events.items():
            if event.step >= run.history.steps[-1]:
                continue  # a phase that begins with the last record covers no time, and no label tells it
            date = getattr(label, dates[name])
            same_kind = (label.verdict == "two phases") == (name == "exploration")
            kept = same_kind and date is not None and 1 / event.within <= event.step / max(date, 1) <= event.within
            counts = found.setdefault(name, [0, 0])
            counts[0] += kept
            counts[1] += 1
    return found


def cleaning(runs: list[Scored]) -> dict[str, float]:
    """How much AUROC of the loss is lost by cleaning at the blind t_c rather than at the unknowable best record."""
    from sklearn.metrics import roc_auc_score

    lost = []
    for run in runs:
        step = run.labels["auto"].cleaning_step
        wrong = run.history.header["given_labels"] != run.history.header["true_labels"]
        if step is not None:
            areas = {record.step: roc_auc_score(wrong, record.losses) for record in run.history}
            lost.append(max(areas.values()) - areas[step])
    return {"runs": len(lost), "mean": float(np.mean(lost)), "worst": float(max(lost))} if lost else {}


def confusion(runs: list[Scored]) -> dict[str, dict[str, float]]:
    """Mean share of log-time of each true phase that is given each label, over the runs with noise rates .2 to .7."""
    table: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for right in run.truth:
            whole = np.log(right.end / right.start)
            shares = dict.fromkeys((*NAMES, "none"), 0.0)
            for guess in run.labels["auto"]:
                low, high = max(right.start, guess.start, 1), min(right.end, guess.end)
                shares[guess.name] += max(0.0, np.log(high / low)) / whole if high > low else 0.0
            shares["none"] = max(0.0, 1.0 - sum(shares.values()))
            for name, share in shares.items():
                table.setdefault(right.name, {}).setdefault(name, []).append(share)
    return {right: {name: float(np.mean(values)) for name, values in row.items()} for right, row in table.items()}


def verdicts(runs: list[Scored]) -> dict[str, dict[str, int]]:
    """How often each verdict is given at each noise rate."""
    table: dict[str, dict[str, int]] = {}
    for run in sorted(runs, key=lambda run: run.config["rate"]):
        row = table.setdefault(f"{run.config['rate']:g}", {})
        verdict = run.labels["auto"].verdict
        row[verdict] = row.get(verdict, 0) + 1
    return table


def rows(runs: list[Scored]) -> list[dict[str, Any]]:
    """One line a run, all that the tables and the figures are made from."""
    found = []
    for run in runs:
        label = run.labels["auto"]
        dates = {name: [getattr(phases, name) for phases in (run.truth, label)] for name in ("t12", "t23", "t34")}
        found.append({
            **run.config,
            "scores": {rule: run.score(rule) for rule in run.labels},
            "verdict": label.verdict,
            "truth": run.truth.verdict,
            **dates,
            "events": {name: [event.step, event.seen_at] for name, event in run.events.items()},
            "reason": label.reason,
        })  # fmt: skip
    return found


def _settings(row: dict[str, Any]) -> str:
    network = f"{row['model']} {'-'.join(map(str, row['hidden']))} {row['activation']}"
    extra = [row["init"]] if row["init"] != "default" else []
    extra += [f"momentum {row['momentum']:g}"] if row["momentum"] else []
    extra += [f"decay {row['weight_decay']:g}"] if row["weight_decay"] else []
    return ", ".join([network, row["optimiser"], f"lr {row['lr']:g}", f"B {row['batch_size']}", row["scaling"], *extra])


def markdown(halves: dict[str, list[Scored]]) -> str:
    """All tables."""
    text = [
        "# Phase labels over the grid", "",
        "Made by `benchmarks/phase_grid.py report`. Scores are shares of log-time.",
    ]  # fmt: skip
    for half, runs in halves.items():
        text += ["", f"## {TITLES[half]}, {len(runs)} runs", ""]
        judged = [run for run in runs if run.is_judged]
        text += [*_told(summary(runs)), "", *_by_slice(judged), "", *_verdict_table(runs)]
        text += ["", *_confusion_table(judged), "", *_run_table(runs)]
    return "\n".join(text) + "\n"


def _told(numbers: dict[str, Any]) -> list[str]:
    """Scores of the rules, and what else the targets speak of."""
    text = ["| rule | runs at rates .2-.7 | mean | worst |", "| --- | --- | --- | --- |"]
    for rule, values in numbers["rules"].items():
        text.append(f"| {RULES[rule]} | {values['runs']} | {values['mean']:.3f} | {values['worst']:.3f} |")
    text += [
        "",
        f"- Clean runs: {numbers['clean_runs']}; labelled with a phase III: {numbers['clean_runs_with_phase_III']}; "
        f"live alarms: {numbers['clean_runs_with_live_alarm']}.",
        f"- Runs at rate .9: {numbers['hopeless_runs']}; given four phases: "
        f"{numbers['hopeless_runs_with_four_phases']}; live alarms: {numbers['hopeless_runs_with_live_alarm']}.",
    ]
    watch, lost = numbers["live"], numbers["cleaning"]
    if watch["announced"]:
        text.append(
            f"- Live phase III at rates .2-.7: announced {watch['announced']}, missed {watch['missed']}, "
            f"before half of T23 {watch['earlier_than_half_of_T23']}; median delay a factor "
            f"{watch['median_delay_factor']:.2f} in steps ({watch['median_delay_records']:.0f} records)."
        )
    if numbers["events_held"]:
        kept = ", ".join(f"{name} {count} of {whole}" for name, (count, whole) in numbers["events_held"].items())
        text.append(f"- Events that the label of the finished run bears out within what they say: {kept}.")
    if lost:
        text.append(
            f"- AUROC of the loss at the blind cleaning time below the best record's: mean {lost['mean']:.4f}, "
            f"worst {lost['worst']:.3f}."
        )
    return [*text, "", *_alarm_table(numbers)]


def _alarm_table(numbers: dict[str, Any]) -> list[str]:
    """Mean test errors that the alarm saves, by data."""
    text = ["Mean test error, rates .2-.7, where an alarm was raised:", ""]
    text += ["| data | runs | last epoch | at the alarm | mid-phase II as known then | best epoch |"]
    text += ["| --- | --- | --- | --- | --- | --- |"]
    for name, row in [
        *((DATA[data], row) for data, row in numbers["alarm_by_data"].items()),
        ("all", numbers["alarm"]),
    ]:
        if row:
            cells = (f"{row[key]:.3f}" for key in ("last", "at_alarm", "best_phase_II", "best"))
            text.append(f"| {name} | {row['runs']} | {' | '.join(cells)} |")
    return text


def _by_slice(judged: list[Scored]) -> list[str]:
    """Scores and delays of kinds of runs."""
    text = ["Runs at rates .2-.7 by kind (a run may be of several):", ""]
    text += [
        "| kind | runs | mean | worst | alarms | median delay, factor in steps |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, belongs in SLICES.items():
        runs = [run for run in judged if belongs(run.config)]
        if runs:
            scores, watch = [run.score("auto") for run in runs], live(runs)
            delay = "–" if watch["median_delay_factor"] is None else f"{watch['median_delay_factor']:.2f}"
            cells = [
                name,
                str(len(runs)),
                f"{np.mean(scores):.3f}",
                f"{min(scores):.2f}",
                str(watch["announced"]),
                delay,
            ]
            text.append(f"| {' | '.join(cells)} |")
    return text


def _verdict_table(runs: list[Scored]) -> list[str]:
    names = ("four phases", "two phases", "no phase II", "not enough of a run")
    text = ["Verdicts by noise rate:", "", f"| rate | {' | '.join(names)} |", "| --- | --- | --- | --- | --- |"]
    for rate, row in verdicts(runs).items():
        text.append(f"| {rate} | {' | '.join(str(row.get(name, 0)) for name in names)} |")
    return text


def _confusion_table(judged: list[Scored]) -> list[str]:
    table = confusion(judged)
    text = ["Where log-time goes, rates .2-.7 (rows: truth; columns: label):", ""]
    text += ["| | " + " | ".join((*NAMES, "none")) + " |", "| --- |" + " --- |" * (len(NAMES) + 1)]
    for right in (name for name in NAMES if name in table):
        text.append(f"| {right} | " + " | ".join(f"{table[right][name]:.2f}" for name in (*NAMES, "none")) + " |")
    return text


def _run_table(runs: list[Scored]) -> list[str]:
    """One line a run."""
    text = ["| data | settings | noise | seed | score | verdict | T12 truth/label | T23 | T34 | alarm seen at |"]
    text.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in sorted(rows(runs), key=lambda row: (row["data"], row["rate"], row["noise"], row["seed"])):
        dates = [" / ".join("–" if step is None else str(step) for step in row[name]) for name in ("t12", "t23", "t34")]
        noise = f"{row['noise']} {row['rate']:g}" if row["rate"] else "none"
        seen = str(row["events"]["III"][1]) if "III" in row["events"] else "–"
        score_text = f"{row['scores']['auto']:.2f}"
        cells = [row["data"], _settings(row), noise, str(row["seed"]), score_text, row["verdict"], *dates, seen]
        text.append(f"| {' | '.join(cells)} |")
    return text


def report(runs: list[Scored], folder: Path) -> None:
    """Write phases.json, phases.md and the figures."""
    from phase_figures import draw

    halves = {half: [run for run in runs if run.config["half"] == half] for half in TITLES}
    halves = {half: found for half, found in halves.items() if found}
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        half: {"summary": summary(found), "verdicts": verdicts(found), "runs": rows(found)}
        for half, found in halves.items()
    }
    (folder / "phases.json").write_text(json.dumps(numbers, indent=1, default=float) + "\n")
    (folder / "phases.md").write_text(markdown(halves))
    draw(halves, folder)
    for half in halves:
        print(half, json.dumps(numbers[half]["summary"], indent=1, default=float))
