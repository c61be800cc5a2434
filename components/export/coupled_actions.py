"""Draws with pair shifts in numpy alone: what a server needs that decodes with an exported coupled policy.

The draws are those of ``components.maths.coupled`` and ``components.maths.accept_or_skip`` on the same scores: the same
operations in the same order, the same noise bit for bit, ties to the lowest position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .actions import Uniform

_PICK, _STOP, _NEXT = 0, 2, 2**32  # noise streams, as in components.maths.coupled
Number = float | np.ndarray
"""One for all rows, or one per row (B,)."""


@dataclass(frozen=True)
class CoupledScores:
    """The fields of ``components.maths.coupled.CoupledPlackettLuce``, as arrays: float32, and bool ``eligible_BL``."""

    log_odds_BL: np.ndarray
    bias_BL: np.ndarray
    shift_BLL: np.ndarray
    mix_BL: np.ndarray
    eligible_BL: np.ndarray
    kappa: Number = 1.0
    tau: Number = 0.0
    cost: Number = 0.0
    temperature: float = 1.0


def coupled_greedy(scores: CoupledScores) -> tuple[np.ndarray, np.ndarray]:
    """bool (B, L) the greedy draw of coupled Plackett-Luce, and int64 (B, L) its order; -1 where not drawn."""
    return _ordered(scores, None)


def coupled_sample(scores: CoupledScores, uniform: Uniform) -> tuple[np.ndarray, np.ndarray]:
    """bool (B, L) a draw of coupled Plackett-Luce under this noise, and int64 (B, L) its order; -1 where not drawn."""
    return _ordered(scores, uniform)


def accept_greedy(scores: CoupledScores) -> np.ndarray:
    """bool (B, L) the mode of accept-or-skip; it may be empty."""
    return _accepted(scores, np.full_like(scores.log_odds_BL, 0.5), stops=True)


def accept_sample(scores: CoupledScores, uniform: Uniform) -> np.ndarray:
    """bool (B, L) a draw of accept-or-skip under this noise; it may be empty."""
    return _accepted(scores, uniform(0, scores.eligible_BL.shape[1]), stops=False)


class _Path:
    """Where rows stand while positions are taken one after the other (``components.maths.coupling.Path``)."""

    def __init__(self, scores: CoupledScores) -> None:
        self._scores, rows = scores, len(scores.eligible_BL)
        self._row_B, self.left_BL = np.arange(rows), scores.eligible_BL.copy()
        self._start_BL = np.where(scores.eligible_BL, scores.log_odds_BL, 0)
        self._bias_BL = np.where(scores.eligible_BL, scores.bias_BL, 0)
        self._cond_BL, self._risk_B = self._start_BL.copy(), np.zeros(rows, self._start_BL.dtype)
        self._count_B, self.rank_BL = np.zeros(rows, np.int64), np.full(scores.eligible_BL.shape, -1)

    def utilities(self) -> np.ndarray:
        own = self._scores
        kappa, tau, cost = (_per_row(value, self._cond_BL.dtype) for value in (own.kappa, own.tau, own.cost))
        return kappa * (self._cond_BL + self._bias_BL + tau - cost * self._risk_B[:, None]) / own.temperature

    def best(self, values_BL: np.ndarray) -> np.ndarray:
        """(B,) the largest of what is left, the lowest position among equals. NaN counts as the smallest."""
        values_BL = np.where(self.left_BL & ~np.isnan(values_BL), values_BL, -np.inf)
        return ((values_BL == values_BL.max(-1, keepdims=True)) & self.left_BL).argmax(-1)

    def decide(self, index_B: np.ndarray, taken_B: np.ndarray) -> None:
        """Takes position ``index_B`` out of what is left, and for good in the rows of ``taken_B``; nothing in rows
        where nothing is left."""
        place, own = (self._row_B, index_B), self._scores
        taken_B = taken_B & self.left_BL[place]
        now_B, start_B = _surprise(self._cond_BL[place]), _surprise(self._start_BL[place])
        mix_B = np.where(own.eligible_BL[place], own.mix_BL[place], 0)
        added_B = mix_B * now_B + (1 - mix_B) * (now_B - start_B)
        self._risk_B = self._risk_B + np.where(taken_B & (self._count_B > 0), added_B, 0)
        row_BL = np.where(taken_B[:, None] & own.eligible_BL, own.shift_BLL[place], 0)
        self._cond_BL = self._cond_BL + row_BL
        self.rank_BL[place] = np.where(taken_B, self._count_B, self.rank_BL[place])
        self._count_B = self._count_B + taken_B
        self.left_BL[place] = False


def _ordered(scores: CoupledScores, uniform: Uniform | None) -> tuple[np.ndarray, np.ndarray]:
    path, length = _Path(scores), scores.eligible_BL.shape[1]
    going_B: np.ndarray = np.asarray(path.left_BL.any(-1))
    for pick in range(length):
        if not going_B.any():
            break
        value_BL, stop_B = path.utilities(), np.zeros(len(going_B))
        if uniform is not None:
            value_BL = value_BL + _gumbel(uniform, _PICK + pick * _NEXT, length)
            stop_B = _gumbel(uniform, _STOP + pick * _NEXT, 1)[:, 0]
        best_B = path.best(value_BL)
        if pick > 0:
            going_B = going_B & (value_BL[np.arange(len(best_B)), best_B] > stop_B)
        path.decide(best_B, going_B)
        going_B = going_B & path.left_BL.any(-1)
    return path.rank_BL >= 0, path.rank_BL


def _accepted(scores: CoupledScores, below_BL: np.ndarray, stops: bool) -> np.ndarray:
    path, row_B = _Path(scores), np.arange(len(below_BL))
    going_B: np.ndarray = np.asarray(path.left_BL.any(-1))
    while going_B.any():
        utility_BL = path.utilities()
        best_B = path.best(utility_BL)
        utility_B = utility_BL[row_B, best_B]
        p_B = np.exp(np.minimum(utility_B, 0) - np.log1p(np.exp(-np.abs(utility_B))))
        taken_B = going_B & (below_BL[row_B, best_B] < p_B)
        path.decide(best_B, taken_B)
        going_B = (taken_B if stops else going_B) & path.left_BL.any(-1)
    return path.rank_BL >= 0


def _per_row(value: Number, dtype: np.dtype) -> Number:
    """With an axis to broadcast; a single number as Python's, which leaves float32 what it is."""
    return np.asarray(value, dtype)[:, None] if np.ndim(value) else float(value)


def _surprise(log_odds_B: np.ndarray) -> np.ndarray:
    """-log sigma(log_odds), rounded once from float64; NaN stays NaN without a warning."""
    with np.errstate(invalid="ignore"):
        return np.logaddexp(0, -log_odds_B.astype(np.float64)).astype(log_odds_B.dtype)


def _gumbel(uniform: Callable[[int, int], np.ndarray], stream: int, length: int) -> np.ndarray:
    return -np.log(-np.log(uniform(stream, length)))
