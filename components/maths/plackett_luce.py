"""Ordered draws: Plackett-Luce with a fixed number of picks, and DPLS, whose number of picks is drawn.

DPLS (arXiv 2512.09106, appendix E): the first pick from a softmax over the eligible utilities; then the remaining
positions and an item STOP of utility 0 are ranked by Plackett-Luce, and what ranks before STOP is committed. It never
draws nothing, so training and evaluation need no forced commit.

The likelihood is that of the *order*. Entropy and KL have no short closed form; they are computed exactly by a sum
over subsets, for at most ``EXACT_LIMIT`` eligible positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.rng import Noise
from ..core.types import Action
from .distributions import ActionDistribution, p_log, same_kind
from .masked import masked_argmax, masked_log_softmax, masked_logsumexp, rank_of, sort_eligible

EXACT_LIMIT = 12
_FIRST, _REST, _STOP = 0, 1, 2  # noise streams


def ordered_log_prob(logits_BL: Tensor, eligible_BL: Tensor, action: Action, stop_after: int | None) -> Tensor:
    """(B,) log-probability of the picks in ``action.rank_BL`` order, each from a softmax over what is left.

    ``stop_after``: from this many picks on a STOP item of utility 0 competes and must come right after the last pick;
    None: there is no STOP, the number of picks is given from outside.
    """
    if action.rank_BL is None:
        raise ValueError("An ordered draw needs action.rank_BL. Give the action that was drawn.")
    rank_BL = action.rank_BL
    count_B = action.drawn_BL.sum(-1)
    # Positions in drawing order; what was never drawn goes behind.
    key_BL = torch.where(action.drawn_BL, rank_BL, logits_BL.shape[-1])
    order_BL = key_BL.argsort(dim=-1, stable=True)
    sorted_BL = logits_BL.masked_fill(~eligible_BL, -torch.inf).gather(-1, order_BL)
    # log of the summed weights of what is left before pick i, from the back.
    left_BL = sorted_BL.flip(-1).logcumsumexp(-1).flip(-1)
    pick_L = torch.arange(logits_BL.shape[-1], device=logits_BL.device)
    if stop_after is not None:
        competes_BL = (pick_L >= stop_after).expand_as(left_BL)
        left_BL = torch.where(competes_BL, torch.logaddexp(left_BL, torch.zeros_like(left_BL)), left_BL)
    drawn_BL = pick_L < count_B.unsqueeze(-1)
    log_B = (sorted_BL - left_BL).masked_fill(~drawn_BL, 0.0).sum(-1)
    if stop_after is not None:
        rest_BL = eligible_BL & ~action.drawn_BL
        rest_B = masked_logsumexp(logits_BL, rest_BL)
        log_B = log_B - torch.where(count_B > 0, torch.logaddexp(rest_B, torch.zeros_like(rest_B)), 0.0)
    outside_B = (action.drawn_BL & ~eligible_BL).any(-1) | (eligible_BL.any(-1) & (count_B == 0))
    return log_B.masked_fill(outside_B, -torch.inf)


def _exact(owner: str, logits_BL: Tensor, other_BL: Tensor | None, eligible_BL: Tensor, picks: int | None) -> Tensor:
    """(B,) entropy of the ordered draw, or its KL to the draw with utilities ``other_BL``; exact.

    value(S), for the set S still undrawn: the entropy (or KL) of the next pick, plus the mean of value over what that
    pick leaves. picks: how many are drawn; None: STOP competes after the first (DPLS).
    """
    rows = logits_BL.shape[0]
    count = int(eligible_BL.sum(-1).max()) if rows else 0
    if count > EXACT_LIMIT:
        raise ValueError(
            f"{owner}: the exact sum over subsets of {count} eligible positions has 2^{count} terms. "
            f"Beyond {EXACT_LIMIT} use -log_prob of sampled actions as an estimate."
        )
    order_Bk = sort_eligible(eligible_BL.to(logits_BL.dtype), eligible_BL)[0][:, :count]
    always_B1 = torch.ones(rows, 1, dtype=torch.bool, device=logits_BL.device)
    # The last column is STOP.
    z_Bk1 = torch.cat([logits_BL.gather(-1, order_Bk), logits_BL.new_zeros(rows, 1)], 1)
    ok_Bk1 = torch.cat([eligible_BL.gather(-1, order_Bk), always_B1], 1)
    other_Bk1 = None if other_BL is None else torch.cat([other_BL.gather(-1, order_Bk), z_Bk1[:, -1:]], 1)
    memo: dict[int, Tensor] = {}

    def value(left: int) -> Tensor:
        if left not in memo:
            items = [i for i in range(count) if left >> i & 1]
            drawn = count - len(items)
            columns = items + [count] * (drawn > 0) if picks is None else items * (drawn < picks)
            if not columns:
                return z_Bk1.new_zeros(rows)
            ok = ok_Bk1[:, columns]
            log_p = masked_log_softmax(z_Bk1[:, columns], ok)
            term = -log_p if other_Bk1 is None else log_p - masked_log_softmax(other_Bk1[:, columns], ok)
            total_B = p_log(log_p, term.masked_fill(~ok, 0.0)).sum(-1)
            for column, item in enumerate(items):
                # An ineligible item is never picked: its probability is 0.
                total_B = total_B + log_p[:, column].exp() * value(left & ~(1 << item))
            memo[left] = total_B
        return memo[left]

    return value((1 << count) - 1)


@dataclass(frozen=True)
class PlackettLuce:
    """``count_B`` ordered picks without replacement, or all eligible positions where they are fewer."""

    logits_BL: Tensor
    eligible_BL: Tensor
    count_B: Tensor

    @property
    def fallback_B(self) -> Tensor:
        return masked_argmax(self.logits_BL, self.eligible_BL)

    def _first(self, utility_BL: Tensor) -> Action:
        order_BL, eligible_B = sort_eligible(utility_BL, self.eligible_BL)
        rank_BL = rank_of(order_BL)
        drawn_BL = rank_BL < torch.minimum(self.count_B, eligible_B).unsqueeze(-1)
        return Action(drawn_BL, rank_BL.masked_fill(~drawn_BL, -1))

    def sample(self, noise: Noise) -> Action:
        return self._first(self.logits_BL + noise.gumbel(_FIRST, self.logits_BL.shape[-1]))

    def mode(self) -> Action:
        """The greedy order: the largest utilities."""
        return self._first(self.logits_BL)

    def log_prob(self, action: Action) -> Tensor:
        wanted_B = torch.minimum(self.count_B, self.eligible_BL.sum(-1))
        log_B = ordered_log_prob(self.logits_BL, self.eligible_BL, action, stop_after=None)
        return log_B.masked_fill(action.drawn_BL.sum(-1) != wanted_B, -torch.inf)

    def entropy(self) -> Tensor:
        return self._exact(None)

    def kl(self, other: ActionDistribution) -> Tensor:
        same_kind(self, other)
        assert isinstance(other, PlackettLuce)
        return self._exact(other.logits_BL)

    def _exact(self, other_BL: Tensor | None) -> Tensor:
        total_B = self.logits_BL.new_zeros(self.logits_BL.shape[0])
        for count in self.count_B.unique().tolist():
            rows = self.count_B == count
            other = None if other_BL is None else other_BL[rows]
            picked_BL = self.eligible_BL[rows]
            # Rows with fewer eligible positions than others: one call per eligible count keeps "count picks" exact.
            for eligible in picked_BL.sum(-1).unique().tolist():
                same = picked_BL.sum(-1) == eligible
                value_B = _exact(
                    "PlackettLuce",
                    self.logits_BL[rows][same],
                    None if other is None else other[same],
                    picked_BL[same],
                    min(count, eligible),
                )
                index_B = rows.nonzero().squeeze(-1)[same]
                total_B = total_B.index_copy(0, index_B, value_B)
        return total_B


@dataclass(frozen=True)
class DPLS:
    """Dynamic Plackett-Luce sampling (arXiv 2512.09106, appendix E)."""

    logits_BL: Tensor
    eligible_BL: Tensor
    temperature: float = 1.0

    @property
    def _z_BL(self) -> Tensor:
        return self.logits_BL / self.temperature

    @property
    def fallback_B(self) -> Tensor:
        return masked_argmax(self.logits_BL, self.eligible_BL)

    def _ranked(self, first_BL: Tensor, rest_BL: Tensor, stop_B1: Tensor) -> Action:
        """The best of ``first_BL``, then everything above STOP in the order of ``rest_BL``."""
        first_B = masked_argmax(first_BL, self.eligible_BL)
        is_first_BL = torch.zeros_like(self.eligible_BL).scatter(-1, first_B.unsqueeze(-1), True) & self.eligible_BL
        drawn_BL = is_first_BL | ((rest_BL > stop_B1) & self.eligible_BL)
        order_BL, _ = sort_eligible(rest_BL.masked_fill(is_first_BL, torch.inf), drawn_BL)
        return Action(drawn_BL, rank_of(order_BL).masked_fill(~drawn_BL, -1))

    def sample(self, noise: Noise) -> Action:
        length = self.logits_BL.shape[-1]
        z_BL = self._z_BL
        return self._ranked(
            z_BL + noise.gumbel(_FIRST, length), z_BL + noise.gumbel(_REST, length), noise.gumbel(_STOP, 1)
        )

    def mode(self) -> Action:
        """The greedy draw: the best position, and every other one with a utility above STOP's 0."""
        return self._ranked(self._z_BL, self._z_BL, self._z_BL.new_zeros(self._z_BL.shape[0], 1))

    def log_prob(self, action: Action) -> Tensor:
        return ordered_log_prob(self._z_BL, self.eligible_BL, action, stop_after=1)

    def entropy(self) -> Tensor:
        return _exact("DPLS", self._z_BL, None, self.eligible_BL, None)

    def kl(self, other: ActionDistribution) -> Tensor:
        same_kind(self, other)
        assert isinstance(other, DPLS)
        return _exact("DPLS", self._z_BL, other._z_BL, self.eligible_BL, None)
