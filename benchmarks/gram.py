"""Measure what K costs, part by part, into benchmarks/results/gram.json; then write the tables and figures of the docs.

    python benchmarks/gram.py methods --threads 1 --workload narrow --workload medium
    python benchmarks/gram.py operations --threads 2
    python benchmarks/gram.py growth
    python benchmarks/gram.py memory
    python benchmarks/gram.py blocks --workload wide
    python benchmarks/gram.py docs

Each part replaces its own rows, so that a machine can be kept quiet for a few minutes at a time.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import median

import torch

from sgdkern.atomic import write_json
from sgdkern.benchmark import FLOOR, MEMORY_METHODS, METHODS, WORKLOADS, Effort, machine, operation_speeds
from sgdkern.benchmark.growth import AXES, growth
from sgdkern.benchmark.measurement import Measurement, measure_apart
from sgdkern.benchmark.methods import ROWS, forward_backward
from sgdkern.benchmark.operations import ARGUMENTS as TIMED
from sgdkern.benchmark.oracle import CHECKED_SAMPLES, ERRORS, truth
from sgdkern.benchmark.work import useful_flops

RESULT = Path(__file__).resolve().parent / "results" / "gram.json"
KEYS = {
    "measurements": ("threads", "workload", "method"),
    "operations": ("threads", "dtype", "operation", "shape"),
    "growth": ("axis", "value", "method"),
    "memory": ("workload", "method"),
    "blocks": ("workload", "method", "block"),
}


def merge(part: str, rows: list[dict[str, object]]) -> None:
    """Put rows in the place of those with the same key, and write the file."""
    document = json.loads(RESULT.read_text()) if RESULT.exists() else {"schema_version": 2}
    peers = document.get("machine", {}).get("peers", {})  # rows of a run that had them installed stay
    document["machine"] = (found := machine()) | {"peers": peers | found["peers"]}
    kept = {tuple(row[key] for key in KEYS[part]): row for row in document.get(part, [])}
    kept |= {tuple(row[key] for key in KEYS[part]): row for row in rows}
    document[part] = list(kept.values())
    write_json(RESULT, document)


def methods(options: argparse.Namespace) -> None:
    """Time methods in turns with the floor; every row is kept as soon as it is there, with its ratio to the floor."""
    chosen = options.method or [name for name, found in METHODS.items() if found.is_available]
    for workload in options.workload or WORKLOADS:
        effort, floor = Effort(options.limit, options.budget), None
        for name in (FLOOR, *chosen):
            found = measure_apart(workload, name, threads=options.threads, effort=effort)
            if name == FLOOR:
                effort = replace(effort, ceiling=found.ceiling_gflops, floor_batch=found.floor_batch)
                floor = found.seconds
            beside = found.floor_seconds or floor
            ratio = None if found.seconds is None or beside is None else found.seconds / beside
            merge("measurements", [{"threads": options.threads} | asdict(found) | {"ratio_to_floor": ratio}])
            said = found.failure or f"{'>= ' * found.is_lower_bound}{found.seconds:.4f} s, {ratio:.3f}"
            print(f"{workload}, {name}: {said}", file=sys.stderr, flush=True)


def shared(options: argparse.Namespace) -> None:
    """On a machine that others use: processor time, one thread, three rounds one after the other, in this process."""
    torch.set_num_threads(1)
    for workload in options.workload or WORKLOADS:
        problem = WORKLOADS[workload].make()
        true = truth(problem)
        runs = {FLOOR: lambda problem=problem: forward_backward(problem, options.batch_size)}
        errors = {FLOOR: None}
        for name in options.method:
            found = METHODS[name]
            errors[name] = ERRORS[found.quantity](true, found.run(problem.first(CHECKED_SAMPLES)), True)
            runs[name] = lambda found=found, problem=problem: found.run(problem)
        times = {name: [] for name in runs}
        for _ in range(3):
            for name, run in runs.items():
                start = time.process_time()
                run()
                times[name].append(time.process_time() - start)
        floor = median(times[FLOOR])
        for name, found in times.items():
            quantity = METHODS[name].quantity if name in METHODS else "gradient"
            row = Measurement(workload, name, quantity, problem.num_samples, problem.num_params, median(found))
            row = replace(row, repeats=3, error=errors[name], useful_flops=useful_flops(problem, quantity))
            ratio = {"threads": 1, "clock": "processor time", "ratio_to_floor": median(found) / floor}
            merge("measurements", [asdict(row) | ratio])
            print(f"{workload}, {name}: {found}, {median(found) / floor:.3f}", file=sys.stderr, flush=True)


def operations(options: argparse.Namespace) -> None:
    """Time the compiled operations by themselves."""
    for dtype in [getattr(torch, name) for name in options.dtype or ("float32", "float64", "bfloat16")]:
        chosen = options.operation or TIMED
        for speed in operation_speeds(dtype, threads=options.threads, operations=chosen, budget=options.budget):
            merge("operations", [asdict(speed) | {"share_of_ceiling": speed.share_of_ceiling}])


def grow(options: argparse.Namespace) -> None:
    """Time along the axes."""
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    axes = [AXES[name] for name in options.axis or AXES]
    for point in growth(budget=options.budget / 2, axes=axes, clock=clock):
        merge("growth", [asdict(point) | {"clock": clock.__name__}])


def memory(options: argparse.Namespace) -> None:
    """Peaks only: one run each."""
    for workload in options.workload or WORKLOADS:
        for name in (FLOOR, *(options.method or MEMORY_METHODS)):
            found = asdict(measure_apart(workload, name, threads=options.threads, effort=Effort(1e9, 0.0, 1.0)))
            keys = ("workload", "method", "num_samples", "num_params", "peak_mib", "error", "failure")
            merge("memory", [{key: found[key] for key in keys}])


def blocks(options: argparse.Namespace) -> None:
    """K where explicit gradients of all samples do not fit: two blocks of them at a time, run whole, in processor time.

    Whoever has two blocks in memory forms K's tiles one by one: a block's gradients are held while those of all blocks
    before it are formed again. The floor runs after each tile, so that both see the same machine.
    """
    torch.set_num_threads(1)
    block, names = options.batch_size, options.method or [name for name in ROWS if METHODS[name].is_available]
    for workload, name in product(options.workload or ["wide"], names):
        problem = WORKLOADS[workload].make()
        gram, seconds, floors = torch.zeros(problem.num_samples, problem.num_samples), 0.0, list[float]()
        forward_backward(problem, problem.num_samples)
        for start in range(0, problem.num_samples, block):
            begin = time.process_time()
            held = ROWS[name](problem.part(start, start + block))
            seconds += time.process_time() - begin
            for other in range(0, start + 1, block):
                begin = time.process_time()
                rows = held if other == start else ROWS[name](problem.part(other, other + block))
                tile = sum(a.flatten(1) @ b.flatten(1).T for a, b in zip(held, rows, strict=True))
                gram[start : start + block, other : other + block] = tile
                del rows
                seconds += time.process_time() - begin
                begin = time.process_time()
                forward_backward(problem, problem.num_samples)
                floors.append(time.process_time() - begin)
                print(f"{name} {start} {other}: {seconds:.1f} s, {floors[-1]:.3f} s", file=sys.stderr, flush=True)
            del held
        gram = gram.tril() + gram.tril(-1).T
        found = {"workload": workload, "method": name, "block": block, "num_samples": problem.num_samples}
        found |= {"seconds": seconds, "floor_seconds": median(floors), "ratio_to_floor": seconds / median(floors)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        merge("blocks", [found | {"peak_mib": peak, "error": ERRORS["K"](truth(problem), gram, False)}])


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {
        "methods": methods,
        "shared": shared,
        "operations": operations,
        "growth": grow,
        "memory": memory,
        "blocks": blocks,
    }
    parser.add_argument("part", choices=[*parts, "docs"])
    parser.add_argument("--workload", action="append", choices=WORKLOADS)
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--axis", action="append", choices=AXES)
    parser.add_argument("--processor-time", action="store_true", help="for `growth` on a machine that others use")
    parser.add_argument("--batch-size", type=int, default=32, help="of the floor, for `shared`; of `blocks`")
    parser.add_argument("--dtype", action="append", choices=("float32", "float64", "bfloat16"))
    parser.add_argument("--operation", action="append", choices=TIMED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=12.0, help="seconds; a run that takes longer is bounded")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds over which a short run is repeated")
    options = parser.parse_args()
    if options.part == "docs":
        from gram_docs import write_docs  # it draws: not for the processes that measure

        write_docs(json.loads(RESULT.read_text()))
    else:
        parts[options.part](options)


if __name__ == "__main__":
    main()
