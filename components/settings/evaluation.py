"""Sections of how policies are judged: the heuristics' sweep, the matrix cells of transfer and ood."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from components.policies.rules import check_number, decoders, known
from components.settings.section import Count, Layout, Section, Seed


class Evaluate(Section):
    """seeds: decode seeds. sweep: rules with the numbers to compare at; over block_lengths too (null: the whole canvas)
    where their entry in ``components.policies.rules`` allows it. suppress_eos: over the whole canvas they commit
    predicted ends of the text last, without which a language model ends the text first."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    gate_task: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    block_lengths: tuple[Count | None, ...]
    sweep: dict[str, tuple[float, ...]]
    suppress_eos: bool

    @field_validator("sweep")
    @classmethod
    def _can_decode(cls, sweep: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, numbers in sweep.items():
            if known(name) not in decoders():
                raise ValueError(f"{name} cannot decode. Remove it, or sweep one of {', '.join(decoders())}.")
            for number in numbers:
                check_number(name, number, f"{name}={number:g}")
        return sweep


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
