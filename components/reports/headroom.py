"""``headroom.md``: what each task leaves to gain, by the figures of stage headroom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.core.files import write_text

Figures = Sequence[Mapping[str, Any]]
"""One per case: model, task, order and speed, as stage headroom writes them."""
HEADINGS = (
    "task",
    "dLLM",
    "random order, %",
    "best of the random orders, %",
    "surest first, %",
    "order matters",
    "best rule, %",
    "from NFE",
    "at half of it, %",
    "speed costs",
)


def markdown(figures: Figures) -> str:
    """A GitHub table, one line per task and dLLM, and how it is judged."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- | --- |" + " ---: |" * (len(HEADINGS) - 2)]
    for case in figures:
        model, task, order, speed = (case[name] for name in ("model", "task", "order", "speed"))
        shares = [f"{100 * order[name]:.1f}" for name in ("random", "best_of_random", "surest_first")]
        row = [
            task,
            model,
            *shares,
            _yes(order),
            f"{100 * speed['best']:.1f}",
            f"{speed['saturates_at_nfe']:.2f}",
            f"{100 * speed['at_half']:.1f}",
            _yes(speed),
        ]
        lines.append("| " + " | ".join(row) + " |")
    legend = (
        "The dLLM and the rules alone, full diffusion, prompts of the tune split. The order matters where the best of "
        "the random orders is at least 15 points above surest first, and that at least 8 above random (one position "
        "per step). Speed costs where the rules' front is at most 85 % at half of the forwards at which it is within "
        "a point of its best."
    )
    return "\n".join(lines) + f"\n\n{legend}\n"


def write(path: Path, figures: Figures) -> Path:
    return write_text(path, markdown(figures))


def _yes(found: Mapping[str, float]) -> str:
    return "yes" if found["critical"] else "no"
