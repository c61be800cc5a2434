"""Sections of the trainings: influence, distillation, reinforcement."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..policies.rules import check_number, known
from .section import (
    MOST,
    NUMBER,
    Count,
    Finite,
    Natural,
    NonNegative,
    Positive,
    Rate,
    Section,
    Seed,
    Share,
    Size,
)

RuleName = Annotated[str, AfterValidator(known)]
STEEPEST = 100  # exponent of speed; above it every reward but the fastest is zero


class Influence(Section):
    """Probing of the frozen dLLM, from which a coupled policy learns its shifts. Other policies skip it.

    reference, value: the rule whose states are probed. chunks: of ``prompts`` decoded canvases each, of which at most
    ``states`` states are probed at no more than ``probes`` positions. on_policy_from: from this chunk on half of the
    states are the policy's own; null: none. validation_share: of the prompts, kept for the figure of merit.
    num_epochs, batch, learning_rate: of the fit.
    """

    seed: Seed
    reference: RuleName
    value: Finite | None
    chunks: Count
    prompts: Count
    states: Count
    probes: Count
    on_policy_from: Natural | None
    validation_share: Share
    num_epochs: Count
    batch: Count
    learning_rate: Rate

    @model_validator(mode="after")
    def _names_a_rule(self) -> Influence:
        check_number(self.reference, self.value, f"value={self.value}")
        return self


class Distill(Section):
    """Imitation of a reference: a heuristic with its one number ``value``, or the teacher, which reads the answer.

    Deterministic references are imitated by cross-entropy, random ones by KL.
    """

    seed: Seed
    reference: RuleName
    value: Finite | None
    iterations: Count
    prompts: Count
    micro_batch: Count
    learning_rate: Rate

    @model_validator(mode="after")
    def _names_a_rule(self) -> Distill:
        check_number(self.reference, self.value, f"value={self.value}")
        return self


def _alpha(value: Any) -> Any:
    several = isinstance(value, list | tuple)
    numbers = list(value) if several else [value]
    right = all(isinstance(a, int | float) and not isinstance(a, bool) and 0 <= a <= STEEPEST for a in numbers)
    if not numbers or not right or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"alpha={value!r} is no exponent of speed. Give a number from 0 to {STEEPEST}, or a list of different ones."
        )
    return tuple(float(a) for a in numbers) if several else float(value)


def _rule_or_distilled(name: str) -> str:
    return name if name == "distilled" else known(name)


class Train(Section):
    """iterations of prompts x group rollouts, + experts: threshold decoding in expert_block.

    Every validate_every iterations the policy's reward is measured on the tune split. The best policy is kept.

    objective        "upo" checks that the fields below are paper B's: one position per step, a divergence.
    alpha            speed exponent of the reward. A list: each group draws one, and the policy reads it.
    reference        what the divergence and policy/kl are measured from: the distilled policy, or a rule.
    divergence       kl, ce or none; deterministic rules need ce. kl_coef: its weight.
    record_share     share of the steps that is stored and learned from (UPO's Algorithm 2).
    temperature      of the rollouts, inside the likelihood. anneal: linear decay to 1.
    entropy          nats per step that the temperature is adapted to; null: not adapted.
    force_commit     of the best position where a draw is empty; false: an empty draw stands.
    step_limit       see ``components.decode.engine``. rollout_rows: in flight. micro_batch: (row, step) pairs.
    min_lr_ratio     last learning rate over the first.
    """

    seed: Seed
    objective: Literal["grpo", "upo"]
    alpha: Annotated[float | tuple[float, ...], BeforeValidator(_alpha)]
    reward: Literal["multiplicative", "additive"]
    signal: Literal["correct", "dense"]
    iterations: Count
    prompts: Count
    group: Annotated[int, Field(ge=2, le=MOST), NUMBER]
    experts: Natural
    expert_threshold: Share
    expert_block: Size | None
    learning_rate: Rate
    warmup: Natural
    min_lr_ratio: Share
    weight_decay: NonNegative
    clip_eps: Positive
    clip_norm: Positive
    num_epochs: Count
    weighting: Literal["row", "constant"]
    normalize_advantage: bool
    reference: Annotated[str, AfterValidator(_rule_or_distilled)]
    reference_value: Finite | None
    divergence: Literal["kl", "ce", "none"]
    kl_coef: NonNegative
    record_share: Annotated[float, Field(gt=0, le=1), NUMBER]
    temperature: Positive
    anneal: bool
    entropy: Positive | None
    force_commit: bool
    step_limit: Literal["canvas", "block"]
    micro_batch: Count
    rollout_rows: Count
    validate_every: Count
    save_every: Count

    @property
    def alphas(self) -> tuple[float, ...]:
        """The exponents that the policy is conditioned on; empty where there is one alone."""
        return self.alpha if isinstance(self.alpha, tuple) and len(self.alpha) > 1 else ()

    @property
    def one_alpha(self) -> float:
        return self.alpha[0] if isinstance(self.alpha, tuple) else self.alpha

    @model_validator(mode="after")
    def _agrees(self) -> Train:
        if self.reference != "distilled":
            check_number(self.reference, self.reference_value, f"reference_value={self.reference_value}")
        elif self.reference_value is not None:
            raise ValueError(f"reference_value={self.reference_value}: distilled takes no number. Write null.")
        if self.divergence == "none" and self.kl_coef > 0:
            raise ValueError(
                f"kl_coef={self.kl_coef} with divergence=none weights nothing. "
                f"Name a divergence, or write kl_coef: 0.0."
            )
        if self.entropy is not None and self.anneal:
            raise ValueError(
                f"entropy={self.entropy} with anneal=true: the temperature cannot both fall to 1 and hold an entropy. "
                f"Write anneal: false, or entropy: null."
            )
        if self.objective == "upo" and (self.kl_coef == 0 or self.weighting != "constant" or self.alpha != 0):
            raise ValueError(
                f"objective=upo with kl_coef={self.kl_coef}, weighting={self.weighting} and alpha={self.alpha} is not "
                f"paper B's. Use kl_coef > 0, weighting: constant and alpha: 0, or objective: grpo."
            )
        return self
