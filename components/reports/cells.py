"""The evaluation table as the reports see it: cells, which of them are heuristics, and the envelope of those.

One cell is one rule at one setting on one task; the columns are those that stage ``evaluate`` writes. What is measured
and how intervals are made belongs to ``evaluation``; the envelope's mathematics to ``maths.hull``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from components.core.errors import DataError
from components.maths.pareto import front_at, upper_hull
from components.policies.rules import RULES

POLICIES = ("learned", "distilled")
"""Families that were trained. Every other family is a heuristic and counts towards the envelope."""

_POLICY_LABELS = {"learned": "learned policy", "distilled": "distilled start"}


@dataclass(frozen=True)
class Cell:
    """One row of the table. Accuracies in [0, 1] with a 95 % interval; NFE in forwards per prompt."""

    task: str
    denoiser: str
    split: str
    family: str
    setting: str
    block_length: int
    choose: str
    prompts: int
    seeds: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    dense: float
    nfe: float
    nfe_low: float
    nfe_high: float
    tokens_per_second: float
    unfinished: float

    @property
    def is_policy(self) -> bool:
        return self.family in POLICIES


Group = tuple[str, str, str]
"""(task, denoiser, split): cells are only ever compared within one."""

_TYPES = {"str": str, "int": lambda text: int(float(text)), "float": lambda text: float(text) if text else float("nan")}


def read_cells(*paths: str | Path) -> list[Cell]:
    """The rows of one or more tables, in the order of the files. Columns that a Cell does not have are ignored.

    Errors:
        DataError: a column is missing, a number does not parse, or no row is there at all.
    """
    cells: list[Cell] = []
    for path in paths:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [f.name for f in fields(Cell) if f.name not in (reader.fieldnames or [])]
            if missing:
                raise DataError(
                    f"{path}: no column {', '.join(missing)}: without it cells cannot be told apart or compared; "
                    "run the stage that writes this table again."
                )
            cells += [_cell(row, f"{path}, line {reader.line_num}") for row in reader]
    if not cells:
        raise DataError(
            f"{', '.join(map(str, paths)) or 'no table'}: not one row: there is nothing to report; "
            "run stage evaluate first."
        )
    return cells


def groups(cells: Iterable[Cell]) -> dict[Group, list[Cell]]:
    """Cells by (task, denoiser, split), in order of first appearance."""
    found: dict[Group, list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.task, cell.denoiser, cell.split), []).append(cell)
    return found


def full_length(cells: Iterable[Cell]) -> int:
    """The block length that stands for full diffusion: the largest, which is the canvas."""
    return max(cell.block_length for cell in cells)


def envelope(cells: Iterable[Cell], at: float) -> float:
    """Accuracy of the best mixture of the heuristics among ``cells`` at ``at`` forwards; NaN without any heuristic."""
    heuristics = [cell for cell in cells if not cell.is_policy]
    if not heuristics:
        return float("nan")
    return front_at([c.nfe for c in heuristics], [c.accuracy for c in heuristics], at)


def corners(cells: Iterable[Cell]) -> list[Cell]:
    """The heuristics that are corners of the envelope, by rising NFE; of equal cells the first."""
    heuristics = [cell for cell in cells if not cell.is_policy]
    if not heuristics:
        return []
    hull = upper_hull([c.nfe for c in heuristics], [c.accuracy for c in heuristics])
    by_place = {(c.nfe, c.accuracy): c for c in reversed(heuristics)}
    return [by_place[place] for place in zip(*(axis.tolist() for axis in hull), strict=True)]


def mixture_at(cells: Iterable[Cell], at: float) -> list[Cell]:
    """The one or two corners whose mixture is the envelope at ``at``; empty without any heuristic."""
    front = corners(cells)
    right = int(np.searchsorted([c.nfe for c in front], at, side="left"))
    if right == len(front):
        return front[-1:]
    if front[right].nfe == at:
        return [front[right]]
    return front[max(right - 1, 0) : right + 1]


def headline(cells: Iterable[Cell]) -> Cell | None:
    """The cell that stands for the learned policy: full diffusion before shorter blocks, mode before sample."""
    learned = [cell for cell in cells if cell.family == POLICIES[0]]
    return min(learned, key=lambda c: (-c.block_length, c.choose != "mode"), default=None)


def label_of(family: str) -> str:
    """The family's name in tables and pictures."""
    return RULES[family].label if family in RULES else _POLICY_LABELS.get(family, family.replace("_", " "))


def rule_name(family: str, setting: str) -> str:
    """``entropy bound 0.1``, ``max confidence, 2 per step``."""
    label = label_of(family)
    if setting and family in RULES and RULES[family].commits == "fixed":
        return f"{label}, {setting} per step"
    return f"{label} {setting}".strip()


def name_of(cell: Cell, full: int) -> str:
    """What people call the cell: ``entropy bound 0.1, blocks of 4``. ``full`` is the canvas length."""
    parts = [rule_name(cell.family, cell.setting)]
    if cell.block_length < full:
        parts.append(f"blocks of {cell.block_length}")
    if cell.is_policy and cell.choose != "mode":
        parts.append("sampled")
    return ", ".join(parts)


def sweeps(cells: Sequence[Cell]) -> dict[tuple[str, int, str], list[Cell]]:
    """Cells by (family, block length, choose), each sweep sorted by NFE; the longest blocks last."""
    found: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: (c.block_length, c.nfe)):
        found.setdefault((cell.family, cell.block_length, cell.choose), []).append(cell)
    return found


def _cell(row: dict[str, str], where: str) -> Cell:
    try:
        return Cell(**{f.name: _TYPES[str(f.type)](row[f.name]) for f in fields(Cell)})
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: {error}: a cell with a broken number would be drawn in the wrong place; "
            "run the stage that writes this table again."
        ) from error
