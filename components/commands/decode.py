"""`unmask decode`: one prompt decoded before your eyes, by one policy or several side by side.

On a terminal the canvases fill up in color, a color per forward pass; elsewhere every pass is one line of text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import SettingsError
from .puzzles import is_solvable, wrong_cells
from .resolve import active_profile, candidate, example_for, named_task, open_dllm, place, task_for

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from torch import Tensor

    from ..core.types import Rollout
    from ..evaluation.evaluate import Candidate
    from ..tasks.example import Example, Task

HOLE, END = "_", "$"
ANIMATION_SECONDS = 4.0


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. task: its name. length, block: of canvas and block. canvas: a text to fill
    in; the prompt is then any text, and no answer is known. None: by default."""

    prompt: str | None = None
    task: str | None = None
    length: int | None = None
    model: str | None = None
    choose: str = "mode"
    block: int | None = None
    canvas: str | None = None


@dataclass(frozen=True)
class Shown:
    """One decode to look at. order: the step (0 first) at which each position was there, -1 if it was given, nfe if it
    never was. correct: None where nothing can judge it, which ``unjudged`` explains. columns: cells per row of the
    board. clues: positions that the prompt gives. wrong: positions of a wrong text that break a rule."""

    label: str
    tokens: tuple[str, ...]
    order: tuple[int, ...]
    nfe: int
    correct: bool | None
    columns: int
    clues: frozenset[int] = frozenset()
    wrong: frozenset[int] = frozenset()
    unjudged: str = "no answer on file"

    def canvas(self, step: int) -> str:
        """The canvas as one line after so many steps."""
        return "".join(t if when < step else HOLE for t, when in zip(self.tokens, self.order, strict=True))

    @property
    def marks(self) -> str:
        """A sign per position of the canvas: x where it is wrong, = where the prompt gives it."""
        return "".join("x" if i in self.wrong else "=" if i in self.clues else " " for i in range(len(self.tokens)))

    @property
    def verdict(self) -> str:
        how = {True: "right", False: "wrong", None: self.unjudged}[self.correct]
        return f"{self.nfe} forward pass{'es' * (self.nfe != 1)}, {how}"


def show_decode(policies: Sequence[str], asked: Asked) -> None:
    """Decode one prompt by each policy, over the active profile's dLLM or a named one, and show how.

    SettingsError, DataError or CheckpointError where a name, the prompt or the model cannot be used.
    """
    from ..tasks.example import Example

    workspace, settings = active_profile(anywhere=asked.model is not None)
    candidates = [candidate(name, workspace, settings, asked.choose, asked.block) for name in policies]
    if asked.canvas is None:
        name, task = task_for(settings, asked.prompt or "", asked.task)
        example, known = example_for(workspace, name, task, asked.prompt or "")
    else:
        name = asked.task or settings.evaluate.gate_task
        task, known = named_task(settings, name), False
        example = Example(name, asked.prompt or "", "", canvas=asked.canvas)
    opened = open_dllm(workspace, settings, asked.model)
    place([c.policy for c in candidates], opened[0])
    display([decode_one(c, opened, task, example, asked.length, known) for c in candidates])


def decode_one(
    chosen: Candidate, opened: tuple[Any, Any], task: Task, example: Example, length: int | None, known: bool
) -> Shown:
    """Decode the example. known: whether its answer, or any valid one, can be told from a wrong one."""
    from ..decode.engine import rollout
    from ..decode.job import DecodeOptions
    from ..decode.prompts import Prompts
    from ..policies.rules import is_random
    from ..reports.boards import BOXES, clues_of

    denoiser, encoder = opened
    shape = getattr(chosen.policy, "shape", None)
    if shape is not None and shape.features not in (0, denoiser.width):
        raise SettingsError(
            f"policy {chosen.setting} reads hidden states of width {shape.features}, this dLLM has "
            f"{denoiser.width}. Decode with the dLLM that the policy was trained over."
        )
    asked = Prompts.of(task, [example], encoder, length)
    job = asked.job(chosen.block_length, chosen.frontier)
    how = "sample" if is_random(chosen.family) else chosen.choose
    done = rollout(denoiser, chosen.policy, job, DecodeOptions(choose=how))
    answerable = example.canvas is not None or is_solvable(task, example.prompt)
    correct = bool(asked.scores(job, done)[1][0]) if known and answerable else None
    ids = done.canvas_RL[0].tolist()
    tokens = tuple(END if i in encoder.end_ids else visible(encoder.token(i)) for i in ids)
    grid = len(ids) in BOXES and re.fullmatch(rf"\D{{,2}}[\d.]{{{len(ids)}}}", example.prompt)
    alone = all(len(token) == 1 for token in tokens)
    return Shown(
        chosen.setting,
        tokens,
        _order(done, asked.canvases.get(0), denoiser.mask_id),
        int(done.nfe_R[0]),
        correct,
        BOXES[len(ids)][0] if grid else len(ids),
        clues_of({"order": ids, "prompt": example.prompt}),
        wrong_cells(task, example, "".join(tokens)) if alone and correct is False else frozenset(),
        "no answer on file" if answerable else "the prompt has no right answer",
    )


