"""Queens on a board, over reasoning-gym: some positions are tied (queens that attack each other), some independent."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import SettingsError
from . import gym
from .example import Example, Score, address, canvas_for, cut


@dataclass(frozen=True, kw_only=True)
class Queens:
    """'Q' and, per row of the board, the column of its queen or '.': place the missing queens so that none attack each
    other. reasoning-gym's boards; any completion is correct.

    Dense: share of rows whose queen is on the board, keeps the given column and attacks no other; over the longer of
    board and text. The rules are checked here: the verifier wants all solutions listed in the item and runs ``eval``
    on a text.
    """

    name: str = "n_queens"
    marker: str = "Q"
    size: int = 8
    min_remove: int = 5
    max_remove: int = 7

    def __post_init__(self) -> None:
        if not (4 <= self.size <= 9 and 1 <= self.min_remove <= self.max_remove <= self.size):
            raise SettingsError(
                f"size={self.size}, min_remove={self.min_remove}, max_remove={self.max_remove}: no board can be drawn. "
                "Use 4 <= size <= 9 and 1 <= min_remove <= max_remove <= size."
            )

    @property
    def canvas_length(self) -> int:
        return canvas_for(self.size)

    @property
    def alphabet(self) -> str:
        return self.marker + "." + "123456789"[: self.size]

    def sample(self, index: int, seed: int) -> Example:
        remove = {"min_remove": self.min_remove, "max_remove": self.max_remove}
        item = gym.dataset("n_queens", n=self.size, **remove)[address("n_queens", seed, index)]
        board = "".join(str(row.index("Q") + 1) if "Q" in row else "." for row in item["metadata"]["puzzle"])
        answer = "".join(str(row.split().index("Q") + 1) for row in item["answer"].split("\n"))
        return Example(self.name, self.marker + board, answer, {"removed": item["metadata"]["num_removed"]})

    def score(self, text: str, example: Example) -> Score:
        text, clues = cut(text), example.prompt[1:]
        columns = {row: int(c) for row, c in enumerate(text) if c in "123456789"[: self.size]}
        good = sum(
            clue in (".", text[row : row + 1])
            and row in columns
            and all(
                columns[row] != column and abs(columns[row] - column) != abs(row - other)
                for other, column in columns.items()
                if other != row
            )
            for row, clue in enumerate(clues)
        )
        dense = good / max(len(clues), len(text))
        return Score(float(dense == 1.0), dense)
