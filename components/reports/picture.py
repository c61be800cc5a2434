"""The README's one picture: the same puzzle decoded by a heuristic and by the learned policy, beside the Pareto front.

The two decodes are chosen by rule, not by hand: the heuristic that needs the fewest forwards to be as accurate as the
learned policy, and the prompt whose saving in forwards is nearest to the mean saving, among those that both got right.
So the boards show the usual case, and the front shows how often it happens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import DataError
from components.evaluation.results import POLICIES, EvalResult
from components.reports import fronts as table
from components.reports.boards import (
    Case,
    Decode,
    box_of,
    cases,
    clues_of,
    columns_of,
    glyph,
    ink_on,
    last_step,
    name_of,
    step_colour,
)
from components.reports.files import write_figure
from components.reports.pareto import POLICY_COLOUR, STYLE, legend_handles, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


GAP = 0.16  # between the boxes of a sudoku, in cells


def draw(
    path: Path, decodes: Sequence[Decode], cells: Sequence[EvalResult], columns: Mapping[str, int] | None = None
) -> Path:
    """Writes the PNG for one task.

    Args:
        decodes: lines of decodes.jsonl of that task (others are ignored).
        cells: the evaluation's cells of that task, one denoiser and split.
        columns: cells per row of a task's board, as for the page.

    Errors:
        DataError: the cells are of several groups, or no prompt was decoded by a heuristic and by the learned policy.
    """
    import matplotlib
    from matplotlib.figure import Figure

    found = table.groups(cells)
    if len(found) != 1:
        raise DataError(
            f"the picture was given {len(found)} groups of cells ({', '.join(' / '.join(key) for key in found)}): "
            "its front belongs to one task on one denoiser and split; pass the cells of one."
        )
    before, after = typical_pair(decodes, cells)
    steps = max(last_step(before), last_step(after))
    with matplotlib.rc_context({**STYLE, "font.size": 9.5}):
        figure = Figure(figsize=(11, 4.5))
        left, right = figure.add_gridspec(
            1, 2, width_ratios=[1.24, 1], left=0.015, right=0.985, top=0.87, bottom=0.265, wspace=0.14
        )
        places = left.subgridspec(1, 2, wspace=0.1)
        for place, decode in enumerate((before, after)):
            board(figure.add_subplot(places[place]), decode, _across(decode, columns), steps)
        _scale(figure, steps, framed=bool(clues_of(before)))
        ax = figure.add_subplot(right)
        panel(ax, cells)
        ax.set_xlabel("forward passes per prompt (NFE)", labelpad=2)
        ax.set_ylabel("accuracy, %", labelpad=2)
        ax.set_title("all test prompts", fontsize=10.5)
        figure.legend(
            handles=legend_handles(cells),
            loc="lower right",
            bbox_to_anchor=(0.995, 0.0),
            ncols=4,
            fontsize=7.8,
            labelspacing=0.3,
            handlelength=1.8,
            columnspacing=1.2,
        )
        return write_figure(path, figure)


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
            "there is nothing to put side by side; record both in decodes.jsonl."
        )
    right = [pair for pair in pairs if all(float(d["correct"]) >= 0.5 for d in pair)] or pairs
    savings = [float(a["nfe"]) - float(b["nfe"]) for a, b in pairs]
    usual = sum(savings) / len(savings)
    return min(right, key=lambda pair: abs(float(pair[0]["nfe"]) - float(pair[1]["nfe"]) - usual))


def board(ax: Axes, decode: Decode, columns: int, steps: int) -> None:
    """Draws one canvas: token, number of its forward, and the colour of that number; clues are framed."""
    from matplotlib.patches import FancyBboxPatch

    length = len(decode["order"])
    rows = math.ceil(length / columns)
    boxes = box_of(length - 1, length, columns)
    ax.set_xlim(0, columns + GAP * boxes[1])
    ax.set_ylim(rows + GAP * boxes[0], 0)
    ax.set_aspect("equal", anchor="NW")
    ax.set_axis_off()
    clues = clues_of(decode)
    inches = 2.75 / max(columns, rows)  # a cell's side, about; letters grow and shrink with it
    for position, (step, token) in enumerate(zip(decode["order"], decode["tokens"], strict=True)):
        box = box_of(position, length, columns)
        x, y = position % columns + GAP * box[1], position // columns + GAP * box[0]
        number = int(step) + 1
        colour = step_colour(number, steps) if number >= 1 else "#E9EBEE"
        ax.add_patch(
            FancyBboxPatch(
                (x + 0.07, y + 0.07), 0.86, 0.86, fc=colour, ec="none", boxstyle="round,pad=0,rounding_size=0.1"
            )
        )
        if position in clues:
            ax.add_patch(
                FancyBboxPatch(
                    (x + 0.11, y + 0.11),
                    0.78,
                    0.78,
                    fc="none",
                    ec=ink_on(colour),
                    lw=1.1,
                    boxstyle="round,pad=0,rounding_size=0.07",
                )
            )
        ink: dict[str, Any] = {"color": ink_on(colour), "ha": "center", "va": "center"}
        ax.text(x + 0.5, y + 0.46, _fit(glyph(token)), fontsize=26 * inches, fontweight="bold", **ink)
        ax.text(x + 0.84, y + 0.77, str(number) if number >= 1 else "", fontsize=11 * inches, **{**ink, "ha": "right"})
    learned = decode["family"] in POLICIES
    verdict = "\N{CHECK MARK} right" if float(decode["correct"]) >= 0.5 else "\N{BALLOT X} wrong"
    ax.set_title(name_of(decode), fontsize=10.5, color=POLICY_COLOUR if learned else "#222222", pad=20)
    ax.text(
        0.0,
        1.025,
        f"{float(decode['nfe']):g} forwards   {verdict}",
        transform=ax.transAxes,
        color="#555555",
        fontsize=9.5,
        ha="left",
        va="bottom",
    )


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


def _scale(figure: Figure | SubFigure, steps: int, framed: bool) -> None:
    """A strip under the boards: one square per forward."""
    from matplotlib.patches import Rectangle

    ax = figure.add_axes((0.0185, 0.19, 0.4935, 0.047))
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


def _fit(token: str, letters: int = 3) -> str:
    return token if len(token) <= letters else token[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"
