"""Accuracy against forwards: what the heuristics reach, the strongest rule of each kind by name, the policies on top.

``draw`` makes the figure of the main tasks, ``draw_all`` a page with one small panel per task, denoiser and split,
``panel`` one panel for other figures, ``write_csv`` the same points for DVC's plots. All panels of a figure have the
same axes, which span what is in question: from the fastest policy to where the rules are as good as they get. The
shaded region is what heuristics reach, mixtures included.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.files import write_text
from ..evaluation.results import EvalResult
from ..policies.rules import PAIR_ROWS, POLICIES, label_of
from . import fronts, labels
from .files import STYLE, write_figure
from .table import points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by all common kinds of colour blindness; and a shape each, for print in grey.
POLICY_COLOUR = "#D55E00"
KIND_LOOKS: dict[str, dict[str, Any]] = {
    "marginal": {"color": "#0072B2", "marker": "o"},
    "ordered": {"color": "#8C6BB1", "marker": "^"},
    "pair": {"color": "#00835F", "marker": "s"},
}
POLICY_LOOKS: dict[str, dict[str, Any]] = {
    "distilled": {"mfc": "white", "mec": POLICY_COLOUR, "color": POLICY_COLOUR, "marker": "o", "ms": 6.5, "mew": 1.5},
    "influence": {"mfc": "white", "mec": POLICY_COLOUR, "color": POLICY_COLOUR, "marker": "v", "ms": 6.5, "mew": 1.5},
    "learned": {"mfc": POLICY_COLOUR, "mec": "white", "color": POLICY_COLOUR, "marker": "*", "ms": 14, "mew": 0.7},
    **{
        family: {"color": POLICY_COLOUR, "mec": POLICY_COLOUR, "marker": marker, "ms": 6.5, "mew": 1.5}
        for family, marker in zip(PAIR_ROWS, "x+134<>", strict=True)
    },
}
ENVELOPE_COLOUR, REGION_COLOUR = "#555555", "#F1F2F4"
TICKS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
MAIN = 3
"""Panels of the main figure at most."""
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


@dataclass(frozen=True)
class Span:
    """The axes: forwards from ``left`` to ``right``, accuracy in percent from ``bottom`` to 100."""

    left: float
    right: float
    bottom: float

    def has(self, cell: EvalResult) -> bool:
        return self.left <= cell.nfe <= self.right and self.bottom <= 100 * cell.accuracy


def span(cells: Iterable[EvalResult]) -> Span:
    """What is in question in every group: its policies, its envelope up to where that saturates, and a cell of the
    strongest rule of each kind."""
    shown: list[EvalResult] = []
    strong: list[list[EvalResult]] = []
    for group in fronts.groups(cells).values():
        policies, end = [c for c in group if c.is_policy], fronts.saturation(group)
        # Left of the fastest policy the envelope is of interest only where the policy is compared with it.
        start = 0.8 * min([c.nfe for c in policies], default=0.0)
        shown += policies + [c for c in fronts.corners(group) if start <= c.nfe <= end]
        shown += [] if policies else fronts.corners(group)[:1]
        strong += fronts.strongest(group).values()
    low = min(c.accuracy_low if c.is_policy else c.accuracy for c in shown)
    bottom = max(0, 10 * math.floor(10 * low - 0.2))
    left, right = min(c.nfe for c in shown), max(c.nfe for c in shown)
    inside = [[c.nfe for c in sweep if c.nfe >= left and 100 * c.accuracy >= bottom] for sweep in strong]
    return Span(0.68 * left, 1.12 * max([right, *(min(nfe) for nfe in inside if nfe)]), bottom)


def draw(path: Path, cells: Sequence[EvalResult]) -> Path:
    """A PNG with a panel for each of the first ``MAIN`` groups of ``cells``, on the same axes."""
    found = dict(list(fronts.groups(cells).items())[:MAIN])
    return _figure(path, found, across=len(found), size=(3.75, 3.5), font=8.5)


def draw_all(path: Path, cells: Sequence[EvalResult]) -> Path:
    """A PNG with a small panel for every group of ``cells``, on the same axes."""
    found = fronts.groups(cells)
    across = min(3, len(found))
    return _figure(path, found, across, size=(3.75, 2.3), font=7)


def _figure(
    path: Path, found: dict[fronts.Group, list[EvalResult]], across: int, size: tuple[float, float], font: float
) -> Path:
    import matplotlib
    from matplotlib.figure import Figure

    cells, down = [cell for group in found.values() for cell in group], math.ceil(len(found) / across)
    wide, high, foot = max(6.4, size[0] * across), size[1] * down + 0.6, 0.5
    axes_span = span(cells)
    with matplotlib.rc_context({**STYLE, "font.size": font + 0.5}):
        figure = Figure(figsize=(wide, high))
        sides = {"left": 0.55 / wide, "right": 1 - 0.12 / wide, "top": 1 - 0.3 / high, "bottom": (foot + 0.45) / high}
        axes = figure.subplots(
            down, across, squeeze=False, gridspec_kw={**sides, "wspace": 0.13, "hspace": 0.95 / size[1]}
        )
        for ax in axes.ravel()[len(found) :]:
            ax.remove()
        for place, ((task, denoiser, split), group) in enumerate(found.items()):
            ax = axes.ravel()[place]
            panel(ax, group, axes_span, font)
            ax.set_title(_title(task, denoiser, split, found), fontsize=font + 1.5)
            if place % across == 0:
                ax.set_ylabel("accuracy, %", labelpad=2)
            if place + across >= len(found):
                ax.set_xlabel("forward passes per prompt (NFE)", labelpad=2)
        figure.legend(
            handles=legend_handles(cells), loc="lower center", ncols=4, columnspacing=1.6, fontsize=8.5, borderpad=0.2
        )
        return write_figure(path, figure)


def panel(ax: Axes, cells: Sequence[EvalResult], axes_span: Span | None = None, font: float = 8.5) -> None:
    """Draws one group into ``ax``, which has its final place: the strongest rule of each kind as a line with its name,
    every other cell as a dot, and how far the learned policy is from the envelope, in points."""
    shown = axes_span or span(cells)
    _axes(ax, shown)
    heuristics = [cell for cell in cells if not cell.is_policy]
    full, named = fronts.full_length(cells), fronts.strongest(cells)
    edge = _draw_envelope(ax, heuristics, shown.right)
    strong = {id(cell) for sweep in named.values() for cell in sweep}
    for kind, look in KIND_LOOKS.items():
        rest = [c for c in heuristics if id(c) not in strong and fronts.kind_of(c.family) == kind and shown.has(c)]
        _marks(ax, rest, ms=2.8, alpha=0.35, mew=0, zorder=3, **look)
    for kind, sweep in named.items():
        # As between two cells of the envelope, their mixtures are straight in forwards and bent on this axis.
        places = np.geomspace(sweep[0].nfe, sweep[-1].nfe, 100)
        between = 100 * np.interp(places, [c.nfe for c in sweep], [c.accuracy for c in sweep])
        ax.plot(places, between, color=KIND_LOOKS[kind]["color"], lw=1.4, zorder=3.5)
        _marks(ax, [c for c in sweep if shown.has(c)], ms=4.6, mec="white", mew=0.5, zorder=4, **KIND_LOOKS[kind])
    best = fronts.headline(cells)
    for (family, block, _), sweep in fronts.sweeps([c for c in cells if c.is_policy]).items():
        _draw_policy(ax, family, sweep, alpha=1.0 if block == full else 0.5, bold=best in sweep or family != "learned")
    _write_names(ax, cells, shown, named, font, edge)


def legend_handles(cells: Sequence[EvalResult]) -> list[Any]:
    """The policies, the envelope, and the kinds of rules that are there."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    there = {cell.family for cell in cells}
    handles: list[Any] = []
    for family in POLICIES:
        if family in there:
            look = {**POLICY_LOOKS[family], "ms": min(POLICY_LOOKS[family]["ms"], 11)}
            handles.append(Line2D([], [], ls="none", label=label_of(family), **look))
    rules = there - set(POLICIES)
    if rules and "learned" in there:
        handles.append(Line2D([], [], lw=1.2, ls=":", color=POLICY_COLOUR, label="its gain over the rules, in points"))
    if rules:
        handles.append(Patch(fc=REGION_COLOUR, ec=ENVELOPE_COLOUR, lw=1.2, label="reach of all rules, mixtures too"))
    kinds = {fronts.kind_of(family) for family in rules}
    for kind, look in KIND_LOOKS.items():
        if kind in kinds:
            handles.append(Line2D([], [], lw=1.3, ms=4.6, mec="white", mew=0.5, label=fronts.KINDS[kind], **look))
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


