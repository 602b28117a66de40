"""Plot how a spectrum's cost grows with N, P and the number of eigenvalues, from benchmarks/results/spectrum.json.

python -m pytest benchmarks/test_spectrum.py -k growth && python benchmarks/spectrum_growth.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

HERE = Path(__file__).resolve().parent
FIGURE = HERE.parent / "docs" / "figures" / "spectrum_growth.png"
STYLES = {"gram": ("#0072B2", "o", "K formed"), "lanczos": ("#D55E00", "s", "K never formed")}


def main() -> None:
    """Draw the figure."""
    lines = json.loads((HERE / "results" / "spectrum.json").read_text())["lines"]
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
    titles = {
        "N": "784-256-256-10, 10 eigenvalues",
        "P": "N = 1000, 10 eigenvalues",
        "eigenvalues": "784-256-256-10, N = 1000",
    }
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for route, (colour, marker, label) in STYLES.items():
            points = sorted(
                (line[name], line["seconds"])
                for line in lines
                if line["what"] == f"growth, {route}" and line["axis"] == name
            )
            axis.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
        axis.set(xscale="log", yscale="log", xlabel=name, title=title)
        axis.set_xticks([point for point, _ in points], [f"{point:,}" for point, _ in points], rotation=30)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("CPU seconds, capture included")
    axes[0].legend(frameon=False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(FIGURE, dpi=130)


if __name__ == "__main__":
    main()
