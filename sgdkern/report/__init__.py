"""The report of a run: figures and one self-contained HTML page, from the files of the run folder alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sgdkern.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sgdkern.history import History

__all__ = ["group_alignment_figures", "write_report"]


def group_alignment_figures(history: History, partition: str = "given") -> dict[str, Figure]:
    """Draw how the groups of a partition pull: together, against each other, or as chance would have it.

    Args:
        history: Of a probe with `groups` or `partitions`; with `null_every` what chance would give is drawn too.
        partition: `given`, or the name in `partitions`.

    Returns:
        `curves`, a tile a group over log-time: the cosine of its mean gradient with that of all and of each other
        group; `matrices`, groups × groups at the middle of each phase, the mean of all last.

    Raises:
        KeyError: No record has the partition.
        ImportError: matplotlib is not installed.
    """
    from sgdkern.report import style
    from sgdkern.report.figures.group_alignment import curves, matrices
    from sgdkern.report.run_folder import RunFolder

    known = sorted({name for record in history for name in record.groups})
    if partition not in known:
        raise KeyError(
            f"group_alignment_figures: the partition must have been measured, got {partition!r}. Known here: "
            f"{', '.join(known) or 'none'}."
        )
    run = RunFolder.of(history)
    with style.applied():
        return {"curves": curves(run, partition).figure, "matrices": matrices(run, partition).figure}


def write_report(run_folder: str | Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write `figures/*.png` and `report.html` into a run folder.

    What the folder lacks is left out of the report, which says so.

    Args:
        run_folder: A folder written by `sgdkern run`; only history.jsonl is needed.
        progress: Called with the number of steps done and their total.

    Returns:
        The path of report.html.

    Raises:
        FileNotFoundError: The folder holds no history.jsonl.
        ImportError: matplotlib or jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "write_report: needs matplotlib and jinja2. Install them: pip install 'sgdkern[report]'"
        ) from error
    from sgdkern.report import style
    from sgdkern.report.figures import PANELS, draw
    from sgdkern.report.html import page, picture
    from sgdkern.report.run_folder import RunFolder

    run = RunFolder.read(run_folder)
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("fig*.png"):
        stale.unlink()
    pictures = []
    with style.applied():
        for done, panels in enumerate(draw(run), start=1):
            for panel in panels:
                panel.figure.savefig(folder / f"{panel.name}.png", dpi=150, metadata={"Software": None})
                pictures.append(picture(panel))
            if progress:
                progress(done, len(PANELS))
    target = run.path / "report.html"
    with replacing(target) as file:
        file.write(page(run, pictures).encode("utf-8"))
    return target
