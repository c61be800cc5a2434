"""Sections of evaluation: the heuristics' sweep, the tasks to evaluate on, the cases of transfer, ood and headroom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from ..policies.rules import POLICIES, check_number, decoders, known
from .section import Count, Finite, Name, Section, Seed, Size, nearest


class Sweep(Section):
    """The heuristics to compare with.

    seeds: decode seeds of random rules. rules: each with the numbers to sweep. block_lengths: of the rules that
    ``components.policies.rules`` sweeps in blocks; null: the whole canvas. frontiers: over the whole canvas these rules
    also run with only so many of the first masks eligible; null: all. suppress_eos: over the whole canvas, commit
    predicted ends of the text last; without it a language model ends the text first. renormalize: as LLaDA does,
    confidences are also those among the other tokens (``components.policies.heuristics``).
    """

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    block_lengths: tuple[Size | None, ...]
    frontiers: Annotated[tuple[Size | None, ...], Field(min_length=1)]
    rules: dict[str, tuple[Finite, ...]]
    suppress_eos: bool | Literal["renormalize"]

    @field_validator("rules")
    @classmethod
    def _can_decode(cls, rules: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, numbers in rules.items():
            if known(name) not in decoders():
                raise ValueError(f"{name} cannot decode. Remove it, or sweep one of {', '.join(decoders())}.")
            for number in numbers:
                check_number(name, number, f"{name}={number:g}")
        return rules


class Evaluate(Section):
    """tasks: evaluated on the test split. gate_task: one of them; its gate split decides on promotion."""

    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    gate_task: Name


def _trained(family: str) -> str:
    if family not in POLICIES:
        raise ValueError(f"{family} is no family{nearest(family, list(POLICIES))}. Use one of {', '.join(POLICIES)}.")
    return family


Family = Annotated[str, AfterValidator(_trained)]


class Variants(Section):
    """The variants of a training's policies that evaluations decode.

    offsets: of the trained policy (learned), and of those that it started from (distilled, influence), each where it is
    named; at its served setting, and as coupled policies at these offsets too. An offset is added to tau: above 0 more
    is committed per step, below 0 less. The other names are rules and controls over the trained policy's pair shifts
    (``components.policies.variants``): mi_bound and demask at these gammas, the controls at these offsets. blocks:
    block lengths that the trained policy also decodes in, on the tasks of section evaluate.
    """

    offsets: dict[Family, tuple[Finite, ...]]
    blocks: tuple[Size, ...]

    @field_validator("offsets")
    @classmethod
    def _has_the_trained_one(cls, offsets: dict[Family, tuple[float, ...]]) -> dict[Family, tuple[float, ...]]:
        if "learned" not in offsets:
            raise ValueError(f"{list(offsets)} leaves out the trained policy. Name learned, with [] for no offset.")
        return offsets


class Case(Section):
    """A dLLM and a task: a case of transfer, ood or headroom."""

    model: Name
    task: Name


Cases = dict[Name, Case]


class Headroom(Section):
    """Measurement of how much the order of decoding matters: prompts of the tune split, random orders of each."""

    prompts: Count
    orders: Count
    cases: Cases
