"""Rules and controls over the pair shifts of a trained coupled policy: what its shifts are worth, and to whom.

The two rules leave the policy's bias, risk and action aside and read its shifts alone:

=======  ==============================================================================  ==================
MiBound  by entropy, while entropies and shared information stay within gamma            arXiv 2605.20187
Demask   by confidence, while what the set does to its own predictions is within gamma   arXiv 2604.02560
=======  ==============================================================================  ==================

The controls keep all of the policy but its shifts: "shuffled" has each position's row of another one, "distance" has
-4 / |i - j|, "graph" has -4 where the task's rules join i and j. A control is asked for speed by the policy's offset.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import SettingsError
from ..core.rng import seed_of
from ..core.types import Needs, Observation
from ..maths.coupling import over
from ..maths.distributions import ActionDistribution, Deterministic
from ..maths.masked import one_hot, rank_of, sort_eligible
from .coupled import CoupledPolicy
from .dependence import apart, pairs_of
from .protocol import Policy

WEIGHT = 4.0  # of the shifts that a control makes up, as in the rules overlap and spread
Shift = Callable[[Observation, Tensor], Tensor]
Graph = tuple[tuple[int, ...], ...]
"""For each position of the canvas those that the task's rules join it to."""


def scan(score_BL: Tensor, own_BL: Tensor, pair_BLL: Tensor, eligible_BL: Tensor, gamma: float) -> Tensor:
    """bool (B, L): eligible positions, the largest score first, until one does not fit. The first one is free to take.

    Position i costs own_i + sum over j taken before it of pair_ji. It fits if the costs so far and its own sum over
    pairs are at most gamma: its own_i counts against those after it alone.
    """
    order_BL, count_B = sort_eligible(score_BL, eligible_BL)
    row_B = torch.arange(len(score_BL), device=score_BL.device)
    spent_B, tied_BL = torch.zeros_like(score_BL[:, 0], dtype=torch.float64), torch.zeros_like(own_BL).double()
    taken_BL, going_B = torch.zeros_like(eligible_BL), count_B > 0
    for pick in range(score_BL.shape[-1]):
        if over(going_B, pick):
            break
        next_B = order_BL[:, pick]
        own_B, tied_B = own_BL[row_B, next_B].double(), tied_BL[row_B, next_B]
        fits_B = ((spent_B + tied_B).to(own_BL.dtype) <= gamma) & own_B.isfinite()
        going_B = going_B & (pick < count_B) & (fits_B | (pick == 0))
        taken_BL = taken_BL | one_hot(next_B, going_B.unsqueeze(1) & eligible_BL)
        spent_B = torch.where(going_B, spent_B + own_B + tied_B, spent_B)
        tied_BL = tied_BL + pair_BLL[row_B, next_B].double().masked_fill(~going_B.unsqueeze(1), 0.0)
    return taken_BL


def _odds_and_shifts(policy: CoupledPolicy, obs: Observation) -> tuple[Tensor, Tensor]:
    """In float64, 0 at what is not eligible: l_j of each pair (B, 1, L), and w_ij (B, L, L)."""
    assert obs.log_odds_BL is not None
    odds_BL = obs.log_odds_BL.double().masked_fill(~obs.eligible_BL, 0.0)
    shift_BLL = policy.shifts(obs).double().masked_fill(~pairs_of(obs.eligible_BL), 0.0)
    return odds_BL.unsqueeze(1), shift_BLL


def information(policy: CoupledPolicy, obs: Observation) -> Tensor:
    """(B, L, L) of i and j, the mean over both directions of KL(sigma(l_j + w_ij) || sigma(l_j)), in nats."""
    odds_B1L, shift_BLL = _odds_and_shifts(policy, obs)
    moved_BLL = odds_B1L + shift_BLL
    gain_BLL = moved_BLL.sigmoid() * shift_BLL + F.softplus(odds_B1L) - F.softplus(moved_BLL)
    gain_BLL = gain_BLL.masked_fill(shift_BLL == 0, 0.0).clamp(min=0)
    return (gain_BLL + gain_BLL.mT) / 2


def dependence(policy: CoupledPolicy, obs: Observation) -> Tensor:
    """(B, L, L) |sigma(l_j + w_ij) - sigma(l_j)|: how far a commit at i moves the probability of j's prediction."""
    odds_B1L, shift_BLL = _odds_and_shifts(policy, obs)
    moved_BLL = ((odds_B1L + shift_BLL).sigmoid() - odds_B1L.sigmoid()).abs()
    return moved_BLL.masked_fill(shift_BLL == 0, 0.0)  # vector and scalar code may round a sigmoid differently


