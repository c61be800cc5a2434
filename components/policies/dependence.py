"""Rules over pairs of positions: training-free, exact and safe in a batch, as ``heuristics`` are.

==========  ==============================================================================  ==================
MeanField   certain also where similar positions are certain of the same                     arXiv 2606.15805
Overlap     the greedy set with shifts from how much two predictions overlap                 ours
Spread      the greedy set with shifts from the distance alone: a control                    ours
Adas        greedy by a confidence that attention to unsure commits lowers                   arXiv 2606.10829
Dapd        positions without an edge between them, edges from attention                     arXiv 2603.12996
==========  ==============================================================================  ==================

Predictions are compared over the ``top_k`` largest probabilities and their tokens; what is beyond counts as different.
Only eligible positions are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.devices import over
from ..core.types import Needs, Observation
from ..maths.distributions import ActionDistribution, Deterministic
from ..maths.greedy import greedy_set
from ..maths.masked import masked_argmax, one_hot, sort_eligible
from .protocol import field_of

_LN_2, _TINY = math.log(2), 1e-300


def best_of(score_BL: Tensor, eligible_BL: Tensor) -> Tensor:
    """bool (B, L): the row's single best."""
    return one_hot(masked_argmax(score_BL, eligible_BL), eligible_BL)


def pairs_of(eligible_BL: Tensor) -> Tensor:
    """bool (B, L, L): two different eligible positions."""
    different_LL = ~torch.eye(eligible_BL.shape[-1], dtype=torch.bool, device=eligible_BL.device)
    return eligible_BL.unsqueeze(2) & eligible_BL.unsqueeze(1) & different_LL


def apart(values_BL: Tensor) -> Tensor:
    """(L, L) the distance |i - j| of two positions, in the values' type; 1 on the diagonal."""
    place_L = torch.arange(values_BL.shape[-1], device=values_BL.device)
    return (place_L - place_L.unsqueeze(1)).abs().clamp(min=1).to(values_BL.dtype)


