"""The true constraint graph of a task: which positions of the canvas its rules join. For controls alone."""

from __future__ import annotations

from ..core.errors import SettingsError
from .example import Task
from .sudoku import Peers, SudokuMany, SudokuUnique, peers_of
from .worded import SudokuPair, Worded


def graph_of(task: Task) -> Peers:
    """For each position of the canvas those in its row, column or box. SettingsError for a task that is no grid."""
    match task:
        case Worded():
            return graph_of(task.plain)
        case SudokuMany():
            return peers_of(task.box_rows, task.box_columns)
        case SudokuUnique():
            return peers_of(2, 2)
        case SudokuPair():
            grid = peers_of(2, 2)
            return grid + tuple(tuple(len(grid) + peer for peer in peers) for peers in grid)
    raise SettingsError(f"task {task.name} has no constraint graph. Leave control graph out of variants.offsets.")
