"""``headroom.md`` and ``headroom.png``: what each task leaves to gain, by the figures of stage headroom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from ..core.files import write_text
from .files import STYLE, write_figure
from .table import NONE, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Order(TypedDict):
    random: float
    best_of_random: float
    surest_first: float
    critical: float


class LearnedOrder(TypedDict):
    accuracy: float
    gain: float
    gain_low: float
    gain_high: float


class Speed(TypedDict):
    best: float
    saturates_at_nfe: float
    at_half: float
    critical: float


class Dependence(TypedDict):
    oracle_at_half: float
    share_of_loss: float
    tc_per_step: NotRequired[float]


class Case(TypedDict):
    """What stage headroom writes of a case."""

    model: str
    task: str
    order: Order
    learned_order: LearnedOrder
    speed: Speed
    dependence: Dependence


Figures = Sequence[Mapping[str, Any]]
"""One per case: model, task and the figures that stage headroom writes."""
MUCH, LITTLE = "#D55E00", "#0072B2"
PANELS = {
    "order": (
        "one position per pass: what the order is worth",
        {"random": "random order", "surest_first": "surest first", "best_of_random": "the luckiest random order"},
    ),
    "speed": ("the rules' front: what speed costs", {"at_half": "at half of the passes", "best": "at its best"}),
}
"""Part of the figures -> its title, and what is drawn of it: name -> label."""
MARKS = {"surest_first": "o", "best": "o", "random": "o", "at_half": "o", "best_of_random": "D"}
FILLED = ("surest_first", "best")
HEADINGS = (
    "task",
    "dLLM",
    "random order, %",
    "best of the random orders, %",
    "surest first, %",
    "learned order, %",
    "gain",
    "order matters",
    "best rule, %",
    "from NFE",
    "at half of it, %",
    "speed costs",
    "oracle there, %",
    "of the loss, %",
    "TC a step, nats",
)


def markdown(figures: Figures) -> str:
    """A GitHub table, one line per task and dLLM, and how it is judged."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- | --- |" + " ---: |" * (len(HEADINGS) - 2)]
    for case in figures:
        model, task, order, speed = (case[name] for name in ("model", "task", "order", "speed"))
        learned, tied = case["learned_order"], case["dependence"]
        shares = [f"{100 * order[name]:.1f}" for name in ("random", "best_of_random", "surest_first")]
        row = [
            task,
            model,
            *shares,
            f"{100 * learned['accuracy']:.1f}",
            interval(*(learned[name] for name in ("gain", "gain_low", "gain_high"))),
            _yes(order),
            f"{100 * speed['best']:.1f}",
            f"{speed['saturates_at_nfe']:.2f}",
            f"{100 * speed['at_half']:.1f}",
            _yes(speed),
            f"{100 * tied['oracle_at_half']:.1f}",
            f"{100 * tied['share_of_loss']:.0f}" if tied["share_of_loss"] >= 0 else NONE,
            f"{tied['tc_per_step']:.2f}" if "tc_per_step" in tied else NONE,
        ]
        lines.append("| " + " | ".join(row) + " |")
    legend = (
        "The dLLM and the rules alone, full diffusion, prompts of the tune split. The best of the random orders is "
        "luck in part. The learned order is fitted to the random orders of one half of the prompts and asked on the "
        "other. The order matters where it gains at least 5 points over surest first and its interval excludes 0 (one "
        "position per step). Speed costs where the rules' front is at most 85 % at half of the forwards at which it "
        "is within a point of its best. The oracle there takes sets by the frozen model's exact pair shifts, which "
        "cost forwards that are not counted; of the loss: how much of what speed costs it wins back, "
        "and a dash where it is worse than the rules. TC: the total "
        "correlation of what the rule nearest to half commits in a step."
    )
    return "\n".join(lines) + f"\n\n{legend}\n"


def write(path: Path, figures: Figures) -> Path:
    return write_text(path, markdown(figures))


def _yes(found: Mapping[str, float]) -> str:
    return "yes" if found["critical"] else "no"


def draw(path: Path, figures: Figures) -> Path:
    """A PNG with a row per case: how much the order is worth, and what half of the passes costs. Where it is much, by
    the criteria under the table, the row is orange."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    wide, high = 9.6, 0.4 * len(figures) + 1.2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(wide, high))
        sides = {"left": 2.1 / wide, "right": 1 - 0.2 / wide, "top": 1 - 0.3 / high, "bottom": 0.8 / high}
        axes = figure.subplots(1, 2, sharey=True, gridspec_kw={**sides, "wspace": 0.1})
        for ax, (part, (title, names)) in zip(axes, PANELS.items(), strict=True):
            for y, case in enumerate(reversed(figures)):
                _row(ax, y, case[part], names)
            ax.set(xlim=(0, 100), ylim=(-0.6, len(figures) - 0.4), xlabel="accuracy, %")
            ax.set_title(title, fontsize=9.5)
            ax.grid(True, axis="x")
            ax.spines["left"].set_visible(False)
            ax.tick_params(axis="y", length=0)
            handles = [Line2D([], [], label=label, **_look(name, "#555555")) for name, label in names.items()]
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.42 / (high - 1.1))}
            ax.legend(handles=handles, ncols=3, handletextpad=0.1, columnspacing=1.0, **place)
        labels = [f"{case['task'].replace('_', ' ')} · {case['model']}" for case in reversed(figures)]
        axes[0].set_yticks(range(len(figures)), labels)
        return write_figure(path, figure)


def _row(ax: Axes, y: int, shares: Mapping[str, float], names: Mapping[str, str]) -> None:
    values = {name: 100 * shares[name] for name in names}
    colour = MUCH if shares["critical"] else LITTLE
    ax.plot([min(values.values()), max(values.values())], [y, y], color=colour, lw=2.2, alpha=0.35)
    for name, value in values.items():
        ax.plot(value, y, clip_on=False, zorder=4 + (name in FILLED), **_look(name, colour))


def _look(name: str, colour: str) -> dict[str, Any]:
    """What anyone would take is filled; luck is a diamond."""
    face = colour if name in FILLED else "white"
    return {"ls": "none", "marker": MARKS[name], "ms": 6.5, "mfc": face, "mec": colour, "mew": 1.4}
