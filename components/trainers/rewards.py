"""Rewards of a finished row: a function of its task score and its number of forward passes."""

from __future__ import annotations

import torch
from torch import Tensor

from components.core.errors import SettingsError


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
