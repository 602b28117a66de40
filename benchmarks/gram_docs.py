"""Write the tables of docs/benchmarks.md and the figure of growth from what benchmarks/gram.py has measured."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sgdkern.benchmark import FLOOR, METHODS
from sgdkern.benchmark.growth import AXES, FITTED, exponent
from sgdkern.factors import CHUNK_BYTES
from sgdkern.report.style import CORRECT, INK, NULL, TEST, WRONG, applied

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
FIGURE = ROOT / "docs" / "figures" / "gram_growth.png"
SHAPES = {
    "narrow": "784-50-50-10, N = 4000",
    "medium": "784-1024-1024-10, N = 1024",
    "medium-2048": "784-1024-1024-10, N = 2048",
    "wide": "784-4096-4096-10, N = 512",
    "wide-2048": "784-4096-4096-10, N = 2048",
    "cnn": "CNN, N = 256",
    "resnet18": "ResNet-18, N = 64",
    "transformer": "transformer, N = 128",
}
OURS = ("sgdkern", "sgdkern, gram_matrix")
HADAMARD = ("asdfghjkl, hadamard", "nngeometry")
EXPLICIT = ("autograd loop", "vmap(grad)", "torchjd", "opacus", "backpack", "asdfghjkl, direct")
STYLES = {
    FLOOR: (NULL, "^", "forward + backward"),
    "sgdkern": (CORRECT, "o", "sgdkern"),
    "asdfghjkl, hadamard": (WRONG, "s", "asdfghjkl (Hadamard form)"),
    "vmap(grad)": (TEST, "D", "vmap(grad)"),
}

Rows = list[dict[str, Any]]


class Results:
    """What was measured, looked up by name."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = {"operations": [], "growth": [], "memory": [], "blocks": []} | document
        self.rows = {(r["threads"], r["workload"], r["method"]): r for r in document["measurements"]}

    def row(self, workload: str, method: str, threads: int = 1) -> dict[str, Any] | None:
        """One measurement that has a time."""
        found = self.rows.get((threads, workload, method))
        return None if found is None or found["failure"] else found

    def seconds(self, workload: str, *methods: str, threads: int = 1) -> float | None:
        """The shortest time of several methods."""
        times = [r["seconds"] for m in methods if (r := self.row(workload, m, threads)) is not None]
        return min(times, default=None)

    def ratio(self, workload: str, *methods: str, threads: int = 1) -> float | None:
        """The same over the floor of their own run."""
        found = [r["ratio_to_floor"] for m in methods if (r := self.row(workload, m, threads)) is not None]
        return min(found, default=None)

    def ceiling(self, threads: int) -> float:
        """The best rate of a square product in all runs: other programs can only lower it."""
        return max(r["ceiling_gflops"] or 0.0 for key, r in self.rows.items() if key[0] == threads)


