"""Stage prepare: prompts of every task in splits that share no prompt."""

from __future__ import annotations

from components.core.files import beside
from components.settings import Data
from components.stages.common.progress import progress
from components.stages.common.workspace import Workspace, task_of
from components.tasks.example import write_examples
from components.tasks.hub import TextTask
from components.tasks.splits import answers_seen, collect_all


def prepare(workspace: Workspace, data: Data) -> dict[str, float]:
    """P/data/<task>.<split>.jsonl; metrics: share of test answers seen in pretraining."""
    counts = {split: count for split, count in data.counts.model_dump().items() if count}
    figures: dict[str, float] = {}
    with beside(workspace.outputs / "data") as folder, progress("prepare", len(data.tasks)) as tick:
        for name in data.tasks:
            task = task_of(data, name)
            # Splits that a data set does not have (test files without a train file) get an empty file.
            has = task.splits if isinstance(task, TextTask) else tuple(counts)
            asked = {split: count if split in has else 0 for split, count in counts.items()}
            found = collect_all(task, asked, data.seed)
            for split, examples in found.items():
                write_examples(folder / f"{name}.{split}.jsonl", examples)
            if found.get("pretrain"):
                figures[f"{name}.test_answers_seen"] = answers_seen(found["test"], found["pretrain"])
            tick(name)
    workspace.metrics("prepare", figures)
    return figures