@dataclass(frozen=True)
class MiBound:
    """By entropy, lowest first, while sum over the set of h_i + ``weight`` x the information shared with earlier ones
    stays within ``gamma``. The entropy of the last one does not count, so that without shifts it is EntropyBound."""

    policy: CoupledPolicy
    gamma: float
    weight: float = 1.0

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def score(self, obs: Observation) -> Tensor:
        assert obs.entropy_BL is not None
        return -obs.entropy_BL

    @torch.no_grad()
    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL, pair_BLL = self.score(obs), self.weight * information(self.policy, obs)
        return Deterministic(
            scan(score_BL, -score_BL, pair_BLL, obs.eligible_BL, self.gamma), obs.eligible_BL, score_BL
        )


@dataclass(frozen=True)
class Demask:
    """By log-odds, largest first, while the sum of ``dependence`` on earlier ones stays within ``gamma``.

    It bounds what the set does to itself, not how unsure it is: without shifts every position is taken.
    """

    policy: CoupledPolicy
    gamma: float

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def score(self, obs: Observation) -> Tensor:
        assert obs.log_odds_BL is not None
        return obs.log_odds_BL

    @torch.no_grad()
    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL, pair_BLL = self.score(obs), dependence(self.policy, obs)
        taken_BL = scan(score_BL, torch.zeros_like(score_BL), pair_BLL, obs.eligible_BL, self.gamma)
        return Deterministic(taken_BL, obs.eligible_BL, score_BL)


@dataclass(frozen=True)
class Control:
    """The trained policy with other shifts, which ``shift`` makes from the observation and the policy's own."""

    policy: CoupledPolicy
    shift: Shift

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def score(self, obs: Observation) -> Tensor:
        return self.policy.score(obs)

    def distribution(self, obs: Observation) -> ActionDistribution:
        bias_BL, shift_BLL, mix_BL = self.policy(obs)
        other_BLL = self.shift(obs, shift_BLL).to(shift_BLL.dtype)
        return self.policy.over(obs, bias_BL, other_BLL.masked_fill(~pairs_of(obs.masked_BL), 0.0), mix_BL)


@lru_cache(maxsize=64)
def _keys(length: int) -> tuple[float, ...]:
    """A random number for each place of a canvas, the same whatever the length."""
    return tuple(float(seed_of("shuffled shifts", place)) for place in range(length))


def shuffled(obs: Observation, shift_BLL: Tensor) -> Tensor:
    """Each masked position has the row of the next one in a random cycle over the row's masked positions.

    No position keeps its own unless it is the only one. The cycle follows from the masks alone.
    """
    key_L = torch.tensor(_keys(shift_BLL.shape[-1]), dtype=torch.float64, device=shift_BLL.device)
    order_BL, count_B = sort_eligible(key_L.expand(obs.masked_BL.shape), obs.masked_BL)
    next_BL = order_BL.gather(1, (rank_of(order_BL) + 1) % count_B.clamp(min=1).unsqueeze(1))
    return shift_BLL.gather(1, next_BL.unsqueeze(2).expand_as(shift_BLL))


def distance(obs: Observation, shift_BLL: Tensor) -> Tensor:
    """-4 / |i - j|."""
    return (-WEIGHT / apart(shift_BLL[:, 0])).expand_as(shift_BLL)


def joined(graph: Graph) -> Shift:
    """-4 where the graph joins i and j."""

    def shift(obs: Observation, shift_BLL: Tensor) -> Tensor:
        length = shift_BLL.shape[-1]
        joined_LL = shift_BLL.new_zeros(length, length)
        for place, others in enumerate(graph[:length]):
            joined_LL[place, [other for other in others if other < length]] = -WEIGHT
        return joined_LL.expand_as(shift_BLL)

    return shift


def variant(name: str, policy: object, number: float, graph: Callable[[], Graph]) -> Policy:
    """A row by its name and number. graph: gives that of the task; asked for by row "graph" alone.

    SettingsError for a policy without pair shifts.
    """
    if not isinstance(policy, CoupledPolicy) or not policy.shape.pair_shifts or policy.shape.action == "categorical":
        raise SettingsError(
            f"variants.offsets: {name} reads pair shifts, and this policy has none. Remove it, or train "
            f"a coupled policy with pair_shifts and sets."
        )
    if name in ("mi_bound", "demask"):
        return MiBound(policy, number) if name == "mi_bound" else Demask(policy, number)
    moved = copy.copy(policy)
    moved.offset = number
    return Control(moved, joined(graph()) if name == "graph" else {"shuffled": shuffled, "distance": distance}[name])
