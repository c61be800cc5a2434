"""Sections of the two trainings: the imitation of a reference, then reinforcement."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.settings.base import Count, Natural, NonNegative, Positive, Rate, Section, Seed, Share

Family = Literal["random", "left_to_right", "confidence", "margin", "entropy", "threshold", "factor", "entropy_bound"]


class Distill(Section):
    seed: Seed
    reference: Family
    value: float
    rounds: Count
    prompts: Count
    pairs: Count
    learning_rate: Rate


class Train(Section):
    """alpha: speed exponent of the reward. rounds of prompts x group rollouts (+ experts: threshold decoding in
    expert_block). Every validate_every rounds the policy is judged on the tune split by its reward; the best is kept.
    """

    seed: Seed
    alpha: NonNegative
    reward: Literal["multiplicative", "additive"]
    signal: Literal["correct", "dense"]
    rounds: Count
    prompts: Count
    group: Annotated[int, Field(ge=2)]
    experts: Natural
    expert_threshold: Share
    expert_block: Count | None
    learning_rate: Rate
    warmup: Natural
    clip: Positive
    clip_norm: Positive
    epochs: Count
    weighting: Literal["row", "constant"]
    pull: NonNegative
    temperature: Annotated[float, Field(ge=1)]
    empty_draw: Literal["forced", "legal"]
    pairs: Count
    rows: Count
    validate_every: Count
    save_every: Count