def verdict(value: float | None, bar: float, *, at_most: bool) -> str:
    if value is None:
        return "not measured"
    return "met" if (value <= bar if at_most else value >= bar) else "**missed**"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _times(value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{sign}{value:,.0f} ×" if value >= 100 else f"{sign}{value:.3g} ×"


def whole_gram(results: Results) -> str:
    """K from the model over one forward and backward."""
    bars = {"wide": 0.75, "medium": 1.2, "cnn": 1.5, "resnet18": 1.55, "transformer": 1.8}
    rows = []
    for workload, bar in bars.items():
        shared = any("clock" in (results.row(workload, method) or {}) for method in OURS)
        cells = [_times(results.ratio(workload, method)) for method in OURS]
        best = results.ratio(workload, *OURS)
        two = _times(results.ratio(workload, *OURS, threads=2))
        floor = results.seconds(workload, FLOOR)
        milliseconds = "-" if floor is None else f"{1e3 * floor:.1f} ms"
        rows.append([
            SHAPES[workload] + " †" * shared,
            milliseconds,
            f"≤ {bar} ×",
            *cells,
            verdict(best, bar, at_most=True),
            two,
        ])
    head = ["", "floor", "bar", "`G.gram()`", "`gram_matrix`", "", "the better with 2 threads"]
    return _table(head, rows)


def order_parameters(results: Results) -> str:
    """Without K, without and with R; and as `sk.order_parameters` chooses."""
    bars = {"wide": (1.05, 0.4), "medium": (1.05, 0.4), "narrow": (1.3, 0.8)}
    bars |= dict.fromkeys(("cnn", "resnet18", "transformer"), (1.6, 0.4))
    rows = []
    for workload, (bar, more) in bars.items():
        without = results.ratio(workload, "sgdkern, all but R")
        with_alignment = results.ratio(workload, "sgdkern, with R")
        added = None if without is None or with_alignment is None else with_alignment - without
        chosen = results.ratio(workload, "sgdkern, order parameters")
        rows.append([
            SHAPES[workload],
            f"≤ {bar} ×",
            _times(without),
            verdict(without, bar, at_most=True),
            f"≤ {more} ×",
            _times(added),
            verdict(added, more, at_most=True),
            f"≤ {bar + more:.3g} ×",
            _times(chosen),
            verdict(chosen, bar + more, at_most=True),
        ])
    passes = ["bar", "all but R, by passes", "", "bar", "R adds", ""]
    return _table(["", *passes, "both bars", "`sk.order_parameters`, R included", ""], rows)


def peers(results: Results) -> str:
    """How many times faster than the better of those that do the same, and than all others."""
    bars = {"narrow": (2.5, 50), "medium": (1.7, 300), "wide": (1.5, 500)}
    rows = []
    for workload, (bar, others_bar) in bars.items():
        ours = results.ratio(workload, *OURS)
        for names, least, text in ((HADAMARD, bar, "the better of the Hadamard forms"), (EXPLICIT, others_bar, "")):
            found = {name: r for name in names if (r := results.row(workload, name)) is not None}
            if ours is None or not found:
                rows.append([SHAPES[workload], text or "all others", f"≥ {least} ×", "-", "not measured"])
                continue
            best = min(found, key=lambda name: found[name]["ratio_to_floor"])
            sign = "≥ " if found[best]["is_lower_bound"] else ""
            ratio = found[best]["ratio_to_floor"] / ours
            judged = verdict(ratio, least, at_most=False)
            if sign and ratio < least:
                judged = "a bound below the bar tells nothing"
            label = f"{text or 'the best of all others'}: {best}"
            rows.append([SHAPES[workload], label, f"≥ {least} ×", _times(ratio, sign), judged])
        for found in results.document["blocks"]:
            if found["workload"] == workload and ours is not None:
                label = f"{found['method']}, two blocks of {found['block']} samples at a time, run whole"
                ratio = found["ratio_to_floor"] / ours
                judged = verdict(ratio, others_bar, at_most=False)
                rows.append([SHAPES[workload], label, f"≥ {others_bar} ×", _times(ratio), judged])
    for workload, names, bar in (
        ("cnn", ("vmap(grad)", "autograd loop"), 1.6),
        ("transformer", ("vmap(grad)", "autograd loop"), 1.6),
        ("resnet18", ("autograd loop",), 1.8),
    ):
        ours, theirs = results.ratio(workload, *OURS), results.ratio(workload, *names)
        ratio = None if ours is None or theirs is None else theirs / ours
        judged = verdict(ratio, bar, at_most=False)
        rows.append([SHAPES[workload], " or ".join(names), f"≥ {bar} ×", _times(ratio), judged])
    return _table(["", "sgdkern is faster than", "bar", "by", ""], rows)


def peer_memory(results: Results) -> str:
    """Peaks against those of the methods that hold explicit gradients."""
    rows = []
    for workload in ("narrow", "medium", "wide"):
        found = {name: r for name in EXPLICIT if (r := results.row(workload, name)) is not None}
        ours = [r["peak_mib"] for name in OURS if (r := results.row(workload, name)) is not None]
        if not found or not ours:
            continue
        least = min(found, key=lambda name: found[name]["peak_mib"])
        sign = "≥ " if found[least]["is_lower_bound"] else ""
        theirs, mine = found[least]["peak_mib"], min(ours)
        rows.append([
            SHAPES[workload],
            f"{mine:,.0f} MiB",
            f"{least}: {sign}{theirs:,.0f} MiB",
            f"1/{theirs / max(mine, 1):.0f}",
            verdict(theirs / max(mine, 1), 10, at_most=False),
        ])
    return _table(["", "sgdkern", "least of those that hold gradients", "share (bar: ≤ 1/10)", ""], rows)


def fused_operation(results: Results) -> str:
    """The operation alone against the machine's matrix product, useful flops only."""
    rows = []
    operations = results.document["operations"]
    for shape in dict.fromkeys(row["shape"] for row in operations if row["operation"] == "gram"):
        bar = 0.7 if shape.startswith("784-50-") else 0.9
        cells, shares = [], []
        for dtype in ("float32", "float64", "bfloat16"):
            for threads in (1, 2):
                found = [
                    r["share_of_ceiling"]
                    for r in operations
                    if (r["operation"], r["shape"], r["dtype"], r["threads"]) == ("gram", shape, dtype, threads)
                ]
                cells.append(f"{found[0]:.0%}" if found else "-")
                shares += found if dtype == "float32" else []
        judged = verdict(min(shares, default=None), bar, at_most=False)
        rows.append([shape, f"≥ {bar:.0%}", *cells[:2], judged, *cells[2:]])
    head = ["", "bar", "float32, 1 thread", "2 threads", "", "float64, 1", "2", "bfloat16, 1", "2"]
    return _table(head, rows)


def memory(results: Results) -> str:
    """Peaks above the start against the floor's, K and one layer's chunk."""
    rows = []
    document = results.document["memory"]
    for workload, text in SHAPES.items():
        peaks = {r["method"]: r for r in document if r["workload"] == workload and not r["failure"]}
        if FLOOR not in peaks:
            continue
        floor = peaks[FLOOR]["peak_mib"]
        gram = 4 * peaks[FLOOR]["num_samples"] ** 2 / 2**20
        allowed = floor + gram + CHUNK_BYTES / 2**20
        cells, verdicts = [], []
        for method in ("sgdkern, gram_matrix", "sgdkern", "sgdkern, factors only", "sgdkern, all but R"):
            peak = peaks[method]["peak_mib"] if method in peaks else None
            cells.append("-" if peak is None else f"{peak:,.0f}")
            verdicts.append(verdict(peak, allowed, at_most=True))
        rows.append([text, f"{floor:,.0f}", f"{gram:,.0f}", f"{allowed:,.0f}", *cells, verdicts[0], verdicts[1]])
    head = ["", "forward + backward", "K", "allowed", "`gram_matrix`", "`G.gram()`", "factors only", "all but R"]
    return _table([*head, "bar: `gram_matrix`", "`G.gram()`"], rows)


def everything(results: Results, threads: int) -> str:
    """All methods by workload, in units of the floor."""
    workloads = [name for name in SHAPES if results.row(name, FLOOR, threads) is not None]
    rows = [
        [
            "forward + backward, ms",
            *(f"{1e3 * (results.seconds(w, FLOOR, threads=threads) or 0):.1f}" for w in workloads),
        ]
    ]
    for method in METHODS:
        cells = []
        for workload in workloads:
            found = results.rows.get((threads, workload, method))
            if found is None:
                cells.append("")
            elif found["failure"]:
                cells.append("wrong" if found["failure"].startswith("wrong") else "fails")
            else:
                cells.append(_times(results.ratio(workload, method, threads=threads), "≥ " * found["is_lower_bound"]))
        if any(cells):
            rows.append([method, *cells])
    return _table(["", *workloads], rows)


def failures(results: Results) -> str:
    """What a method said, or by how much it was wrong."""
    found: dict[tuple[str, str], list[str]] = {}
    for (threads, workload, method), row in results.rows.items():
        if threads == 1 and row["failure"]:
            text = re.sub(r"at non-singleton.*", "…", row["failure"])
            found.setdefault((method, text), []).append(workload)
    return "\n".join(f"- {method} ({', '.join(where)}): {text}" for (method, text), where in found.items())


def shares(results: Results) -> str:
    """Useful operations of whole measurements over the matrix product's rate."""
    rows = []
    for workload, text in SHAPES.items():
        cells = []
        for method in (FLOOR, "sgdkern", "sgdkern, gram_matrix", "sgdkern, all but R"):
            for threads in (1, 2):
                found = results.row(workload, method, threads)
                rate = None if found is None or "clock" in found else found["useful_flops"] / found["seconds"] / 1e9
                cells.append("-" if rate is None else f"{rate / results.ceiling(threads):.0%}")
        rows.append([text, *cells])
    head = ["", "floor", "2 threads", "`G.gram()`", "2 threads", "`gram_matrix`", "2 threads", "all but R", "2 threads"]
    return _table(head, rows)


def growth_lines(results: Results) -> Iterator[tuple[str, str, list[tuple[float, float]]]]:
    """Axis, method, and the points in order."""
    for axis in AXES:
        for method in STYLES:
            points = sorted(
                (row["value"], row["seconds"])
                for row in results.document["growth"]
                if (row["axis"], row["method"]) == (axis, method)
            )
            if len(points) > 1:
                yield axis, method, points


def growth_table(results: Results) -> str:
    """Fitted exponents."""
    cells = {(axis, method): f"{exponent(points):.2f}" for axis, method, points in growth_lines(results)}
    rows = [[STYLES[m][2], *(cells.get((axis, m), "-") for axis in AXES)] for m in STYLES]
    return _table(["", *(f"{axis} ({AXES[axis].text})" for axis in AXES)], rows)


def growth_figure(results: Results) -> None:
    """Times against samples, width and depth with the fitted power laws."""
    with applied():
        figure = Figure(figsize=(11, 3.9), layout="constrained")
        panels = dict(zip(AXES, figure.subplots(1, len(AXES), sharey=True), strict=True))
        ends: dict[str, list[tuple[tuple[float, float], str, str]]] = {}
        for axis, method, points in growth_lines(results):
            colour, marker, label = STYLES[method]
            power = exponent(points)
            panels[axis].plot(*zip(*points, strict=True), marker, color=colour, markersize=4.5, label=label)
            end = points[-FITTED:]
            middle = [math.exp(sum(map(math.log, values)) / len(end)) for values in zip(*end, strict=True)]
            fitted = [middle[1] * (x / middle[0]) ** power for x, _ in end]
            panels[axis].plot([x for x, _ in end], fitted, color=colour, linewidth=1.3)
            ends.setdefault(axis, []).append((points[-1], f"{power:.2f}", colour))
        for axis, labels in ends.items():
            heights: dict[float, float] = {}  # in decades, by x: labels stand 0.2 apart
            for (x, t), text, colour in sorted(labels):
                heights[x] = max(heights.get(x, -math.inf) + 0.2, math.log10(t))
                place = {"xytext": (x * 1.12, 10 ** heights[x]), "textcoords": "data", "va": "center", "fontsize": 8.5}
                panels[axis].annotate(text, (x, t), color=colour, **place)
        for name, panel in panels.items():
            panel.set(xscale="log", yscale="log", xlabel=name if name != "samples" else "samples N")
            panel.set_title(AXES[name].text, fontsize=10, color=INK)
            values = AXES[name].values
            panel.set_xticks(values, [f"{value:,}" for value in values], rotation=35)
            panel.minorticks_off()
            panel.set_xlim(values[0] / 1.25, values[-1] * 1.7)
        first = panels["samples"]
        first.set_ylabel("seconds, one thread")
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(STYLES))
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(FIGURE, dpi=130)


