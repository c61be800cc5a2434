"""`unmask decode` and `unmask compare`: one prompt decoded before your eyes, two policies side by side with figures.

On a terminal the boards fill up in colour, a colour per forward pass; elsewhere every pass is one line of text. What a
policy is called on the command line is resolved here. Left out: the sweep and its tables (stage evaluate).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import DataError, SettingsError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from components.evaluation.evaluate import Candidate, Cell
    from components.settings import Settings
    from components.stages.common.workspace import Workspace
    from components.tasks.example import Example, Task

HOLE, END = "_", "$"
ANIMATION_SECONDS = 4.0


@dataclass(frozen=True)
class Shown:
    """One decode to look at. order: the step (0 first) at which each position was committed, -1 if never. correct:
    None where there is no answer to compare with. columns: cells per row of the board."""

    label: str
    tokens: tuple[str, ...]
    order: tuple[int, ...]
    nfe: int
    correct: bool | None
    columns: int

    def canvas(self, step: int) -> str:
        """The canvas as one line after so many steps."""
        return "".join(t if 0 <= when < step else HOLE for t, when in zip(self.tokens, self.order, strict=True))

    @property
    def verdict(self) -> str:
        how = {True: "right", False: "wrong", None: "no answer on file"}[self.correct]
        return f"{self.nfe} forward pass{'es' * (self.nfe != 1)}, {how}"


def show_decode(
    policies: Sequence[str], prompt: str, length: int | None, model: str | None, choose: str, block: int | None = None
) -> None:
    """Decodes one prompt by each policy, over the active profile's dLLM or ``model``, and shows how.

    block: block length; the profile's own where it is None. SettingsError, DataError or CheckpointError where a name,
    the prompt or the model cannot be used.
    """
    workspace, settings = _profile()
    candidates = [candidate(name, workspace, settings, choose, block) for name in policies]
    name, task = task_for(settings, prompt)
    example, known = example_for(workspace, name, task, prompt)
    opened = _open(workspace, settings, model)
    _display([_decode(c, opened, task, example, length, known) for c in candidates])


def show_comparison(
    one: str, other: str, prompt: str | None, count: int, choose: str, block: int | None = None
) -> None:
    """Shows ``prompt`` (the first of the test split where it is None) decoded by both, then accuracy, forward passes
    and tokens per second over ``count`` test prompts of its task, with bootstrap intervals and paired differences."""
    workspace, settings = _profile()
    pair = [candidate(name, workspace, settings, choose, block) for name in (one, other)]
    name, task = (settings.evaluate.gate_task, None) if prompt is None else task_for(settings, prompt)
    task = task or settings.data.tasks[name].build()
    examples = workspace.examples(name, "test")[:count]
    example, known = (examples[0], True) if prompt is None else example_for(workspace, name, task, prompt)
    opened = _open(workspace, settings, None)
    _display([_decode(c, opened, task, example, None, known) for c in pair])

    from components.decode.prompts import Prompts
    from components.evaluation.evaluate import evaluate
    from components.stages.common.progress import progress

    asked, cells = Prompts.of(task, examples, opened[1]), []
    with progress(f"compare on {name}", len(pair)) as tick:
        for each in pair:
            cells.append(evaluate(opened[0], each, asked, settings.evaluate.seeds))
            tick(each.setting)
    console = _console()
    console.print(_table(cells, name, len(examples)))
    for line in differences(*cells):
        console.print(line, soft_wrap=True)


# --- what is meant --------------------------------------------------------------------------------------------------


def candidate(name: str, workspace: Workspace, settings: Settings, choose: str, block: int | None = None) -> Candidate:
    """The policy of this name: a rule with its number (``threshold:0.9``, ``confidence``), a policy folder, an .onnx
    file, or ``models:/NAME@ALIAS``. SettingsError if it is none of these, DataError or CheckpointError if it does not
    load."""
    from components.evaluation.evaluate import Candidate

    if choose not in ("mode", "sample"):
        raise SettingsError(
            f"choose={choose!r}: a draw is taken by its mode or sampled; nothing else is defined; use mode or sample"
        )
    block = block or settings.decode.block_length
    policy = _loaded(name, workspace, settings)
    if policy is not None:
        return Candidate("policy", name, policy, block, choose)
    return Candidate(name.partition(":")[0], name, rule(name), block)


def _loaded(name: str, workspace: Workspace, settings: Settings) -> Any:
    """A learned policy, or None if the name is no reference, no .onnx file and no folder."""
    if name.startswith("models:/"):
        from components.export import OnnxPolicy
        from components.tracking import registry, store

        return OnnxPolicy(registry.policy_path(name, store.tracking_uri(workspace.root)))
    if name.endswith(".onnx"):
        from components.export import OnnxPolicy

        return OnnxPolicy(Path(name))
    if Path(name).is_dir():
        from components.policies import store as policies
        from components.stages.common.models import with_decode_settings

        return with_decode_settings(policies.load(Path(name)), settings.decode)
    return None


def rule(name: str) -> Any:
    """The rule that ``name`` or ``name:number`` is; SettingsError names the nearest one, or the range of its number."""
    from components.policies.rules import check_number, decoders, heuristic
    from components.settings import nearest

    kind, colon, number = name.partition(":")
    if kind not in decoders():
        raise SettingsError(
            f"{name!r} is no rule, policy folder, .onnx file or models:/NAME@ALIAS"
            f"{nearest(kind, list(decoders()))}. Use one of these, or a rule: {', '.join(decoders())}."
        )
    if not colon:
        return heuristic(kind)
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    check_number(kind, value, name)
    return heuristic(kind, value)


def task_for(settings: Settings, prompt: str) -> tuple[str, Task]:
    """The task whose marker the prompt begins with, else the gate task; DataError if it cannot ask that."""
    marked = [name for name, task in settings.data.tasks.items() if task.marker and prompt.startswith(task.marker)]
    name = marked[0] if marked else settings.evaluate.gate_task
    task = settings.data.tasks[name].build()
    unknown = sorted(set(prompt) - set(task.alphabet)) if task.alphabet else []
    if unknown or not prompt:
        raise DataError(
            f"prompt {prompt!r} holds {unknown or 'nothing'}; the dLLM knows no more than task {name} "
            f"writes in, {task.alphabet!r}; write one like {task.sample(0, 0).prompt}"
        )
    # Prompts of a grid are of one length, and another would be no grid.
    sizes = {len(task.sample(i, 0).prompt) for i in range(16)} if task.alphabet else set()
    if len(sizes) == 1 and len(prompt) not in sizes:
        raise DataError(
            f"prompt {prompt!r} has {len(prompt)} characters, those of task {name} have {sizes.pop()}; it "
            f"would be no such puzzle; write one like {task.sample(0, 0).prompt}"
        )
    return name, task


def example_for(workspace: Workspace, name: str, task: Task, prompt: str) -> tuple[Example, bool]:
    """The example with this prompt, and whether a text can be judged by it: it is one of the data, or any valid
    completion is right."""
    from components.tasks.example import Example, read_examples
    from components.tasks.logic import Queens
    from components.tasks.sudoku import SudokuMany

    for split in ("test", "gate", "tune", "train"):
        path = workspace.data(name, split)
        for example in read_examples(path) if path.exists() else ():
            if example.prompt == prompt:
                return example, True
    return Example(name, prompt, ""), isinstance(task, SudokuMany | Queens)


def _profile() -> tuple[Workspace, Settings]:
    from components.settings import read
    from components.stages.common.workspace import Workspace

    params = read(Path("params.yaml"))
    return Workspace(Path.cwd(), params.profile), params.profiles[params.profile]


def _open(workspace: Workspace, settings: Settings, model: str | None) -> tuple[Any, Any]:
    """Denoiser and encoder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if model is None:
        from components.stages.common.models import open_cached

        return open_cached(workspace, settings.models, settings.domain.model, settings.decode)
    from components.denoisers import load

    dtype = getattr(settings.models, settings.domain.model).dtype
    return load(model, os.environ.get("UNMASK_DEVICE", "cpu"), "float32" if dtype == "auto" else dtype)


