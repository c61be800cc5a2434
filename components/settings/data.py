"""Sections of what is decoded: tasks and their counts, the dLLMs and how the embedded ones are made, the domain."""

from __future__ import annotations

from inspect import signature
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from components.settings.section import Count, Layout, Natural, Rate, Section, Seed
from components.tasks import TASKS, Task, build

SPLITS = ("pretrain", "train", "tune", "gate", "test")


class TaskSettings(Section):
    """kind: a name of ``components.tasks.TASKS``; knobs: its keyword arguments; canvas: positions, null for its own."""

    kind: str
    knobs: dict[str, Any]
    canvas: Count | None

    def build(self) -> Task:
        """SettingsError for an unknown kind or knob, or one that cannot work."""
        canvas = {} if self.canvas is None else {"canvas_length": self.canvas}
        return build(self.kind, **self.knobs, **canvas)

    @property
    def length(self) -> int:
        """Positions of the canvas."""
        return self.canvas or self.build().canvas_length

    @property
    def marker(self) -> str:
        """The character that its prompts begin with; none where a prompt is a text."""
        marker = signature(TASKS[self.kind]).parameters.get("marker")
        return self.knobs.get("marker", "" if marker is None else marker.default)

    @model_validator(mode="after")
    def _builds(self) -> TaskSettings:
        known = signature(TASKS[self.kind]).parameters if self.kind in TASKS else {}
        if known and self.canvas is not None and "canvas_length" not in known:
            raise ValueError(
                f"canvas={self.canvas}: task {self.kind!r} has a canvas of its own; a grid of another "
                f"length would be none; write null"
            )
        # Whether this machine can confine programs is asked when they are to be run, not by everybody who reads this.
        if self.knobs.get("execute") and set(self.knobs) <= set(known):
            return self
        try:
            self.build()
        except TypeError as error:
            raise ValueError(
                f"knobs={self.knobs}: task {self.kind} cannot be made with them ({error}); nothing could "
                f"be asked or scored; give each a value of its own type"
            ) from error
        return self


class Counts(Section):
    """Prompts per split. pretrain is for the embedded dLLMs alone; the others never meet it, nor one another."""

    pretrain: Natural
    train: Count
    tune: Count
    gate: Count
    test: Count


class Data(Section):
    seed: Seed
    tasks: dict[str, TaskSettings]
    counts: Counts


class Model(Section):
    """source: "embedded" (stage pretrain makes it) or a hub name or folder. dtype: of the weights when they are used;
    "auto" (embedded only) is what stage pretrain found to be faster on its machine, and recorded."""

    source: str
    layout: Layout
    revision: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float64"]


class Models(Section):
    llada: Model
    dream: Model


class Rows(Section):
    llada: dict[str, Count]
    dream: dict[str, Count]


class Pretrain(Section):
    """rows: for either dLLM, rows of each task in one step's batch."""

    seed: Seed
    width: Count
    layers: Count
    heads: Count
    inner: Count
    steps: Count
    learning_rate: Rate
    warmup: Natural
    rows: Rows

    @model_validator(mode="after")
    def _splits(self) -> Pretrain:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width} with heads={self.heads} does not split; rotary positions need an "
                f"even width per head; use a multiple of {2 * self.heads}"
            )
        return self


class Domain(Section):
    """What a policy is trained for: over which dLLM, and on which tasks with which weights."""

    model: Layout
    tasks: Annotated[dict[str, Count], Field(min_length=1)]
