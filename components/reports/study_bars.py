"""Bars that a study is held against: what was asked, what was seen, and whether it was held or by how much missed.

Each bar is judged for each training seed by itself, at the worst place of the range that the bar names. Where a policy
has no curve (left of its fastest setting) nothing is claimed, and the range that was covered is stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..evaluation.results import EvalResult
from ..maths.pareto import front_at, upper_hull
from .curves import curve_at, error_cut, nfe_for
from .study import Kept, Runs, Study, in_blocks, runs
from .table import MINUS, points

STEP = 0.05  # forwards between two places of a range
LEVEL = 0.01  # accuracy between two levels


@dataclass(frozen=True)
class Bar:
    """asked: in words. seen: each seed's worst figure, where it was, and the range. held: by every seed."""

    asked: str
    seen: str
    held: bool
    verdict: str


@dataclass(frozen=True)
class Seen:
    """The worst figure of one seed, where it was, and the mean over the range; nan where the range is empty."""

    worst: float
    where: float
    mean: float
    low: float
    high: float


def over(places: Sequence[float], figure: Callable[[float], float]) -> Seen:
    """The figure over places where it is a number."""
    found = [(value, place) for place in places if not math.isnan(value := figure(place))]
    if not found:
        return Seen(*[float("nan")] * 5)
    worst, where = min(found)
    covered = [place for _, place in found]
    return Seen(worst, where, float(np.mean([value for value, _ in found])), min(covered), max(covered))


def places_between(one: Runs, low: float, high: float) -> list[float]:
    """Numbers of forwards at which the rules' front lies between two accuracies."""
    nfe, accuracy = one.front
    return [at for at in _grid(nfe) if low <= front_at(nfe, accuracy, at) <= high]


def points_above(one: Runs, seed: int, places: Sequence[float], other: Runs | None = None) -> Seen:
    """Accuracy above the rules' front, or above another policy's curve of the same seed, at equal forwards.

    Left of the fastest rule the front is level, which leans against the policy.
    """
    ours = one.curve(seed)
    if other is None:
        return over(places, lambda at: curve_at(*ours, at) - front_at(*one.front, at))
    theirs = other.curve(min(seed, len(next(iter(other.by_setting.values()))) - 1))
    return over(places, lambda at: curve_at(*ours, at) - curve_at(*theirs, at))


def errors_cut(one: Runs, seed: int, low: float = 0.2, high: float = 0.95) -> Seen:
    """Share of the front's errors not made at equal forwards, wherever the front lies between two accuracies."""
    ours = one.curve(seed)
    return over(places_between(one, low, high), lambda at: error_cut(curve_at(*ours, at), front_at(*one.front, at)))


def forwards_saved(one: Runs, seed: int, low: float = 0.2, high: float = 0.95) -> Seen:
    """Share of the front's forwards saved at equal accuracy, at each level that both curves have a corner at or above.

    Levels below the accuracy of the policy's fastest setting are left out: it was not asked to be that bad.
    """
    ours = one.curve(seed)
    lowest = upper_hull(*ours)[1][0]
    first, last = upper_hull(*one.front)[1][[0, -1]]

    def saved(level: float) -> float:
        if not max(lowest, first) <= level <= last:
            return float("nan")
        needed = nfe_for(*ours, level)
        return 1 - needed / nfe_for(*one.front, level)

    return over(np.arange(low, high + LEVEL / 2, LEVEL).round(6).tolist(), saved)


def _grid(nfe: Sequence[float]) -> list[float]:
    """From the fewest forwards to the most, both included."""
    return [*np.arange(min(nfe), max(nfe), STEP).tolist(), float(max(nfe))]


def bars(study: Study) -> list[Bar]:
    """Every bar whose cells are there, in the order in which they were asked."""
    found = [*_trained_on(study), *_in_blocks(study), *_worded(study), *_never_seen(study)]
    return [bar for bar in found if bar is not None]