# --- one prompt -----------------------------------------------------------------------------------------------------


def _decode(
    chosen: Candidate, opened: tuple[Any, Any], task: Task, example: Example, length: int | None, known: bool
) -> Shown:
    from components.decode.engine import rollout
    from components.decode.job import DecodeOptions
    from components.decode.prompts import Prompts
    from components.policies.rules import is_random
    from components.reports.boards import BOXES

    denoiser, encoder = opened
    shape = getattr(chosen.policy, "shape", None)
    if shape is not None and shape.features not in (0, denoiser.width):
        raise SettingsError(
            f"policy {chosen.setting} reads hidden states of width {shape.features}, this dLLM has "
            f"{denoiser.width}; the policy was trained over another one; decode with that"
        )
    asked = Prompts.of(task, [example], encoder, length)
    job = asked.job(chosen.block_length)
    how = "sample" if is_random(chosen.family) else chosen.choose
    done = rollout(denoiser, chosen.policy, job, DecodeOptions(choose=how))
    correct = bool(asked.scores(job, done)[1][0]) if known else None
    ids = done.canvas_RL[0].tolist()
    tokens = tuple(END if i in encoder.end_ids else encoder.token(i) for i in ids)
    grid = len(ids) in BOXES and re.fullmatch(rf"\D?[\d.]{{{len(ids)}}}", example.prompt)
    return Shown(
        chosen.setting,
        tokens,
        tuple(done.order_RL[0].tolist()),
        int(done.nfe_R[0]),
        correct,
        BOXES[len(ids)][0] if grid else len(ids),
    )


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)


