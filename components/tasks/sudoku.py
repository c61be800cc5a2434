"""Sudoku: with one solution (reasoning-gym's mini sudoku) and with many (own generator, 4x4 and 6x6).

A grid is written row by row, blanks as '.'. With many solutions any completion that keeps the clues is right, so
marginals have several modes: the question which cells may be committed together is a real one. Left out: 9x9.
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass

from ..core.errors import DataError, SettingsError
from . import gym
from .example import Example, Score, address, cut

Peers = tuple[tuple[int, ...], ...]


@functools.cache
def peers_of(box_rows: int, box_columns: int) -> Peers:
    """For each cell of the grid (row-major) the cells that share its row, column or box, itself excluded."""
    side = box_rows * box_columns
    groups = [
        ((row, -1, -1), (-1, column, -1), (-1, -1, row // box_rows * box_rows + column // box_columns))
        for row in range(side)
        for column in range(side)
    ]
    return tuple(
        tuple(other for other, theirs in enumerate(groups) if other != cell and set(mine) & set(theirs))
        for cell, mine in enumerate(groups)
    )


def full_grid(peers: Peers, digits: str, rng: random.Random) -> str:
    """A random full grid, cell by cell with backtracking; every grid can come up, not all with quite equal chance."""
    cells = len(peers)
    grid = [""] * cells
    orders: list[list[str]] = [[] for _ in range(cells)]  # what is still to be tried at each cell
    before = tuple(tuple(peer for peer in peers[cell] if peer < cell) for cell in range(cells))
    cell, fresh = 0, True
    while cell < cells:
        if fresh:
            taken = {grid[peer] for peer in before[cell]}
            orders[cell] = rng.sample(free, len(free)) if (free := [d for d in digits if d not in taken]) else []
        fresh = bool(orders[cell])
        if fresh:
            grid[cell] = orders[cell].pop()
            cell += 1
        else:
            cell -= 1
    return "".join(grid)


def consistent(text: str, clues: str, peers: Peers, digits: str) -> int:
    """How many cells hold a digit that keeps the clue there and occurs in none of the cell's peers."""
    return sum(
        cell < len(text)
        and text[cell] in digits
        and clues[cell] in ("." + text[cell])
        and all(peer >= len(text) or text[peer] != text[cell] for peer in peers[cell])
        for cell in range(len(peers))
    )


@dataclass(frozen=True, kw_only=True)
class SudokuMany:
    """Prompt: marker and grid with ``min_clues`` to ``max_clues`` clues. Any valid completion is correct.

    Dense: share of the cells that hold a digit, keep the clue there if there is one, and repeat none of the digits in
    their row, column and box; over the longer of grid and text.
    """

    name: str = "sudoku_many"
    marker: str = "M"
    box_rows: int = 2
    box_columns: int = 2
    min_clues: int = 2
    max_clues: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.side <= 9:
            raise SettingsError(
                f"boxes of {self.box_rows} x {self.box_columns} make a grid with {self.side} digits: a cell is one "
                "character. Use boxes whose area is at most 9."
            )
        if not 0 <= self.min_clues <= self.max_clues <= self.canvas_length:
            raise SettingsError(
                f"min_clues={self.min_clues}, max_clues={self.max_clues} is no range of clues on {self.canvas_length} "
                f"cells. Use 0 <= min_clues <= max_clues <= {self.canvas_length}."
            )

    @property
    def side(self) -> int:
        return self.box_rows * self.box_columns

    @property
    def digits(self) -> str:
        return "123456789"[: self.side]

    @property
    def canvas_length(self) -> int:
        return self.side**2

    @property
    def alphabet(self) -> str:
        return self.marker + "." + self.digits

    def sample(self, index: int, seed: int) -> Example:
        rng = random.Random(address("sudoku", self.side, seed, index))
        answer = full_grid(peers_of(self.box_rows, self.box_columns), self.digits, rng)
        clues = rng.randint(self.min_clues, self.max_clues)
        kept = set(rng.sample(range(len(answer)), clues))
        grid = "".join(digit if cell in kept else "." for cell, digit in enumerate(answer))
        return Example(self.name, self.marker + grid, answer, {"clues": clues})

    def score(self, text: str, example: Example) -> Score:
        text, cells = cut(text), self.canvas_length
        peers = peers_of(self.box_rows, self.box_columns)
        dense = consistent(text, example.prompt[1:], peers, self.digits) / max(cells, len(text))
        return Score(float(dense == 1.0), dense)


@dataclass(frozen=True, kw_only=True)
class SudokuUnique:
    """reasoning-gym's 4x4 sudoku with one solution and ``min_empty`` to ``max_empty`` blanks, scored by its verifier.

    Dense: share of the blanks that are filled right; a clue that was overwritten, a cell that is missing and a
    character too many each count as one more blank that is wrong.
    """

    name: str = "sudoku_unique"
    marker: str = "U"
    min_empty: int = 8
    max_empty: int = 12

    canvas_length = 16

    def __post_init__(self) -> None:
        if not 1 <= self.min_empty <= self.max_empty <= 12:
            raise SettingsError(
                f"min_empty={self.min_empty}, max_empty={self.max_empty} is no range of blanks: with more than 12 of "
                "16 cells blank no 4x4 sudoku is unique. Use 1 <= min_empty <= max_empty <= 12."
            )

    @property
    def alphabet(self) -> str:
        return self.marker + ".1234"

    def sample(self, index: int, seed: int) -> Example:
        generator = gym.dataset("mini_sudoku", min_empty=self.min_empty, max_empty=self.max_empty)
        for attempt in range(1000):  # the generator may stop short of min_empty where uniqueness would be lost
            metadata = generator[address("mini_sudoku", seed, index, attempt)]["metadata"]
            if metadata["num_empty"] >= self.min_empty:
                boards = metadata["puzzle"], metadata["solution"]
                grid, answer = ("".join(str(digit or ".") for row in board for digit in row) for board in boards)
                return Example(self.name, self.marker + grid, answer, {"empty": metadata["num_empty"]})
        raise DataError(
            f"no mini sudoku with {self.min_empty} blanks in 1000 draws (seed {seed}, index {index}): such puzzles are "
            "too rare to sample. Lower min_empty."
        )

    def score(self, text: str, example: Example) -> Score:
        text, grid, answer = cut(text), example.prompt[1:], example.answer
        rows, gold = ("\n".join(" ".join(t[i : i + 4]) for i in range(0, len(t), 4)) for t in (text, answer))
        solution = [[int(digit) for digit in answer[i : i + 4]] for i in range(0, 16, 4)]
        entry = {"answer": gold, "metadata": {"solution": solution}}
        verdict = gym.dataset("mini_sudoku").score_answer(rows, entry)  # less than 1 is partial credit, hence wrong
        correct = verdict == 1.0 and bool(re.fullmatch("[1-4]{16}", text))

        wrong = [cell for cell in range(16) if text[cell : cell + 1] != answer[cell]]
        blanks = grid.count(".")
        broken = sum(grid[cell] != "." for cell in wrong) + max(0, len(text) - 16)
        right = blanks - sum(grid[cell] == "." for cell in wrong)
        return Score(float(correct), right / (blanks + broken))


def sudoku_long(*, name: str = "sudoku_long", marker: str = "L", min_clues: int = 8, max_clues: int = 14) -> SudokuMany:
    """The 4x4 task's larger sister: 6x6 with boxes of 2 x 3, many answers, a canvas of 36."""
    return SudokuMany(name=name, marker=marker, box_rows=2, box_columns=3, min_clues=min_clues, max_clues=max_clues)
