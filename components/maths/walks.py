"""Sets with pair shifts, taken position by position along the greedy path, in numpy alone.

A walk is dozens of small operations, each of which waits for the one before. numpy needs half of torch's time for them,
and an accelerator would be given one tiny kernel after the other. ``components.maths.coupling`` hands torch's
distributions over. A server that decodes with an exported policy has no torch at all.

The formulas are those of the likelihoods in ``components.maths``; sums of shifts may differ in the last bits. Ties go
to the lowest position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PICK, STOP = 0, 2
"""Noise streams of a first pick and of its STOP: those of DPLS."""
NEXT = 2**32
"""From one pick's streams to the next one's. Those of two steps are 64 apart."""
Number = float | np.ndarray
"""One for all rows, or one per row (B,)."""
Gumbel = Callable[[int, int], np.ndarray]
"""(stream, length) -> (B, length) Gumbel noise."""


@dataclass(frozen=True)
class CoupledScores:
    """The fields of ``components.maths.coupling.Coupled``, as arrays: floating point, and bool ``eligible_BL``."""

    log_odds_BL: np.ndarray
    bias_BL: np.ndarray
    shift_BLL: np.ndarray
    mix_BL: np.ndarray
    eligible_BL: np.ndarray
    kappa: Number = 1.0
    tau: Number = 0.0
    cost: Number = 0.0
    temperature: float = 1.0


# What overflows or is not a number loses every comparison, without a warning.
_quiet = np.errstate(over="ignore", invalid="ignore")


@_quiet
def ordered(
    scores: CoupledScores, gumbel: Gumbel | None = None, among_BL: np.ndarray | None = None, stops: bool = True
) -> np.ndarray:
    """int64 (B, L), the picks' order, -1 where not drawn: the best of what is left, while its utility is above STOP's.

    gumbel: added to each pick, which makes the picks a draw of coupled Plackett-Luce; None is its mode. among_BL: what
    is picked from, in place of all that is eligible. stops: whether STOP competes, from the second pick on.
    """
    path = Path(scores, among_BL)
    length, row_B = scores.eligible_BL.shape[1], np.arange(len(scores.eligible_BL))
    going_B, pick = path.any_left(), 0
    while going_B.any():
        value_BL, stop_B = path.tempered(path.utilities()), np.zeros(len(row_B))
        if gumbel is not None:
            value_BL = value_BL + gumbel(PICK + pick * NEXT, length)
            stop_B = gumbel(STOP + pick * NEXT, 1)[:, 0]
        best_B = path.best(value_BL)
        if stops and pick > 0:
            going_B = going_B & (value_BL[row_B, best_B] > stop_B)
        path.decide(best_B, going_B, path.added(best_B))
        going_B, pick = going_B & path.any_left(), pick + 1
    return path.rank_BL


@_quiet
def accepted(
    scores: CoupledScores, below_BL: np.ndarray, stops: bool, sigma: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """bool (B, L) the positions that accept-or-skip takes, and int64 (B, K) its candidates: a row's own, then padding.

    A candidate is taken if ``below_BL`` < sigma(utility) at its position: noise makes that a draw. stops: whether a
    row's first skip ends it. Where all have one bound nothing behind it would be taken: a skip moves nothing. sigma:
    the caller's, so that torch's draws agree with torch's likelihood to the bit.
    """
    path, row_B = Path(scores), np.arange(len(below_BL))
    candidates: list[NDArray[np.int64]] = []
    going_B = path.any_left()
    while going_B.any():
        utility_BL = path.utilities()
        best_B = path.best(utility_BL)
        taken_B = going_B & (below_BL[row_B, best_B] < sigma(path.tempered(utility_BL[row_B, best_B])))
        path.decide(best_B, taken_B, path.added(best_B))
        going_B = (taken_B if stops else going_B) & path.any_left()
        candidates.append(best_B)
    order_BK = np.stack(candidates, 1) if candidates else np.zeros((len(row_B), 0), np.int64)
    return path.rank_BL >= 0, order_BK


@_quiet
def within(scores: CoupledScores, gamma: float) -> np.ndarray:
    """bool (B, L): by log-odds, the largest first, while the risk stays at most ``gamma``; the first one is free."""
    path = Path(scores)
    going_B = path.any_left()
    while going_B.any():
        best_B = path.best(path.cond_BL)
        added_B = path.added(best_B)
        going_B = going_B & ((path.count_B == 0) | (path.risk_B + added_B <= gamma))
        path.decide(best_B, going_B, added_B)
        going_B = going_B & path.any_left()
    return path.rank_BL >= 0


class Path:
    """Where rows stand while positions are taken one after the other. among_BL: what may be, else all eligible.

    cond_BL: the log-odds by now. risk_B: of what was taken. count_B: how many. rank_BL: their order, -1 elsewhere.
    left_BL: what is undecided.
    """

    def __init__(self, scores: CoupledScores, among_BL: np.ndarray | None = None) -> None:
        self._scores, eligible_BL = scores, scores.eligible_BL
        self._row_B = np.arange(len(eligible_BL))
        self.left_BL = (eligible_BL if among_BL is None else among_BL).copy()
        self._start_BL = np.where(eligible_BL, scores.log_odds_BL, 0)
        self._bias_BL = np.where(eligible_BL, scores.bias_BL, 0)
        self.cond_BL, self.risk_B = self._start_BL, np.zeros(len(eligible_BL), self._start_BL.dtype)
        self._kappa, self._tau, self._cost = (
            _per_row(value, self._start_BL.dtype) for value in (scores.kappa, scores.tau, scores.cost)
        )
        self.count_B, self.rank_BL = np.zeros(len(eligible_BL), np.int64), np.full(eligible_BL.shape, -1)

    def any_left(self) -> NDArray[np.bool_]:
        """(B,) whether anything is left."""
        return np.asarray(self.left_BL.any(-1))

    def utilities(self) -> np.ndarray:
        """(B, L), before the temperature."""
        return self._kappa * (self.cond_BL + self._bias_BL + self._tau - self._cost * self.risk_B[:, None])

    def tempered(self, utility: np.ndarray) -> np.ndarray:
        return utility if self._scores.temperature == 1 else utility / self._scores.temperature

    def best(self, values_BL: np.ndarray) -> np.ndarray:
        """(B,) the largest of what is left, the lowest position among equals. NaN counts as the smallest."""
        values_BL = np.where(self.left_BL & ~np.isnan(values_BL), values_BL, -np.inf)
        return ((values_BL == values_BL.max(-1, keepdims=True)) & self.left_BL).argmax(-1)

    def added(self, index_B: np.ndarray) -> np.ndarray:
        """(B,) the risk of taking position ``index_B`` now."""
        place = (self._row_B, index_B)
        now_B, start_B = _surprise(self.cond_BL[place]), _surprise(self._start_BL[place])
        mix_B = np.where(self._scores.eligible_BL[place], self._scores.mix_BL[place], 0)
        return mix_B * now_B + (1 - mix_B) * (now_B - start_B)

    def decide(self, index_B: np.ndarray, taken_B: np.ndarray, added_B: np.ndarray) -> None:
        """Decides position ``index_B``: removes it from ``left_BL``, and commits it in the rows of ``taken_B``, at the
        risk ``added_B``. Rows where nothing is left stay as they are."""
        place, own = (self._row_B, index_B), self._scores
        taken_B = taken_B & self.left_BL[place]
        self.risk_B = self.risk_B + np.where(taken_B & (self.count_B > 0), added_B, 0)
        self.cond_BL = self.cond_BL + np.where(taken_B[:, None] & own.eligible_BL, own.shift_BLL[place], 0)
        self.rank_BL[place] = np.where(taken_B, self.count_B, self.rank_BL[place])
        self.count_B = self.count_B + taken_B
        self.left_BL[place] = False


def _per_row(value: Number, dtype: np.dtype) -> Number:
    """With an axis to broadcast; a single number as Python's, which leaves float32 what it is."""
    return np.asarray(value, dtype)[:, None] if np.ndim(value) else float(value)


def _surprise(log_odds_B: np.ndarray) -> np.ndarray:
    """-log sigma(log_odds), rounded once from float64."""
    return np.logaddexp(0, -log_odds_B.astype(np.float64)).astype(log_odds_B.dtype)
