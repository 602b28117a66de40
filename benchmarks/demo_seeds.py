"""The embedded demonstration with several seeds: do the blind phases and the blind cleaning time hold?

python benchmarks/demo_seeds.py run FOLDER --seeds 6     one run folder a seed (a minute each on one core)
python benchmarks/demo_seeds.py table FOLDER             the table, in Markdown
python benchmarks/demo_seeds.py picture FOLDER           docs/demo: the figures of seed 0, four of them in one
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sgdkern.run import run
from sgdkern.run_config import RunConfig

DEMO = Path(__file__).resolve().parent.parent / "docs" / "demo"
_OVERVIEW = ("fig3a_errors", "fig1d_projection_variance", "fig4c_blind", "fig6b_mixture")
_WIDTH, _GAP = 1400, 20  # pixels

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


def picture(figures: Path, place: Path) -> None:
    """Copy the figures of a run, and set one over three others in overview.png."""
    from PIL import Image

    (place / "run").mkdir(parents=True, exist_ok=True)
    for path in figures.glob("*.png"):
        shutil.copy(path, place / "run")
    top, *below = (Image.open(figures / f"{name}.png").convert("RGB") for name in _OVERVIEW)
    width = (_WIDTH - (len(below) - 1) * _GAP) // len(below)
    top = top.resize((_WIDTH, top.height * _WIDTH // top.width), Image.Resampling.LANCZOS)
    below = [one.resize((width, one.height * width // one.width), Image.Resampling.LANCZOS) for one in below]
    height = max(one.height for one in below)
    whole = Image.new("RGB", (_WIDTH, top.height + _GAP + height), "white")
    whole.paste(top, (0, 0))
    for column, one in enumerate(below):
        whole.paste(one, (column * (width + _GAP), top.height + _GAP))
    whole.quantize(256, dither=Image.Dither.NONE).save(place / "overview.png", optimize=True)


def main() -> None:
    """Run, or tabulate what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table", "picture"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    if options.what == "run":
        for seed in range(options.seeds):
            run(RunConfig(seed=seed), options.folder / f"seed{seed}", overwrite=True)
    elif options.what == "picture":
        picture(options.folder / "seed0" / "figures", DEMO)
    else:
        folders = sorted(path.parent for path in options.folder.glob("seed*/summary.json"))
        print(table([json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in folders]))


if __name__ == "__main__":
    main()
