"""docs/results.png: on every case the rules' front, each policy's curve, and what it is without reinforcement."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..maths.pareto import upper_hull
from . import pareto
from .files import STYLE, write_figure
from .study import Runs, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS: dict[str, dict[str, Any]] = {
    "reinforced": {"color": pareto.POLICY_COLOUR, "marker": "*", "ms": 8, "lw": 1.6},
    "distilled start": {"color": "#0072B2", "marker": "o", "ms": 4, "lw": 1.0},
    "influence alone": {"color": "#009E73", "marker": "v", "ms": 4, "lw": 1.0},
}


def draw(path: Path, study: Study, columns: int = 3) -> Path:
    """A PNG with one panel per case of the first dLLM, and one legend below."""
    import matplotlib
    from matplotlib.figure import Figure

    cases = [case for case in study.cases() if any(case in cell.results for cell in study.first)]
    down = math.ceil(len(cases) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.5 * columns, 2.9 * down + 0.8), layout="constrained")
        axes = figure.subplots(down, columns, squeeze=False).ravel()
        for ax in axes[len(cases) :]:
            ax.remove()
        for place, case in enumerate(cases):
            _panel(axes[place], study, case)
            axes[place].set_title(case.partition("-")[2].replace("_", " "), fontsize=9.5)
            if place % columns == 0:
                axes[place].set_ylabel("accuracy, %")
            if place + columns >= len(cases):
                axes[place].set_xlabel("forward passes per prompt (NFE)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, columnspacing=1.4)
        return write_figure(path, figure)


def _panel(ax: Axes, study: Study, case: str) -> None:
    policies = [
        one for one in study.on(case, elsewhere=False) if "dLLM seed" not in one.label or one.label.endswith("seed 0")
    ]
    rules = policies[0].rules
    right = min(max(r.nfe for r in rules), policies[0].canvas) * 1.05
    corners_nfe, corners = upper_hull(*policies[0].front)
    ax.fill_between([*corners_nfe, right], [*(100 * corners), 100 * corners[-1]], -10, color=pareto.REGION_COLOUR, lw=0)
    ax.plot([r.nfe for r in rules], [100 * r.accuracy for r in rules], ".", ms=2.5, color="#999999", label="swept rule")
    ax.plot(
        [*corners_nfe, right],
        [*(100 * corners), 100 * corners[-1]],
        color=pareto.ENVELOPE_COLOUR,
        lw=1.4,
        label="reach of all rules",
    )
    for one in policies:
        name = next((name for name in LOOKS if name in one.label), None)
        _curve(ax, one, name)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks := [tick for tick in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if tick <= right], map(str, ticks))
    ax.minorticks_off()
    ax.set_xlim(0.9 * min([corners_nfe[0], *(one.curve()[0].min() for one in policies if one.curve()[0].size)]), right)
    limit(ax, min(r.accuracy for r in rules))
    ax.grid(True)
    ax.set_axisbelow(True)


def limit(ax: Axes, lowest: float) -> None:
    """The axis of the accuracies, in percent: room for the marks at 100 %, and no tick above it."""
    bottom = max(-3.0, 100 * lowest - 6)
    ax.set_ylim(bottom, 103)
    ax.set_yticks([tick for tick in ax.get_yticks() if bottom <= tick <= 100])


def _curve(ax: Axes, one: Runs, name: str | None) -> None:
    if name is None:
        served = one.by_setting["mode"]
        nfe, accuracy = (float(np.mean([getattr(r, field) for r in served])) for field in ("nfe", "accuracy"))
        shape = "P" if "Top-K" in one.label else "X"
        ax.plot([nfe], [100 * accuracy], shape, ms=7, color="#444444", label=one.label.partition(",")[0])
        return
    nfe, accuracy = one.curve()
    order = np.argsort(nfe)
    ax.plot(nfe[order], 100 * accuracy[order], mec="white", mew=0.4, label=name, **LOOKS[name])
    if name == "reinforced":
        for seed in range(len(next(iter(one.by_setting.values())))):
            x, y = one.curve(seed)
            order = np.argsort(x)
            ax.plot(x[order], 100 * y[order], color=LOOKS[name]["color"], lw=0.5, alpha=0.5)