def described(results: Results) -> str:
    """The machine, in a sentence."""
    found = results.document["machine"]
    peers_found = ", ".join(f"{name} {version}" for name, version in found["peers"].items())
    rates = " and ".join(f"{results.ceiling(n):.0f} with {n}" for n in sorted({key[0] for key in results.rows}))
    return (
        f"{found['processor']} ({found['cores']} cores, {found['capability']}), {found['system']}, Python "
        f"{found['python']}, PyTorch {found['torch']}; {peers_found}. Best rate of a square float32 product in these "
        f"runs, GFLOP/s by threads: {rates}."
    )


def cost(results: Results) -> str:
    """For who meets the project: an ordinary pass, ours, and the fastest of the others."""
    rows = []
    for workload in ("narrow", "medium", "wide", "cnn", "resnet18", "transformer"):
        others = {name: row for name in (*HADAMARD, *EXPLICIT) if (row := results.row(workload, name)) is not None}
        best = min(others, key=lambda name: others[name]["ratio_to_floor"])
        rows.append([
            SHAPES[workload],
            f"{1e3 * (results.seconds(workload, FLOOR) or 0):,.0f} ms",
            _times(results.ratio(workload, "sgdkern, order parameters")),
            _times(results.ratio(workload, *OURS)),
            f"{_times(results.ratio(workload, best))} ({best})",
            _times(results.ratio(workload, "vmap(grad)"), "≥ " * others["vmap(grad)"]["is_lower_bound"]),
        ])
    head = ["", "forward + backward", "order parameters", "K", "K by the fastest other", "K by `vmap(grad)`"]
    return _table(head, rows)


