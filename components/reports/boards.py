"""One decode laid out for the eye: the canvas as a board, a colour per step, and which prompts are worth showing.

Shared by the decoding-order page and by the README's picture. A decode is one line of ``decodes.jsonl``; nothing is
decoded again here. Which cells are wrong is told by whoever knows the puzzle's rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from ..core.errors import DataError
from ..policies.rules import POLICIES
from .fronts import rule_name

Decode = Mapping[str, Any]

BOXES = {16: (4, 2, 2), 32: (4, 2, 2), 36: (6, 2, 3), 81: (9, 3, 3)}
"""Canvas length -> (columns, rows of a box, columns of a box): the sudokus, drawn with a gap between boxes.
32: two of 16."""

# Viridis: light rises evenly, also in grey and to the colour-blind.
_ANCHORS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")


class Stored(TypedDict):
    """A line of decodes.jsonl."""

    task: str
    family: str
    setting: str
    prompt: str
    correct: float
    nfe: float
    order: list[int]
    tokens: list[str]
    view: NotRequired[dict[str, list[Any]] | None]


_REQUIRED = ("task", "family", "setting", "prompt", "correct", "nfe", "order", "tokens")


@dataclass(frozen=True)
class Case:
    """One prompt and how each rule decoded it, heuristics first, the learned policy last."""

    task: str
    prompt: str
    decodes: tuple[Decode, ...]

    @property
    def learned(self) -> Decode | None:
        return next((d for d in self.decodes if d["family"] == "learned"), None)

    @property
    def heuristics(self) -> tuple[Decode, ...]:
        return tuple(d for d in self.decodes if d["family"] not in POLICIES)

    @property
    def gain(self) -> tuple[float, float]:
        """(correctness, forwards saved) of the learned policy over the heuristics' mean; (0, 0) without either."""
        learned, others = self.learned, self.heuristics
        if learned is None or not others:
            return 0.0, 0.0
        right = float(learned["correct"]) - sum(float(d["correct"]) for d in others) / len(others)
        return right, sum(float(d["nfe"]) for d in others) / len(others) - float(learned["nfe"])


def cases(decodes: Sequence[Decode]) -> dict[str, list[Case]]:
    """Per task, in the order of the file, the prompts with all their decodes.

    Errors:
        DataError: a decode lacks a field, or its steps and its tokens are not one per position.
    """
    found: dict[tuple[str, str], list[Decode]] = {}
    for number, decode in enumerate(decodes, start=1):
        missing = [name for name in _REQUIRED if name not in decode]
        if missing or len(decode["order"]) != len(decode["tokens"]):
            what = f"has no {', '.join(missing)}" if missing else "has not one step per token"
            raise DataError(
                f"decode {number} {what}: its board would have empty or shifted cells. "
                "Run stage evaluate again to write decodes.jsonl."
            )
        found.setdefault((decode["task"], decode["prompt"]), []).append(decode)
    by_task: dict[str, list[Case]] = {}
    for (task, prompt), rows in found.items():
        by_task.setdefault(task, []).append(Case(task, prompt, tuple(sorted(rows, key=_rank))))
    return by_task


def columns_of(decode: Decode, columns: Mapping[str, int] | None = None) -> int:
    """How many cells a row of the board has.

    As given for the task; else a grid where each position of a sudoku holds a digit, or its letter; else one line.
    """
    length = len(decode["order"])
    if columns and decode["task"] in columns:
        return columns[decode["task"]]
    if length in BOXES and all(re.fullmatch(r"\w?", str(token).strip()) for token in decode["tokens"]):
        return BOXES[length][0]
    return length


def box_of(position: int, length: int, columns: int) -> tuple[int, int]:
    """(row, column) of the sudoku box that holds the position; (0, 0) on a board without boxes."""
    expected, rows, across = BOXES.get(length, (0, 1, 1))
    if columns != expected:
        return 0, 0
    return position // columns // rows, position % columns // across


def clues_of(decode: Decode) -> frozenset[int]:
    """The positions that the prompt gives away: of a grid in the prompt, as long as the canvas, those without a dot."""
    length = len(decode["order"])
    grid = re.search(rf"(?<![\d.])[\d.]{{{length}}}(?![\d.])", str(decode["prompt"]))
    if grid is None or grid.group().count(".") < 2:  # one dot: a decimal number
        return frozenset()
    return frozenset(i for i, sign in enumerate(grid.group()) if sign != ".")


def name_of(decode: Decode) -> str:
    """``entropy bound 0.1``."""
    return rule_name(str(decode["family"]), str(decode["setting"]))


def last_step(decode: Decode) -> int:
    """The number of the last forward that committed something, counted from 1; 0 if none did."""
    return max((int(step) + 1 for step in decode["order"]), default=0)


def glyph(token: str) -> str:
    """What a cell shows: the token without its outer blanks, or a sign for a token that is only blanks."""
    if token.strip():
        return token.strip()
    return "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}" if "\n" in token else "\N{OPEN BOX}" if token else ""


def framed(cell: str, clue: bool, wrong: bool) -> str:
    """A cell of a board in three characters: [1] given by the prompt, !1! wrong."""
    left, right = "!!" if wrong else "[]" if clue else "  "
    return f"{left}{cell}{right}"


def step_colour(step: int, steps: int) -> str:
    """``#rrggbb`` of forward ``step`` out of ``steps``, both counted from 1: dark first, bright last. Equal ratios have
    equal distances, so that a policy's two or three forwards differ also beside a rule that needs sixteen."""
    place = 0.0 if steps <= 1 else math.log(step) / math.log(steps) * (len(_ANCHORS) - 1)
    low = min(int(place), len(_ANCHORS) - 2)
    return mixed(_ANCHORS[low], _ANCHORS[low + 1], place - low)


def mixed(one: str, other: str, share: float) -> str:
    """``#rrggbb`` between two colours; share 0: the first one."""
    return "#" + "".join(
        f"{round(x + share * (y - x)):02x}" for x, y in zip(*map(_channels, (one, other)), strict=True)
    )


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on ``colour`` (relative luminance as in WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(colour))]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if luminance < 0.25 else "#111111"


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _rank(decode: Decode) -> int:
    """Heuristics in their own order, then the distilled policy, the learned one last."""
    return -list(POLICIES).index(decode["family"]) if decode["family"] in POLICIES else -len(POLICIES)
