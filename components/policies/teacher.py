"""The teacher, a reference for imitation that reads the answer: it commits the predictions that are right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.types import Needs, Observation
from ..maths.distributions import ActionDistribution, Deterministic
from ..maths.masked import masked_argmax, one_hot


@dataclass(frozen=True)
class Teacher:
    """Commit exactly the eligible positions whose prediction equals the reference answer; else the most confident one.

    Not a decoder: it needs the answer (jobs with ``answers=True``).
    """

    @property
    def needs(self) -> Needs:
        return Needs(answer=True, statistics=("log_odds",))

    def score(self, obs: Observation) -> Tensor:
        if obs.log_odds_BL is None:
            raise ValueError("The observation has no log_odds_BL. Ask for it in Needs.")
        return obs.log_odds_BL

    def distribution(self, obs: Observation) -> ActionDistribution:
        if obs.answer_BL is None or obs.token_BL is None:
            raise ValueError(
                "The observation has no answer_BL or no token_BL. Make the job with answers=True, and ask for the "
                "answer in Needs."
            )
        score_BL = self.score(obs)
        right_BL = (obs.token_BL == obs.answer_BL) & obs.eligible_BL
        best_BL = one_hot(masked_argmax(score_BL, obs.eligible_BL), obs.eligible_BL)
        selected_BL = torch.where(right_BL.any(-1, keepdim=True), right_BL, best_BL)
        return Deterministic(selected_BL, obs.eligible_BL, score_BL)
