"""Where a stage reads and writes: the repository, the active profile's output folder, and what stages share there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.errors import DataError
from components.core.files import write_json
from components.settings import Data
from components.tasks.example import Example, Task, read_examples


@dataclass(frozen=True)
class Workspace:
    """root: the repository. profile: its outputs lie under outputs/<profile> and never touch another profile's."""

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

    def data(self, task: str, split: str) -> Path:
        return self.outputs / "data" / f"{task}.{split}.jsonl"

    def examples(self, task: str, split: str, count: int | None = None) -> list[Example]:
        """The first ``count`` examples of a split; DataError if stage prepare has not made that many."""
        path = self.data(task, split)
        found = list(read_examples(path))[:count]
        if count is not None and len(found) < count:
            raise DataError(
                f"{path} holds {len(found)} examples, {count} are asked for; figures would rest on fewer "
                f"prompts than they say; raise data.counts.{split}"
            )
        return found


def task_of(data: Data, name: str) -> Task:
    """The task as data.tasks defines it."""
    return data.tasks[name].build()
