"""Texts with gaps, from a local file: the canvas is given, partly filled, and the model fills in the rest.

A row has a canvas, the whole text as its answer, and perhaps a prompt::

    {"prompt": "Complete the proverb.", "canvas": "All roads lead[MASK][MASK].", "answer": "All roads lead to Rome."}

Each ``[MASK]`` is one token of the model's tokenizer, as in ``unmask decode --canvas``. So rows are written for one
tokenizer, and a gap that holds fewer tokens than its answer takes is never filled right.
"""

from __future__ import annotations

import unicodedata

from ..core.errors import DataError, SettingsError
from . import rows
from .example import MASK, Example
from .hub import TextTask
from .rows import Row


def infill(
    *,
    name: str = "infill",
    canvas_length: int = 256,
    train_path: str | None = None,
    test_path: str | None = None,
    leave_out: bool = False,
) -> TextTask:
    """Gaps to fill; right if the whole text is the answer, white space aside: some tokenizers write blanks of their
    own. A row's canvas has its own length; ``canvas_length``, at least the longest, stands for all of them in results.
    """
    if train_path is None and test_path is None:
        raise SettingsError(f"task {name} has neither train_path nor test_path. Give a file of rows with gaps.")
    return TextTask(
        name=name,
        canvas_length=canvas_length,
        ask="",
        train_path=train_path,
        test_path=test_path,
        leave_out=leave_out,
        read=_read,
        check=lambda text, example: _bare(text) == _bare(example.answer),
        same=lambda one, other: _bare(one.answer) == _bare(other.answer),
    )


def _read(task: str, row: Row) -> Example:
    canvas, answer = rows.text(row, "canvas"), rows.text(row, "answer")
    prompt = "" if row.get("prompt") is None else rows.text(row, "prompt")
    if MASK not in canvas:
        raise DataError(f"canvas={canvas[:60]!r} has no gap. Write {MASK} for each token that is missing.")
    if not _fits(canvas, answer):
        raise DataError(f"answer={answer[:60]!r} is not the text of canvas={canvas[:60]!r} filled in. Repair the row.")
    return Example(task, prompt, answer, canvas=canvas)


def _fits(canvas: str, answer: str) -> bool:
    """Whether the given parts stand in the answer, in their order, the first at its start and the last at its end."""
    first, *parts, last = (_bare(part) for part in canvas.split(MASK))
    text = _bare(answer)
    if not (text.startswith(first) and text.endswith(last) and len(first) + len(last) <= len(text)):
        return False
    place, end = len(first), len(text) - len(last)
    for part in parts:
        place = text.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True


def _bare(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).split())
