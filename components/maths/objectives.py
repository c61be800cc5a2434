"""Rewards of finished rows; advantages and surrogates of both papers, on ragged (row, step) pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import SettingsError


def speed(nfe_R: Tensor, length_R: Tensor) -> Tensor:
    """(R,) (L - min(n, L) + 1) / L: one step is worth 1, L steps 1/L (arXiv 2512.09106 as released)."""
    return (length_R - torch.minimum(nfe_R, length_R) + 1) / length_R


def multiplicative(score_R: Tensor, nfe_R: Tensor, length_R: Tensor, alpha: float | Tensor) -> Tensor:
    """(R,) r * speed^alpha, paper A's reward. alpha = 0 is pure correctness; a tensor: each row its own."""
    if bool((torch.as_tensor(alpha) < 0).any()):
        raise SettingsError(f"alpha={alpha} is negative and would reward slowness. Use alpha of at least 0.")
    return score_R * speed(nfe_R, length_R) ** alpha


def additive(score_R: Tensor, nfe_R: Tensor, length_R: Tensor, alpha: float | Tensor) -> Tensor:
    """(R,) r - alpha n/L, paper A's ablation. A wrong one-step answer beats a wrong long one: training collapses to
    committing everything at once."""
    return score_R - alpha * nfe_R / length_R


REWARDS = {"multiplicative": multiplicative, "additive": additive}


def group_advantages(reward_R: Tensor, group_R: Tensor, normalize_advantage: bool = False) -> Tensor:
    """(R,) A = R - mean of the row's group (arXiv 2512.09106; arXiv 2510.05725).

    Dividing by the group's standard deviation is an option, and a trap: where all members are right, a difference of
    one step becomes a full-size advantage.
    """
    count = int(group_R.max()) + 1 if len(group_R) else 0
    ones_R = torch.ones_like(reward_R)
    size_P = reward_R.new_zeros(count).index_add(0, group_R, ones_R).clamp(min=1)
    mean_P = reward_R.new_zeros(count).index_add(0, group_R, reward_R) / size_P
    # The rounded mean of equal rewards may differ from them; their advantage is 0.
    low_P, high_P = (
        reward_R.new_zeros(count).scatter_reduce(0, group_R, reward_R, how, include_self=False)
        for how in ("amin", "amax")
    )
    advantage_R = (reward_R - mean_P[group_R]).masked_fill((low_P == high_P)[group_R], 0.0)
    if normalize_advantage:
        variance_P = reward_R.new_zeros(count).index_add(0, group_R, advantage_R**2) / size_P
        advantage_R = advantage_R / (variance_P[group_R].sqrt() + 1e-4)
    return advantage_R


def pair_weights(row_N: Tensor, steps_R: Tensor, length_R: Tensor, weighting: str) -> Tensor:
    """(N,) weight of each (row, step) pair in the mean over rows: 1/(R T_row) ("row": paper A's 1/T_g, which favours
    short trajectories per step) or 1/(R L_row) ("constant": paper B's 1/L). T_row counts the steps that the row took,
    whether or not all of them are among the pairs."""
    per_row_R = {"row": steps_R, "constant": length_R}[weighting]
    return 1 / (len(length_R) * per_row_R[row_N])


def clipped(log_prob_N: Tensor, old_N: Tensor, advantage_N: Tensor, clip: float) -> Tensor:
    """(N,) min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = exp(log_prob - old): one ratio per step, all
    bits of it together."""
    ratio_N = (log_prob_N - old_N).exp()
    return torch.minimum(ratio_N * advantage_N, ratio_N.clamp(1 - clip, 1 + clip) * advantage_N)


def mixture_log_prob(log_prob_N: Tensor, steered_N: Tensor, members: int, experts: int) -> Tensor:
    """(N,) expert steering (arXiv 2512.09106, appendix F): rows that an expert drew have the behaviour likelihood
    G/(G+E) pi(u) + 1/(G+E) delta_expert(u), where delta is 1; other rows keep pi(u)."""
    if experts == 0:
        return log_prob_N
    own = math.log(members / (members + experts))
    theirs = torch.full_like(log_prob_N, -math.log(members + experts))
    return torch.where(steered_N, torch.logaddexp(log_prob_N + own, theirs), log_prob_N)
