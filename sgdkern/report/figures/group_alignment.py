"""Cosines between the mean gradients of any number of groups: over time, as a matrix in each phase, with their null."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from sgdkern.history import Record
from sgdkern.report import style
from sgdkern.report.figures.panel import Array, Panel, spans, when
from sgdkern.report.run_folder import RunFolder

# Partitions that have panels of their own, and the names by which the groups of right and of wrong labels go.
_SHOWN_ELSEWHERE, _RIGHT_AND_WRONG = ("blind", "random"), ("c", "w")
_MOST_TILES = 12  # more would be too small to read; the matrices show all groups
_NUMBERED = 5  # so many rows have room for a number in each cell
_ACROSS = LinearSegmentedColormap.from_list("across", [style.WRONG, "white", style.CORRECT])
_BOUNDS = ("lower", "upper")
_OTHERS = ("#0072B2", "#D55E00", "#009E73", "#A4478C", "#E69F00", "#56B4E9")


def group_alignments(run: RunFolder) -> list[Panel]:
    """Draw the cosines of every partition that the user gave, but for right against wrong labels (Fig. 4C).

    Args:
        run: The run.

    Returns:
        Two panels a partition: curves over time, a tile a group, and matrices, one a phase.
    """
    found = dict.fromkeys(name for record in run.history for name in record.groups)
    panels = []
    for partition in found:
        names = run.group_names(partition)
        if partition not in _SHOWN_ELSEWHERE and names != _RIGHT_AND_WRONG and len(names) > 1:
            panels += [curves(run, partition), matrices(run, partition)]
    return panels


def curves(run: RunFolder, partition: str) -> Panel:
    """Draw a tile a group: its cosine with the mean of all and with every other group, over time.

    Args:
        run: The run.
        partition: Name of the partition.

    Returns:
        The panel.
    """
    cosines = _Cosines.of(run, partition)
    shown = cosines.largest(_MOST_TILES)
    title = _title(partition, "over time")
    wide, narrow = (_tiles(run, cosines, shown, title, width, most) for width, most in ((10.6, 4), (4.5, 2)))
    caption = (
        f"Each tile is one group of “{partition}”: the cosine of its mean gradient with that of all samples (thick) "
        "and with that of each other group (thin). A mean gradient near zero drives any groups that differ towards −1."
    )
    if cosines.lower is not None:
        caption += (
            " Grey: where 95 % of the thin lines would lie, were the groups random splits of the same sizes; dotted: "
            "the same for the thick line."
        )
    if len(shown) < len(cosines.counts):
        caption += f" The {len(shown)} largest of {len(cosines.counts)} groups are shown; the matrices show all."
    alt = f"Cosines between the mean gradients of {len(cosines.counts)} groups over time, a tile a group."
    return Panel(f"fig4d_{_stem(partition)}_curves", "alignments", wide, caption, alt, narrow, "wide")


def matrices(run: RunFolder, partition: str) -> Panel:
    """Draw the groups × groups matrix of cosines, the mean of all last, at the middle of each phase.

    Args:
        run: The run.
        partition: Name of the partition.

    Returns:
        The panel.
    """
    cosines = _Cosines.of(run, partition)
    chosen = run.representative(lambda record: partition in record.groups)
    title = _title(partition, "in each phase")
    wide, narrow = (
        _matrices(run, cosines, chosen, title, width, across)
        for width, across in ((10.6, max(len(chosen), 3)), (4.5, 2))
    )
    dotted = "" if cosines.lower is None else " A dot: within what random splits of the same sizes give."
    caption = (
        f"Cosines between the mean gradients of the groups of “{partition}”, the mean of all samples last. Blue: they "
        f"pull together; orange: against each other.{dotted}"
    )
    alt = f"Matrices of cosines between {len(cosines.counts)} groups in {len(chosen)} phases."
    return Panel(f"fig4d_{_stem(partition)}_matrices", "alignments", wide, caption, alt, narrow, "wide")


@dataclass(frozen=True, eq=False)
class _Cosines:
    """One partition over the run: names (the mean of all last), N_g, cosines and bounds of chance [T, C + 1, C + 1]."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    values: Array
    lower: Array | None
    upper: Array | None

    @classmethod
    def of(cls, run: RunFolder, partition: str) -> _Cosines:
        """Collect a partition; bounds between two records that have them are interpolated in log-time."""
        first = next(record.groups[partition] for record in run.history if partition in record.groups)
        size = len(first.names) + 1
        values = np.full((len(run.history), size, size), np.nan)
        for row, record in enumerate(run.history):
            if partition in record.groups:
                values[row] = record.groups[partition].cosines
        drawn = [record for record in run.history if partition in record.nulls]
        bounds = (_over_time(run, drawn, [getattr(r.nulls[partition], name) for r in drawn]) for name in _BOUNDS)
        lower, upper = bounds if drawn else (None, None)
        return cls((*first.names, "all"), first.counts, values, lower, upper)

    def largest(self, count: int) -> list[int]:
        """The largest groups, in the order of the partition."""
        return sorted(sorted(range(len(self.counts)), key=lambda group: -self.counts[group])[:count])


