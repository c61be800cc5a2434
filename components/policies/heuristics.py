"""The heuristics, each exact and safe in a batch: at least one commit per row
with something eligible, only eligible positions, ties broken by the lowest index.

==================  ============================================================  ==================================
Quota               a fixed number of positions per step, by a score              LLaDA ``generate.py``, Dream, MaskGIT
Threshold           every confidence >= lambda, and always the row's best         Fast-dLLM, arXiv 2505.22618
Factor              the largest n with (n+1)(1 - c_(n)) < f                       Fast-dLLM, arXiv 2505.22618
EntropyBound        the largest k with sum H - max H <= gamma                     EB-Sampler, arXiv 2505.24857
Klass               confident, and stable over the last steps                     KLASS, arXiv 2511.05664
MaxConfidence       one position, the most confident, ties split evenly           UPO, arXiv 2510.05725
SoftmaxConfidence   one position ~ softmax(confidence / tau)                      UPO, arXiv 2510.05725
TopKRandom          one position, uniform over the K most confident               UPO, arXiv 2510.05725
==================  ============================================================  ==================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import SettingsError
from ..core.types import STATISTICS, Needs, Observation
from ..maths.distributions import ActionDistribution, Categorical, Deterministic
from ..maths.masked import masked_argmax, one_hot, rank_of, sort_eligible
from ..maths.plackett_luce import PlackettLuce
from .protocol import Policy, field_of

PLAIN = Needs()  # token and confidence at eligible positions, nothing else
ODDS = Needs(statistics=("log_odds",))
ENTROPY = Needs(statistics=("entropy",))


def _first(score_BL: Tensor, eligible_BL: Tensor, count_B: Tensor) -> Deterministic:
    """The ``count_B`` best eligible positions of each row, at least one."""
    order_BL, _ = sort_eligible(score_BL, eligible_BL)
    selected_BL = (rank_of(order_BL) < count_B.clamp(min=1).unsqueeze(-1)) & eligible_BL
    return Deterministic(selected_BL, eligible_BL, score_BL)


@dataclass(frozen=True)
class Quota:
    """``per_step`` positions a step by ``order``: random, left_to_right, confidence, margin or entropy (lowest first).

    Where it does not divide the block, the steps are as equal as they can be, the larger ones first (LLaDA's
    schedule): a block of 8 at 3 per step takes 3, 3, 2.
    """

    order: str
    per_step: int = 1

    def __post_init__(self) -> None:
        if self.order not in ORDERS or self.per_step < 1:
            raise SettingsError(
                f"Quota({self.order!r}, {self.per_step}) is no rule. Use one of {ORDERS} and at least 1 per step."
            )

    @property
    def needs(self) -> Needs:
        return Needs(statistics={self.order} & set(STATISTICS))

    def score(self, obs: Observation) -> Tensor:
        if self.order == "random":
            return torch.zeros(obs.masked_BL.shape, device=obs.masked_BL.device)
        if self.order == "left_to_right":
            return -torch.arange(obs.masked_BL.shape[1], device=obs.masked_BL.device).expand_as(obs.masked_BL).float()
        value_BL = field_of(obs, f"{self.order}_BL")
        return -value_BL if self.order == "entropy" else value_BL

    def distribution(self, obs: Observation) -> ActionDistribution:
        left_B = obs.eligible_BL.sum(-1)
        steps_B = -(-left_B // self.per_step)
        count_B = -(-left_B // steps_B.clamp(min=1))
        if self.order == "random":
            return PlackettLuce(self.score(obs), obs.eligible_BL, count_B)
        return _first(self.score(obs), obs.eligible_BL, count_B)


ORDERS = ("random", "left_to_right", "confidence", "margin", "entropy")


@dataclass(frozen=True)
class Threshold:
    """Commit every position with confidence >= threshold, and always the row's single best."""

    threshold: float
    needs: Needs = PLAIN

    def score(self, obs: Observation) -> Tensor:
        return field_of(obs, "confidence_BL")

    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL = self.score(obs)
        best_BL = one_hot(masked_argmax(score_BL, obs.eligible_BL), obs.eligible_BL)
        selected_BL = ((score_BL >= self.threshold) | best_BL) & obs.eligible_BL
        return Deterministic(selected_BL, obs.eligible_BL, score_BL)


@dataclass(frozen=True)
class Factor:
    """Confidences in descending order: commit the largest n such that (n + 1)(1 - c_(n)) < factor; the best is free."""

    factor: float
    needs: Needs = ODDS

    def score(self, obs: Observation) -> Tensor:
        # The log-odds order positions as the confidence does, and do not saturate at 1.
        return field_of(obs, "log_odds_BL")

    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL = self.score(obs)
        order_BL, count_B = sort_eligible(score_BL, obs.eligible_BL)
        doubt_BL = torch.sigmoid(-score_BL.gather(-1, order_BL))
        n_L = torch.arange(1, score_BL.shape[1] + 1, device=score_BL.device)
        passes_BL = ((n_L + 1) * doubt_BL < self.factor) & (n_L <= count_B.unsqueeze(-1))
        # (n + 1)(1 - c_(n)) only grows with n: what passes is a prefix.
        return _first(score_BL, obs.eligible_BL, passes_BL.sum(-1))


