"""Action distributions: what a policy may draw at one step, with exact likelihoods.

Each takes utilities (B, L) and the eligible positions (B, L), and gives ``sample(noise)``, ``mode()``,
``log_prob(action)`` (B,), ``entropy()`` (B,), ``kl(other)`` (B,) and ``fallback_B``, the position that is committed
when a draw is empty and something must be. Ineligible positions contribute nothing; a row without eligible positions
has one outcome, the empty draw, of probability 1.

To a deterministic rule use the cross-entropy, ``-log_prob(rule's action)``, which is KL(rule || policy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.devices import reads_wait
from ..core.rng import Noise
from ..core.types import Action
from .masked import masked_argmax, masked_log_softmax, one_hot, rank_of, sort_eligible


class ActionDistribution(Protocol):
    @property
    def fallback_B(self) -> Tensor: ...
    def sample(self, noise: Noise) -> Action: ...
    def mode(self) -> Action: ...
    def log_prob(self, action: Action) -> Tensor: ...
    def entropy(self) -> Tensor: ...
    def kl(self, other: ActionDistribution) -> Tensor: ...


def commit(distribution: ActionDistribution, action: Action, eligible_BL: Tensor, force: bool) -> Action:
    """The action with what the loop applies: the drawn bits; where a row drew nothing and ``force``, its fallback."""
    committed_BL = action.drawn_BL
    empty_B1 = ~committed_BL.any(-1, keepdim=True)
    if force and (reads_wait(committed_BL.device) or bool(empty_B1.any())):
        best_B = distribution.fallback_B if action.best_B is None else action.best_B
        committed_BL = committed_BL | (empty_B1 & one_hot(best_B, eligible_BL))
    return Action(action.drawn_BL, action.rank_BL, committed_BL)


Kind = TypeVar("Kind", bound=Any)


def take(distribution: Kind, index: Tensor) -> Kind:
    """The rows of a distribution at an index, which may repeat them. A tensor without axes belongs to every row."""
    values = {f.name: getattr(distribution, f.name) for f in fields(distribution)}
    return replace(distribution, **{name: v[index] for name, v in values.items() if isinstance(v, Tensor) and v.ndim})


def cross_entropy(target: ActionDistribution, policy: ActionDistribution) -> Tensor:
    """(B,) -E_target log policy, which is KL(target || policy) up to the target's own entropy: in closed form where
    the target is deterministic, or of the policy's kind (ties of max-confidence split evenly)."""
    return target.kl(policy) + target.entropy()


def same_kind(one: object, other: object) -> None:
    if type(one) is not type(other):
        raise TypeError(
            f"kl of {type(one).__name__} to {type(other).__name__}: they have other outcomes. Compare two "
            f"distributions of one kind, or use the cross-entropy to a deterministic rule, -log_prob(action)."
        )


@dataclass(frozen=True)
class Bernoulli:
    """Independent bits over the eligible positions (arXiv 2512.09106, section 4): u_k ~ Bernoulli(s_k) with
    s_k = min(1, scale * sigmoid(b_k / temperature)); ``temperature`` is the paper's tau_pi, ``scale`` its beta."""

    logits_BL: Tensor
    eligible_BL: Tensor
    temperature: float = 1.0
    scale: float = 1.0

    def _log_probs(self) -> tuple[Tensor, Tensor]:
        """log s and log(1-s), by logsigmoid: no clamp, no saturation. Ineligible positions have s = 0."""
        logits_BL = self.logits_BL / self.temperature
        log_p_BL, log_q_BL = F.logsigmoid(logits_BL), F.logsigmoid(-logits_BL)
        if self.scale != 1.0:
            log_p_BL = (log_p_BL + math.log(self.scale)).clamp(max=0.0)
            certain_BL = log_p_BL >= 0
            log_q_BL = torch.log(-torch.expm1(log_p_BL.masked_fill(certain_BL, -1.0)))
            log_q_BL = log_q_BL.masked_fill(certain_BL, -torch.inf)
        return log_p_BL.masked_fill(~self.eligible_BL, -torch.inf), log_q_BL.masked_fill(~self.eligible_BL, 0.0)

    @property
    def probability_BL(self) -> Tensor:
        return self._log_probs()[0].exp()

    @property
    def fallback_B(self) -> Tensor:
        return masked_argmax(self.logits_BL, self.eligible_BL)

    def sample(self, noise: Noise) -> Action:
        return Action(noise.uniform(0, self.logits_BL.shape[-1]) < self.probability_BL)

    def mode(self) -> Action:
        """Each bit's more probable value; at s = 1/2 it is not drawn."""
        return Action(self.probability_BL > 0.5)

    def log_prob(self, action: Action) -> Tensor:
        log_p_BL, log_q_BL = self._log_probs()
        return torch.where(action.drawn_BL, log_p_BL, log_q_BL).sum(-1)

    def entropy(self) -> Tensor:
        log_p_BL, log_q_BL = self._log_probs()
        return -(p_log(log_p_BL, log_p_BL) + p_log(log_q_BL, log_q_BL)).sum(-1)

    def kl(self, other: ActionDistribution) -> Tensor:
        same_kind(self, other)
        assert isinstance(other, Bernoulli)
        (log_p_BL, log_q_BL), (log_p2_BL, log_q2_BL) = self._log_probs(), other._log_probs()
        return (p_log(log_p_BL, log_p_BL - log_p2_BL) + p_log(log_q_BL, log_q_BL - log_q2_BL)).sum(-1)


