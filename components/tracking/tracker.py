"""What a trainer reports to, and the one tracker that is always there: `metrics.jsonl`.

A trainer receives a `Tracker` and never imports this package. MLflow is in `mlflow_tracker.py`; nothing here needs it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from components.errors import DataError


class Tracker(Protocol):
    """Where a run's settings, curves, tables and files go. A call that fails after the start warns and returns."""

    @property
    def run_id(self) -> str | None:
        """Belongs into the checkpoint: a resumed run goes on in the same run. None where runs have no name."""
        ...

    def params(self, settings: Mapping[str, Any]) -> None: ...

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def finish(self, status: str) -> None:
        """status: FINISHED, FAILED or KILLED."""
        ...


class JsonlTracker:
    """One JSON object per step in `path`: `{"step": 3, "reward/mean": 0.61}`. What is not finite becomes null.

    resume_after: None starts the file anew. A step keeps the records up to and with it and drops later ones: a run
    that resumes from a checkpoint repeats them. Tables go to `<name>.csv` beside the file; settings and
    artifacts are files of the stage already and are left to it.
    """

    run_id: str | None = None

    def __init__(self, path: Path, resume_after: int | None = None) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_after is None else [r for r in read_metrics(path) if r["step"] <= resume_after]
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def params(self, settings: Mapping[str, Any]) -> None:
        pass

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        values = {key: float(value) if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self._file.flush()  # a killed process loses at most the line it was writing

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        write_atomic(self._path.with_name(f"{name}.csv"), as_csv(rows))

    def artifact(self, path: Path) -> None:
        pass

    def finish(self, status: str) -> None:
        self._file.close()


class Both:
    """Reports to two trackers, in this order; the run's name is the first one that has a name."""

    def __init__(self, first: Tracker, second: Tracker) -> None:
        self._all = (first, second)

    @property
    def run_id(self) -> str | None:
        return next((tracker.run_id for tracker in self._all if tracker.run_id), None)

    def params(self, settings: Mapping[str, Any]) -> None:
        for tracker in self._all:
            tracker.params(settings)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for tracker in self._all:
            tracker.log(metrics, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for tracker in self._all:
            tracker.table(name, rows)

    def artifact(self, path: Path) -> None:
        for tracker in self._all:
            tracker.artifact(path)

    def finish(self, status: str) -> None:
        for tracker in self._all:
            tracker.finish(status)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order. A torn last line (a killed writer) costs that line.

    No file, no records. Raises ValueError for a torn line anywhere else: that is damage, not a crash.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # A line is whole when its newline is there; what follows the last newline was being written.
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the pipeline. DataError if it is not there."""
    if not path.exists():
        raise DataError(f"{path} is not there; it tells what a stage did and with what; run `dvc repro` first")
    return json.loads(path.read_text(encoding="utf-8"))


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV text, columns in the order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_atomic(path: Path, text: str) -> None:
    """Written beside and renamed: a reader sees the old file or the new one, never half."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
