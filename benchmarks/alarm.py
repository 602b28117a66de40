"""What the alarm is worth: test error there and at the moment that it sends back to, against the last and best epoch.

    python benchmarks/alarm.py run FOLDER      one history a run; killed, it goes on where it was
    python benchmarks/alarm.py table FOLDER    the table, in Markdown

The settings were written down before the first run; nothing of the alarm was chosen on them. The best epoch is known
only to whoever has right labels to test with.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from sgdkern.alarm import Lookout, nearest_record
from sgdkern.history import History
from sgdkern.observed_training import new_trainer
from sgdkern.probe import Probe
from sgdkern.run import run_data
from sgdkern.run_config import RunConfig
from sgdkern.schedule import log_spaced_steps
from sgdkern.training import evaluate

DATA = Path(os.environ.get("SGDKERN_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
_TOLD = ("last", "at the alarm", "after going back", "best")


def settings() -> dict[str, RunConfig]:
    """The runs by name."""
    digits = RunConfig(epochs=300)
    mnist = RunConfig(
        dataset="mnist", data_root=str(DATA / "mnist4k"), train_samples=2000, test_samples=2000, lr=0.05, epochs=150
    )
    runs = {f"digits, half wrong, seed {seed}": replace(digits, seed=seed) for seed in range(6)}
    for name, data in (("digits", digits), ("MNIST", mnist)):
        for rate in (0.3, 0.6) if data is digits else (0.3, 0.5, 0.6):
            runs[f"{name}, {rate} wrong"] = replace(data, noise_rate=rate, seed=11)
        runs[f"{name}, .3 wrong by pairs"] = replace(data, noise_rate=0.3, noise="pair", seed=11)
        runs[f"{name}, no wrong labels"] = replace(data, noise="none", seed=11)
    return runs


def observe(config: RunConfig) -> History:
    """Train one run to its end under a probe."""
    data = run_data(config)
    trainer = new_trainer(config, data, order_seed=config.seed_for("order"))
    model = trainer.model
    probe = Probe(
        model, functional.cross_entropy, data.train_inputs, data.train_labels, batch_size=config.batch_size,
        num_minibatches=0, blind=False, population_size=data.num_train, steps_per_epoch=trainer.steps_per_epoch,
        metrics=lambda: {"test_error": evaluate(model, data.test_inputs, data.test_labels).error},
    )  # fmt: skip
    for step in log_spaced_steps(config.epochs * trainer.steps_per_epoch, count=config.measurements):
        trainer.advance(step - trainer.step)
        probe.measure(step)
    return probe.history


def score(history: History) -> dict[str, Any]:
    """Watch a run as if it were live, and tell what the alarm would have saved."""
    lookout, seen = Lookout(history.header), History(history.header)
    for record in history:
        seen.append(record)
        lookout.update(seen)
    errors = history.column("test_error")
    found: dict[str, Any] = {"last": float(errors[-1]), "best": float(errors.min()), "alarm": lookout.alarm}
    if lookout.alarm is not None:
        for name, step in (("at the alarm", lookout.alarm.seen_at), ("after going back", lookout.alarm.best_step)):
            found[name] = nearest_record(history, step).metrics["test_error"]
    return found | {"last_step": int(history.steps[-1])}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a run, and the mean over those with an alarm."""
    lines = [
        f"| run | alarm at step | of | test error: {' | '.join(_TOLD)} | saved, of what could be |",
        "| --- " * (len(_TOLD) + 4) + "|",
    ]
    alarmed = [one for one in found.values() if one["alarm"]]
    for name, one in found.items():
        seen = one["alarm"].seen_at if one["alarm"] else "none"
        lines.append(f"| {name} | {seen} | {one['last_step']} | {_errors(one)} | {_saved([one])} |")
    means = {name: statistics.mean(one[name] for one in alarmed) for name in _TOLD}
    lines.append(f"| **mean of {len(alarmed)} with an alarm** | | | {_errors(means)} | {_saved(alarmed)} |")
    return "\n".join(lines)


def _errors(one: Mapping[str, Any]) -> str:
    return " | ".join(f"{one[name]:.3f}" if name in one else "" for name in _TOLD)


def _saved(runs: list[Mapping[str, Any]]) -> str:
    """Share of the fall from the last to the best epoch that going back brings."""
    if any("after going back" not in one for one in runs):
        return ""
    could = sum(one["last"] - one["best"] for one in runs)
    return f"{sum(one['last'] - one['after going back'] for one in runs) / could:.0%}"


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="runs whose name holds this")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = {}
    for name, config in settings().items():
        if options.only not in name:
            continue
        path = options.folder / f"{name.replace(' ', '_').replace(',', '')}.jsonl"
        if options.what == "run" and not path.exists():
            began = time.process_time()
            observe(config).save(path)
            print(f"{name}: {time.process_time() - began:.0f} s of processor time", flush=True)
        if path.exists():
            found[name] = score(History.load(path))
    print(table(found))


if __name__ == "__main__":
    main()
