"""Bars that a study is held against: what was asked, what was seen, and whether it was held or by how much missed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..evaluation.results import EvalResult
from ..maths.pareto import front_at
from .curves import nfe_for
from .judged import (
    REPORTED,
    STEP,
    Bar,
    Seen,
    errors_cut,
    forwards_saved,
    judged,
    over,
    percent,
    places_between,
    points_above,
)
from .study import Kept, Runs, Study, in_blocks, runs
from .table import points

PLAIN = {"sudoku_many": (0.60, 0.35), "sudoku_unique": (0.50, 0.15)}
"""Errors cut at equal forwards and forwards saved at equal accuracy, of each plain task."""
WORDED = {"position": (0.30, 3.3, 4.0), "content": (0.40, 3.0, 3.7)}
"""Points above the front, and the forwards from and to which, of spellings by position and by content."""


def bars(study: Study) -> list[Bar]:
    """Every bar whose cells are there, in the order in which they were asked."""
    found = [*_trained_on(study), *_over_our_shifts(study), *_in_blocks(study), *_worded(study), *_never_seen(study)]
    return [bar for bar in found if bar is not None]


def _seeds(one: Runs) -> range:
    return range(len(next(iter(one.by_setting.values()))))


def _trained_on(study: Study) -> list[Bar | None]:
    """Errors cut and forwards saved on the plain tasks: the default policy's over each dLLM, and other domains'."""
    found: list[Bar | None] = []
    groups = [(f"dLLM seed {seed}", cells) for seed, cells in study.default.items()]
    groups += [(cells[0].about["about"], cells) for cells in study.domains()]
    for task, (cut, saved) in PLAIN.items():
        for name, cells in groups:
            one = runs(cells, f"evaluate-{task}", "learned", "")
            if one is None:
                continue
            where = f"{task}, {name}, wherever the front lies between 20 and 95 %"
            found.append(
                judged(
                    f"{where}: errors cut by {100 * cut:.0f} % at equal NFE",
                    cut,
                    [errors_cut(one, s) for s in _seeds(one)],
                )
            )
            found.append(
                judged(
                    f"{where}: {100 * saved:.0f} % fewer forwards at equal accuracy",
                    saved,
                    [forwards_saved(one, s) for s in _seeds(one)],
                    "accuracy {:.2f}",
                )
            )
    return found


def _over_our_shifts(study: Study) -> list[Bar | None]:
    """The first bars again, where two published rules that read the policy's own pair shifts count as rules too."""
    found: list[Bar | None] = []
    for cell in study.kind("control"):
        for case, results in cell.results.items():
            one = runs([cell], case, "learned", "")
            own = [r for r in results if r.family in ("mi_bound", "demask")]
            if one is None or not own:
                continue
            wide = replace(one, rules=[*one.rules, *own])
            task = case.partition("-")[2]
            asked = f"{task}, one seed, mi_bound and demask over our own shifts among the rules"
            if task not in PLAIN:
                found.append(_above(asked, wide, [0], *WORDED[task.partition("_")[2]]))
            else:
                cut, _ = PLAIN[task]
                asked += f": errors cut by {100 * cut:.0f} % where the front lies between 20 and 95 %"
                found.append(judged(asked, cut, [errors_cut(wide, 0)]))
    return found


def _above(where: str, one: Runs, seeds: Sequence[int], needed: float, low: float, high: float) -> Bar:
    """Points above the rules' front over a range of forwards."""
    places = np.arange(low, high + STEP / 2, STEP).tolist()
    asked = f"{where}: {100 * needed:.0f} points above the front at {low} to {high} forwards"
    return judged(asked, needed, [points_above(one, s, places) for s in seeds])


def _in_blocks(study: Study) -> list[Bar | None]:
    """Semi-autoregressive: the default policy, and those trained in blocks."""
    return [_below_in_blocks(cell, name) for name, cell in study.decoding_in_blocks()]


def _below_in_blocks(cell: Kept, name: str) -> Bar | None:
    """Below the rules of the same blocks by more than the interval nowhere.

    A setting that is faster than any of those rules, and less accurate than the fastest of them, has no rule to be
    compared with; it is counted apart.
    """
    below: list[str] = []
    looked_at, apart = 0, 0
    for case, results in cell.results.items():
        for block, (policies, rules) in in_blocks(results).items():
            for policy in policies:
                looked_at += 1
                front = front_at([r.nfe for r in rules], [r.accuracy for r in rules], policy.nfe)
                if policy.accuracy_high >= front:
                    continue
                if policy.nfe < min(r.nfe for r in rules):
                    apart += 1
                else:
                    gap = points(policy.accuracy - front)
                    below.append(f"{case} blocks of {block} at NFE {policy.nfe:.2f}: {gap}")
    if not looked_at:
        return None
    seen = "; ".join(below) or f"none of {looked_at} settings"
    seen += f"; {apart} of {looked_at} are faster than any rule in their blocks, and not compared" if apart else ""
    asked = f"semi-autoregressive, {name}: below the rules of the same blocks by more than the interval nowhere"
    return Bar(asked, seen, not below, "held" if not below else f"missed at {len(below)} of {looked_at} settings")


