"""Divergence of a policy from a reference at each recorded state, as a term of a loss.

Bernoulli and categorical draws have closed forms, and so has the cross-entropy to a rule. Ordered draws have too many
outcomes. Their divergence is estimated from the recorded draw a, of probability q(a) when it was drawn:

    KL(policy || reference) ~ rho d(a),   rho = policy(a) / q(a),   d = log policy(a) - log reference(a)

Its mean over a ~ q is the divergence, and the mean of rho d grad log policy(a) is its gradient: the other part of the
gradient, E[grad log policy], is zero. Both are unbiased in every epoch, without a bound on the variance of rho.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.types import Action
from .accept_or_skip import AcceptOrSkip
from .coupled import CoupledPlackettLuce
from .distributions import ActionDistribution, Deterministic, cross_entropy, same_kind
from .plackett_luce import DPLS


@dataclass(frozen=True)
class Draw:
    """The recorded draws of n states.

    log_prob_n  of the action by the policy as it is now, with its gradient.
    old_n       of the action when it was drawn.
    foreign_n   bool, drawn by another policy; such a draw counts 0.
    """

    action: Action
    log_prob_n: Tensor
    old_n: Tensor
    foreign_n: Tensor


def divergence(
    policy: ActionDistribution, reference: ActionDistribution, draw: Draw, kind: str, learns: bool
) -> Tensor:
    """(n,) the divergence, its gradient that of the divergence too. kind: "kl", to a rule the cross-entropy, or "ce".

    learns: False where it is logged only; the divergence of DPLS, an exact sum of many terms, is then estimated.
    """
    if kind == "ce" or isinstance(reference, Deterministic):
        return cross_entropy(reference, policy)
    if isinstance(policy, CoupledPlackettLuce | AcceptOrSkip) or (isinstance(policy, DPLS) and not learns):
        same_kind(policy, reference)
        return _estimate(reference, draw)
    return policy.kl(reference)


def _estimate(reference: ActionDistribution, draw: Draw) -> Tensor:
    own_n, score_n = draw.log_prob_n.detach(), draw.log_prob_n
    weight_n = (own_n - draw.old_n).exp() * (own_n - reference.log_prob(draw.action).detach())
    weight_n = weight_n.masked_fill(draw.foreign_n, 0.0)
    # What another policy drew may be impossible here: its -inf must not meet the 0.
    score_n = score_n.masked_fill(draw.foreign_n, 0.0)
    return weight_n + weight_n * (score_n - score_n.detach())


def entropy(policy: ActionDistribution, log_prob_n: Tensor) -> Tensor:
    """(n,) the entropy; of an ordered draw its unbiased estimate, minus the recorded action's log-probability."""
    estimated = isinstance(policy, DPLS | CoupledPlackettLuce | AcceptOrSkip)
    with torch.no_grad():
        return -log_prob_n.detach() if estimated else policy.entropy()
