"""The paper's Figs. 2 and 5: noise spectra of the hidden-hidden matrix in each phase, on 4,000 MNIST images.

    python benchmarks/spectrum_paper.py run       # trains, about 5 minutes on one free core
    python benchmarks/spectrum_paper.py figure    # benchmarks/results/spectrum_paper.json -> docs/figures

The data are 400 training images a digit and 6,000 test images in MNIST's file format under $SGDKERN_DATA/mnist4k.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgdkern.capture import per_sample_gradients
from sgdkern.data import load_data, with_label_noise
from sgdkern.spectrum import noise_spectrum
from sgdkern.training import Trainer, build_model, evaluate

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("SGDKERN_DATA", HERE.parent.parent / "shared" / "data"))
RESULT = HERE / "results" / "spectrum_paper.json"
FIGURE = HERE.parent / "docs" / "figures" / "spectrum_paper.png"
BATCH_SIZE = 25

# What the paper prints (D_s of the hidden-hidden matrix), and in which epochs each run is measured.
RUNS: dict[str, dict[str, Any]] = {
    "clean, tanh, Xavier": {
        "hidden": (30, 30),
        "activation": "tanh",
        "rate": 0.0,
        "lr": 0.1,
        "epochs": [0.5, 2, 10, 30],
        "paper": {"fast": 110, "exploration": 110},
    },
    "clean, ReLU": {
        "hidden": (30, 30),
        "activation": "relu",
        "rate": 0.0,
        "lr": 0.1,
        "epochs": [0.5, 2, 10, 30],
        "paper": {},
    },
    "half of the labels wrong, ReLU": {
        "hidden": (50, 50),
        "activation": "relu",
        "rate": 0.5,
        "lr": 0.03,
        "epochs": [0.5, 2, 10, 30, 60, 100, 160, 250],
        "paper": {"I": 43, "II": 58, "III": 140, "IV": 95},
    },
}


def train(name: str, seed: int) -> list[dict[str, Any]]:
    """Train one run, and measure its spectra."""
    settings = RUNS[name]
    data = load_data("mnist", root=DATA / "mnist4k", scaling="unit", seed=seed)
    if settings["rate"]:
        data = with_label_noise(data, rate=settings["rate"], kind="symmetric", seed=seed)
    model = build_model(
        "mlp",
        input_shape=data.train_inputs.shape[1:],
        num_classes=10,
        hidden=settings["hidden"],
        activation=settings["activation"],
        seed=seed,
    )
    if settings["activation"] == "tanh":
        torch.manual_seed(seed)
        for parameter in model.parameters():
            nn.init.xavier_normal_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)
    loss = nn.CrossEntropyLoss()
    generator = torch.Generator().manual_seed(seed)
    trainer = Trainer(
        model, loss, data.train_inputs, data.train_labels, lr=settings["lr"], batch_size=BATCH_SIZE, generator=generator
    )
    hidden = [name for name, parameter in model.named_parameters() if parameter.ndim == 2][1]
    rows = []
    for epoch in settings["epochs"]:
        trainer.advance(round(epoch * trainer.steps_per_epoch) - trainer.step)
        G = per_sample_gradients(model, loss, data.train_inputs, data.train_labels)
        part = noise_spectrum(G.restrict([hidden]), batch_size=BATCH_SIZE, strict=True)
        rows.append({
            "run": name,
            "seed": seed,
            "epoch": epoch,
            "train_error": evaluate(model, data.train_inputs, data.train_labels).error,
            "test_error": evaluate(model, data.test_inputs, data.test_labels).error,
            "effective_dimension": part.effective_dimension,
            "participation_ratio": part.participation_ratio,
            "trace": part.trace,
            "eigenvalues": [float(f"{value:.4g}") for value in part.eigenvalues[:400].tolist()],
        })
        print({key: value for key, value in rows[-1].items() if key != "eigenvalues"}, flush=True)
    return rows


def run(names: list[str], seed: int) -> None:
    """Train runs, and keep what was measured beside what was measured before."""
    for name in names or RUNS:
        rows = train(name, seed)
        known = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
        others = [row for row in known if (row["run"], row["seed"]) != (name, seed)]
        text = {"batch_size": BATCH_SIZE, "inputs": "[0, 1]", "rows": others + rows}
        RESULT.write_text(json.dumps(text) + "\n")


def phase(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The phase of a measurement by test and training error, which the spectra do not see."""
    if not RUNS[row["run"]]["rate"]:
        return "fast" if row["train_error"] > 0.1 else "exploration"
    errors = [other["test_error"] for other in rows]
    lowest = min(range(len(rows)), key=lambda k: errors[k])
    place = rows.index(row)
    if place < lowest and row["test_error"] > errors[lowest] + 0.1 * (errors[0] - errors[lowest]):
        return "I"
    if row["train_error"] <= 0.01:
        return "IV"
    return "II" if row["test_error"] <= errors[lowest] + 0.15 * (errors[-1] - errors[lowest]) else "III"


def figure() -> None:
    """Draw the spectra and print the table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = json.loads(RESULT.read_text())["rows"]
    colours = {"fast": "#0072B2", "exploration": "#D55E00", "I": "#0072B2", "II": "#009E73", "III": "#D55E00"}
    colours["IV"] = "#CC79A7"
    done = [name for name in RUNS if any(row["run"] == name for row in rows)]
    fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    print("| run | phase | epochs | D_s, hidden-hidden | the paper |\n| --- | --- | --- | --- | --- |")
    for axis, name in zip(axes.flat, done, strict=False):
        labelled: dict[str, list[dict[str, Any]]] = {}
        for seed in sorted({row["seed"] for row in rows if row["run"] == name}):
            mine = [row for row in rows if row["run"] == name and row["seed"] == seed]
            for row in mine:
                labelled.setdefault(phase(row, mine), []).append(row)
        for label, members in labelled.items():
            spans = ([row[key] for row in members] for key in ("epoch", "effective_dimension"))
            epochs, part = (f"{min(span):g}–{max(span):g}" for span in spans)
            print(f"| {name} | {label} | {epochs} | {part} | {RUNS[name]['paper'].get(label, '–')} |")
            row = members[len(members) // 2]
            values = [value for value in row["eigenvalues"] if value > 0]
            text = f"{label}: epoch {row['epoch']:g}, $D_s$ = {row['effective_dimension']}"
            axis.plot(range(1, len(values) + 1), [v / values[0] for v in values], color=colours[label], label=text)
            axis.axvline(row["effective_dimension"], color=colours[label], linestyle=":", linewidth=1)
        axis.set(xscale="log", yscale="log", ylim=(1e-3, 1.5), title=name)
        axis.set(xlabel="rank $i$", ylabel=r"$\lambda_i / \lambda_1$")
        axis.legend(frameon=False, fontsize=8, loc="lower left")
        axis.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(FIGURE, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "figure"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=list(RUNS))
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.only, arguments.seed)
    else:
        figure()