def judged(asked: str, needed: float, seen: Sequence[Seen], at: str = "NFE {:.2f}") -> Bar:
    """The bar is held where the worst figure of every seed reaches what is needed; an empty range decides nothing."""
    known = [one for one in seen if not math.isnan(one.worst)]
    if not known:
        return Bar(asked, "nothing in the range", False, "not decided: one of the two never is in this range")
    reached = sum(one.worst >= needed for one in known)
    worst = min(known, key=lambda one: one.worst)
    each = ", ".join(_percent(one.worst) for one in known)
    text = (
        f"worst by seed {each}; the lowest at {at.format(worst.where)}; mean over the range "
        f"{_percent(float(np.mean([one.mean for one in known])))}; range {at.format(worst.low)} to {worst.high:.2f}"
    )
    held = reached == len(known)
    missed = f"missed by {_percent(needed - worst.worst).lstrip('+')}"
    return Bar(
        asked, text, held, f"held, {reached} of {len(known)}" if held else f"{missed}, {reached} of {len(known)}"
    )


def _percent(value: float) -> str:
    """``+34``, in whole percent or points; an accuracy that the policy never has costs infinitely many forwards."""
    if math.isinf(value):
        return "never as accurate"
    return f"{100 * value:+.0f}".replace("-", MINUS)


def _seeds(one: Runs) -> range:
    return range(len(next(iter(one.by_setting.values()))))


def _trained_on(study: Study) -> list[Bar | None]:
    """Errors cut and forwards saved on the plain tasks: the default policy's over each dLLM, and other domains'."""
    found: list[Bar | None] = []
    groups = [(f"dLLM seed {seed}", cells) for seed, cells in study.default.items()]
    groups += [(cells[0].about["about"], cells) for cells in study.domains()]
    for task, cut, saved in (("sudoku_many", 0.60, 0.35), ("sudoku_unique", 0.50, 0.15)):
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
    groups = [("by position", "evaluate-worded_position", cells, 0.30, (3.3, 4.0)) for cells in study.default.values()]
    groups += [("by content", "evaluate-worded_content", cells, 0.40, (3.0, 3.7)) for cells in study.domains()]
    for name, case, cells, needed, (low, high) in groups:
        one = runs(cells, case, "learned", "")
        start = runs(cells, case, "influence", "")
        if one is None:
            continue
        where, seeds = f"spellings {name}, dLLM seed {cells[0].dllm_seed}", _seeds(one)
        places = np.arange(low, high + STEP / 2, STEP).tolist()
        asked = f"{where}: {100 * needed:.0f} points above the front at {low} to {high} forwards"
        found.append(judged(asked, needed, [points_above(one, s, places) for s in seeds]))
        if name == "by position":
            found.append(_fewer_forwards(f"{where}: 30 % fewer forwards at accuracy .9", 0.30, one, 0.9))
        if start is not None:
            below = np.arange(1.0, 4.0, STEP).tolist()
            asked = f"{where}: 10 points above influence alone at equal NFE below 4"
            found.append(judged(asked, 0.10, [points_above(one, s, below, start) for s in seeds]))
    found.append(_order_alone([cell for cell in study.cells if cell.name == "order"]))
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


def _order_alone(cells: Sequence[Kept]) -> Bar | None:
    """One position per step, against max-confidence one by one."""
    one = runs(cells, "evaluate-worded_position", "learned", "")
    if one is None:
        return None
    served = one.by_setting["mode"][0]
    plain = next(r for r in one.rules if (r.family, r.setting, r.block_length) == ("confidence", "1", one.canvas))
    gain = served.accuracy - plain.accuracy
    seen = f"{100 * served.accuracy:.1f} % for {100 * plain.accuracy:.1f} %: {points(gain)}"
    asked = "spellings by position, order alone, one per step: 10 points above max-confidence"
    missed = f"missed by {_percent(0.10 - gain).lstrip('+')}"
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
        found.append(judged(asked, 0.40, saved, "accuracy {:.2f}"))
    return found
