"""The experience of one iteration of reinforcement: rollouts, rewards and their metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.types import Rollout, Steps
from ..decode.job import Job
from ..maths import objectives


@dataclass(frozen=True)
class Experience:
    """The rollouts of iteration ``number`` with their scores, rewards and advantages.

    share: of the iteration's prompts that are this process's.
    """

    job: Job
    rollout: Rollout
    steps: Steps
    reward_R: Tensor
    correct_R: Tensor
    dense_R: Tensor
    advantage_R: Tensor
    number: int = 0
    share: float = 1.0

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of rewards and decoding, without the steered rows."""
        own_R = self.job.policy_R == 0
        reward_R = self.reward_R[own_R]
        groups = self.job.prompt_R[own_R]
        spread_R = objectives.group_advantages(reward_R, groups)
        size = int(groups.max()) + 1
        # -log p of a draw is an unbiased estimate of its distribution's entropy.
        drawn_N = self.steps.log_prob_N[own_R[self.steps.row_N]]
        std_P = (torch.zeros(size).index_add(0, groups, spread_R**2) / groups.bincount(minlength=size)).sqrt()
        return {
            "reward/mean": float(reward_R.mean()),
            "reward/group_std": float(std_P.mean()),
            "reward/mixed_groups": float((std_P > 0).float().mean()),
            "reward/correct": float(self.correct_R[own_R].mean()),
            "reward/dense": float(self.dense_R[own_R].mean()),
            "decode/entropy": -float(drawn_N.mean()) if len(drawn_N) else 0.0,
            "decode/nfe": float(self.rollout.nfe_R.cpu()[own_R].float().mean()),
            "decode/useful": self.rollout.useful / max(self.rollout.forwards, 1),
            "decode/finished": float(self.rollout.finished_R.cpu()[own_R].float().mean()),
        }

    def counts(self, metrics: Mapping[str, float]) -> dict[str, int]:
        """The number of rows, groups, draws or forwards that each metric is the mean over."""
        own_R = self.job.policy_R == 0
        groups, drawn = len(self.job.prompts), int(own_R[self.steps.row_N].sum())
        return dict.fromkeys(metrics, int(own_R.sum())) | {
            "reward/group_std": groups,
            "reward/mixed_groups": groups,
            "decode/entropy": drawn,
            "decode/useful": self.rollout.forwards,
        }