@dataclass(frozen=True)
class EntropyBound:
    """Entropies in ascending order: commit the largest k whose sum without its largest term is <= gamma. A position of
    infinite entropy (a suppressed one) is committed only where there is no other."""

    gamma: float
    needs: Needs = ENTROPY

    def score(self, obs: Observation) -> Tensor:
        return -field_of(obs, "entropy_BL")

    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL = self.score(obs)
        order_BL, count_B = sort_eligible(score_BL, obs.eligible_BL)
        entropy_BL = -score_BL.gather(-1, order_BL)
        before_BL = torch.nn.functional.pad(entropy_BL.cumsum(-1)[:, :-1], (1, 0))
        k_L = torch.arange(1, score_BL.shape[1] + 1, device=score_BL.device)
        passes_BL = (before_BL <= self.gamma) & (k_L <= count_B.unsqueeze(-1)) & entropy_BL.isfinite()
        return _first(score_BL, obs.eligible_BL, passes_BL.sum(-1))


@dataclass(frozen=True)
class Klass:
    """Commit where confidence > ``threshold`` and KL(p_t || p_{t-1}) < ``kl`` in each of the last ``history`` steps;
    if there is none, the ``per_step`` most confident."""

    threshold: float
    kl: float
    history: int = 2
    per_step: int = 1

    @property
    def needs(self) -> Needs:
        return Needs(drift=self.history)

    def score(self, obs: Observation) -> Tensor:
        return field_of(obs, "confidence_BL")

    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL, drift_BLH = self.score(obs), field_of(obs, "drift_BLH")
        stable_BL = (drift_BLH[..., : self.history] < self.kl).all(-1)
        sure_BL = (score_BL > self.threshold) & stable_BL & obs.eligible_BL
        count_B = torch.full_like(obs.step_B, self.per_step)
        fallback = _first(score_BL, obs.eligible_BL, count_B)
        selected_BL = torch.where(sure_BL.any(-1, keepdim=True), sure_BL, fallback.selected_BL)
        return Deterministic(selected_BL, obs.eligible_BL, score_BL)


@dataclass(frozen=True)
class MaxConfidence:
    """One position, uniformly among those of the largest confidence: UPO's deterministic reference. Decoding uses
    ``Quota("confidence", 1)``; this is the target of its cross-entropy, in which ties are split evenly."""

    needs: Needs = ODDS

    def score(self, obs: Observation) -> Tensor:
        return field_of(obs, "log_odds_BL")

    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL = self.score(obs).masked_fill(~obs.eligible_BL, -torch.inf)
        best_BL = (score_BL == score_BL.amax(-1, keepdim=True)) & obs.eligible_BL
        return Categorical(torch.zeros_like(score_BL), best_BL)


@dataclass(frozen=True)
class SoftmaxConfidence:
    """One position from softmax(max_v p(v) / tau): UPO's soft reference, over the largest probability alone (summed
    over a large vocabulary, as released, it is flat below a confidence of about .59)."""

    tau: float = 0.05
    needs: Needs = PLAIN

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise SettingsError(f"tau={self.tau} would favor the least confident. Use a tau above 0.")

    def score(self, obs: Observation) -> Tensor:
        return field_of(obs, "confidence_BL") / self.tau

    def distribution(self, obs: Observation) -> ActionDistribution:
        return Categorical(self.score(obs), obs.eligible_BL)


def shortlist(obs: Observation, k: int) -> Tensor:
    """bool (B, L): the ``k`` most confident eligible positions, or all where there are fewer."""
    order_BL, _ = sort_eligible(field_of(obs, "log_odds_BL"), obs.eligible_BL)
    return (rank_of(order_BL) < k) & obs.eligible_BL


@dataclass(frozen=True)
class TopKRandom:
    """One position, uniformly among the ``k`` most confident: UPO's Top-K reference."""

    k: int = 5
    needs: Needs = ODDS

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SettingsError(f"k={self.k} leaves nothing to draw from. Use at least 1.")

    def score(self, obs: Observation) -> Tensor:
        return torch.zeros(obs.masked_BL.shape, device=obs.masked_BL.device)

    def distribution(self, obs: Observation) -> ActionDistribution:
        return Categorical(self.score(obs), shortlist(obs, self.k))


@dataclass(frozen=True)
class SuppressTokens:
    """Another policy, with the lowest statistics at positions that predict one of ``ids`` (end of text, end of turn).

    They come last: without it full diffusion ends the text first. Rules that read no statistics (random, left to right)
    are left as they are.

    LLaDA's ``confidence_eos_eot_inf`` does a little more: it also takes the other positions' confidences among the
    tokens that are left, p / (1 - p_ids). Where ends compete for a position, that changes which one comes first, and
    which ones pass a threshold. ``renormalize``: so here, for every statistic. The two are the same where no position
    gives ``ids`` any probability.
    """

    policy: Policy
    ids: tuple[int, ...]
    renormalize: bool = False

    @property
    def needs(self) -> Needs:
        return replace(self.policy.needs, late=self.ids) if self.renormalize else self.policy.needs

    def _seen(self, obs: Observation) -> Observation:
        token_BL = field_of(obs, "token_BL")
        late_BL = torch.isin(token_BL, torch.tensor(self.ids, device=token_BL.device))
        low = -torch.inf
        worst = {"confidence_BL": low, "log_odds_BL": low, "margin_BL": low, "entropy_BL": -low}
        return replace(obs, **{n: v.masked_fill(late_BL, worst[n]) for n, v in obs.tensors().items() if n in worst})

    def score(self, obs: Observation) -> Tensor:
        return self.policy.score(self._seen(obs))

    def distribution(self, obs: Observation) -> ActionDistribution:
        return self.policy.distribution(self._seen(obs))
