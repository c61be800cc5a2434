"""What a puzzle's own rules say of a prompt and of a text: which cells break one, and whether any answer exists.

Sudokus and queens are cells with characters to choose from, of which some pairs may not stand together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..tasks.example import END, Example, Task, fill
from ..tasks.queens import Queens
from ..tasks.sequences import NumberSorting
from ..tasks.sudoku import SudokuMany, SudokuUnique, peers_of
from ..tasks.worded import SudokuPair, Worded


@dataclass(frozen=True)
class Puzzle:
    """choices: the characters that each cell may hold. clash: whether two cells may not hold these two characters."""

    choices: tuple[str, ...]
    clash: Callable[[int, str, int, str], bool]

    def broken(self, text: str) -> frozenset[int]:
        """The cells of the text that hold no choice of theirs, or clash with another. Cells behind the last must be
        ENDs."""
        held = {i: text[i] for i in range(min(len(text), len(self.choices))) if text[i] in self.choices[i]}
        alone = {i for i, a in held.items() if not any(self.clash(i, a, j, b) for j, b in held.items() if j != i)}
        extra = {i for i in range(len(self.choices), len(text)) if text[i] == END}
        return frozenset(range(len(text))) - alone - extra

    def is_solvable(self) -> bool:
        """Whether any text breaks nothing: the cell with the fewest choices left is filled first, with backtracking."""
        return self._fills({i: choices for i, choices in enumerate(self.choices)})

    def _fills(self, left: dict[int, str]) -> bool:
        if not left:
            return True
        cell = min(left, key=lambda i: len(left[i]))
        return any(
            self._fills(
                {
                    j: "".join(b for b in choices if not self.clash(cell, a, j, b))
                    for j, choices in left.items()
                    if j != cell
                }
            )
            for a in left[cell]
        )


def puzzle_of(task: Task, prompt: str) -> Puzzle | None:
    """The puzzle that the prompt states in this task; None for a task without rules over cells."""
    clues = prompt[1:]
    if isinstance(task, Worded):
        return puzzle_of(task.plain, _plainly(task, prompt))
    if isinstance(task, SudokuMany):
        return _sudoku(clues, peers_of(task.box_rows, task.box_columns), task.digits)
    if isinstance(task, SudokuUnique):
        return _sudoku(clues, peers_of(2, 2), "1234")
    if isinstance(task, SudokuPair):
        both = tuple(tuple(at + j for j in row) for at in (0, 16) for row in peers_of(2, 2))
        return _sudoku(clues, both, "1234")
    if isinstance(task, Queens):
        columns = "123456789"[: task.size]
        return Puzzle(
            tuple(columns if clue == "." else clue for clue in clues),
            lambda i, a, j, b: a == b or abs(int(a) - int(b)) == abs(i - j),
        )
    return None


def _sudoku(clues: str, peers: tuple[tuple[int, ...], ...], digits: str) -> Puzzle:
    choices = tuple(digits if clue == "." else clue for clue in clues)
    return Puzzle(choices, lambda i, a, j, b: a == b and j in peers[i])


def _style(task: Worded, prompt: str) -> str:
    return prompt[1:2] if task.spelled_by == "style" else ""


def _plainly(task: Worded, prompt: str) -> str:
    return task.plain.alphabet[0] + prompt[1 + len(_style(task, prompt)) :]


def is_solvable(task: Task, prompt: str) -> bool:
    """False only where the rules of the puzzle leave no answer."""
    puzzle = puzzle_of(task, prompt)
    return puzzle is None or puzzle.is_solvable()


def wrong_cells(task: Task, example: Example, text: str) -> frozenset[int]:
    """The cells of a wrong text that break a rule, or differ from the only right answer; none where neither is known.

    text: a character per position of the canvas.
    """
    if task.score(text, example).correct:
        return frozenset()
    puzzle = puzzle_of(task, example.prompt)
    if isinstance(task, Worded):
        style = _style(task, example.prompt)
        plain = Example(task.plain.name, _plainly(task, example.prompt), task.read(example.answer, style))
        shown = "".join(END if a == END else b for a, b in zip(text, task.read(text, style), strict=True))
        return wrong_cells(task.plain, plain, shown)
    if puzzle is not None:
        return puzzle.broken(text)
    if isinstance(task, NumberSorting) and example.answer:
        gold = fill(example.answer, len(text)) if len(example.answer) <= len(text) else example.answer
        return frozenset(i for i, (a, b) in enumerate(zip(text, gold, strict=False)) if a != b)
    return frozenset()
