"""Prompts and verifiable scores. No torch in here; reasoning-gym, datasets and math-verify load at their first use.

``build("sudoku_many", max_clues=8)`` makes a task; ``splits.collect_all`` draws examples from it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from ..core.errors import SettingsError
from .example import END, Example, Score, Task
from .hub import gsm8k, math
from .infill import infill
from .programs import humaneval, kodcode, mbpp
from .puzzle_text import countdown_text, sudoku_text, zebra
from .queens import Queens
from .sequences import NumberSorting
from .sudoku import SudokuMany, SudokuUnique, sudoku_long
from .worded import SudokuPair, worded_many, worded_sorting, worded_unique

__all__ = ["END", "TASKS", "Example", "Score", "Task", "build"]

TASKS: dict[str, Callable[..., Task]] = {
    "sudoku_many": SudokuMany,
    "sudoku_unique": SudokuUnique,
    "sudoku_long": sudoku_long,
    "sudoku_pair": SudokuPair,
    "worded_many": worded_many,
    "worded_unique": worded_unique,
    "worded_sorting": worded_sorting,
    "number_sorting": NumberSorting,
    "n_queens": Queens,
    "gsm8k": gsm8k,
    "math": math,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "kodcode": kodcode,
    "infill": infill,
    "zebra": zebra,
    "countdown_text": countdown_text,
    "sudoku_text": sudoku_text,
}


def build(task: str, /, **params: object) -> Task:
    """The task of this name with its params.

    Raises:
        SettingsError: an unknown task or knob (the known ones are named, and the nearest), or a knob that cannot work.
    """
    if task not in TASKS:
        raise SettingsError(_unknown("task", task, list(TASKS)))
    known = list(inspect.signature(TASKS[task]).parameters)
    for knob in params:
        if knob not in known:
            raise SettingsError(_unknown(f"setting of task {task}", knob, known))
    return TASKS[task](**params)


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"{name!r} is no {what} (nearest: {near[0]}). Use one of {', '.join(known)}."
