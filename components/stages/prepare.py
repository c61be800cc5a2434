"""Stage prepare: prompts of every task in splits that share no prompt."""

from __future__ import annotations

from components.core.files import beside
from components.settings import Data
from components.stages.common.progress import progress
from components.stages.common.workspace import Workspace, task_of
from components.tasks.example import Example, write_examples
from components.tasks.splits import answers_seen, collect_all


def prepare(workspace: Workspace, data: Data) -> dict[str, float]:
    """P/data/<task>.<split>.jsonl; metrics: share of test answers seen in pretraining."""
    counts = {split: count for split, count in data.counts.model_dump().items() if count}
    figures: dict[str, float] = {}
    with beside(workspace.outputs / "data") as folder, progress("prepare", len(data.tasks)) as tick:
        for name in data.tasks:
            task = task_of(data, name)
            # A data set with files has splits of its own; a generator fills as many prompts as are asked for.
            found: dict[str, list[Example]] = (
                {split: task.examples(split)[:count] for split, count in counts.items()}  # pyright: ignore
                if hasattr(task, "examples")
                else collect_all(task, counts, data.seed)
            )
            for split, examples in found.items():
                write_examples(folder / f"{name}.{split}.jsonl", examples)
            if found.get("pretrain"):
                figures[f"{name}.test_answers_seen"] = answers_seen(found["test"], found["pretrain"])
            tick(name)
    workspace.metrics("prepare", figures)
    return figures
