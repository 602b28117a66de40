"""The embedded demonstration with several seeds: do the blind phases and the blind cleaning time hold?

python benchmarks/demo_seeds.py run FOLDER --seeds 6     one run folder a seed (a minute each on one core)
python benchmarks/demo_seeds.py table FOLDER             the table, in Markdown
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sgdkern.run import run
from sgdkern.run_config import RunConfig

_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "seed": lambda s: str(s["config"]["seed"]),
    "T12 / T23 / T34, blind": lambda s: _dates(s["phases"]),
    "by the test error": lambda s: _dates(s["phases"]["truth"]),
    "agreement": lambda s: f"{s['phases']['truth']['score']:.3f}",
    "cleaning step": lambda s: str(s["cleaning"]["step"]),
    "AUROC there": lambda s: f"{s['cleaning']['auroc']:.4f}",
    "best AUROC": lambda s: f"{s['cleaning']['auroc_best']:.4f}",
    "wrong labels found: precision / recall": lambda s: (
        f"{s['cleaning']['precision']:.3f} / {s['cleaning']['recall']:.3f}"
    ),
    "noise rate (true .5)": lambda s: f"{s['noise_rate']['estimate']:.3f}",
    "test error: noisy / cleaned / right labels only": lambda s: " / ".join(
        f"{s['test_error'][name]:.3f}" for name in ("final", "cleaned", "perfect")
    ),
}


def _dates(phases: Mapping[str, Any]) -> str:
    return " / ".join("–" if phases[name] is None else str(phases[name]) for name in ("t12", "t23", "t34"))


def table(summaries: list[Mapping[str, Any]]) -> str:
    """One line a seed, and the mean and the worst of what is judged."""
    lines = [f"| {' | '.join(_COLUMNS)} |", f"| {' | '.join('---' for _ in _COLUMNS)} |"]
    lines += [f"| {' | '.join(tell(summary) for tell in _COLUMNS.values())} |" for summary in summaries]
    scores = [summary["phases"]["truth"]["score"] for summary in summaries]
    short = [summary["cleaning"]["auroc_best"] - summary["cleaning"]["auroc"] for summary in summaries]
    count = len(summaries)
    lines += [
        "",
        f"Agreement: mean {sum(scores) / count:.3f}, worst {min(scores):.3f}. "
        f"AUROC short of the best: mean {sum(short) / count:.4f}, worst {max(short):.4f}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, or tabulate what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    if options.what == "run":
        for seed in range(options.seeds):
            run(RunConfig(seed=seed), options.folder / f"seed{seed}", overwrite=True)
    else:
        folders = sorted(path.parent for path in options.folder.glob("seed*/summary.json"))
        print(table([json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in folders]))


if __name__ == "__main__":
    main()
