"""Order parameters over the run: the paper's Figs. 1B-D and 4A-C."""

from __future__ import annotations

import numpy as np

from sgdkern.report import style
from sgdkern.report.figures.panel import Line, Panel, column, over_time
from sgdkern.report.run_folder import RunFolder

_PALETTE = (style.CORRECT, style.WRONG, style.TEST, style.CHOSEN, "#E69F00", "#56B4E9", style.MUTED)
_DASHES: tuple[object, ...] = ((0, (4, 1.5)), (0, (1.5, 1.2)), "-", "-", "-", "-", "-")


def activity(run: RunFolder) -> Panel | None:
    """A of the whole set and of each group (Fig. 4A).

    Args:
        run: The run.

    Returns:
        The panel, None where A was never measured.
    """
    lines = _with_groups(run, "A", "$A$")
    if not lines:
        return None
    figure = over_time(run, "Activity", "$A$, (loss / parameter)²", lines, log=True)
    caption = (
        "Activity A, the mean squared norm of a minibatch’s gradient, and the share of each group of samples"
        f"{_source(run)} (Fig. 4A). Learning is busy where it is high; its fall marks the end of memorising."
    )
    return Panel(
        "fig4a_activity", "groups", figure, caption, "Curves of the activity of all samples and of each group."
    )


def directed_activity(run: RunFolder) -> Panel | None:
    """A0 of the whole set and the parts of each group (Fig. 4B).

    Args:
        run: The run.

    Returns:
        The panel, None where A0 was never measured.
    """
    lines = _with_groups(run, "A0", "$A_0$")
    if not lines:
        return None
    figure = over_time(run, "Directed activity", "$A_0$, (loss / parameter)²", lines, log=True)
    caption = (
        "A₀, the squared norm of the mean gradient, and of each group’s share in it"
        f"{_source(run)} (Fig. 4B). Where A₀ lies far below both shares, the groups pull against each other and cancel."
    )
    return Panel("fig4b_directed", "groups", figure, caption, "Curves of the directed activity and its groups’ parts.")


def ratio(run: RunFolder) -> Panel | None:
    """A0_c / A0_w (Fig. 4B, inset).

    Args:
        run: The run.

    Returns:
        The panel, None where no partition into two groups was measured.
    """
    lines = []
    for partition, label, colour, dashes in _partitions(run):
        pair = _pair(run, partition) or ("", "")
        parts = [column(run, f"A0_{name}", partition) for name in pair]
        if parts[0] is not None and parts[1] is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                lines.append(Line(label, parts[0] / parts[1], colour, dashes))
    if not lines:
        return None
    figure = over_time(run, "Who drives the mean gradient", r"$A_{0,c}\,/\,A_{0,w}$", lines, log=True, reference=1.0)
    caption = (
        "The directed activity of the correct samples over that of the wrong ones; blind, of those with low loss over "
        "those with high loss. Above the line at 1 the first group drives the network, below it the second."
    )
    return Panel("fig4b_ratio", "groups", figure, caption, "Ratio of directed activities of the two groups over time.")


def alignments(run: RunFolder) -> Panel | None:
    """R_cw, R_ac and R_aw (Fig. 4C).

    Args:
        run: The run.

    Returns:
        The panel, None where no groups were measured.
    """
    partition = _main_partition(run)
    if partition is None:
        return None
    names = run.group_names(partition)
    pair = _pair(run, partition)
    join = _join(names)
    lines = []
    if pair and (between := column(run, f"R_{pair[0]}{join}{pair[1]}", partition)) is not None:
        lines.append(
            Line("between the two" if join else f"$R_{{{pair[0]}{pair[1]}}}$", between, style.WHOLE, width=2.2)
        )
    for name, colour, dashes in zip(names, _PALETTE, _DASHES):
        if (values := column(run, f"R_a{join}{name}", partition)) is not None:
            label = style.literal(name) if join else f"$R_{{a{name}}}$"
            lines.append(Line(label, values, colour, dashes, 1.4))
    if not lines:
        return None
    figure = over_time(run, "Alignment of the groups", "cosine", lines, ylim=(-1.05, 1.05), reference=0.0)
    caption = (
        "Cosines between the mean gradients of the two groups (R_cw), and of each group with all samples (R_ac, R_aw)"
        f"{_source(run)} (Fig. 4C). Above 0 the groups pull together: what one learns helps the other."
    )
    return Panel("fig4c_alignment", "groups", figure, caption, "Cosines between the groups’ mean gradients over time.")


