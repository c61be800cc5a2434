"""Sections of the data and the dLLMs: tasks and their counts, models, how embedded models are made, the domain."""

from __future__ import annotations

from inspect import signature
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..tasks import TASKS, Task, build
from .section import NUMBER, Count, Layout, Name, Natural, Rate, Section, Seed, Size

SPLITS = ("pretrain", "train", "tune", "gate", "test")


class TaskSettings(Section):
    """kind: a name of ``components.tasks.TASKS``. params: its keyword arguments. canvas: positions, null: its own."""

    kind: str
    params: dict[str, Any]
    canvas: Size | None

    def build(self) -> Task:
        """The task. SettingsError for an unknown kind or parameter, or a value that cannot work."""
        canvas = {} if self.canvas is None else {"canvas_length": self.canvas}
        return build(self.kind, **self.params, **canvas)

    @property
    def length(self) -> int:
        """Positions of the canvas."""
        return self.canvas or self.build().canvas_length

    @property
    def marker(self) -> str:
        """The character that its prompts begin with; none where a prompt is a text."""
        marker = signature(TASKS[self.kind]).parameters.get("marker")
        return self.params.get("marker", "" if marker is None else marker.default)

    @model_validator(mode="after")
    def _builds(self) -> TaskSettings:
        known = signature(TASKS[self.kind]).parameters if self.kind in TASKS else {}
        if known and self.canvas is not None and "canvas_length" not in known:
            raise ValueError(
                f"canvas={self.canvas}: the length of task {self.kind!r} is fixed by its grid. Write null."
            )
        # Whether this machine can confine programs is checked when they are run, not when settings are read.
        if self.params.get("execute") and set(self.params) <= set(known):
            return self
        try:
            self.build()
        except TypeError as error:
            raise ValueError(
                f"params={self.params}: task {self.kind} cannot be built ({error}). "
                f"Give each parameter a value of its own type."
            ) from error
        return self


class Counts(Section):
    """Prompts per split. pretrain: for the embedded dLLMs alone. The splits are disjoint."""

    pretrain: Natural
    train: Count
    tune: Count
    gate: Count
    test: Count


class Data(Section):
    seed: Seed
    tasks: dict[Name, TaskSettings]
    counts: Counts


class Model(Section):
    """A frozen dLLM.

    source: "embedded" (stage pretrain makes it), a hub name, a folder, or an import path (package.module:function).
    layout: of an embedded dLLM. That of a folder or hub model is read from its config.json, whatever stands here.
    revision: of a hub model, null: the newest.
    dtype: of the weights in use. "auto" (embedded only): bfloat16 if the processor of stage pretrain has it, recorded.
    rows: of an embedded dLLM, rows of each task in one pretraining step.
    """

    source: str
    layout: Layout
    revision: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float64"]
    rows: dict[Name, Count]

    @model_validator(mode="after")
    def _agrees(self) -> Model:
        if self.dtype == "auto" and self.source != "embedded":
            raise ValueError(f"dtype=auto with source {self.source!r}. Write bfloat16 or float32.")
        if (self.source == "embedded") != bool(self.rows):
            raise ValueError(
                f"rows={self.rows} with source {self.source!r}. Give rows of at least one task to an embedded dLLM, "
                f"and {{}} to any other."
            )
        return self


class Pretrain(Section):
    """Shape and training of the embedded dLLMs; which tasks each learns is in ``models``."""

    seed: Seed
    width: Size
    layers: Annotated[int, Field(ge=1, le=1000), NUMBER]
    heads: Size
    inner: Size
    steps: Count
    learning_rate: Rate
    warmup: Natural

    @model_validator(mode="after")
    def _splits(self) -> Pretrain:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width} with heads={self.heads}: rotary positions need an even width per head. "
                f"Use a multiple of {2 * self.heads}."
            )
        return self


class Domain(Section):
    """The dLLM and the weighted tasks that a policy is trained for."""

    model: Name
    tasks: Annotated[dict[Name, Count], Field(min_length=1)]
