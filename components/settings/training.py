"""Sections of the two trainings: the imitation of a reference, then reinforcement."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from components.policies.rules import check_number, known
from components.settings.section import (
    MOST,
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
STEEPEST = 100  # exponent of speed; beyond it every reward but the fastest is zero


class Influence(Section):
    """Probing of the frozen dLLM, by which a coupled policy learns its shifts; other policies take none.

    reference, value: the rule whose states are probed. chunks: of ``prompts`` decoded canvases each, of which at most
    ``states`` states are probed at no more than ``probes`` positions. own_from: from this chunk on half of the states
    are the policy's own; null: none. held: share of prompts kept for the figure of merit. epochs, batch,
    learning_rate: of the fit.
    """

    seed: Seed
    reference: RuleName
    value: Finite | None
    chunks: Count
    prompts: Count
    states: Count
    probes: Count
    own_from: Natural | None
    held: Share
    epochs: Count
    batch: Count
    learning_rate: Rate

    @model_validator(mode="after")
    def _names_a_rule(self) -> Influence:
        check_number(self.reference, self.value, f"value={self.value}")
        return self


class Distill(Section):
    """reference: a heuristic with its one number ``value``, or the teacher that knows the answer. What is without
    randomness is imitated by cross-entropy, the rest by KL."""

    seed: Seed
    reference: RuleName
    value: Finite | None
    rounds: Count
    prompts: Count
    pairs: Count
    learning_rate: Rate

    @model_validator(mode="after")
    def _names_a_rule(self) -> Distill:
        check_number(self.reference, self.value, f"value={self.value}")
        return self


def _alpha(value: Any) -> Any:
    many = isinstance(value, list | tuple)
    numbers = list(value) if many else [value]
    right = all(isinstance(a, int | float) and not isinstance(a, bool) and 0 <= a <= STEEPEST for a in numbers)
    if not numbers or not right or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"alpha={value!r}; the exponent of speed would reward slowness, or be none; give a number "
            f"from 0 to {STEEPEST}, or a list of different ones"
        )
    return tuple(float(a) for a in numbers) if many else float(value)


def _rule_or_distilled(name: str) -> str:
    return name if name == "distilled" else known(name)


class Train(Section):
    """rounds of prompts x group rollouts (+ experts: threshold decoding in expert_block). Every validate_every rounds
    the policy is judged on the tune split by its reward; the best is kept.

    objective        upo says that what is below is paper B's: one position per step, pulled to a reference.
    alpha            speed exponent of the reward; of a list each group draws one, and the policy reads it.
    reference        what the pull and policy/kl are measured from: the distilled policy, or a rule with its number.
    divergence       kl, ce or none; a rule without randomness is left to ce. pull: its weight.
    keep_steps       share of the steps that is stored and learned from (UPO's Algorithm 2).
    temperature      of the rollouts, inside the likelihood; anneal: down to 1 in a straight line.
    entropy          nats per step that the temperature is to hold from its start on; null to leave it as it is.
    empty_draw, cap  see ``components.decode.engine``; floor: of the learning rate, a share of it.
    """

    seed: Seed
    objective: Literal["grpo", "upo"]
    alpha: Annotated[float | tuple[float, ...], BeforeValidator(_alpha)]
    reward: Literal["multiplicative", "additive"]
    signal: Literal["correct", "dense"]
    rounds: Count
    prompts: Count
    group: Annotated[int, Field(ge=2, le=MOST)]
    experts: Natural
    expert_threshold: Share
    expert_block: Size | None
    learning_rate: Rate
    warmup: Natural
    floor: Share
    weight_decay: NonNegative
    clip: Positive
    clip_norm: Positive
    epochs: Count
    weighting: Literal["row", "constant"]
    normalize_advantage: bool
    reference: Annotated[str, AfterValidator(_rule_or_distilled)]
    reference_value: Finite | None
    divergence: Literal["kl", "ce", "none"]
    pull: NonNegative
    keep_steps: Annotated[float, Field(gt=0, le=1)]
    temperature: Positive
    anneal: bool
    entropy: Positive | None
    empty_draw: Literal["forced", "legal"]
    cap: Literal["canvas", "block"]
    pairs: Count
    rows: Count
    validate_every: Count
    save_every: Count

    @property
    def alphas(self) -> tuple[float, ...]:
        """The exponents that the policy is conditioned on: none where there is but one."""
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
        if self.divergence == "none" and self.pull > 0:
            raise ValueError(
                f"pull={self.pull} with divergence=none; there is nothing to pull to; name a divergence, "
                f"or write pull: 0.0"
            )
        if self.entropy is not None and self.anneal:
            raise ValueError(
                f"entropy={self.entropy} with anneal=true; the temperature cannot both fall to 1 and hold "
                f"an entropy; write anneal: false, or entropy: null"
            )
        if self.objective == "upo" and (self.pull == 0 or self.weighting != "constant" or self.alpha != 0):
            raise ValueError(
                f"objective=upo with pull={self.pull}, weighting={self.weighting} and alpha={self.alpha}; "
                f"paper B pulls to its reference, weights by 1/L, and at one position per step there is "
                f"no speed to reward; use pull > 0, constant and 0, or objective: grpo"
            )
        return self
