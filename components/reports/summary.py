"""The few figures by which a run is judged, one small JSON file per task. Git keeps them, DVC and MLflow show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.errors import DataError
from ..core.files import remove, write_json, write_text
from ..evaluation.gate import level
from ..evaluation.results import EvalResult
from . import fronts
from .table import interval, points

GATE = "gate"
DIGITS = 3  # a tenth of a point


def write(
    folder: Path, tasks: Mapping[str, Sequence[EvalResult]], gate: Sequence[EvalResult], choose: str = "mode"
) -> dict[str, dict[str, float]]:
    """``<task>.json`` for each task of the test split, and ``gate.json``. Returns them by name.

    tasks: the rows of each task's table. gate: the results per prompt on the gate split. choose: how the policy that
    is served decodes. What an earlier run left in the folder is removed.
    """
    found = {task: _task(cells, choose) for task, cells in tasks.items()} | {GATE: _gate(gate, choose)}
    remove(folder)
    for name, figures in found.items():
        write_json(folder / f"{name}.json", figures)
    return found


def _served(cells: Sequence[EvalResult], choose: str) -> EvalResult:
    """The learned policy as it is served."""
    found = [cell for cell in cells if cell.family == "learned" and cell.setting == choose]
    if len(found) != 1:
        raise DataError(f"{len(found)} results of the learned policy by {choose}, not one. Run `dvc repro`.")
    return found[0]


def _task(cells: Sequence[EvalResult], choose: str) -> dict[str, float]:
    """accuracy, nfe, and by how much the accuracy lies above the envelope of the rules at that nfe."""
    cell = _served(cells, choose)
    above = cell.accuracy - fronts.envelope(cells, cell.nfe)
    return _rounded({"accuracy": cell.accuracy, "nfe": cell.nfe, "above_front": above})


def _gate(results: Sequence[EvalResult], choose: str) -> dict[str, float]:
    """score with the bounds ``low`` and ``high``, at ``gate_nfe``; a name that no task has is short in DVC's tables."""
    figures = level(_served(results, choose), [result for result in results if not result.is_policy])
    names = {"score": "score", "score_low": "low", "score_high": "high", "nfe": "gate_nfe"}
    return _rounded({short: figures[name] for name, short in names.items()})


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, DIGITS) + 0.0 for name, value in figures.items()}  # + 0.0: no minus zero


def write_page(path: Path, found: Mapping[str, Mapping[str, float]]) -> Path:
    """What ``write`` returned, as Markdown: the gate's score with its interval, and a row per task."""
    rows = [
        f"| {task} | {100 * figures['accuracy']:.1f} | {figures['nfe']:.2f} | {points(figures['above_front'])} |"
        for task, figures in found.items()
        if task != GATE
    ]
    gate = found[GATE]
    score = interval(gate["score"], gate["low"], gate["high"])
    head = ["| task, test split | accuracy, % | NFE | above the heuristics, points |", "|---|---:|---:|---:|"]
    first = f"On the gate split, in points above the heuristics: {score} at {gate['gate_nfe']:.2f} forward passes."
    return write_text(path, "\n".join([first, "", *head, *rows]) + "\n")
