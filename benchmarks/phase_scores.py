"""Score the histories of the phase grid: agreement with the test error, verdicts, the live detector, the alarm."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgdkern.history import History
from sgdkern.phase_detector import PhaseDetector, PhaseEvent
from sgdkern.phase_truth import phase_agreement, phases_from_test_error
from sgdkern.phases import Phases, label_phases

RULES = {
    "auto": "blind groups at the t_c of σ_λ² (the rule)",
    "none": "σ_λ² alone",
    "given": "known groups, mended criteria",
}
NAMES = ("I", "II", "III", "IV", "fast", "exploration")
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
        "live": live(judged),
        "alarm": alarm(judged),
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
    return dict(zip(names, np.mean(rows, axis=0).tolist())) if rows else {}


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
        "# Phase labels over the grid",
        "",
        "Made by `benchmarks/phase_grid.py report`. Scores are shares of log-time.",
    ]
    for half, runs in halves.items():
        numbers = summary(runs)
        text += ["", f"## The {half} half, {numbers['runs']} runs", ""]
        text += ["| rule | runs at rates .2-.7 | mean | worst |", "| --- | --- | --- | --- |"]
        for rule, values in numbers["rules"].items():
            text.append(f"| {RULES[rule]} | {values['runs']} | {values['mean']:.3f} | {values['worst']:.2f} |")
        text += ["", f"- Clean runs: {numbers['clean_runs']}; labelled with a phase III: "
                 f"{numbers['clean_runs_with_phase_III']}; live alarms: {numbers['clean_runs_with_live_alarm']}.",
                 f"- Runs at rate .9: {numbers['hopeless_runs']}; given four phases: "
                 f"{numbers['hopeless_runs_with_four_phases']}."]  # fmt: skip
        watch, worth, lost = numbers["live"], numbers["alarm"], numbers["cleaning"]
        if watch["announced"]:
            text.append(
                f"- Live phase III at rates .2-.7: announced {watch['announced']}, missed {watch['missed']}, "
                f"before half of T23 {watch['earlier_than_half_of_T23']}; median delay a factor "
                f"{watch['median_delay_factor']:.2f} in steps ({watch['median_delay_records']:.0f} records)."
            )
        if worth:
            text.append(
                f"- Mean test error: last epoch {worth['last']:.3f}, at the alarm {worth['at_alarm']:.3f}, in mid-"
                f"phase II as known then {worth['best_phase_II']:.3f}, best epoch {worth['best']:.3f}."
            )
        if lost:
            text.append(
                f"- AUROC of the loss at the blind cleaning time below the best record's: mean {lost['mean']:.4f}, "
                f"worst {lost['worst']:.3f}."
            )
        text += [
            "",
            "Verdicts by noise rate:",
            "",
            "| rate | four phases | two phases | no phase II | not enough of a run |",
        ]
        text.append("| --- | --- | --- | --- | --- |")
        for rate, row in verdicts(runs).items():
            counts = [str(row.get(n, 0)) for n in ("four phases", "two phases", "no phase II", "not enough of a run")]
            text.append(f"| {rate} | {' | '.join(counts)} |")
        table = confusion([run for run in runs if run.is_judged])
        text += ["", "Where log-time goes, rates .2-.7 (rows: truth; columns: label):", ""]
        text += ["| | " + " | ".join((*NAMES, "none")) + " |", "| --- |" + " --- |" * (len(NAMES) + 1)]
        for right in (name for name in NAMES if name in table):
            text.append(f"| {right} | " + " | ".join(f"{table[right][name]:.2f}" for name in (*NAMES, "none")) + " |")
        text += ["", "| data | settings | noise | seed | score | verdict | T12 truth/label | T23 | T34 |"]
        text.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for row in sorted(rows(runs), key=lambda row: (row["data"], row["rate"], row["noise"], row["seed"])):
            dates = [
                " / ".join("–" if step is None else str(step) for step in row[name]) for name in ("t12", "t23", "t34")
            ]
            noise = f"{row['noise']} {row['rate']:g}" if row["rate"] else "none"
            score_text = f"{row['scores']['auto']:.2f}"
            cells = [row["data"], _settings(row), noise, str(row["seed"]), score_text, row["verdict"], *dates]
            text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def report(runs: list[Scored], folder: Path) -> None:
    """Write phases.json, phases.md and the figures."""
    from phase_figures import draw

    halves = {
        half: [run for run in runs if run.config["half"] == half]
        for half in ("judgement", "confirmation", "development")
    }
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
