"""Stage prepare: prompts of every task in splits that share no prompt, in one folder for each stage that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.files import beside, write_json
from ..settings import Data, Domain, Model, TaskSettings
from ..tasks.example import Example, write_examples
from ..tasks.hub import TextTask
from ..tasks.splits import answers_seen, collect_all
from .common.progress import progress
from .common.workspace import Workspace


def prepare(workspace: Workspace, data: Data, models: Mapping[str, Model], domain: Domain) -> dict[str, float]:
    """P/data/{tasks/<task>, domain/<task>, pretrain/<model>/<task>}; metrics: test answers seen in pretraining.

    A stage depends on the folders it reads: a task that is added changes none of another stage's.
    """
    counts = {split: count for split, count in data.counts.model_dump().items() if count}
    figures: dict[str, float] = {}
    with beside(workspace.outputs / "data") as folder, progress("prepare", len(data.tasks)) as tick:
        for name, settings in data.tasks.items():
            task = settings.build()
            # A split that a data set does not have (test files without a train file) is an empty file.
            has = task.splits if isinstance(task, TextTask) else tuple(counts)
            wanted = {split: count if split in has else 0 for split, count in counts.items()}
            splits = collect_all(task, wanted, data.seed)
            _write(folder / "tasks" / name, settings, splits, ("tune", "gate", "test"))
            if name in domain.tasks:
                _write(folder / "domain" / name, settings, splits, ("train", "tune", "gate", "test"))
            for model, chosen in models.items():
                if name in chosen.rows:
                    _write(folder / "pretrain" / model / name, settings, splits, ("pretrain",))
            if isinstance(task, TextTask) and task.left_out:
                figures[f"{name}.rows_left_out"] = len(task.left_out)
            if splits.get("pretrain"):
                figures[f"{name}.test_answers_seen"] = answers_seen(splits["test"], splits["pretrain"])
            tick(name)
        for model, chosen in models.items():
            # Stage pretrain depends on the folder of a dLLM that learns nothing here, too.
            write_json(folder / "pretrain" / model / "rows.json", chosen.rows)
    workspace.metrics("prepare", figures)
    return figures


def _write(folder: Path, settings: TaskSettings, splits: Mapping[str, list[Example]], wanted: tuple[str, ...]) -> None:
    write_json(folder / "task.json", settings.model_dump(mode="json"))
    for split in wanted:
        write_examples(folder / f"{split}.jsonl", splits.get(split, []))
