"""`unmask compare`: two policies on the same prompts, one of them shown, with paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.commands.decode import console_for, decode_one, display
from components.commands.resolve import active_profile, candidate, example_for, open_dllm, task_for
from components.core.errors import DataError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from components.evaluation.results import EvalResult


def show_comparison(
    one: str, other: str, prompt: str | None, count: int, choose: str, block: int | None = None
) -> None:
    """Shows ``prompt`` (the first of the test split where it is None) decoded by both, then accuracy, forward passes
    and tokens per second over ``count`` test prompts of its task, with bootstrap intervals and paired differences."""
    workspace, settings = active_profile()
    pair = [candidate(name, workspace, settings, choose, block) for name in (one, other)]
    name, task = (settings.evaluate.gate_task, None) if prompt is None else task_for(settings, prompt)
    task = task or settings.data.tasks[name].build()
    examples = workspace.task(name).examples("test")[:count]
    if not examples:
        raise DataError(f"{workspace.task(name).split('test')} holds no prompt. Run `dvc repro` to make it.")
    example, known = (examples[0], True) if prompt is None else example_for(workspace, name, task, prompt)
    opened = open_dllm(workspace, settings, None)
    display([decode_one(c, opened, task, example, None, known) for c in pair])

    from components.decode.prompts import Prompts
    from components.evaluation.evaluate import evaluate
    from components.stages.common.progress import progress

    prompts, results = Prompts.of(task, examples, opened[1]), []
    with progress(f"compare on {name}", len(pair)) as tick:
        for each in pair:
            results.append(evaluate(opened[0], each, prompts, settings.sweep.seeds))
            tick(each.setting)
    console = console_for()
    console.print(_table(results))
    for line in differences(*results):
        console.print(line, soft_wrap=True)


def _table(results: Sequence[EvalResult]) -> RenderableType:
    from rich import box
    from rich.table import Table

    title = f"{results[0].task}, {results[0].prompts} test prompts"
    made = Table(title=title, box=box.SIMPLE, title_justify="left")
    for name in ("policy", "accuracy", "95 %", "forward passes", "tokens/s"):
        made.add_column(name, justify="left" if name == "policy" else "right")
    for result in results:
        made.add_row(
            result.setting + (f" ({result.seeds} seeds)" if result.seeds > 1 else ""),
            f"{100 * result.accuracy:.1f} %",
            f"{100 * result.accuracy_low:.1f} to {100 * result.accuracy_high:.1f}",
            f"{result.nfe:.2f}",
            f"{result.tokens_per_second:.0f}",
        )
    return made


def differences(one: EvalResult, other: EvalResult) -> list[str]:
    """The second minus the first, prompt by prompt, with 95 % bootstrap intervals over the prompts."""
    import torch

    from components.evaluation.evaluate import interval

    lines = [f"{other.setting} minus {one.setting}, paired by prompt:"]
    pairs = (
        ("accuracy", (other.correct_P - one.correct_P) * 100, " points"),
        ("forward passes", other.nfe_P - one.nfe_P, ""),
    )
    for name, apart_P, unit in pairs:
        low, high = interval(torch.from_numpy(apart_P)[None].float())
        lines.append(f"  {name} {apart_P.mean():+.2f}{unit} [{low:+.2f}, {high:+.2f}]")
    return lines