PARTS: dict[str, Callable[[Results], str]] = {
    "machine": described,
    "fused operation": fused_operation,
    "whole gram": whole_gram,
    "order parameters": order_parameters,
    "peers": peers,
    "peer memory": peer_memory,
    "memory": memory,
    "everything, 1 thread": lambda results: everything(results, 1),
    "everything, 2 threads": lambda results: everything(results, 2),
    "failures": failures,
    "shares": shares,
    "growth": growth_table,
}


def write_docs(document: dict[str, Any], page: Path = PAGE, readme: Path = README) -> None:
    """Put every table between its marks in the page and in the readme, and draw the figure."""
    results = Results(document)
    _fill(page, {name: part(results) for name, part in PARTS.items()})
    _fill(readme, {"cost": cost(results)})
    growth_figure(results)


def _fill(page: Path, bodies: dict[str, str]) -> None:
    text = page.read_text()
    for name, body in bodies.items():
        pattern = rf"(<!-- generated: {re.escape(name)} -->\n)(?:(?!<!--).)*(\n<!-- end -->)"
        if re.search(pattern, text, flags=re.DOTALL) is None:
            raise ValueError(f"write_docs: {page.name} must have the mark of {name!r}. Put it back.")
        text = re.sub(pattern, lambda found, body=body: found[1] + body + found[2], text, flags=re.DOTALL)
    page.write_text(text)