def blind_alignment(run: RunFolder) -> Panel | None:
    """R_cw of the true groups, of groups found without any true label, and of a random split.

    Args:
        run: The run.

    Returns:
        The panel, None where fewer than two of them were measured.
    """
    lines = []
    for partition, label, colour, dashes in (
        ("random", "random split (chance)", style.NULL, "-"),
        ("given", run.given_groups, style.WHOLE, "-"),
        ("blind", "blind groups", style.CHOSEN, (0, (3, 1.3))),
    ):
        pair = _pair(run, partition)
        values = column(run, f"R_{pair[0]}{_join(pair)}{pair[1]}", partition) if pair else None
        lines += [] if values is None else [Line(label, values, colour, dashes)]
    if len(lines) < 2:
        return None
    figure = over_time(
        run, "Alignment, blind and by chance", "$R_{cw}$, cosine", lines, ylim=(-1.05, 1.05), reference=0.0, columns=2
    )
    caption = (
        "R_cw of groups formed without any true label, and of a random split of the samples in two. A mean gradient "
        "near zero drives any two groups that differ towards −1, whether they are the right ones or not; a rise above "
        "zero, in phase III, is what tells."
    )
    return Panel("fig4c_blind", "groups", figure, caption, "R_cw of true, blind and random groups over time.")


def alignment(run: RunFolder) -> Panel | None:
    """R and its proxy A0/A (Fig. 1C).

    Args:
        run: The run.

    Returns:
        The panel, None where R was never measured.
    """
    lines = []
    if (values := column(run, "R")) is not None:
        lines.append(Line("$R$", values, style.WHOLE))
    directed, total = column(run, "A0"), column(run, "A")
    if directed is not None and total is not None:
        lines.append(Line("$A_0/A$ (proxy)", directed / total, style.CHOSEN, (0, (3, 1.3)), 1.3))
    if not lines:
        return None
    figure = over_time(run, "Alignment of minibatches", "mean cosine", lines, reference=0.0)
    caption = (
        "R, the mean cosine between the gradients of two independent minibatches, and its proxy A₀/A. Near 1 all "
        "minibatches agree on a direction; near 0 training is a random walk."
    )
    return Panel("fig1c_minibatch_alignment", "training", figure, caption, "Alignment R over time.")


def projection_variance(run: RunFolder) -> Panel | None:
    """sigma_lambda^2 (Fig. 1D), whose rise and fall need no labels.

    Args:
        run: The run.

    Returns:
        The panel, None where it was never measured.
    """
    values = column(run, "sigma_lambda2")
    if values is None:
        return None
    lines = [Line(r"$\sigma_\lambda^2$", values, style.WHOLE)]
    figure = over_time(
        run, "Spread of the projections", r"$\sigma_\lambda^2$ (no unit)", lines, log=True, reference=1.0
    )
    caption = (
        "σ_λ², the variance of minibatch gradients along their mean, over the squared mean. Low: all minibatches push "
        "the same way (I, III). High: their pushes cancel (II, IV). It follows the phases without any label."
    )
    return Panel("fig1d_projection_variance", "training", figure, caption, "Projection variance over time.")


def _with_groups(run: RunFolder, name: str, symbol: str) -> list[Line]:
    """The whole set's curve and those of the main partition's groups."""
    whole = column(run, name)
    if whole is None:
        return []
    lines = [Line(symbol + " all", whole, style.WHOLE, width=2.2)]
    partition = _main_partition(run)
    words = {"c": "correct*", "w": "wrong*"} if partition == "given" else {"c": "low loss", "w": "high loss"}
    for group, colour, dash in zip(run.group_names(partition) if partition else (), _PALETTE, _DASHES):
        values = column(run, f"{name}_{group}", partition)
        if values is not None:
            lines.append(Line(words.get(group, style.literal(group)), values, colour, dash, 1.5))
    return lines


def _partitions(run: RunFolder) -> list[tuple[str, str, str, object]]:
    found = [("given", run.given_groups, style.WHOLE, "-"), ("blind", "blind groups", style.CHOSEN, (0, (3, 1.3)))]
    return [entry for entry in found if run.group_names(entry[0])]


def _pair(run: RunFolder, partition: str) -> tuple[str, str] | None:
    names = run.group_names(partition)
    return (names[0], names[1]) if len(names) == 2 else None


def _main_partition(run: RunFolder) -> str | None:
    return next((name for name in ("given", "blind") if run.group_names(name)), None)


def _join(names: tuple[str, ...]) -> str:
    """What stands between the names of two groups in the name of their cosine, see `GroupRecord.scalars`."""
    return "" if all(len(name) == 1 for name in names) else "_"


def _source(run: RunFolder) -> str:
    """How the samples were split, for a caption."""
    partition = _main_partition(run)
    if partition == "blind":
        return ", split without any true label, by a mixture fitted to the losses"
    if partition is None:
        return ""
    if run.given_groups == "true groups*":
        return ", split by the true labels (scoring only)"
    return ", split as given" + (
        f" (the first {len(_PALETTE)})" if len(run.group_names(partition)) > len(_PALETTE) else ""
    )
