"""`unmask compare`: two policies on the same prompts, also at equal speed, and one prompt shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from ..evaluation.results import EvalResult, read_results
from ..policies.rules import decoders
from .decode import Asked, console_for, decode_one, display
from .resolve import active_profile, candidate, example_for, named_task, open_dllm, place, rule, task_for

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..decode.prompts import Prompts
    from ..evaluation.evaluate import Candidate
    from ..settings import Settings
    from ..stages.common.workspace import Workspace
    from ..tasks.example import Task

FEW = 32  # prompts by which the speed of a swept number is measured where no stage has


@dataclass(frozen=True)
class Ground:
    """Where policies are compared: profile, dLLM with its encoder, and the test prompts of one task."""

    workspace: Workspace
    settings: Settings
    opened: tuple[Any, Any]
    task: Task
    name: str
    prompts: Prompts

    def decode(self, candidates: Sequence[Candidate], prompts: Prompts | None = None) -> list[EvalResult]:
        from ..evaluation.evaluate import Scope, evaluate
        from ..stages.common.progress import progress

        results, scope = [], Scope(self.name, self.settings.domain.model)
        with progress(f"compare on {self.name}", len(candidates)) as tick:
            for each in candidates:
                seeds = self.settings.sweep.seeds
                results.append(evaluate(self.opened[0], each, prompts or self.prompts, seeds, scope))
                tick("")  # a long name would be cut behind the bar
        return results


def show_comparison(one: str, other: str, asked: Asked, count: int) -> None:
    """Decode ``count`` test prompts by both; show a prompt that tells them apart, or the one that is asked for.

    Then come accuracy and forward passes with bootstrap intervals, how often each was right alone, and the paired
    difference. Where one of them is a rule, the difference follows once more at the other's speed.
    """
    workspace, settings = active_profile()
    pair = [candidate(name, workspace, settings, asked.choose, asked.block) for name in (one, other)]
    ground = _ground(workspace, settings, asked, count)
    place([c.policy for c in pair], ground.opened[0])
    results = ground.decode(pair)
    _show_one(ground, pair, results, asked.prompt)
    console = console_for()
    rival = at_equal_speed(ground, pair, results)
    extra = ground.decode([rival]) if rival else []
    console.print(_table([*results, *extra]))
    for line in [alone(*results), *differences(*results)]:
        console.print(line, soft_wrap=True)
    if rival:
        learned = results[1] if pair[0].family in decoders() else results[0]
        console.print(f"\nAt the speed of {learned.setting}:", soft_wrap=True)
        for line in [alone(extra[0], learned), *differences(extra[0], learned)]:
            console.print(line, soft_wrap=True)


def _ground(workspace: Workspace, settings: Settings, asked: Asked, count: int) -> Ground:
    from ..decode.prompts import Prompts

    if asked.prompt is None:
        name = asked.task or settings.evaluate.gate_task
        task = named_task(settings, name)
    else:
        name, task = task_for(settings, asked.prompt, asked.task)
    examples = workspace.task(name).examples("test")[:count]
    if not examples:
        raise DataError(f"{workspace.task(name).split('test')} holds no prompt. Run `dvc repro` to make it.")
    opened = open_dllm(workspace, settings, None)
    return Ground(workspace, settings, opened, task, name, Prompts.of(task, examples, opened[1]))


def telling(one: EvalResult, other: EvalResult) -> int:
    """The number of the first prompt on which the two differ most: in correctness, or else in forward passes."""
    apart_P = abs(other.correct_P - one.correct_P)
    return int((apart_P if apart_P.any() else abs(other.nfe_P - one.nfe_P)).argmax())


def _show_one(ground: Ground, pair: Sequence[Candidate], results: Sequence[EvalResult], prompt: str | None) -> None:
    example, known = ground.prompts.examples[telling(results[0], results[1])], True
    if prompt is not None:
        example, known = example_for(ground.workspace, ground.name, ground.task, prompt)
    shown = [decode_one(c, ground.opened, ground.task, example, None, known) for c in pair]
    right = [s.label for s in shown if s.correct]
    said = f": only {right[0]} is right" if len(right) == 1 and None not in [s.correct for s in shown] else ""
    console_for().print(f"prompt {example.prompt}{said}", soft_wrap=True)
    display(shown)


def at_equal_speed(ground: Ground, pair: Sequence[Candidate], results: Sequence[EvalResult]) -> Candidate | None:
    """The one of the two that is a rule, at the swept number whose forward passes are nearest to the other's.

    None where both or none are rules, the rule is not swept, or its number is that one already.
    """
    rules = [i for i, each in enumerate(pair) if each.family in decoders()]
    if len(rules) != 1:
        return None
    given, target = pair[rules[0]], results[1 - rules[0]].nfe
    speeds = _speeds(ground, given)
    if not speeds:
        return None
    name = min(speeds, key=lambda n: abs(speeds[n] - target))
    measured = results[rules[0]].nfe
    return None if abs(measured - target) <= abs(speeds[name] - target) else _numbered(given, name)


def _numbered(given: Candidate, name: str) -> Candidate:
    from ..evaluation.evaluate import Candidate

    return Candidate(given.family, name, rule(name), given.block_length)


def _speeds(ground: Ground, given: Candidate) -> dict[str, float]:
    """Forward passes of the rule at each swept number: from the run's own sweep, else measured on a few prompts."""
    length = given.block_length or max(ground.prompts.lengths)
    path = ground.workspace.outputs / "rules" / f"evaluate-{ground.name}" / "results.jsonl"
    swept = read_results(path) if path.exists() else []
    found = {f"{r.family}:{r.setting}": r.nfe for r in swept if (r.family, r.block_length) == (given.family, length)}
    names = [f"{given.family}:{number:g}" for number in ground.settings.sweep.rules.get(given.family, ())]
    if found or not names:
        return found
    few = ground.prompts.take(range(min(FEW, len(ground.prompts))))
    measured = ground.decode([_numbered(given, name) for name in names], few)
    return {name: result.nfe for name, result in zip(names, measured, strict=True)}


