"""The folders of a stage: the repository, the active profile's outputs, and the task data in them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import DataError
from ...core.files import read_json, unpacking, write_json
from ...tasks import build
from ...tasks.example import Example, Task, read_examples

FOLDERS = {"prepare": "data"} | dict.fromkeys(("gate", "transfer", "ood"), "evaluate")
"""Stage -> folder of its results, where the folder has another name."""


@dataclass(frozen=True)
class TaskData:
    """A task's definition (task.json) and prompts (SPLIT.jsonl), as stage prepare wrote them into ``folder``."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def task(self) -> Task:
        """The task. DataError where stage prepare has not run, SettingsError where the definition cannot work."""
        path = self.folder / "task.json"
        defined = read_json(path, needs=("kind", "params", "canvas"))
        canvas = {} if defined["canvas"] is None else {"canvas_length": defined["canvas"]}
        with unpacking(path):
            return build(defined["kind"], **defined["params"], **canvas)

    def split(self, split: str) -> Path:
        return self.folder / f"{split}.jsonl"

    def examples(self, split: str, count: int | None = None) -> list[Example]:
        """The first ``count`` examples of a split (None: all); DataError where there are fewer."""
        path = self.split(split)
        examples = read_examples(path)[:count]
        if count is not None and len(examples) < count:
            raise DataError(f"{path} holds {len(examples)} examples, {count} are needed. Raise data.counts.{split}.")
        return examples


@dataclass(frozen=True)
class Workspace:
    """root: the repository. profile: its outputs lie under outputs/<profile>, apart from those of other profiles."""

    root: Path
    profile: str

    @property
    def outputs(self) -> Path:
        return self.root / "outputs" / self.profile

    def write_json(self, value: Mapping[str, Any], *parts: str) -> None:
        write_json(self.outputs.joinpath(*parts), value)

    def metrics(self, name: str, figures: Mapping[str, Any]) -> None:
        """P/metrics/<name>.json, which DVC shows."""
        self.write_json(figures, "metrics", f"{name}.json")

    def check_writable(self, stage: str, part: str = "") -> None:
        """Raise OSError before any work where the stage's results cannot be written.

        part: the folder of a case or a model, of stages that have one for each.
        """
        first = FOLDERS.get(stage, stage)
        others = {"evaluate": ("tables",), "report": ("plots", "result")}.get(first, ())
        for folder in (self.outputs / first / part, *(self.outputs / name for name in (*others, "metrics"))):
            existing = next(path for path in (folder, *folder.parents) if path.exists())
            with tempfile.TemporaryFile(dir=existing):
                pass

    def task(self, name: str) -> TaskData:
        """The data of an evaluation task: splits tune, gate and test."""
        return TaskData(self.outputs / "data" / "tasks" / name)

    def domain(self, name: str) -> TaskData:
        """The data of a training task: splits train, tune, gate and test."""
        return TaskData(self.outputs / "data" / "domain" / name)

    def corpus(self, model: str, name: str) -> TaskData:
        """The data of a task that an embedded dLLM is pretrained on: split pretrain."""
        return TaskData(self.outputs / "data" / "pretrain" / model / name)
