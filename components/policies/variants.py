"""Rules and controls over the pair shifts of a trained coupled policy. They measure what the shifts are worth.

The two rules leave the policy's bias, risk and action aside and read its shifts alone:

========  ==============================================================================  ==================
mi_bound  by entropy, while entropies and shared information stay within gamma            arXiv 2605.20187
demask    by confidence, while what the set does to its own predictions is within gamma   arXiv 2604.02560
========  ==============================================================================  ==================

The controls keep all of the policy but its shifts: "shuffled" gives a position the row of another one, "distance" has
-4 / |i - j|, "graph" has -4 where the task's rules join i and j. "negative" and "positive" keep the shifts of one sign,
those that hold positions apart or those that take them together. The policy's offset sets a control's speed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.devices import over
from ..core.errors import SettingsError
from ..core.rng import seed_of
from ..core.types import Needs, Observation
from ..maths.distributions import ActionDistribution, Deterministic
from ..maths.masked import one_hot, rank_of, sort_eligible
from .coupled import CoupledPolicy, draws_by_shifts
from .dependence import apart, pairs_of
from .protocol import Policy, field_of
from .rules import PAIR_ROWS

WEIGHT = 4.0  # of the shifts that a control makes up, as in the rules overlap and spread
Shift = Callable[[Observation, Tensor], Tensor]
Graph = tuple[tuple[int, ...], ...]
"""The positions that the task's rules join to each position of the canvas."""
GetGraph = Callable[[], Graph]


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
    odds_BL = field_of(obs, "log_odds_BL").double().masked_fill(~obs.eligible_BL, 0.0)
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
class Variant:
    """A policy with the needs of a trained one, and scores and distributions of its own."""

    policy: CoupledPolicy
    score: Callable[[Observation], Tensor]
    distribution: Callable[[Observation], ActionDistribution]

    @property
    def needs(self) -> Needs:
        return self.policy.needs


def mi_bound(policy: CoupledPolicy, gamma: float, _: GetGraph) -> Variant:
    """By entropy, lowest first, while sum over the set of h_i + the information shared with earlier ones stays within
    ``gamma``. The entropy of the last one does not count, so that without shifts it is EntropyBound."""
    return _scanned(policy, gamma, lambda obs: -field_of(obs, "entropy_BL"), torch.neg, information)


def demask(policy: CoupledPolicy, gamma: float, _: GetGraph) -> Variant:
    """By log-odds, largest first, while the sum of ``dependence`` on earlier ones stays within ``gamma``.

    It bounds what the set does to itself, not its uncertainty: without shifts every position is taken.
    """
    return _scanned(policy, gamma, lambda obs: field_of(obs, "log_odds_BL"), torch.zeros_like, dependence)


def _scanned(
    policy: CoupledPolicy,
    gamma: float,
    score: Callable[[Observation], Tensor],
    own: Callable[[Tensor], Tensor],
    pair: Callable[[CoupledPolicy, Observation], Tensor],
) -> Variant:
    """The rule that scans by ``score``. own: a position's cost, from its score; pair: the costs of two positions."""

    @torch.no_grad()
    def distribution(obs: Observation) -> ActionDistribution:
        score_BL = score(obs)
        taken_BL = scan(score_BL, own(score_BL), pair(policy, obs), obs.eligible_BL, gamma)
        return Deterministic(taken_BL, obs.eligible_BL, score_BL)

    return Variant(policy, score, distribution)


def shuffled(policy: CoupledPolicy, offset: float, _: GetGraph) -> Variant:
    return _control(policy, offset, shuffled_shifts)


def distance(policy: CoupledPolicy, offset: float, _: GetGraph) -> Variant:
    return _control(policy, offset, distance_shifts)


def graph(policy: CoupledPolicy, offset: float, get_graph: GetGraph) -> Variant:
    return _control(policy, offset, graph_shifts(get_graph()))


def negative(policy: CoupledPolicy, offset: float, _: GetGraph) -> Variant:
    return _control(policy, offset, lambda obs, shift_BLL: shift_BLL.clamp(max=0))


def positive(policy: CoupledPolicy, offset: float, _: GetGraph) -> Variant:
    return _control(policy, offset, lambda obs, shift_BLL: shift_BLL.clamp(min=0))


def _control(policy: CoupledPolicy, offset: float, shift: Shift) -> Variant:
    """The trained policy at an offset with other shifts, made from the observation and the policy's own ones."""
    moved = copy.copy(policy)
    moved.offset = offset

    def distribution(obs: Observation) -> ActionDistribution:
        bias_BL, shift_BLL, mix_BL = moved(obs)
        other_BLL = shift(obs, shift_BLL).to(shift_BLL.dtype)
        return moved.over(obs, bias_BL, other_BLL.masked_fill(~pairs_of(obs.masked_BL), 0.0), mix_BL)

    return Variant(moved, moved.score, distribution)


@lru_cache(maxsize=64)
def _keys(length: int) -> tuple[float, ...]:
    """A random number for each position of a canvas. It does not depend on the length."""
    return tuple(float(seed_of("shuffled shifts", position)) for position in range(length))


def shuffled_shifts(obs: Observation, shift_BLL: Tensor) -> Tensor:
    """Each masked position has the row of the next one in a random cycle over the row's masked positions.

    No position keeps its own unless it is the only one. The cycle follows from the masks alone.
    """
    key_L = torch.tensor(_keys(shift_BLL.shape[-1]), dtype=torch.float64, device=shift_BLL.device)
    order_BL, count_B = sort_eligible(key_L.expand(obs.masked_BL.shape), obs.masked_BL)
    next_BL = order_BL.gather(1, (rank_of(order_BL) + 1) % count_B.clamp(min=1).unsqueeze(1))
    return shift_BLL.gather(1, next_BL.unsqueeze(2).expand_as(shift_BLL))


def distance_shifts(obs: Observation, shift_BLL: Tensor) -> Tensor:
    """-4 / |i - j|."""
    return (-WEIGHT / apart(shift_BLL[:, 0])).expand_as(shift_BLL)


def graph_shifts(graph: Graph) -> Shift:
    """-4 where the graph joins i and j."""

    def shift(obs: Observation, shift_BLL: Tensor) -> Tensor:
        length = shift_BLL.shape[-1]
        joined_LL = shift_BLL.new_zeros(length, length)
        for position, others in enumerate(graph[:length]):
            joined_LL[position, [other for other in others if other < length]] = -WEIGHT
        return joined_LL.expand_as(shift_BLL)

    return shift


def variant(name: str, policy: object, number: float, get_graph: GetGraph) -> Policy:
    """A row of ``rules.PAIR_ROWS`` at a number. get_graph: returns the task's graph; called for row "graph" alone.

    SettingsError for a policy without pair shifts.
    """
    if not draws_by_shifts(policy):
        raise SettingsError(
            f"variants.offsets: {name} reads pair shifts, and this policy has none. Remove it, or train "
            f"a coupled policy with pair_shifts and sets."
        )
    return PAIR_ROWS[name].build(policy, number, get_graph)
