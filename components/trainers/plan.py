"""The objective of reinforcement (``Objective``) and its schedule (``Plan``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import SettingsError
from ..maths.objectives import REWARDS


@dataclass(frozen=True)
class Objective:
    """The quantity to maximize, and the steps of an iteration.

    alpha, reward    speed exponent and form, see ``rewards``. signal: "correct" or "dense", the score that is rewarded.
    alphas           each group draws one of them in place of alpha, for a policy that is conditioned on it.
    clip_eps         of the clipped ratio. num_epochs: optimizer steps per iteration (mu).
    weighting        "row" (1/T_g) or "constant" (1/L).
    normalize_advantage  divide the advantage by the group's standard deviation.
    kl_coef          weight of the divergence from the reference policy; divergence "kl": KL(policy || reference) per
                     step, in closed form or, of a coupled draw, estimated without bias (``maths.divergence``); "ce":
                     the cross-entropy from the reference to the policy. Both leave out the effect of an action on the
                     states visited later (the KL to go).
    micro_batch      (row, step) pairs per forward of the policy; their gradients are added up.
    record_share     share of the steps that is recorded and enters the update, with weights to match (UPO's Algorithm
                     2: stored features of long canvases are large), 1.0 for all.
    """

    alpha: float = 1.0
    reward: str = "multiplicative"
    signal: str = "correct"
    clip_eps: float = 0.5
    num_epochs: int = 2
    weighting: str = "constant"
    normalize_advantage: bool = False
    kl_coef: float = 0.0
    divergence: str = "kl"
    micro_batch: int = 1024
    record_share: float = 1.0
    alphas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise SettingsError(
                    f"objective {name}={getattr(self, name)!r} is unknown. Use one of {', '.join(known)}."
                )
        if not 0 < self.record_share <= 1 or self.num_epochs < 1:
            raise SettingsError(
                f"objective with record_share={self.record_share} and num_epochs={self.num_epochs} has no update. "
                f"Use a share in (0, 1] and at least one epoch."
            )


CHOICES = {
    "reward": tuple(REWARDS),
    "signal": ("correct", "dense"),
    "weighting": ("row", "constant"),
    "divergence": ("kl", "ce"),
}


COOLEST, WARMEST = 1.0, 20.0  # bounds of the temperature that holds an entropy


@dataclass(frozen=True)
class Plan:
    """Schedule of a reinforcement.

    iterations      of ``prompts`` prompts x ``group`` members, + ``experts`` members that the expert policy draws in
                    blocks of ``expert_block``.
    learning_rate   rises over ``warmup`` iterations and falls by a cosine to ``min_lr_ratio`` of itself.
    force_commit    and step_limit: see ``DecodeOptions``. rollout_rows: rows in flight at most.
    temperature     and anneal, entropy: see ``temperature_at``.
    """

    iterations: int
    prompts: int
    group: int
    learning_rate: float
    seed: int
    block_length: int | None
    experts: int = 0
    expert_block: int | None = None
    warmup: int = 5
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    force_commit: bool = True
    step_limit: str = "canvas"
    rollout_rows: int = 512
    temperature: float = 1.0
    anneal: bool = True
    entropy: float | None = None
    frontier: int | None = None

    def learning_rate_at(self, number: int) -> float:
        """Linear warm-up, then a cosine to ``min_lr_ratio``."""
        fall = self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * number / self.iterations))
        return self.learning_rate * min(1.0, (number + 1) / max(self.warmup, 1)) * fall

    def temperature_at(self, number: int, before: tuple[float, float] | None = None) -> float:
        """Sampling temperature of an iteration, a factor on the policy's own.

        ``entropy`` set: adapted to hold that many nats per step, from the iteration ``before`` (its temperature and its
        entropy). Else ``anneal``: linear decay to 1. Else constant, as UPO samples at .8."""
        if self.entropy is not None:
            if before is None:
                return self.temperature
            temperature, seen = before
            short = max(-1.0, min(1.0, 1 - seen / self.entropy))
            return max(COOLEST, min(WARMEST, temperature * math.exp(0.2 * short)))
        return 1 + (self.temperature - 1) * (1 - number / self.iterations) if self.anneal else self.temperature