def _display(many: Sequence[Shown]) -> None:
    console = _console()
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
    """Policy by policy its name, a line per forward pass, the verdict."""
    found = []
    for shown in many:
        steps = [f"{step:4}  {shown.canvas(step)}" for step in range(1, shown.nfe + 1)]
        found += [shown.label, *steps, f"      {shown.verdict}"]
    return found


def boards(many: Sequence[Shown], step: int, steps: int) -> RenderableType:
    """The canvases after ``step`` forward passes, side by side, above the scale of colours."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    from components.reports.boards import ink_on, step_colour

    scale = Text("forward pass ")
    for number in range(1, steps + 1, steps // 24 + 1):
        colour = step_colour(number, steps)
        scale.append(f" {number} ", f"{ink_on(colour)} on {colour}")
    panels = []
    for shown in many:
        status = shown.verdict if step >= shown.nfe else f"{step} forward pass{'es' * (step != 1)}"
        panels.append(Panel(Group(Text(shown.label, "bold"), _board(shown, step, steps), Text(status)), expand=False))
    return Group(Columns(panels), scale)


def _board(shown: Shown, step: int, steps: int) -> RenderableType:
    from rich.text import Text

    from components.reports.boards import box_of, glyph, ink_on, step_colour

    text, size = Text(), len(shown.tokens)
    grid = shown.columns < size
    for at, (token, when) in enumerate(zip(shown.tokens, shown.order, strict=True)):
        column, here = at % shown.columns, box_of(at, size, shown.columns)
        if at and column == 0:
            text.append("\n" if here[0] == box_of(at - 1, size, shown.columns)[0] else "\n\n")
        elif grid and column and here[1] != box_of(at - 1, size, shown.columns)[1]:
            text.append("  ")
        there = 0 <= when < step
        colour = step_colour(when + 1, steps)
        cell = (f" {glyph(token)} " if grid else token) if there else (f" {HOLE} " if grid else HOLE)
        text.append(cell, f"{ink_on(colour)} on {colour}" if there else "dim")
    return text


# --- many prompts ---------------------------------------------------------------------------------------------------


def _table(cells: Sequence[Cell], task: str, count: int) -> RenderableType:
    from rich import box
    from rich.table import Table

    from components.evaluation.evaluate import interval

    made = Table(title=f"{task}, {count} test prompts", box=box.SIMPLE, title_justify="left")
    for name in ("policy", "accuracy", "95 %", "forward passes", "tokens/s"):
        made.add_column(name, justify="left" if name == "policy" else "right")
    for cell in cells:
        low, high = interval(cell.correct_SP)
        seeds = f" ({len(cell.correct_SP)} seeds)" if len(cell.correct_SP) > 1 else ""
        made.add_row(
            cell.candidate.setting + seeds,
            f"{100 * cell.correct_SP.mean():.1f} %",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{cell.nfe_SP.mean():.2f}",
            f"{cell.tokens_per_second:.0f}",
        )
    return made


def differences(one: Cell, other: Cell) -> list[str]:
    """The second minus the first, prompt by prompt, with 95 % bootstrap intervals over the prompts."""
    from components.evaluation.evaluate import interval

    found = [f"{other.candidate.setting} minus {one.candidate.setting}, paired by prompt:"]
    parts = (("accuracy", "correct_SP", 100, "points"), ("forward passes", "nfe_SP", 1, ""))
    for name, field, unit, word in parts:
        apart_1P = (getattr(other, field).mean(0) - getattr(one, field).mean(0)).unsqueeze(0) * unit
        low, high = interval(apart_1P)
        found.append(f"  {name} {apart_1P.mean():+.2f} {word}".rstrip() + f" [{low:+.2f}, {high:+.2f}]")
    return found
