"""Names written beside what they name: each goes where it covers the least, and never over another name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_MARGIN = np.array([[-2.0], [2.0]])  # pixels
_HA, _VA = {1: "left", 0: "center", -1: "right"}, {1: "bottom", 0: "center", -1: "top"}


@dataclass(frozen=True)
class Label:
    """text, written near one of ``anchors`` (in data, the best first) and drawn in ``color``."""

    text: str
    anchors: Sequence[Point]
    color: str
    size: float
    gap: float = 6.0
    """Points between the anchor and the text."""
    weight: str = "normal"


@dataclass(frozen=True)
class Obstacle:
    """What a label had better not cover: points in data, as a line or one by one, each of this weight."""

    points: Sequence[Point]
    weight: float
    line: bool = False


def write(ax: Axes, labels: Sequence[Label], obstacles: Sequence[Obstacle]) -> None:
    """Writes the labels in turn.

    The axes must have their final place and limits: what covers what is decided in pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure: Any = ax.figure.get_figure(root=True)
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = ax.get_window_extent(renderer).get_points() + _MARGIN
    there, weights = _strewn(ax, obstacles)
    taken: list[NDArray[np.float64]] = []
    for label in labels:
        found: list[tuple[float, Any, NDArray[np.float64]]] = []
        for effort, text in _tries(ax, label):
            box = text.get_window_extent(renderer).get_points() + _MARGIN
            covered = float(weights[((there > box[0]) & (there < box[1])).all(1)].sum())
            outside = bool((box[0] < frame[0]).any() or (box[1] > frame[1]).any())
            clash = outside or any(bool((box[0] < b[1]).all() and (box[1] > b[0]).all()) for b in taken)
            found.append((1e6 * clash + covered + effort, text, box))
        best = min(range(len(found)), key=lambda i: found[i][0])
        for i, (_, text, _) in enumerate(found):
            if i != best:
                text.remove()
        taken.append(found[best][2])


def _tries(ax: Axes, label: Label) -> Iterator[tuple[float, Any]]:
    """The label's text at every place that comes into question; the worse the place, the larger the number."""
    from matplotlib.patheffects import Normal, Stroke

    halo = [Stroke(linewidth=2.5, foreground="white"), Normal()]
    look: dict[str, Any] = {"color": label.color, "fontsize": label.size, "fontweight": label.weight, "zorder": 9}
    for rank, anchor in enumerate(label.anchors):
        for far in (1, 2.5, 5):
            for side, (right, up) in enumerate(_SIDES):
                reach = far * label.gap / (1.4 if right and up else 1.0)
                place: dict[str, Any] = {"xytext": (right * reach, up * reach), "textcoords": "offset points"}
                align = {"ha": _HA[right], "va": _VA[up]}
                text = ax.annotate(label.text, anchor, path_effects=halo, **place, **align, **look)
                yield 1.5 * (far - 1) + 0.05 * side + 0.2 * rank, text


def _strewn(ax: Axes, obstacles: Sequence[Obstacle]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 2) pixels and (N,) weights of all obstacles."""
    places, weights = [np.zeros((0, 2))], [np.zeros(0)]
    for obstacle in obstacles:
        if obstacle.points:
            pixels = ax.transData.transform(np.asarray(obstacle.points, dtype=np.float64))
            places.append(_along(pixels) if obstacle.line and len(pixels) > 1 else pixels)
            weights.append(np.full(len(places[-1]), obstacle.weight))
    return np.concatenate(places), np.concatenate(weights)


def _along(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points on a broken line, six pixels apart."""
    parts = []
    for a, b in pairwise(points):
        steps = max(2, int(np.hypot(*(b - a)) / 6.0))
        parts.append(a + np.linspace(0, 1, steps)[:, None] * (b - a))
    return np.concatenate(parts)
