"""Accuracy against forwards: every swept heuristic, the envelope of all of them, and the learned policy on top.

``draw`` makes the figure (one panel per task, denoiser and split), ``panel`` one panel for other figures,
``write_csv`` the same points for DVC's plots. The shaded region is what heuristics reach, mixtures included.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.files import write_text
from components.evaluation.results import EvalResult
from components.reports import fronts
from components.reports.files import write_figure
from components.reports.fronts import label_of
from components.reports.table import points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by all common kinds of colour blindness; and a shape each, for print in grey.
POLICY_COLOUR = "#D55E00"
LOOKS: dict[str, dict[str, Any]] = {
    "entropy_bound": {"color": "#0072B2", "marker": "o"},
    "threshold": {"color": "#009E73", "marker": "s"},
    "factor": {"color": "#CC79A7", "marker": "D"},
    "overlap": {"color": "#332288", "marker": "p"},
    "overlap_rise": {"color": "#44AA99", "marker": "H"},
    "mean_field": {"color": "#882255", "marker": "d"},
    "adas": {"color": "#999933", "marker": ">"},
    "confidence": {"color": "#56B4E9", "marker": "^"},
    "margin": {"color": "#B8860B", "marker": "v"},
    "entropy": {"color": "#7A6FB0", "marker": "<"},
    "left_to_right": {"color": "#777777", "marker": "P"},
    "random": {"color": "#777777", "marker": "X"},
}
OTHER_LOOK: dict[str, Any] = {"color": "#444444", "marker": "h"}
POLICY_LOOKS: dict[str, dict[str, Any]] = {
    "distilled": {"mfc": "white", "mec": POLICY_COLOUR, "color": POLICY_COLOUR, "marker": "o", "ms": 6.5, "mew": 1.5},
    "influence": {"mfc": "white", "mec": POLICY_COLOUR, "color": POLICY_COLOUR, "marker": "v", "ms": 6.5, "mew": 1.5},
    "learned": {"mfc": POLICY_COLOUR, "mec": "white", "color": POLICY_COLOUR, "marker": "*", "ms": 13, "mew": 0.7},
}
ENVELOPE_COLOUR, REGION_COLOUR = "#222222", "#EFEFEF"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.labelcolor": "#222222",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
GAP_PLACES: dict[str, dict[str, Any]] = {
    "left": {"xytext": (-9, 0), "ha": "right", "va": "center"},
    "right": {"xytext": (9, 0), "ha": "left", "va": "center"},
    "above": {"xytext": (0, 9), "ha": "center", "va": "bottom"},
}
COLUMNS: tuple[str, ...] = (
    "task",
    "denoiser",
    "split",
    "kind",
    "family",
    "setting",
    "block_length",
    "choose",
    "nfe",
    "nfe_low",
    "nfe_high",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
)


def draw(path: Path, cells: Sequence[EvalResult], columns: int = 3) -> Path:
    """A PNG with one panel per group of ``cells``, at most ``columns`` beside each other, and one legend below."""
    import matplotlib
    from matplotlib.figure import Figure

    found = fronts.groups(cells)
    across = 2 if len(found) == 4 else min(columns, len(found))
    down = math.ceil(len(found) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.4, 3.5 * across), 3.1 * down + 0.85), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for ax in axes[len(found) :]:
            ax.remove()
        for place, ((task, denoiser, split), group) in enumerate(found.items()):
            panel(axes[place], group)
            axes[place].set_title(_title(task, denoiser, split, found), fontsize=9.5)
            if place % across == 0:
                axes[place].set_ylabel("accuracy, %")
            if place + across >= len(found):
                axes[place].set_xlabel("forward passes per prompt (NFE)")
        handles = legend_handles(cells)
        figure.legend(handles=handles, loc="outside lower center", ncols=5 if across > 2 else 3, columnspacing=1.4)
        return write_figure(path, figure)


def panel(ax: Axes, cells: Sequence[EvalResult], gap: bool = True) -> None:
    """Draws one group into ``ax``. gap: mark how far the learned policy is from the envelope, in points."""
    from matplotlib.ticker import MaxNLocator

    heuristics = [cell for cell in cells if not cell.is_policy]
    policies = [cell for cell in cells if cell.is_policy]
    full = fronts.full_length(cells)
    right = max(cell.nfe for cell in cells) * 1.06
    ax.set_xlim(0, right)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    floor = min([100 * c.accuracy for c in cells])
    ax.set_ylim(max(-3.0, floor - 6), 103)
    ax.grid(True)
    ax.set_axisbelow(True)
    _draw_envelope(ax, heuristics, right)
    for (family, block, _), sweep in fronts.sweeps(heuristics).items():
        whole = block == full
        ax.plot(
            [c.nfe for c in sweep],
            [100 * c.accuracy for c in sweep],
            ls="-" if whole else (0, (2, 1.5)),
            lw=1.0 if whole else 0.8,
            ms=4.2 if whole else 3.0,
            mec="white",
            mew=0.4,
            alpha=0.95 if whole else 0.45,
            zorder=4 if whole else 3,
            **LOOKS.get(family, OTHER_LOOK),
        )
    best = fronts.headline(cells)
    for (family, block, _), sweep in fronts.sweeps(policies).items():
        _draw_policy(ax, family, sweep, alpha=1.0 if block == full else 0.5, bold=best in sweep or family != "learned")
    if gap and best is not None:
        _draw_gap(ax, best, fronts.envelope(cells, best.nfe))


def legend_handles(cells: Sequence[EvalResult]) -> list[Any]:
    """One entry per family that is there, the policies and the envelope first, then what the dashes mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    there = {cell.family for cell in cells}
    handles: list[Any] = []
    for family in fronts.POLICIES:
        if family in there:
            look = {**POLICY_LOOKS[family], "ms": min(POLICY_LOOKS[family]["ms"], 11)}
            handles.append(Line2D([], [], ls="none", label=label_of(family), **look))
    if there - set(fronts.POLICIES):
        handles.append(Patch(fc=REGION_COLOUR, ec=ENVELOPE_COLOUR, lw=1.3, label="reach of all heuristics"))
    for family in [*LOOKS, *sorted(there - set(LOOKS) - set(fronts.POLICIES))]:
        if family in there:
            look = LOOKS.get(family, OTHER_LOOK)
            handles.append(Line2D([], [], lw=1.0, ms=4.5, mec="white", mew=0.4, label=label_of(family), **look))
    if any(fronts.full_length(group) > min(c.block_length for c in group) for group in fronts.groups(cells).values()):
        handles.append(Line2D([], [], lw=0.9, ls=(0, (2, 1.5)), color="#888888", label="shorter blocks"))
    return handles


