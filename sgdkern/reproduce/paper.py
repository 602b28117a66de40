"""The paper's figures, listed; each is data, a drawing and a table, from runs that are made once."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sgdkern.atomic import replacing, strict_json, write_json
from sgdkern.report import style
from sgdkern.reproduce import fig1, fig2, fig3, fig4, fig5, fig6
from sgdkern.reproduce.figure import PaperFigure
from sgdkern.reproduce.job import Job, Result, load, with_needs
from sgdkern.reproduce.page import Reproduced, html, markdown
from sgdkern.reproduce.plan import Plan
from sgdkern.reproduce.sweep import OnProgress, sweep

FIGURES: dict[str, PaperFigure] = {module.FIGURE.name: module.FIGURE for module in (fig1, fig2, fig3, fig4, fig5, fig6)}

PLAN, PAGE, RUNS = "plan.json", "paper.html", "runs"
_DPI = 130


def reproduce(
    names: Sequence[str],
    plan: Plan,
    folder: Path,
    *,
    processes: int = 1,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> list[Reproduced]:
    """Reproduce figures of the paper.

    Args:
        names: Which ones.
        plan: The settings.
        folder: Receives ``<name>.json``, ``.png`` and ``.md`` for each figure, ``paper.html``, the settings, and one
            file for each run; made if it is not there.
        processes: How many runs at once; the data do not depend on it.
        resume: Go on with a folder of the same settings: runs that are there are not made again.
        on_progress: Told how far it is.

    Returns:
        The figures, in the order of the names.

    Raises:
        ValueError: If a name is unknown, or the folder to resume has other settings.
        FileExistsError: If the folder holds something and ``resume`` is not given.
        RuntimeError: If a run fails, or a worker process is killed.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown or not names:
        raise ValueError(f"reproduce: figures must be among {', '.join(FIGURES)}, got {', '.join(unknown) or 'none'}.")
    if processes < 1:
        raise ValueError(f"reproduce: jobs must be at least 1, got {processes}.")
    _open_folder(folder, plan, resume=resume)
    done = [
        _reproduce(FIGURES[name], plan, folder, processes=processes, on_progress=on_progress)
        for name in dict.fromkeys(names)
    ]
    with replacing(folder / PAGE) as file:
        file.write(html(done, described(plan)).encode())
    return done


def described(plan: Plan) -> str:
    """The settings, in a sentence.

    Args:
        plan: The settings.

    Returns:
        The sentence.
    """
    changed = {
        name: value
        for name, value in plan.as_dict().items()
        if name in ("epochs", "lr", "hidden", "test_samples") and value is not None
    }
    words = [
        f"Data: {plan.dataset}, at most {plan.per_class} training samples a class; B = {plan.batch_size}",
        f"seeds {', '.join(map(str, plan.seeds))}",
        *(f"{name} = {value}" for name, value in changed.items()),
    ]
    return "; ".join(words) + "."


def _open_folder(folder: Path, plan: Plan, *, resume: bool) -> None:
    """Refuse to mix anything; then write the settings."""
    settings = folder / PLAN
    if resume and not settings.exists():
        raise ValueError(f"reproduce: there must be figures to resume, got none in {folder}. Leave out --resume.")
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise FileExistsError(
            f"reproduce: the folder must be new or empty, got {folder}. Go on with it by --resume, or choose another "
            "--out."
        )
    if resume:
        kept = json.loads(settings.read_text(encoding="utf-8"))
        differing = [f"{name}={value!r} (was {kept.get(name)!r})" for name, value in plan.as_dict().items()
                     if kept.get(name) != value]  # fmt: skip
        if differing:
            raise ValueError(
                f"reproduce: figures are resumed with the settings that they began with, got {', '.join(differing)}. "
                "Leave these options out, or choose another --out."
            )
    (folder / RUNS).mkdir(parents=True, exist_ok=True)
    write_json(settings, plan.as_dict())


def _reproduce(
    figure: PaperFigure, plan: Plan, folder: Path, *, processes: int, on_progress: OnProgress | None
) -> Reproduced:
    """The runs of a figure that are missing, its findings, and its three files."""
    began = time.perf_counter()
    runs = folder / RUNS
    jobs = tuple(figure.jobs(plan))
    sweep(jobs, runs, processes=processes, stage=figure.name, on_progress=on_progress)
    results: dict[Job, Result] = {}

    def read(job: Job) -> Result:
        if job not in results:
            results[job] = load(job, runs)
        return results[job]

    findings = figure.findings(plan, read)
    rows = findings.rows if plan.is_default else tuple(replace(row, reference="") for row in findings.rows)
    text = strict_json(findings.data)
    picture = folder / f"{figure.name}.png"
    with style.applied(), replacing(picture) as file:  # from what the JSON file holds, and from that alone
        drawing = figure.draw(json.loads(text))
        drawing.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    done = Reproduced(
        figure=figure,
        rows=rows,
        seconds=time.perf_counter() - began,
        cpu_seconds=sum(read(job).facts["cpu_seconds"] for job in with_needs(jobs)),
        data=folder / f"{figure.name}.json",
        picture=picture,
        table=folder / f"{figure.name}.md",
    )
    write_json(done.data, {"plan": plan.as_dict(), "data": json.loads(text), **_told(done)})
    with replacing(done.table) as file:
        file.write(markdown(done, described(plan)).encode())
    return done


def _told(done: Reproduced) -> dict[str, object]:
    """What the data file says beside the data."""
    return {name: value for name, value in done.as_dict().items() if name != "files"}