def _worded(study: Study) -> list[Bar | None]:
    """Several right spellings, by position and by content, and order alone."""
    found: list[Bar | None] = []
    groups = [("position", cells) for cells in study.default.values()]
    groups += [("content", cells) for cells in study.domains()]
    for name, cells in groups:
        one = runs(cells, f"evaluate-worded_{name}", "learned", "")
        start = runs(cells, f"evaluate-worded_{name}", "influence", "")
        if one is None:
            continue
        where, seeds = f"spellings by {name}, dLLM seed {cells[0].dllm_seed}", _seeds(one)
        found.append(_above(where, one, seeds, *WORDED[name]))
        if name == "position":
            found.append(_fewer_forwards(f"{where}: 30 % fewer forwards at accuracy .9", 0.30, one, 0.9))
        if start is not None:
            below = np.arange(1.0, 4.0, STEP).tolist()
            asked = f"{where}: 10 points above influence alone at equal NFE below 4"
            found.append(judged(asked, 0.10, [points_above(one, s, below, start) for s in seeds]))
    for name, case, cell in (
        ("by position", "evaluate-worded_position", "order"),
        ("by content", "evaluate-worded_content", "order-content"),
    ):
        found.append(_order_alone(name, runs([c for c in study.cells if c.name == cell], case, "learned", "")))
    return found


def _fewer_forwards(asked: str, needed: float, one: Runs, level: float) -> Bar:
    """The share of the front's forwards saved at one accuracy. Where no rule has it, the policy must only reach it."""
    best = max(one.front[1])
    if best >= level:
        return judged(asked, needed, [forwards_saved(one, s, level, level) for s in _seeds(one)], "accuracy {:.2f}")
    forwards = [nfe_for(*one.curve(s), level) for s in _seeds(one)]
    each = ", ".join(f"{nfe:.1f}" if math.isfinite(nfe) else "never" for nfe in forwards)
    reached = sum(map(math.isfinite, forwards))
    seen = f"forwards by seed {each}; no rule is ever as accurate, the best one is right on {100 * best:.0f} %"
    held = reached == len(forwards)
    return Bar(asked, seen, held, f"{'held' if held else 'missed'}, {reached} of {len(forwards)}")


def _order_alone(name: str, one: Runs | None) -> Bar | None:
    """One position per step, against max-confidence one by one. By content there is nothing to gain: no bar was set."""
    if one is None:
        return None
    served = one.by_setting["mode"][0]
    plain = next(r for r in one.rules if (r.family, r.setting, r.block_length) == ("confidence", "1", one.canvas))
    gain = served.accuracy - plain.accuracy
    seen = f"one seed: {100 * served.accuracy:.1f} % for {100 * plain.accuracy:.1f} %: {points(gain)}"
    asked = f"spellings {name}, order alone, one per step"
    if name != "by position":
        return Bar(asked, seen, False, REPORTED)
    asked += ": 10 points above max-confidence"
    missed = f"missed by {percent(0.10 - gain).lstrip('+')}"
    return Bar(asked, seen, gain >= 0.10, "held" if gain >= 0.10 else missed)


def _saved_at(curve: tuple[NDArray[np.float64], NDArray[np.float64]], plain: EvalResult) -> Seen:
    """Forwards saved at the accuracy of one rule."""
    return over([plain.accuracy], lambda level: 1 - nfe_for(*curve, level) / plain.nfe)


def _never_seen(study: Study) -> list[Bar | None]:
    """Another dLLM and other tasks, nothing trained again: the default policy's, and other domains'."""
    found = _elsewhere(study.first, "")
    for cells in study.domains():
        found += _elsewhere(cells, f", {cells[0].about['about']}")
    return found


def _elsewhere(cells: Sequence[Kept], name: str) -> list[Bar | None]:
    found: list[Bar | None] = []
    for case, where in (
        ("transfer-other_dllm", "another dLLM, sudoku_many"),
        ("transfer-longer", "another dLLM, canvas of 32"),
        ("ood-related", "latin squares"),
        ("ood-wording", "spellings by content"),
        ("ood-queens", "queens"),
        ("ood-unrelated", "sorting"),
    ):
        one = runs(cells, case, "learned", "")
        if one is not None:
            asked = f"never seen, {where}{name}: 20 points above the front where it lies between 20 and 60 %"
            seen = [points_above(one, s, places_between(one, 0.2, 0.6)) for s in _seeds(one)]
            found.append(judged(asked, 0.20, seen))
    queens = runs(cells, "ood-queens", "learned", "")
    if queens is not None:
        plain = next(r for r in queens.rules if (r.family, r.setting) == ("confidence", "1"))
        saved = [_saved_at(queens.curve(s), plain) for s in _seeds(queens)]
        asked = f"queens{name}: max-confidence's accuracy at 40 % fewer forwards"
        best = max(max(queens.curve(s)[1]) for s in _seeds(queens))
        bar = judged(asked, 0.40, saved, "accuracy {:.2f}")
        found.append(replace(bar, seen=f"{bar.seen}; the policy is right on {100 * best:.1f} % at best"))
    return found