def write_csv(path: Path, cells: Sequence[EvalResult]) -> Path:
    """Every cell (kind ``cell``) and every corner of each group's envelope (kind ``hull``, family ``envelope``)."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for group in fronts.groups(cells).values():
        rows = [{**vars(cell), "kind": "cell"} for cell in group]
        rows += [{**vars(cell), "kind": "hull", "family": "envelope"} for cell in fronts.corners(group)]
        writer.writerows(rows)
    return write_text(path, text.getvalue())


def _draw_envelope(ax: Axes, heuristics: Sequence[EvalResult], right: float) -> None:
    front = fronts.corners(heuristics)
    if not front:
        return
    nfe = [c.nfe for c in front] + [right]
    accuracy = [100 * c.accuracy for c in front] + [100 * front[-1].accuracy]
    ax.fill_between(nfe, accuracy, -10, color=REGION_COLOUR, lw=0, zorder=0.5)
    ax.plot(nfe, accuracy, color=ENVELOPE_COLOUR, lw=1.6, zorder=2.5, solid_joinstyle="round")


def _draw_policy(ax: Axes, family: str, sweep: Sequence[EvalResult], alpha: float, bold: bool) -> None:
    nfe, accuracy = [c.nfe for c in sweep], [100 * c.accuracy for c in sweep]
    # max: a bootstrap interval of a rule that never failed may end a rounding error away from its mean
    down = [max(0.0, 100 * (c.accuracy - c.accuracy_low)) for c in sweep]
    up = [max(0.0, 100 * (c.accuracy_high - c.accuracy)) for c in sweep]
    left = [max(0.0, c.nfe - c.nfe_low) for c in sweep]
    right = [max(0.0, c.nfe_high - c.nfe) for c in sweep]
    look = POLICY_LOOKS[family] if bold else {**POLICY_LOOKS[family], "ms": 8}
    order = 7 if family == "learned" else 6
    ax.errorbar(
        nfe,
        accuracy,
        yerr=[down, up],
        xerr=[left, right],
        fmt="none",
        ecolor=POLICY_COLOUR,
        elinewidth=1.1,
        capsize=2.5,
        alpha=alpha,
        zorder=order,
    )
    ax.plot(
        nfe, accuracy, ls=(0, (1, 1)) if len(sweep) > 1 else "none", lw=1.1, alpha=alpha, zorder=order + 0.5, **look
    )


def _draw_gap(ax: Axes, best: EvalResult, reached: float) -> None:
    from matplotlib.patheffects import Normal, Stroke

    if math.isnan(reached):
        return
    ax.plot([best.nfe] * 2, [100 * reached, 100 * best.accuracy], color=POLICY_COLOUR, lw=1.0, ls=":", zorder=5)
    # Above the envelope the left is free of marks, unless the axis is there; below it marks are everywhere.
    place = "right" if best.accuracy < reached else "left" if best.nfe > 0.2 * ax.get_xlim()[1] else "above"
    ax.annotate(
        points(best.accuracy - reached),
        (best.nfe, 100 * best.accuracy),
        textcoords="offset points",
        color=POLICY_COLOUR,
        fontsize=9.5,
        fontweight="bold",
        zorder=8,
        **GAP_PLACES[place],
        path_effects=[Stroke(linewidth=2.5, foreground="white"), Normal()],
    )


def _title(task: str, denoiser: str, split: str, found: dict[fronts.Group, list[EvalResult]]) -> str:
    several = [len({key[i] for key in found}) > 1 for i in range(3)]
    parts = [task.replace("_", " ")] + [p for p, many in zip((denoiser, split), several[1:], strict=True) if many]
    return " · ".join(parts)
