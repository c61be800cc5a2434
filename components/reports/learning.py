"""The learning curve: what each round of training logged, raw and smoothed, one small panel per quantity.

The names are those of ``train/metrics.jsonl``; a quantity that the run did not log has no panel. Whether the run went
well is said by the evaluation table, not by this figure.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.core.errors import DataError
from components.core.files import read_lines, write_text
from components.reports.files import write_figure
from components.reports.pareto import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "reward/mean": "reward",
    "reward/correct": "share of right answers",
    "decode/nfe": "forwards per prompt",
    "policy/entropy": "policy entropy",
    "policy/kl": "KL to the reference",
    "policy/gradient_norm": "gradient norm",
}
"""The quantities that are drawn, in order: logged name -> title."""

LINE, RAW = "#0072B2", "#B9D3E8"


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The rounds of a metrics.jsonl by rising ``step``; of a step that was logged twice (a resumed run) the last."""
    by_step = {int(record["step"]): record for record in read_lines(path) if "step" in record}
    if not by_step:
        raise DataError(f"{path} holds no round of a training. Run `dvc repro` to make it.")
    return [by_step[step] for step in sorted(by_step)]


def draw(path: Path, rounds: Sequence[Mapping[str, Any]], panels: Mapping[str, str] = PANELS) -> Path:
    """A PNG with one panel per logged quantity: the raw values pale, a running mean over them dark.

    Errors:
        DataError: none of ``panels`` was logged.
    """
    import matplotlib
    from matplotlib.figure import Figure

    series = {name: _series(rounds, name) for name in _present(rounds, panels)}
    across = min(3, len(series))
    down = math.ceil(len(series) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * across, 2.05 * down + 0.2), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
        for ax in axes[len(series) :]:
            ax.remove()
        for place, (name, (steps, values)) in enumerate(series.items()):
            _panel(axes[place], steps, values, panels[name])
            if place + across >= len(series):
                axes[place].set_xlabel("round")
                axes[place].tick_params(labelbottom=True)
        return write_figure(path, figure)


def write_csv(path: Path, rounds: Sequence[Mapping[str, Any]], panels: Mapping[str, str] = PANELS) -> Path:
    """The drawn quantities for DVC's plots: ``step`` and one column per quantity, named as logged, blank if absent.

    Errors:
        DataError: none of ``panels`` was logged.
    """
    text = io.StringIO(newline="")
    columns = ["step", *_present(rounds, panels)]
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rounds)
    return write_text(path, text.getvalue())


def smooth(values: Sequence[float] | NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred running mean over ``window`` values (made odd); at the ends over those of them that are there."""
    y = np.asarray(values, dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(y)])
    first = np.maximum(np.arange(len(y)) - window // 2, 0)
    end = np.minimum(np.arange(len(y)) + window // 2 + 1, len(y))
    return (total[end] - total[first]) / (end - first)


def _panel(ax: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    # Some quantities are logged every few rounds only: few points are drawn as they are.
    window = len(values) // 12
    if window < 2:
        ax.plot(steps, values, color=LINE, lw=1.4, marker=".")
    else:
        ax.plot(steps, values, color=RAW, lw=0.9)
        ax.plot(steps, smooth(values, window), color=LINE, lw=1.7)
    ax.set_title(title, fontsize=9, fontweight="normal", color="#222222")
    ax.grid(True)
    ax.set_axisbelow(True)
    ax.margins(x=0.02, y=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _present(rounds: Sequence[Mapping[str, Any]], panels: Mapping[str, str]) -> list[str]:
    names = [name for name in panels if any(_is_number(record.get(name)) for record in rounds)]
    if not names:
        raise DataError(
            f"{len(rounds)} rounds, and none of {', '.join(panels)} in them: there is no curve to draw; "
            "give the metrics.jsonl of stage train."
        )
    return names


def _series(rounds: Sequence[Mapping[str, Any]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    kept = [(record["step"], record[name]) for record in rounds if _is_number(record.get(name))]
    both = np.asarray(kept, dtype=np.float64)
    return both[:, 0], both[:, 1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
