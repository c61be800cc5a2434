"""The README's one picture: one puzzle decoded by a heuristic and by the learned policy, what a coupled policy saw at
its first step, and the Pareto front under it.

The two decodes are chosen by rule, not by hand: the heuristic that needs the fewest forwards to be as accurate as the
learned policy, and the prompt whose saving in forwards is nearest to the mean saving, among those that both got right.
So the boards show the usual case, and the front shows how often it happens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from ..evaluation.results import EvalResult
from ..policies.rules import POLICIES, label_of
from . import fronts as table
from . import pairs
from .boards import Case, Decode, cases, clues_of, columns_of, glyph, ink_on, last_step, step_colour
from .files import STYLE, write_figure
from .pareto import POLICY_COLOUR, legend_handles, panel
from .views import FULL, View, shift_colour, view_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, TOP, FRONT = 11.0, 3.95, 3.6
"""Inches: the picture's width, the height of its boards with their words, that of the front."""


def draw(
    path: Path, decodes: Sequence[Decode], cells: Sequence[EvalResult], columns: Mapping[str, int] | None = None
) -> Path:
    """Writes the PNG for one task. Of a policy without pair shifts, the front stands beside the two boards.

    Args:
        decodes: lines of decodes.jsonl of that task (others are ignored).
        cells: the evaluation's cells of that task, one denoiser and split.
        columns: cells per row of a task's board, as for the page.

    Errors:
        DataError: the cells are of several groups, or no prompt was decoded by a heuristic and by the learned policy.
    """
    import matplotlib
    from matplotlib.figure import Figure

    _refuse_several(cells)
    before, after = typical_pair(decodes, cells)
    steps, view = max(last_step(before), last_step(after)), view_of(after)
    high = TOP + FRONT if view else TOP + 0.3
    with matplotlib.rc_context({**STYLE, "font.size": 9.5}):
        figure = Figure(figsize=(WIDE, high))
        for place, decode in enumerate((before, after)):
            board(_square(figure, place, high), decode, _across(decode, columns), steps)
        _scale(figure, steps, high, framed=bool(clues_of(before)))
        if view:
            _first_step(figure, view, _across(after, columns), step_colour(1, steps), high)
            ax = figure.add_axes((0.055, 0.98 / high, 0.93, (FRONT - 1.25) / high))
        else:
            ax = figure.add_axes((0.545, 1.15 / high, 0.44, (high - 1.6) / high))
        panel(ax, cells, font=9)
        ax.set_xlabel("forward passes per prompt (NFE)", labelpad=2)
        ax.set_ylabel("accuracy, %", labelpad=2)
        ax.set_title(f"all {cells[0].prompts} test prompts", fontsize=11)
        figure.legend(
            handles=legend_handles(cells), loc="lower center", ncols=4, fontsize=8.5, columnspacing=1.5, borderpad=0.2
        )
        return write_figure(path, figure)


def _refuse_several(cells: Sequence[EvalResult]) -> None:
    found = table.groups(cells)
    if len(found) != 1:
        raise DataError(
            f"The picture was given {len(found)} groups of cells ({', '.join(' / '.join(key) for key in found)}). "
            "Pass those of one task on one denoiser and split."
        )


def typical_pair(decodes: Sequence[Decode], cells: Sequence[EvalResult]) -> tuple[Decode, Decode]:
    """(heuristic's decode, learned policy's decode) of the usual prompt; see the module's docstring.

    Errors:
        DataError: no prompt was decoded by both.
    """
    learned = table.headline(cells)
    tasks = {cell.task for cell in cells}
    pairs = [
        (heuristic, case.learned)
        for found in cases([d for d in decodes if d["task"] in tasks]).values()
        for case in found
        if case.learned is not None
        for heuristic in _rival(case, cells, learned)
    ]
    if not pairs:
        raise DataError(
            f"no prompt of {', '.join(sorted(tasks))} was decoded by a heuristic and by the learned policy: "
            "there is nothing to put side by side. Record both in decodes.jsonl."
        )
    right = [pair for pair in pairs if all(float(d["correct"]) >= 0.5 for d in pair)] or pairs
    savings = [float(a["nfe"]) - float(b["nfe"]) for a, b in pairs]
    usual = sum(savings) / len(savings)
    return min(right, key=lambda pair: abs(float(pair[0]["nfe"]) - float(pair[1]["nfe"]) - usual))