def p_log(log_p: Tensor, value: Tensor) -> Tensor:
    """p * value with 0 * anything = 0."""
    p = log_p.exp()
    return p * value.masked_fill(p == 0, 0.0)


@dataclass(frozen=True)
class Categorical:
    """One position: softmax over the candidates (arXiv 2510.05725; the Top-K realisation narrows the candidates).

    The sampling temperature is inside the likelihood: p(k) = softmax(z / temperature)."""

    logits_BL: Tensor
    eligible_BL: Tensor
    temperature: float = 1.0

    @property
    def log_probs_BL(self) -> Tensor:
        return masked_log_softmax(self.logits_BL / self.temperature, self.eligible_BL)

    @property
    def fallback_B(self) -> Tensor:
        return masked_argmax(self.logits_BL, self.eligible_BL)

    def sample(self, noise: Noise) -> Action:
        perturbed_BL = self.log_probs_BL + noise.gumbel(0, self.logits_BL.shape[-1])
        return Action(one_hot(masked_argmax(perturbed_BL, self.eligible_BL), self.eligible_BL))

    def mode(self) -> Action:
        return Action(one_hot(self.fallback_B, self.eligible_BL))

    def log_prob(self, action: Action) -> Tensor:
        drawn_B = action.drawn_BL.sum(-1)
        log_B = self.log_probs_BL.masked_fill(~action.drawn_BL, 0.0).sum(-1)
        wanted_B = self.eligible_BL.any(-1).long()
        return log_B.masked_fill(drawn_B != wanted_B, -torch.inf)

    def entropy(self) -> Tensor:
        log_BL = self.log_probs_BL
        return -p_log(log_BL, log_BL).sum(-1)

    def kl(self, other: ActionDistribution) -> Tensor:
        """KL(self || other), +inf where the other one gives a draw of this one no probability."""
        same_kind(self, other)
        assert isinstance(other, Categorical)
        log_BL, log2_BL = self.log_probs_BL, other.log_probs_BL
        both_BL = self.eligible_BL & other.eligible_BL
        return p_log(log_BL, (log_BL - log2_BL).masked_fill(~both_BL, torch.inf)).sum(-1)


@dataclass(frozen=True)
class Deterministic:
    """A deterministic rule: the selected positions, with probability 1."""

    selected_BL: Tensor
    eligible_BL: Tensor
    score_BL: Tensor

    @property
    def fallback_B(self) -> Tensor:
        return masked_argmax(self.score_BL, self.eligible_BL)

    def sample(self, noise: Noise) -> Action:
        return self.mode()

    def mode(self) -> Action:
        return Action(self.selected_BL & self.eligible_BL)

    def log_prob(self, action: Action) -> Tensor:
        same_B = (action.drawn_BL == (self.selected_BL & self.eligible_BL)).all(-1)
        return torch.where(same_B, 0.0, -torch.inf)

    def entropy(self) -> Tensor:
        return torch.zeros(self.selected_BL.shape[0], device=self.selected_BL.device)

    def kl(self, other: ActionDistribution) -> Tensor:
        """KL(rule || other), which is the cross-entropy; to an ordered draw, that of the selection by score; to one
        with an order of its own for a set, of that order."""
        action = self.mode()
        of_set = getattr(other, "log_prob_of_set", None)
        if of_set is not None:
            return -of_set(action.drawn_BL)
        order_BL, _ = sort_eligible(self.score_BL, action.drawn_BL)
        return -other.log_prob(Action(action.drawn_BL, rank_of(order_BL).masked_fill(~action.drawn_BL, -1)))
