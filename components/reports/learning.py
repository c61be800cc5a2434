"""The learning curve: what each iteration of training logged, raw and smoothed, one small panel per quantity. Beside
it the validation on the tune split, and a mark on the iteration whose weights were kept.

The names are those of ``train/metrics.jsonl``; a quantity that the run did not log has no panel. Whether the run went
well is said by the evaluation table, not by this figure.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from ..core.files import read_curve, write_text
from .files import STYLE, write_figure
from .pareto import POLICY_COLOUR

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Panel:
    """title, and the unit of what is drawn. validation: the name of the same quantity on the tune split, if any."""

    title: str
    unit: str
    validation: str = ""


PANELS = {
    "reward/mean": Panel("reward", "0 to 1", "tune/reward"),
    "reward/correct": Panel("right answers", "%", "tune/correct"),
    "decode/nfe": Panel("forwards per prompt", "NFE", "tune/nfe"),
    "policy/entropy": Panel("policy entropy", "nats per step"),
    "policy/kl": Panel("KL to the reference policy", "nats per step"),
    "policy/gradient_norm": Panel("gradient before clipping", "norm"),
}
"""The quantities that are drawn, in order, by the names that they are logged under."""

KEPT_BY = "tune/reward"
"""Stage train keeps the weights of the iteration where this was best, the first of equals."""

LINE, RAW = "#0072B2", "#B9D3E8"


def read_iterations(path: Path) -> list[dict[str, Any]]:
    """Those of a metrics.jsonl by rising ``step``; of a step that was logged twice (a resumed run) the last one."""
    by_step = {record["step"]: record for record in read_curve(path)}
    if not by_step:
        raise DataError(f"{path} holds no iteration of a training. Run `dvc repro` to make it.")
    return [by_step[step] for step in sorted(by_step)]


def draw(path: Path, iterations: Sequence[Mapping[str, Any]], panels: Mapping[str, Panel] = PANELS) -> Path:
    """A PNG with one panel per logged quantity, and what its lines mean below.

    Errors:
        DataError: none of ``panels`` was logged.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = _present(iterations, panels)
    across = min(3, len(names))
    down, kept = math.ceil(len(names) / across), kept_step(iterations)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * across, 2.1 * down + 0.6), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
        for ax in axes[len(names) :]:
            ax.remove()
        for place, name in enumerate(names):
            _panel(axes[place], iterations, name, panels[name], kept)
            if place + across >= len(names):
                axes[place].set_xlabel("iteration")
                axes[place].tick_params(labelbottom=True)
        window = _window(max(len(_series(iterations, name)[0]) for name in names))
        figure.legend(handles=_handles(window, kept), loc="outside lower center", ncols=2 if across < 3 else 4)
        return write_figure(path, figure)


def kept_step(iterations: Sequence[Mapping[str, Any]]) -> int | None:
    """The iteration whose weights stage train kept; None without a validation."""
    steps, values = _series(iterations, KEPT_BY)
    return int(steps[values.argmax()]) if len(steps) else None


def write_csv(path: Path, iterations: Sequence[Mapping[str, Any]]) -> Path:
    """The drawn quantities for DVC's plots: ``step`` and one column per quantity, named as logged, blank if absent.

    Errors:
        DataError: none of them was logged.
    """
    text = io.StringIO(newline="")
    columns = ["step", *_present(iterations, PANELS)]
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(iterations)
    return write_text(path, text.getvalue())


def smooth(values: Sequence[float] | NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred running mean over ``window`` values (made odd); at the ends over those of them that are there."""
    y = np.asarray(values, dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(y)])
    first = np.maximum(np.arange(len(y)) - window // 2, 0)
    end = np.minimum(np.arange(len(y)) + window // 2 + 1, len(y))
    return (total[end] - total[first]) / (end - first)


def _window(values: int) -> int:
    """Over how many values the mean runs. Some quantities are logged every few iterations only: few points stay raw."""
    return values // 12


def _panel(ax: Axes, iterations: Sequence[Mapping[str, Any]], name: str, panel: Panel, kept: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    scale = 100.0 if panel.unit == "%" else 1.0
    steps, values = _series(iterations, name)
    window = _window(len(values))
    if window < 2:
        ax.plot(steps, scale * values, color=LINE, lw=1.4, marker=".")
    else:
        ax.plot(steps, scale * values, color=RAW, lw=0.9)
        ax.plot(steps, scale * smooth(values, window), color=LINE, lw=1.7)
    when, judged = _series(iterations, panel.validation)
    if kept is not None:
        ax.axvline(kept, color=POLICY_COLOUR, lw=0.9, ls=(0, (2, 2)), zorder=1)
    if len(when):
        ax.plot(when, scale * judged, color=POLICY_COLOUR, lw=1.2, marker="o", ms=3.6, mec="white", mew=0.5, zorder=4)
        best = when == kept
        ax.plot(when[best], scale * judged[best], "*", ms=12, mfc=POLICY_COLOUR, mec="white", mew=0.7, zorder=5)
    ax.set_title(panel.title, fontsize=9.5, color="#222222")
    ax.set_ylabel(panel.unit, fontsize=8.5, color="#555555")
    ax.grid(True)
    ax.set_axisbelow(True)
    ax.margins(x=0.03, y=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    if panel.unit == "%":
        ax.set_ylim(top=min(100.0, ax.get_ylim()[1]))


def _handles(window: int, kept: int | None) -> list[Any]:
    from matplotlib.lines import Line2D

    raw = "sampled rollouts"
    if window < 2:
        handles = [Line2D([], [], color=LINE, lw=1.4, marker=".", label=raw)]
    else:
        mean = f"mean over {window | 1} iterations"
        handles = [Line2D([], [], color=RAW, lw=1.2, label=raw), Line2D([], [], color=LINE, lw=1.7, label=mean)]
    if kept is not None:
        dots = {"color": POLICY_COLOUR, "marker": "o", "ms": 3.6, "mec": "white", "mew": 0.5}
        handles += [Line2D([], [], lw=1.2, label="validation (tune split, as served)", **dots)]
        star = {"color": POLICY_COLOUR, "lw": 0.9, "ls": (0, (2, 2)), "marker": "*", "ms": 11, "mec": "white"}
        handles += [Line2D([], [], label=f"kept: iteration {kept}, best validation reward", **star)]
    return handles


def _present(iterations: Sequence[Mapping[str, Any]], panels: Mapping[str, Panel]) -> list[str]:
    names = [name for name in panels if any(_is_number(record.get(name)) for record in iterations)]
    if not names:
        raise DataError(
            f"{len(iterations)} iterations, and none of {', '.join(panels)} in them: there is no curve to draw. "
            "Give the metrics.jsonl of stage train."
        )
    return names


def _series(iterations: Sequence[Mapping[str, Any]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    kept = [(record["step"], record[name]) for record in iterations if _is_number(record.get(name))]
    both = np.asarray(kept, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