def board(ax: Axes, decode: Decode, columns: int, steps: int) -> None:
    """Draws one canvas: token, number of its forward, and the colour of that number; clues are framed."""
    length, clues = len(decode["order"]), clues_of(decode)
    inches = pairs.frame(ax, length, columns)
    for position, (step, token) in enumerate(zip(decode["order"], decode["tokens"], strict=True)):
        x, y = pairs.corner(position, length, columns)
        number = int(step) + 1
        colour = step_colour(number, steps) if number >= 1 else pairs.IDLE
        pairs.tile(ax, x, y, fc=colour, ec="none")
        if position in clues:
            pairs.tile(ax, x, y, 0.115, fc="none", ec=ink_on(colour), lw=1.1)
        ink: dict[str, Any] = {"color": ink_on(colour), "ha": "center", "va": "center"}
        ax.text(x + 0.5, y + 0.46, _fit(glyph(token)), fontsize=26 * inches, fontweight="bold", **ink)
        ax.text(x + 0.84, y + 0.77, str(number) if number >= 1 else "", fontsize=11 * inches, **{**ink, "ha": "right"})
    verdict = "\N{CHECK MARK} right" if float(decode["correct"]) >= 0.5 else "\N{BALLOT X} wrong"
    family, learned = str(decode["family"]), decode["family"] in POLICIES
    name = label_of(family) if learned else table.rule_name(family, str(decode["setting"]))
    _words(ax, name, f"{float(decode['nfe']):g} forwards   {verdict}", POLICY_COLOUR if learned else "#222222")


def _square(figure: Figure, place: int, high: float) -> Axes:
    """Axes for one of four boards beside each other."""
    return figure.add_axes((0.012 + 0.25 * place, (high - 3.1) / high, 0.2275, 2.5 / high))


def _words(ax: Axes, title: str, under: str, colour: str = "#222222") -> None:
    ax.set_title(title, fontsize=11, color=colour, pad=19)
    ax.text(0.0, 1.025, under, transform=ax.transAxes, color="#555555", fontsize=9.5, ha="left", va="bottom")


def _first_step(figure: Figure, view: View, columns: int, colour: str, high: float) -> None:
    """The board of the first forward, the map of pair shifts, and what their colours mean."""
    step, fine = (_square(figure, place, high) for place in (2, 3))
    pairs.draw_step(step, view, columns, colour)
    _words(step, "its first forward", f"{len(view.taken)} taken together, {len(view.apart)} kept apart", POLICY_COLOUR)
    pairs.draw_map(fine, view, columns, colour)
    _words(fine, "what one does to the others", "a small board for each cell, if taken", POLICY_COLOUR)
    bar = figure.add_axes((0.7655, (high - 3.43) / high, 0.219, 0.2 / high))
    shades = [FULL * (i / 20 - 1) for i in range(41)]
    for i, shift in enumerate(shades):
        bar.axvspan(i, i + 1, color=shift_colour(shift), lw=0)
    bar.set(xlim=(0, len(shades)), ylim=(0, 1))
    bar.set_axis_off()
    ends = (f"\N{MINUS SIGN}{FULL:g} nats: apart", f"+{FULL:g}: together")
    for x, text, ha in ((0, ends[0], "left"), (20.5, "0", "center"), (41, ends[1], "right")):
        bar.text(x, -0.3, text, fontsize=8.5, color="#555555", ha=ha, va="top")
    note = "an arc joins a cell that would be taken alone\nto the taken one that speaks most against it"
    figure.text(0.513, (high - 3.28) / high, note, fontsize=8.5, color="#555555", va="top", linespacing=1.35)


def _across(decode: Decode, columns: Mapping[str, int] | None) -> int:
    """Cells per row; a long line is broken into a square, since the picture has no room for it."""
    length = len(decode["order"])
    across = columns_of(decode, columns)
    return math.ceil(math.sqrt(length)) if across == length > 12 else across


def _rival(case: Case, cells: Sequence[EvalResult], learned: EvalResult | None) -> list[Decode]:
    """The heuristic decode of the case whose cell needs the fewest forwards to be as accurate as the learned policy;
    the most accurate one if none is."""
    full = table.full_length(cells)
    place = {(c.family, c.setting): c for c in cells if c.block_length == full}
    known = [(place.get((str(d["family"]), str(d["setting"]))), d) for d in case.heuristics]
    ranked = [
        (c.accuracy < learned.accuracy, c.nfe if c.accuracy >= learned.accuracy else -c.accuracy, i)
        for i, (c, _) in enumerate(known)
        if c and learned
    ]
    return [known[min(ranked)[2]][1]] if ranked else list(case.heuristics[:1])


def _scale(figure: Figure, steps: int, high: float, framed: bool) -> None:
    """A strip under the boards: one square per forward."""
    from matplotlib.patches import Rectangle

    ax = figure.add_axes((0.014, (high - 3.43) / high, 0.4725, 0.24 / high))
    ax.set_xlim(0, steps)
    ax.set_ylim(0, 1)
    ax.set_axis_off()
    every = steps // 20 + 1
    gap = 0.02 if steps <= 24 else 0.0
    for step in range(1, steps + 1):
        colour = step_colour(step, steps)
        ax.add_patch(Rectangle((step - 1 + gap, 0), 1 - 2 * gap, 1, fc=colour, ec=colour if not gap else "none"))
        if (step - 1) % every == 0:
            ax.text(step - 0.5, 0.46, str(step), ha="center", va="center", fontsize=8, color=ink_on(colour))
    note = "forward pass in which the cell was committed" + ("; framed: given in the prompt" if framed else "")
    ax.text(0, -0.3, note, fontsize=8.5, color="#555555", va="top")


def _fit(token: str) -> str:
    return token if len(token) <= 3 else token[:2] + "\N{HORIZONTAL ELLIPSIS}"
