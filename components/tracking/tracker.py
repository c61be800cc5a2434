"""What a trainer reports to, and the one tracker that is always there: `metrics.jsonl`.

A trainer receives a `Tracker` and never imports this package. MLflow is in `mlflow_tracker.py`; nothing here needs it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from ..core.files import read_curve, write_lines


class Tracker(Protocol):
    """Where a run's settings and curves go. A call that fails after the start warns and returns."""

    @property
    def run_id(self) -> str | None:
        """Belongs into the checkpoint: a resumed run goes on in the same run. None where runs have no name."""
        ...

    def params(self, settings: Mapping[str, Any]) -> None: ...

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def finish(self, status: str) -> None:
        """status: FINISHED, FAILED or KILLED."""
        ...


class JsonlTracker:
    """One JSON object per step in `path`: `{"step": 3, "reward/mean": 0.61}`. What is not finite becomes null.

    resume_after: None starts the file anew. A step keeps the records up to and with it and drops later ones: a run
    that resumes from a checkpoint repeats them. Settings are in a file of the stage already.
    """

    run_id: str | None = None

    def __init__(self, path: Path, resume_after: int | None = None) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        resumes = resume_after is not None and path.exists()
        write_lines(path, [r for r in read_curve(path, torn=True) if r["step"] <= resume_after] if resumes else [])
        self._file = path.open("a", encoding="utf-8")

    def params(self, settings: Mapping[str, Any]) -> None:
        pass

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        values = {key: float(value) if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self._file.flush()  # a killed process loses at most the line it was writing

    def finish(self, status: str) -> None:
        self._file.close()


class CompositeTracker:
    """Reports to several trackers or none, in this order; the run's name is the first one that has a name."""

    def __init__(self, *trackers: Tracker) -> None:
        self._all = trackers

    @property
    def run_id(self) -> str | None:
        return next((tracker.run_id for tracker in self._all if tracker.run_id), None)

    def params(self, settings: Mapping[str, Any]) -> None:
        for tracker in self._all:
            tracker.params(settings)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for tracker in self._all:
            tracker.log(metrics, step)

    def finish(self, status: str) -> None:
        with ExitStack() as stack:  # a full disk at the first must not keep the second from its end
            for tracker in reversed(self._all):
                stack.callback(tracker.finish, status)