def _axes(ax: Axes, shown: Span) -> None:
    """Forwards at equal ratios: half of the passes is the same step everywhere. Nothing is above 100 %."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    ax.set_xscale("log", base=2)
    ax.set_xlim(shown.left, shown.right)
    ax.set_ylim(shown.bottom, 100)
    # At most nine: of a wide range those that halve and double.
    ticks = [t for t in TICKS if shown.left <= t <= shown.right]
    ticks = ticks if len(ticks) <= 9 else [t for t in ticks if t not in (2.5, 5, 10)]
    ax.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) <= 9 else [t for t in ticks if math.log2(t) % 1 == 0]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    ax.grid(True)
    ax.set_axisbelow(True)


def _draw_envelope(ax: Axes, heuristics: Sequence[EvalResult], right: float) -> list[labels.Point]:
    """Returns its line. A mixture is straight in forwards, and bent on this axis."""
    if not heuristics:
        return []
    start = min(c.nfe for c in heuristics)
    places = np.geomspace(start, max(right, 1.01 * start), 200).tolist()
    edge = [(at, 100 * fronts.envelope(heuristics, at)) for at in places]
    ax.fill_between(places, [y for _, y in edge], -10, color=REGION_COLOUR, lw=0, zorder=0.5)
    ax.plot(places, [y for _, y in edge], color=ENVELOPE_COLOUR, lw=1.2, zorder=2.5, solid_joinstyle="round")
    return edge


def _marks(ax: Axes, cells: Sequence[EvalResult], **look: Any) -> None:
    """A mark is whole also where it lies on the edge of the axes."""
    if cells:
        ax.plot([c.nfe for c in cells], [100 * c.accuracy for c in cells], ls="none", clip_on=False, **look)


def _draw_policy(ax: Axes, family: str, sweep: Sequence[EvalResult], alpha: float, bold: bool) -> None:
    nfe, accuracy = [c.nfe for c in sweep], [100 * c.accuracy for c in sweep]
    # max: a bootstrap interval of a rule that never failed may end a rounding error away from its mean
    down = [max(0.0, 100 * (c.accuracy - c.accuracy_low)) for c in sweep]
    up = [max(0.0, 100 * (c.accuracy_high - c.accuracy)) for c in sweep]
    order = 7 if family == "learned" else 6
    ax.errorbar(
        nfe, accuracy, yerr=[down, up], fmt="none", ecolor=POLICY_COLOUR, elinewidth=1.1, alpha=alpha, zorder=order
    )
    look = POLICY_LOOKS[family] if bold else {**POLICY_LOOKS[family], "ms": 7}
    dots = {"ls": (0, (1, 1)) if len(sweep) > 1 else "none", "lw": 1.1, "clip_on": False}
    ax.plot(nfe, accuracy, alpha=alpha, zorder=order + 0.5, **dots, **look)


def _write_names(
    ax: Axes,
    cells: Sequence[EvalResult],
    shown: Span,
    named: dict[str, list[EvalResult]],
    font: float,
    edge: list[labels.Point],
) -> None:
    """The gap first, then the rules' names, which give way."""
    full, best, wanted = fronts.full_length(cells), fronts.headline(cells), list[labels.Label]()
    lines = [edge, *([_place(c) for c in sweep] for sweep in named.values())]
    there = [labels.Obstacle([_place(c) for c in cells if shown.has(c) and c.is_policy], 40.0)]
    there += [labels.Obstacle([_place(c) for c in cells if shown.has(c)], 2.0)]
    there += [labels.Obstacle(line, 1.0, line=True) for line in lines]
    reached = fronts.envelope(cells, best.nfe) if best is not None else math.nan
    if best is not None and not math.isnan(reached):
        gap = [(best.nfe, 100 * reached), _place(best)]
        ax.plot(*zip(*gap, strict=True), color=POLICY_COLOUR, lw=1.0, ls=":", zorder=5)
        bar = [(best.nfe, 100 * best.accuracy_low), (best.nfe, 100 * best.accuracy_high)]
        there += [labels.Obstacle(line, 4.0, line=True) for line in (gap, bar)]
        text = points(best.accuracy - reached)
        wanted.append(labels.Label(text, [gap[1]], POLICY_COLOUR, font + 1.5, gap=8, weight="bold"))
    for kind, sweep in named.items():
        inside = [_place(c) for c in sweep if shown.has(c)]
        name = label_of(sweep[0].family)
        if sweep[0].block_length < full:
            name += f",\nblocks of {sweep[0].block_length}"
        if inside:
            wanted.append(labels.Label(name, inside, KIND_LOOKS[kind]["color"], font))
    labels.write(ax, wanted, there)


def _place(cell: EvalResult) -> labels.Point:
    return cell.nfe, 100 * cell.accuracy


def _title(task: str, denoiser: str, split: str, found: dict[fronts.Group, list[EvalResult]]) -> str:
    several = [len({key[i] for key in found}) > 1 for i in range(3)]
    parts = [task.replace("_", " ")] + [p for p, many in zip((denoiser, split), several[1:], strict=True) if many]
    return " · ".join(parts)
