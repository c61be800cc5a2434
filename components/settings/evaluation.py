"""Sections of evaluation: the heuristics' sweep, the tasks to evaluate on, the cases of transfer, ood and headroom."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.settings.section import Count, Name, NonNegative, Positive, Section, Seed, Share, Size


class Sweep(Section):
    """The heuristics to compare with, at every block length (null: the whole canvas) and number.

    seeds: decode seeds of random rules. suppress_eos: over the whole canvas the rules commit predicted ends of the text
    last; without it a language model ends the text first.
    """

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    block_lengths: tuple[Size | None, ...]
    thresholds: tuple[Share, ...]
    factors: tuple[Positive, ...]
    gammas: tuple[NonNegative, ...]
    per_step: tuple[Count, ...]
    suppress_eos: bool


class Evaluate(Section):
    """tasks: evaluated on the test split. gate_task: one of them, decides on promotion by the gate split."""

    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    gate_task: Name


class Case(Section):
    """Which dLLM and which task: a case of transfer, ood or headroom."""

    model: Name
    task: Name


Cases = dict[Name, Case]


class Headroom(Section):
    """prompts of the tune split, and random orders of each, by which a task over a dLLM is accepted."""

    prompts: Count
    orders: Count
    cases: Cases
