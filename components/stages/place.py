"""Where a stage reads and writes: the repository, the active profile's output folder, and what stages share there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.settings import Data
from components.tasks.example import Example, Task, read_examples
from components.tracking.tracker import write_atomic


@dataclass(frozen=True)
class Place:
    """root: the repository. profile: its outputs lie under outputs/<profile> and never touch another profile's."""

    root: Path
    profile: str

    @property
    def outputs(self) -> Path:
        return self.root / "outputs" / self.profile

    def write_json(self, value: Mapping[str, Any], *parts: str) -> None:
        path = self.outputs.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n")

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
            raise DataError(f"{path} holds {len(found)} examples, {count} are asked for; figures would rest on fewer "
                            f"prompts than they say; raise data.counts.{split}")  # fmt: skip
        return found


def task_of(data: Data, name: str) -> Task:
    """The task as data.tasks defines it."""
    return data.tasks[name].build()


def fresh(folder: Path) -> Path:
    """An empty folder beside the one to write, to be renamed by ``settle``: what exists is whole."""
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    return beside


def settle(beside: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    from components.tracking.tracker import as_csv

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, as_csv(list(rows)))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
