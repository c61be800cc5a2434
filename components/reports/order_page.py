"""``order.html``: how each rule filled the canvas, step by step, the rules beside each other for the same prompt; and
what a coupled policy saw at its first step.

One file that asks nobody for anything: the boards are plain HTML and SVG (readable without scripts, printable), a short
script moves the slider, and the page forbids itself every request. Figures over all prompts are in the table; the page
shows the extremes by name and some prompts as they come. The texts lie in ``templates``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.files import write_text
from .boards import (
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
from .pairs import GAP, corner
from .views import FULL, View, shift_colour, view_of

Facts = dict[str, Any]
"""What a part of the template is filled with."""


def write(
    path: Path,
    decodes: Sequence[Decode],
    columns: Mapping[str, int] | None = None,
    *,
    extremes: int = 3,
    plain: int = 3,
) -> Path:
    """Writes the page.

    Args:
        decodes: the lines of decodes.jsonl.
        columns: cells per row of a task's board; 16 -> 4, 36 -> 6, 81 -> 9, else one line.
        extremes: how many prompts per task where the learned policy gains most, and where it loses most.
        plain: how many more prompts per task, as they come in the file.

    Errors:
        DataError: a decode lacks a field.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8")
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    tasks = [_task(task, found, columns, extremes, plain) for task, found in cases(decodes).items()]
    return write_text(path, environment.get_template("order.html").render(tasks=tasks) + "\n")


def chosen(found: Sequence[Case], extremes: int, plain: int) -> list[tuple[str, list[Case]]]:
    """(heading, prompts): the largest gains, the largest losses, then prompts as they come; none of them twice."""
    by_gain = sorted(found, key=lambda case: case.gain, reverse=True)
    best = [case for case in by_gain if case.gain > (0.0, 0.0)][:extremes]
    worst = [case for case in reversed(by_gain) if case.gain < (0.0, 0.0)][:extremes]
    taken = {case.prompt for case in (*best, *worst)}
    rest = [case for case in found if case.prompt not in taken][:plain]
    parts = [
        ("Where the learned policy gains most", best),
        ("Where it loses most", worst),
        ("Prompts as they come", rest),
    ]
    return [(heading, some) for heading, some in parts if some]


def _task(task: str, found: list[Case], columns: Mapping[str, int] | None, extremes: int, plain: int) -> Facts:
    parts = chosen(found, extremes, plain)
    steps = max((last_step(d) for _, some in parts for case in some for d in case.decodes), default=0)
    scale = [
        {"number": s, "colour": step_colour(s, steps), "ink": ink_on(step_colour(s, steps))}
        for s in range(1, steps + 1, steps // 24 + 1)  # of a long decode a step here and there
    ]
    shown = [{"heading": heading, "cases": [_case(case, columns, steps) for case in some]} for heading, some in parts]
    return {"name": task.replace("_", " "), "steps": steps, "scale": scale, "parts": shown}


def _case(case: Case, columns: Mapping[str, int] | None, steps: int) -> Facts:
    first = next((line for line in reversed(case.prompt.splitlines()) if line.strip()), "prompt")
    learned = case.learned
    seen = None if learned is None else view_of(learned)
    return {
        "first": first[:90],
        "prompt": case.prompt,
        "gold": str(case.decodes[0].get("gold", "")),
        "decodes": [_board(decode, columns, steps) for decode in case.decodes],
        "view": _view(seen, columns_of(learned, columns)) if learned is not None and seen is not None else None,
    }


def _board(decode: Decode, columns: Mapping[str, int] | None, steps: int) -> Facts:
    length, across, clues = len(decode["order"]), columns_of(decode, columns), clues_of(decode)
    cells: list[Facts] = []
    for position, (step, token) in enumerate(zip(decode["order"], decode["tokens"], strict=True)):
        number = int(step) + 1  # less than 1 if the decode ended before it
        colour = step_colour(max(number, 1), steps)
        look = {"number": number, "colour": colour, "ink": ink_on(colour), "token": glyph(str(token))}
        cells.append(look | {"clue": position in clues, "box": box_of(position, length, across)})
    return {
        "family": str(decode["family"]),
        "name": name_of(decode),
        "nfe": f"{float(decode['nfe']):g}",
        "right": float(decode["correct"]) >= 0.5,
        "grid": across < length,
        "columns": across,
        "boxes": box_of(length - 1, length, across),
        "cells": cells,
    }


def _view(view: View, columns: int) -> Facts:
    """The first step as an SVG in units of a cell. A long line is broken into a square."""
    length = len(view.alone)
    across = math.ceil(math.sqrt(length)) if columns == length > 12 else columns
    rows, boxes = math.ceil(length / across), box_of(length - 1, length, across)
    corners = [(x + 0.07, y + 0.07) for x, y in (corner(i, length, across) for i in range(length))]
    left = {j for _, j in view.apart}
    cells: list[Facts] = []
    for i, (x, y) in enumerate(corners):
        kind = "taken" if i in view.taken else "apart" if i in left else "idle"
        said = {"taken": "taken together with the others", "apart": "kept apart", "idle": "not wanted yet"}[kind]
        title = f"row {i // across + 1}, column {i % across + 1}: {said}"
        fine = _fine(view, i, (x, y), across, rows)
        cells.append({"kind": kind, "title": title, "x": round(x, 3), "y": round(y, 3), "fine": fine})
    return {
        "taken": len(view.taken),
        "full": f"{FULL:g}",
        "width": across + GAP * boxes[1],
        "height": rows + GAP * boxes[0],
        "cells": cells,
        "apart": [_arc(corners[i], corners[j], view.shift[i][j]) for i, j in view.apart],
        "shift": json.dumps(view.shift, separators=(",", ":")),
    }


def _fine(view: View, i: int, place: tuple[float, float], across: int, rows: int) -> list[Facts]:
    """The small board in the place of position i: one path per colour."""
    wide, high = round(0.74 / across, 3), round(0.74 / rows, 3)
    paths: dict[str, str] = {}
    for j, shift in enumerate(view.shift[i]):
        colour = "#9aa1ac" if j == i else shift_colour(round(4 * shift) / 4)
        x, y = place[0] + 0.03 + 0.8 * (j % across) / across, place[1] + 0.03 + 0.8 * (j // across) / rows
        paths[colour] = paths.get(colour, "") + f"M{x:.2f} {y:.2f}h{wide}v{high}h-{wide}z"
    return [{"colour": colour, "d": d} for colour, d in paths.items()]


def _arc(cause: tuple[float, float], other: tuple[float, float], shift: float) -> Facts:
    """From the middle of one cell to that of another, bent to one side."""
    (ax, ay), (bx, by) = ((x + 0.43, y + 0.43) for x, y in (cause, other))
    over = (ax + bx) / 2 + 0.22 * (by - ay), (ay + by) / 2 - 0.22 * (bx - ax)
    ends = {"from": (ax, ay), "over": over, "to": (bx, by)}
    rounded = {name: (round(x, 3), round(y, 3)) for name, (x, y) in ends.items()}
    return rounded | {"width": round(0.025 + 0.04 * min(1.0, -shift / FULL), 3)}
