"""The evaluation table as the reports see it: cells, which of them are heuristics, and the envelope of those.

One cell is one rule at one setting on one task; the columns are those that stage ``evaluate`` writes. What is measured
and how intervals are made belongs to ``evaluation``; the envelope's mathematics to ``maths.hull``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..evaluation.results import EvalResult
from ..maths.pareto import front_at, upper_hull
from ..policies.rules import POLICIES, RULES, label_of

KINDS = {
    "marginal": "marginal rules: each position by itself",
    "ordered": "ordered rules: a fixed number per pass",
    "pair": "pair rules: positions beside each other",
}
"""What the rules are compared by in pictures: kind -> what it means."""

Group = tuple[str, str, str]
"""(task, denoiser, split): results are only ever compared within one."""


def groups(cells: Iterable[EvalResult]) -> dict[Group, list[EvalResult]]:
    """Cells by (task, denoiser, split), in order of first appearance."""
    found: dict[Group, list[EvalResult]] = {}
    for cell in cells:
        found.setdefault((cell.task, cell.denoiser, cell.split), []).append(cell)
    return found


def full_length(cells: Iterable[EvalResult]) -> int:
    """The block length that stands for full diffusion: the largest, which is the canvas."""
    return max(cell.block_length for cell in cells)


def envelope(cells: Iterable[EvalResult], at: float) -> float:
    """Accuracy of the best mixture of the heuristics among ``cells`` at ``at`` forwards; NaN without any heuristic."""
    heuristics = [cell for cell in cells if not cell.is_policy]
    if not heuristics:
        return float("nan")
    return front_at([c.nfe for c in heuristics], [c.accuracy for c in heuristics], at)


def corners(cells: Iterable[EvalResult]) -> list[EvalResult]:
    """The heuristics that are corners of the envelope, by rising NFE; of equal cells the first."""
    heuristics = [cell for cell in cells if not cell.is_policy]
    if not heuristics:
        return []
    hull = upper_hull([c.nfe for c in heuristics], [c.accuracy for c in heuristics])
    by_place = {(c.nfe, c.accuracy): c for c in reversed(heuristics)}
    return [by_place[place] for place in zip(*(axis.tolist() for axis in hull), strict=True)]


def mixture_at(cells: Iterable[EvalResult], at: float) -> list[EvalResult]:
    """The one or two corners whose mixture is the envelope at ``at``; empty without any heuristic."""
    front = corners(cells)
    right = int(np.searchsorted([c.nfe for c in front], at, side="left"))
    if right == len(front):
        return front[-1:]
    if front[right].nfe == at:
        return [front[right]]
    return front[max(right - 1, 0) : right + 1]


def headline(cells: Iterable[EvalResult]) -> EvalResult | None:
    """The cell that stands for the learned policy: full diffusion before shorter blocks, mode before sample."""
    learned = [cell for cell in cells if cell.family == "learned"]
    return min(learned, key=lambda c: (-c.block_length, c.choose != "mode"), default=None)


def rule_name(family: str, setting: str) -> str:
    """``entropy bound 0.1``, ``max confidence, 2 per step``; of a policy ``learned policy, sampled``."""
    label = label_of(family)
    if family in POLICIES:
        return f"{label}, sampled" if setting == "sample" else f"{label} {setting.removeprefix('mode')}".strip()
    if setting and family in RULES and RULES[family].commits == "fixed":
        return f"{label}, {setting} per step"
    return f"{label} {setting}".strip()


def name_of(cell: EvalResult, full: int) -> str:
    """What people call the cell: ``entropy bound 0.1, blocks of 4``. ``full`` is the canvas length."""
    decoding = cell.is_policy and cell.setting == cell.choose
    parts = [rule_name(cell.family, "" if decoding else cell.setting)]
    if cell.block_length < full:
        parts.append(f"blocks of {cell.block_length}")
    if cell.is_policy and cell.choose != "mode":
        parts.append("sampled")
    return ", ".join(parts)


def sweeps(cells: Sequence[EvalResult]) -> dict[tuple[str, int, str], list[EvalResult]]:
    """Cells by (family, block length, choose and frontier), each sweep sorted by NFE; the longest blocks last."""
    found: dict[tuple[str, int, str], list[EvalResult]] = {}
    for cell in sorted(cells, key=lambda c: (c.block_length, c.nfe)):
        frontier = cell.setting.partition(",")[2]  # "0.9, first 64": a sweep of its own
        found.setdefault((cell.family, cell.block_length, cell.choose + frontier), []).append(cell)
    return found


def kind_of(family: str) -> str:
    """One of ``KINDS``; a family that is not in the table of rules counts as marginal."""
    if family not in RULES:
        return "marginal"
    rule = RULES[family]
    return "pair" if rule.reads_pairs else "marginal" if rule.commits == "several" else "ordered"


def saturation(cells: Iterable[EvalResult]) -> float:
    """The fewest forwards at which the heuristics' envelope is within a point of its best; NaN without a heuristic."""
    front = corners(cells)
    return next((c.nfe for c in front if c.accuracy >= front[-1].accuracy - 0.01), float("nan"))


def strongest(cells: Sequence[EvalResult]) -> dict[str, list[EvalResult]]:
    """kind -> the sweep of the strongest rule of that kind, a block length of its own being a rule of its own.

    Strongest: its own envelope is the highest on average over numbers of forwards, at equal ratios, from the fastest
    policy's to where the envelope of all saturates; 0 where the rule is not that fast.
    """
    heuristics = [cell for cell in cells if not cell.is_policy]
    if not heuristics:
        return {}
    end = saturation(heuristics)
    start = min([cell.nfe for cell in cells if cell.is_policy], default=min(cell.nfe for cell in heuristics))
    places = np.geomspace(min(start, end), max(start, end), 33).tolist()
    best: dict[str, tuple[float, list[EvalResult]]] = {}
    for (family, _, _), sweep in sweeps(heuristics).items():
        score, kind = sum(envelope(sweep, at) for at in places if at >= sweep[0].nfe - 1e-9), kind_of(family)
        if kind not in best or score > best[kind][0]:
            best[kind] = (score, sweep)
    return {kind: best[kind][1] for kind in KINDS if kind in best}
