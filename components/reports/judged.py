"""How a bar is judged: for each training seed by itself, at the worst place of the range that the bar names.

Where a policy has no curve (left of its fastest setting) nothing is claimed, and the range that was covered is stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..maths.pareto import front_at, upper_hull
from .curves import curve_at, error_cut, nfe_for
from .study import Runs
from .table import MINUS

STEP = 0.05  # forwards between two places of a range
LEVEL = 0.01  # accuracy between two levels
REPORTED = "reported"
"""The verdict where no bar was set."""


@dataclass(frozen=True)
class Bar:
    """asked: in words. seen: each seed's worst figure, where it was, and the range. held: by every seed."""

    asked: str
    seen: str
    held: bool
    verdict: str


@dataclass(frozen=True)
class Seen:
    """The worst figure of one seed, where it was, and all figures by place; nan where the range is empty."""

    worst: float
    where: float
    mean: float
    low: float
    high: float
    figures: tuple[float, ...] = ()


NOTHING = Seen(math.nan, math.nan, math.nan, math.nan, math.nan)


def over(places: Sequence[float], figure: Callable[[float], float]) -> Seen:
    """The figure over places where it is a number."""
    found = [(value, place) for place in places if not math.isnan(value := figure(place))]
    if not found:
        return NOTHING
    worst, where = min(found)
    covered = [place for _, place in found]
    values = tuple(value for value, _ in found)
    return Seen(worst, where, float(np.mean(values)), min(covered), max(covered), values)


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


def judged(asked: str, needed: float, seen: Sequence[Seen], at: str = "NFE {:.2f}") -> Bar:
    """The bar is held where the worst figure of every seed reaches what is needed. An empty range decides nothing."""
    known = [one for one in seen if not math.isnan(one.worst)]
    if not known:
        return Bar(asked, "nothing in the range", False, "not decided: one of the two never is in this range")
    reached = sum(one.worst >= needed for one in known)
    worst = min(known, key=lambda one: one.worst)
    each = ", ".join(percent(one.worst) for one in known)
    figures = [figure for one in known for figure in one.figures]
    text = (
        f"worst by seed {each}; the lowest at {at.format(worst.where)}; mean over the range "
        f"{percent(float(np.mean([one.mean for one in known])))}; range {at.format(worst.low)} to {worst.high:.2f}"
    )
    if len(known) < len(seen):
        text += f"; {len(seen) - len(known)} of {len(seen)} seeds never in the range"
    held = reached == len(known)
    if not held and len(figures) > len(known):
        text += f"; reached at {100 * np.mean(np.asarray(figures) >= needed):.0f} % of its places"
    missed = "missed" if math.isinf(worst.worst) else f"missed by {percent(needed - worst.worst).lstrip('+')}"
    return Bar(asked, text, held, f"{'held' if held else missed}, {reached} of {len(known)}")


def percent(value: float) -> str:
    """``+34``, in whole percent or points; an accuracy that the policy never has costs infinitely many forwards."""
    if math.isinf(value):
        return "never as accurate"
    return f"{100 * value:+.0f}".replace("-", MINUS)
