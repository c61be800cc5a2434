"""The first step of a coupled policy as matplotlib panels: the board with its pairs, and the map of all pair shifts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .boards import box_of
from .views import APART, FULL, View, shift_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 0.16
"""Between the boxes of a sudoku, in cells."""
LEFT, IDLE = "#FBEDEB", "#ECEEF1"


def corner(position: int, length: int, columns: int) -> tuple[float, float]:
    """The upper left corner of a cell, in cells."""
    box = box_of(position, length, columns)
    return position % columns + GAP * box[1], position // columns + GAP * box[0]


def frame(ax: Axes, length: int, columns: int) -> float:
    """Empty axes for a board; returns a cell's side in inches, about: letters grow and shrink with it."""
    rows, boxes = math.ceil(length / columns), box_of(length - 1, length, columns)
    ax.set_xlim(0, columns + GAP * boxes[1])
    ax.set_ylim(rows + GAP * boxes[0], 0)
    ax.set_aspect("equal", anchor="NW")
    ax.set_axis_off()
    return 2.5 / max(columns, rows)


def tile(ax: Axes, x: float, y: float, margin: float = 0.07, **look: Any) -> None:
    """A cell with round corners, ``margin`` inside its square."""
    from matplotlib.patches import FancyBboxPatch

    side, style = 1 - 2 * margin, "round,pad=0,rounding_size=0.1"
    ax.add_patch(FancyBboxPatch((x + margin, y + margin), side, side, boxstyle=style, **look))


def draw_step(ax: Axes, view: View, columns: int, colour: str) -> None:
    """What was taken together in ``colour``; arcs to what would have been taken alone and was kept apart."""
    from matplotlib.patches import FancyArrowPatch

    length, apart = len(view.alone), view.apart
    frame(ax, length, columns)
    left = {j for _, j in apart}
    for position in range(length):
        x, y = corner(position, length, columns)
        if position in view.taken:
            tile(ax, x, y, fc=colour, ec="none")
        elif position in left:
            tile(ax, x, y, fc=LEFT, ec=APART, lw=1.0, ls=(0, (3, 2)))
        else:
            tile(ax, x, y, fc=IDLE, ec="none")
    for i, j in apart:
        ends = [(x + 0.5, y + 0.5) for x, y in (corner(p, length, columns) for p in (i, j))]
        width = 0.8 + 1.3 * min(1.0, -view.shift[i][j] / FULL)
        arc = FancyArrowPatch(*ends, connectionstyle="arc3,rad=0.22", arrowstyle="-", color=APART, lw=width, zorder=3)
        ax.add_patch(arc)
        for (x, y), face in zip(ends, (APART, "white"), strict=True):
            ax.plot(x, y, "o", ms=4.5, mfc=face, mec=APART, mew=1.1, zorder=4)


def draw_map(ax: Axes, view: View, columns: int, colour: str) -> None:
    """In the place of every position a small board: by how much taking it moves each of the others."""
    from matplotlib.patches import Rectangle

    length = len(view.alone)
    rows = math.ceil(length / columns)
    frame(ax, length, columns)
    inner = 0.82
    for i in range(length):
        x, y = corner(i, length, columns)
        mine = i in view.taken
        tile(ax, x, y, 0.04, fc="white", ec=colour if mine else "#C9CED6", lw=1.6 if mine else 0.7)
        for j in range(length):
            fine = shift_colour(view.shift[i][j]) if j != i else colour if mine else "#9AA1AC"
            place = (x + 0.09 + inner * (j % columns) / columns, y + 0.09 + inner * (j // columns) / rows)
            ax.add_patch(Rectangle(place, 0.92 * inner / columns, 0.92 * inner / rows, fc=fine, ec="none"))