def visible(token: str) -> str:
    """The token with line ends and control characters written as escapes: a terminal would carry them out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in token)


def _order(done: Rollout, given: Tensor | None, mask_id: int) -> tuple[int, ...]:
    """The step of each commit, -1 for what was given. Behind an end of the text: the last step; still a mask: none."""
    nfe, order = int(done.nfe_R[0]), done.order_RL[0].tolist()
    for at, (when, token) in enumerate(zip(order, done.canvas_RL[0].tolist(), strict=True)):
        if when < 0 and (given is None or int(given[at]) < 0):
            order[at] = nfe if token == mask_id else nfe - 1
    return tuple(order)


def console_for() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)


def display(many: Sequence[Shown]) -> None:
    console = console_for()
    if not console.is_terminal:
        for line in lines(many):
            console.print(line, soft_wrap=True)
        return
    import time

    from rich.live import Live

    steps = max(shown.nfe for shown in many)
    with Live(boards(many, 0, steps), console=console, auto_refresh=False) as live:
        for step in range(1, steps + 1):
            time.sleep(min(0.25, ANIMATION_SECONDS / steps))
            live.update(boards(many, step, steps), refresh=True)


def lines(many: Sequence[Shown]) -> list[str]:
    """Policy by policy its name, a line per forward pass, what is marked in the last one, the verdict."""
    found = []
    for shown in many:
        steps = [f"{step:4}  {shown.canvas(step)}" for step in range(1, shown.nfe + 1)]
        marks = [f"      {shown.marks}  {legend}"] if (legend := _legend(shown)) else []
        found += [shown.label, *steps, *marks, f"      {shown.verdict}"]
    return found


def _legend(shown: Shown) -> str:
    return ", ".join(text for text, cells in (("= given", shown.clues), ("x wrong", shown.wrong)) if cells)


def boards(many: Sequence[Shown], step: int, steps: int) -> RenderableType:
    """The canvases after ``step`` forward passes, side by side, above the scale of colours and what a frame means."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    from ..reports.boards import framed, ink_on, step_colour

    scale = Text("forward pass ")
    for number in range(1, steps + 1, steps // 24 + 1):
        colour = step_colour(number, steps)
        scale.append(f" {number} ", f"{ink_on(colour)} on {colour}")
    panels = []
    for shown in many:
        status = shown.verdict if step >= shown.nfe else f"{step} forward pass{'es' * (step != 1)}"
        panels.append(Panel(Group(Text(shown.label, "bold"), _board(shown, step, steps), Text(status)), expand=False))
    frames = [
        Text(text)
        for text, known in (
            (f"{framed('1', True, False)} given by the prompt", any(s.clues for s in many)),
            (f"{framed('1', False, True)} wrong", step >= steps and any(s.wrong for s in many)),
        )
        if known
    ]
    return Group(Columns(panels), scale, *frames)


def _board(shown: Shown, step: int, steps: int) -> RenderableType:
    from rich.text import Text

    from ..reports.boards import box_of, framed, glyph, ink_on, step_colour

    text, size = Text(), len(shown.tokens)
    grid = shown.columns < size
    for at, (token, when) in enumerate(zip(shown.tokens, shown.order, strict=True)):
        column, here = at % shown.columns, box_of(at, size, shown.columns)
        if at and column == 0:
            text.append("\n" if here[0] == box_of(at - 1, size, shown.columns)[0] else "\n\n")
        elif grid and column and here[1] != box_of(at - 1, size, shown.columns)[1]:
            text.append("  ")
        there = when < step
        colour = step_colour(when + 1, steps)
        cell = glyph(token) if grid and there else token if there else HOLE
        if grid:
            cell = framed(cell, at in shown.clues, there and step >= shown.nfe and at in shown.wrong)
        text.append(cell, f"{ink_on(colour)} on {colour}" if 0 <= when < step else "dim")
    if not grid and (legend := _legend(shown)):
        text.append(f"\n{shown.marks}\n{legend}")
    return text