def _over_time(run: RunFolder, drawn: list[Record], bounds: list[tuple[tuple[float, ...], ...]]) -> Array:
    """Values at some records, [D, C + 1, C + 1], for all records."""
    known = np.log1p([record.step for record in drawn])
    flat = np.array(bounds).reshape(len(drawn), -1)
    columns = [np.interp(np.log1p(run.history.steps), known, column) for column in flat.T]
    return np.stack(columns, axis=1).reshape(len(run.history), *np.array(bounds).shape[1:])


def _tiles(run: RunFolder, cosines: _Cosines, groups: list[int], title: str, width: float, most: int) -> Figure:
    """A tile a group, so many in a row."""
    across = min(len(groups), most)
    down = -(-len(groups) // across)
    height, room = 0.95 + 1.95 * down, (width - 0.6) / across
    figure = Figure(figsize=(width, height))
    _heading(figure, title)
    labelled: dict[str, Artist] = {}
    for place, group in enumerate(groups):
        row, column = divmod(place, across)
        bottom = height - 0.95 - row * 1.95 - 1.3
        axes = figure.add_axes((
            (0.5 + column * room) / width, bottom / height, (room - 0.3) / width, 1.3 / height,
        ))  # fmt: skip
        _tile(run, axes, cosines, group)
        axes.tick_params(labelleft=column == 0)
        if place + across < len(groups):
            axes.set_xlabel("")
        style.shade_phases(style.Canvas(figure, axes, 0), spans(run))
        axes.set_title(style.literal(cosines.names[group]), fontsize=9.5, pad=15, loc="left", color=style.INK)
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    figure.legend(
        handles=list(labelled.values()), loc="upper left", bbox_to_anchor=(0.06 / width, 1 - 0.32 / height),
        ncols=min(len(labelled), 8 if most > 2 else 3), borderaxespad=0, handlelength=1.5, columnspacing=1.1,
    )  # fmt: skip
    return figure


def _tile(run: RunFolder, axes: Axes, cosines: _Cosines, group: int) -> None:
    """One group's cosines over time."""
    many = len(cosines.counts) > len(_OTHERS)
    shown = run.time > 0
    times, whole = run.time[shown], len(cosines.counts)
    others = [other for other in range(whole) if other != group]
    axes.plot(times, cosines.values[shown][:, group, whole], color=style.INK, linewidth=2.0, zorder=3, label="with all")
    if cosines.lower is not None and cosines.upper is not None:
        low, high = (bound[shown][:, group] for bound in (cosines.lower, cosines.upper))
        axes.fill_between(
            times, low[:, others].mean(1), high[:, others].mean(1), color=style.tint(style.NULL, 0.35), linewidth=0,
            label="random splits",
        )  # fmt: skip
        for bound in (low, high):
            axes.plot(times, bound[:, whole], color=style.INK, linewidth=0.8, linestyle=(0, (1, 1.6)))
    for other in others:
        colour, label = (
            (style.NULL, "with each other group") if many else (_OTHERS[other], "with " + cosines.names[other])
        )
        axes.plot(
            times, cosines.values[shown][:, group, other], color=colour, linewidth=0.7 if many else 1.4,
            label=style.literal(label),
        )  # fmt: skip
    if len(times):
        style.time_axis(axes, float(times.min()), float(times.max()), in_epochs=run.in_epochs)
    axes.set_ylim(-1.05, 1.05)
    axes.set_yticks([-1, 0, 1])
    axes.axhline(0, color=style.MUTED, linewidth=0.7, zorder=1.5)
    axes.tick_params(labelsize=8.5)


def _matrices(
    run: RunFolder, cosines: _Cosines, chosen: dict[str, Record], title: str, width: float, across: int
) -> Figure:
    """A matrix a phase, so many in a row, and the scale of their colours."""
    down = -(-len(chosen) // across)
    side = (width - 1.0) / across - 0.35
    height = 0.62 + down * (side + 0.75)
    figure = Figure(figsize=(width, height))
    _heading(figure, title)
    for place, (name, record) in enumerate(chosen.items()):
        row, column = divmod(place, across)
        left, bottom = 0.55 + column * (side + 0.35), height - 0.62 - row * (side + 0.75) - side
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        _matrix(axes, cosines, run.history.records.index(record), labelled=column == 0)
        axes.set_title(f"{_phase(name)}, {when(run, record.step)}", fontsize=9.5, color=style.INK)
    scale = figure.add_axes(((width - 0.42) / width, (height - 0.62 - side) / height, 0.1 / width, side / height))
    figure.colorbar(ScalarMappable(Normalize(-1, 1), _ACROSS), cax=scale, ticks=[-1, 0, 1])
    scale.tick_params(labelsize=8)
    return figure


def _matrix(axes: Axes, cosines: _Cosines, row: int, *, labelled: bool) -> None:
    """One matrix of cosines."""
    values = cosines.values[row]
    axes.imshow(values, cmap=_ACROSS, vmin=-1, vmax=1)
    size = len(values)
    if cosines.lower is not None and cosines.upper is not None:
        inside = (values >= cosines.lower[row]) & (values <= cosines.upper[row]) & ~np.eye(size, dtype=bool)
        down, across = np.nonzero(inside)
        shift = 0.33 if size <= _NUMBERED else 0.0  # below the number
        axes.plot(across, down + shift, ".", color=style.INK, markersize=4 if size <= _NUMBERED else 2)
    if size <= _NUMBERED:
        for down, across in np.ndindex(size, size):
            text = f"{values[down, across]:.2f}".replace("-", "−")
            axes.text(across, down, text, ha="center", va="center", fontsize=8.5, color=style.INK)
    names = [style.literal(name if len(name) < 14 else name[:12] + "…") for name in cosines.names]
    shown = range(0, size, max(1, -(-size // 24)))
    axes.set_xticks(list(shown), [names[one] for one in shown], rotation=90 if size > 4 else 0, fontsize=8)
    axes.set_yticks(list(shown), [names[one] if labelled else "" for one in shown], fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _heading(figure: Figure, text: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.06 / width, 1 - 0.06 / height, text, ha="left", va="top", fontsize=11, fontweight="bold")


def _title(partition: str, when: str) -> str:
    name = "the groups" if partition == "given" else style.literal(partition)
    return f"Alignment of {name}, {when}"


def _phase(name: str) -> str:
    return f"phase {name}" if name in ("I", "II", "III", "IV") else name


def _stem(partition: str) -> str:
    """A partition's name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", partition)