def _table(results: Sequence[EvalResult]) -> RenderableType:
    from rich import box
    from rich.table import Table

    title = f"{results[0].task}, {results[0].prompts} test prompts"
    made = Table(title=title, box=box.SIMPLE, title_justify="left")
    made.add_column("policy", overflow="fold", min_width=max(map(len, map(_name, results))))
    for name in ("accuracy", "95 %", "passes"):
        made.add_column(name, justify="right", no_wrap=True)
    for result in results:
        made.add_row(
            _name(result),
            f"{100 * result.accuracy:.1f} %",
            f"{100 * result.accuracy_low:.1f} to {100 * result.accuracy_high:.1f}",
            f"{result.nfe:.2f}",
        )
    return made


def _name(result: EvalResult) -> str:
    return result.setting + (f" ({result.seeds} seeds)" if result.seeds > 1 else "")


def alone(one: EvalResult, other: EvalResult) -> str:
    """How many prompts each of the two answered right where the other was wrong; means over decode seeds."""
    first, second = (
        (a * (1 - b)).sum() for a, b in ((one.correct_P, other.correct_P), (other.correct_P, one.correct_P))
    )
    return f"right alone, of {one.prompts} prompts: {one.setting} {first:.3g}, {other.setting} {second:.3g}"


def differences(one: EvalResult, other: EvalResult) -> list[str]:
    """The second minus the first, prompt by prompt, with 95 % bootstrap intervals over the prompts."""
    import torch

    from ..evaluation.evaluate import interval

    lines = [f"{other.setting} minus {one.setting}, paired by prompt:"]
    pairs = (
        ("accuracy", (other.correct_P - one.correct_P) * 100, " points"),
        ("forward passes", other.nfe_P - one.nfe_P, ""),
    )
    for name, apart_P, unit in pairs:
        low, high = interval(torch.from_numpy(apart_P)[None].float())
        # z: what rounds to zero has no sign of minus.
        lines.append(f"  {name} {apart_P.mean():+z.2f}{unit} [{low:+z.2f}, {high:+z.2f}]")
    return lines