def over_shared_tokens(obs: Observation, top_k: int, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(B, L, L) the sum of ``term(p_i(v), p_j(v))`` over tokens v that i and j both keep; ``term`` is 0 at p_j = 0.

    One token of i after the other, in float64: the same bits alone, in a batch and with padding.
    """
    top_BLK, ids_BLK = field_of(obs, "top_BLK")[..., :top_k].double(), field_of(obs, "top_ids_BLK")[..., :top_k]
    theirs_B1LK, ids_B1LK = top_BLK.unsqueeze(1), ids_BLK.unsqueeze(1)
    total_BLL = top_BLK.new_zeros(top_BLK.shape[0], top_BLK.shape[1], top_BLK.shape[1])
    for k in range(top_BLK.shape[-1]):
        # At most one of j's tokens is i's k-th; an id of -1 has probability 0 on both sides.
        found_BLL = torch.where(ids_B1LK == ids_BLK[:, :, None, k, None], theirs_B1LK, 0.0).sum(-1)
        total_BLL = total_BLL + term(top_BLK[:, :, None, k].expand_as(found_BLL), found_BLL)
    return total_BLL


def overlap(obs: Observation, top_k: int) -> Tensor:
    """(B, L, L) sum over tokens of p_i(v) p_j(v): the chance that two independent draws agree."""
    return over_shared_tokens(obs, top_k, torch.mul)


def _alike(p: Tensor, q: Tensor) -> Tensor:
    """A shared token's term of 1 - JSD(p, q) / ln 2."""
    mean = ((p + q) / 2).clamp(min=_TINY)
    return torch.where(q > 0, mean - (p.xlogy(p / mean) + q.xlogy(q / mean)) / (2 * _LN_2), 0.0)


def likeness(obs: Observation, top_k: int) -> Tensor:
    """(B, L, L) 1 - JSD(p_i, p_j) / ln 2 of eligible pairs, 0 elsewhere: 1 for equal predictions, 0 for disjoint."""
    found_BLL = over_shared_tokens(obs, top_k, _alike)
    return found_BLL.masked_fill(~pairs_of(obs.eligible_BL), 0.0)


@dataclass(frozen=True)
class MeanField:
    """Commit where q >= ``tau``: q is sigma of the lead of the first token over the second, twice lowered by the q of
    the positions that predict alike.

    q <- sigma(m), then twice q <- sigma(m - D q), with m the difference of the two largest logits, and D the likeness
    divided by its largest value in the row. Where no position passes: the row's best.
    """

    tau: float
    top_k: int = 8

    @property
    def needs(self) -> Needs:
        return Needs(top_k=self.top_k, top_ids=True, statistics=("log_odds",))

    def score(self, obs: Observation) -> Tensor:
        """m - D q of the second pass."""
        top_BLK, eligible_BL = field_of(obs, "top_BLK").double(), obs.eligible_BL
        lead_BL = top_BLK[..., 0].log() - top_BLK[..., 1].log()
        # A suppressed position has log-odds of -inf; elsewhere m comes from the probabilities.
        lead_BL = torch.where(field_of(obs, "log_odds_BL") == -torch.inf, -torch.inf, lead_BL)
        lead_BL = lead_BL.masked_fill(~eligible_BL, 0.0)
        alike_BLL = likeness(obs, self.top_k)
        largest_BL1 = alike_BLL.amax(-1, keepdim=True)
        alike_BLL = alike_BLL / largest_BL1.masked_fill(largest_BL1 == 0, 1.0)
        value_BL = lead_BL
        for _ in range(2):
            q_BL = value_BL.sigmoid().masked_fill(~eligible_BL, 0.0)
            value_BL = lead_BL - (alike_BLL * q_BL.unsqueeze(1)).sum(-1)
        return value_BL.float()

    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL, eligible_BL = self.score(obs), obs.eligible_BL
        certain_BL = score_BL.double().sigmoid() >= self.tau
        return Deterministic((certain_BL | best_of(score_BL, eligible_BL)) & eligible_BL, eligible_BL, score_BL)


@dataclass(frozen=True)
class Overlap:
    """The greedy set with w_ij = -``weight`` x the overlap of the predictions at i and j.

    share: of the joint probability in the risk; 1 bounds the joint probability of the set by exp(-gamma) beside the
    first, 0 bounds how much of it the set itself costs.
    """

    gamma: float
    share: float = 1.0
    weight: float = 4.0
    top_k: int = 8

    @property
    def needs(self) -> Needs:
        return Needs(top_k=self.top_k, top_ids=True, statistics=("log_odds",))

    def score(self, obs: Observation) -> Tensor:
        return field_of(obs, "log_odds_BL")

    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL = self.score(obs)
        shift_BLL = (-self.weight * overlap(obs, self.top_k)).masked_fill(~pairs_of(obs.eligible_BL), 0.0)
        selected_BL = greedy_set(score_BL, shift_BLL.to(score_BL.dtype), obs.eligible_BL, self.gamma, self.share)
        return Deterministic(selected_BL, obs.eligible_BL, score_BL)


@dataclass(frozen=True)
class Spread:
    """The greedy set with w_ij = -``weight`` / |i - j|: what a rule gains from keeping commits apart, and no more."""

    gamma: float
    weight: float = 4.0

    @property
    def needs(self) -> Needs:
        return Needs(statistics=("log_odds",))

    def score(self, obs: Observation) -> Tensor:
        return field_of(obs, "log_odds_BL")

    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL = self.score(obs)
        shift_BLL = (-self.weight / apart(score_BL)).masked_fill(~pairs_of(obs.eligible_BL), 0.0)
        return Deterministic(
            greedy_set(score_BL, shift_BLL, obs.eligible_BL, self.gamma, 1.0), obs.eligible_BL, score_BL
        )


def mean_attention(obs: Observation, layers: tuple[int, ...]) -> Tensor:
    """(B, L, L) what position i attends to position j, mean over heads and over these layers, in float64."""
    attention_BLLA = field_of(obs, "attention_BLLA").double()
    # Beside a policy that needs other layers there are more than these.
    return torch.stack([attention_BLLA[..., obs.attention_layers.index(layer)] for layer in layers]).mean(0)


@dataclass(frozen=True)
class Adas:
    """Greedy by u_i = c_i - ``weight`` x the attention from i to each position taken, times that one's uncertainty.

    The stop is the threshold rule's: the best of what is left is taken while its u >= ``threshold``; the first is free.
    """

    threshold: float
    weight: float = 40.0
    layers: tuple[int, ...] = (-1,)

    @property
    def needs(self) -> Needs:
        return Needs(attention=self.layers)

    def score(self, obs: Observation) -> Tensor:
        return field_of(obs, "confidence_BL")

    @torch.no_grad()
    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL, left_BL = self.score(obs), obs.eligible_BL
        attention_BLL = mean_attention(obs, self.layers).to(score_BL.dtype)
        value_BL, row_B = score_BL, torch.arange(len(score_BL), device=score_BL.device)
        going_B = left_BL.any(-1)
        for pick in range(score_BL.shape[-1]):
            if over(going_B, pick):
                break
            best_B = masked_argmax(value_BL, left_BL)
            going_B = going_B & left_BL.any(-1) & ((value_BL[row_B, best_B] >= self.threshold) | (pick == 0))
            left_BL = left_BL & ~one_hot(best_B, going_B.unsqueeze(1) & left_BL)
            unsure_B1 = (1 - score_BL[row_B, best_B].clamp(min=0)).unsqueeze(1)
            value_BL = value_BL - self.weight * attention_BLL[row_B, :, best_B] * unsure_B1
        return Deterministic(obs.eligible_BL & ~left_BL, obs.eligible_BL, score_BL)


@dataclass(frozen=True)
class Dapd:
    """While at least half is masked: by (sum_j s_ij) c_i, largest first, whatever has no edge into the set so far.

    s is the attention between two positions, both ways averaged, over ``layers``: the last 30 % of the denoiser's. An
    edge is s > t; t rises from a fifth of ``edge`` to ``edge`` as masks vanish. Below half: confidence >= ``sure``.
    """

    edge: float
    sure: float = 0.9
    layers: tuple[int, ...] = (-1,)

    @property
    def needs(self) -> Needs:
        return Needs(attention=self.layers)

    def score(self, obs: Observation) -> Tensor:
        return field_of(obs, "confidence_BL")

    @torch.no_grad()
    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL, eligible_BL = self.score(obs), obs.eligible_BL
        attention_BLL = mean_attention(obs, self.layers)
        tie_BLL = ((attention_BLL + attention_BLL.mT) / 2).masked_fill(~pairs_of(eligible_BL), 0.0)
        masked_B = obs.masked_BL.sum(-1) / obs.length_B
        limit_B = self.edge * (1 - 0.8 * masked_B.double())
        edge_BLL = tie_BLL > limit_B[:, None, None]
        weight_BL = (tie_BLL.sum(-1) * score_BL.clamp(min=0)).float()
        weight_BL = weight_BL.masked_fill(score_BL == -torch.inf, -torch.inf)
        order_BL, count_B = sort_eligible(weight_BL, eligible_BL)
        taken_BL, row_B = torch.zeros_like(eligible_BL), torch.arange(len(score_BL), device=score_BL.device)
        for place in range(int(count_B.max()) if len(count_B) else 0):
            next_B = order_BL[:, place]
            free_B = ~(edge_BLL[row_B, next_B] & taken_BL).any(-1) & (place < count_B)
            free_B = free_B & ((score_BL[row_B, next_B] > -torch.inf) | (place == 0))
            taken_BL = taken_BL | one_hot(next_B, free_B.unsqueeze(1) & eligible_BL)
        late_BL = (score_BL >= self.sure) | best_of(score_BL, eligible_BL)
        selected_BL = torch.where((masked_B >= 0.5).unsqueeze(1), taken_BL, late_BL) & eligible_BL
        return Deterministic(selected_BL, eligible_BL, score_BL)
