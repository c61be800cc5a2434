"""Sections of how policies are judged: the heuristics' sweep, the matrix cells of transfer and ood."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.settings.section import Count, Layout, NonNegative, Positive, Section, Seed, Share


class Evaluate(Section):
    """seeds: decode seeds. The heuristics are swept over block_lengths (null: the whole canvas) x their one number;
    suppress_eos: over the whole canvas they commit predicted ends of the text last, without which a language model ends
    the text first."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    gate_task: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    block_lengths: tuple[Count | None, ...]
    thresholds: tuple[Share, ...]
    factors: tuple[Positive, ...]
    gammas: tuple[NonNegative, ...]
    per_step: tuple[Count, ...]
    suppress_eos: bool


class Case(Section):
    """Which dLLM, which task: a matrix cell of transfer or ood, a line of headroom."""

    model: Layout
    task: str


class Headroom(Section):
    """prompts of the tune split, and random orders of each, by which a task over a dLLM is accepted."""

    prompts: Count
    orders: Count
    cases: tuple[Case, ...]


class Transfer(Section):
    dream: Case
    long: Case


class Ood(Section):
    """null: not asked; the stage says so and its table is empty."""

    near: Case | None
    far: Case | None
    order: Case | None
