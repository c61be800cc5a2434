"""Worded tasks: each digit of an answer may be written in one of several scripts, and every allowed spelling is right.

Most of the uncertainty of a text is harmless: there are several ways to say it. Here the number of spellings of a digit
follows from its position, from the digit itself, or from a style mark in the prompt. Prompts write digits plainly, so
that a puzzle is one prompt, whatever its answer is spelled like, and belongs to one split.

Also here: two puzzles in one canvas, halves that have nothing to do with each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from ..core.errors import SettingsError
from .example import Example, Score, Task, address, cut
from .sequences import NumberSorting
from .sudoku import SudokuMany, SudokuUnique, consistent, peers_of

# A digit's letter is its place in the alphabet, as in Braille: 3 is c, m and C. The first script is the plain one.
SCRIPTS = ("0123456789", "jabcdefghi", "tklmnopqrs", "JABCDEFGHI")
BY_POSITION = (1, 2, 4)  # spellings by (row + column) mod 3
BY_CONTENT = (3, 1, 2, 4)  # spellings by digit mod 4: the digits 1, 2, 3, 4 have 1, 2, 4, 3
BY_STYLE = {":": 1, ";": 2, "!": 4}  # spellings of every digit under a style mark
RESPELLED = 3  # further spellings of an answer that an example offers to pretraining

SpelledBy = Literal["position", "content", "style"]


@dataclass(frozen=True, kw_only=True)
class Worded:
    """A task whose answers are digits, worded. Prompt: marker, style mark if there is one, and the plain prompt.

    Each spelling of the answer is equally likely, drawn by the example's address. A text is scored by the plain task,
    with each allowed spelling read as its digit and any other character as none.
    ``metadata["respelled"]`` holds further right spellings of the same answer. ``columns``: cells in a row of the grid.
    """

    name: str
    marker: str
    spelled_by: SpelledBy
    plain: Task
    columns: int

    def __post_init__(self) -> None:
        if self.spelled_by not in ("position", "content", "style"):
            raise SettingsError(
                f"spelled_by={self.spelled_by!r} gives no number of spellings. Use position, content or style."
            )
        if self.marker in "".join(SCRIPTS):
            raise SettingsError(f"marker={self.marker!r} is also a spelling of a digit. Use a letter from K to Z.")

    @property
    def canvas_length(self) -> int:
        return self.plain.canvas_length

    @property
    def alphabet(self) -> str:
        plain = self.plain.alphabet[1:]  # without its marker
        scripts = "".join(script[int(digit)] for script in SCRIPTS for digit in plain if digit.isdigit())
        styles = "".join(BY_STYLE) if self.spelled_by == "style" else ""
        return "".join(dict.fromkeys(self.marker + styles + plain + scripts))

    def spellings(self, place: int, digit: str, style: str = "") -> str:
        """The characters that stand for a digit at this place of the answer, the digit itself first."""
        match self.spelled_by:
            case "position":
                number = BY_POSITION[sum(divmod(place, self.columns)) % 3]
            case "content":
                number = BY_CONTENT[int(digit) % 4]
            case "style":
                number = BY_STYLE[style]
        return "".join(script[int(digit)] for script in SCRIPTS[:number])

    def sample(self, index: int, seed: int) -> Example:
        rng = random.Random(address("worded", self.spelled_by, seed, index))
        plain = self.plain.sample(address("worded", index), seed)  # not the plain task's own stream
        style = rng.choice(list(BY_STYLE)) if self.spelled_by == "style" else ""
        texts = [
            "".join(rng.choice(self.spellings(place, digit, style)) for place, digit in enumerate(plain.answer))
            for _ in range(1 + RESPELLED)
        ]
        # The question decides the split: a puzzle never moves to another one by its style or in another worded task.
        more = {"question": plain.prompt, "respelled": texts[1:]}
        return Example(self.name, self.marker + style + plain.prompt[1:], texts[0], plain.metadata | more)

    def read(self, text: str, style: str = "") -> str:
        """The text with each allowed spelling read as its digit, and any other character as '?'."""
        return "".join(self._digit(place, character, style) for place, character in enumerate(text))

    def _digit(self, place: int, character: str, style: str) -> str:
        found = [script.index(character) for script in SCRIPTS if character in script]
        digit = str(found[0]) if found else ""
        return digit if digit and character in self.spellings(place, digit, style) else "?"

    def score(self, text: str, example: Example) -> Score:
        style = example.prompt[1] if self.spelled_by == "style" else ""
        question = self.plain.alphabet[0] + example.prompt[1 + len(style) :]
        plain = Example(self.plain.name, question, self.read(example.answer, style))
        return self.plain.score(self.read(cut(text), style), plain)


def worded_many(
    *,
    name: str = "worded_many",
    marker: str = "W",
    spelled_by: SpelledBy = "position",
    min_clues: int = 2,
    max_clues: int = 5,
) -> Worded:
    """4x4 sudoku with many answers, worded."""
    plain = SudokuMany(min_clues=min_clues, max_clues=max_clues)
    return Worded(name=name, marker=marker, spelled_by=spelled_by, plain=plain, columns=plain.side)


def worded_unique(
    *,
    name: str = "worded_unique",
    marker: str = "X",
    spelled_by: SpelledBy = "position",
    min_empty: int = 8,
    max_empty: int = 12,
) -> Worded:
    """4x4 sudoku with one solution, worded: one answer, many texts."""
    plain = SudokuUnique(min_empty=min_empty, max_empty=max_empty)
    return Worded(name=name, marker=marker, spelled_by=spelled_by, plain=plain, columns=4)


def worded_sorting(
    *, name: str = "worded_sorting", marker: str = "Y", spelled_by: SpelledBy = "position", numbers: int = 8
) -> Worded:
    """Digits to sort, worded: no grid, and the answer is one row."""
    plain = NumberSorting(numbers=numbers)
    return Worded(name=name, marker=marker, spelled_by=spelled_by, plain=plain, columns=numbers)


@dataclass(frozen=True, kw_only=True)
class SudokuPair:
    """Two 4x4 sudokus with many answers, one after the other in prompt and canvas. Correct: both are completed.

    Dense: share of the cells that are consistent within their own grid (as in ``SudokuMany``).
    """

    name: str = "sudoku_pair"
    marker: str = "Z"
    min_clues: int = 2
    max_clues: int = 5

    canvas_length = 32

    def __post_init__(self) -> None:
        self._grid()

    def _grid(self) -> SudokuMany:
        return SudokuMany(min_clues=self.min_clues, max_clues=self.max_clues)

    @property
    def alphabet(self) -> str:
        return self.marker + ".1234"

    def sample(self, index: int, seed: int) -> Example:
        grids = [self._grid().sample(address("pair", index, half), seed) for half in range(2)]
        prompt = self.marker + "".join(grid.prompt[1:] for grid in grids)
        clues = [grid.metadata["clues"] for grid in grids]
        return Example(self.name, prompt, "".join(grid.answer for grid in grids), {"clues": clues})

    def score(self, text: str, example: Example) -> Score:
        text, clues = cut(text), example.prompt[1:]
        good = sum(consistent(text[at:], clues[at : at + 16], peers_of(2, 2), "1234") for at in (0, 16))
        dense = good / max(32, len(text))
        return Score(float(dense == 1.0), dense)
