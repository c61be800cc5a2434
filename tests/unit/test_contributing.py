"""The examples of CONTRIBUTING.md run, and do what the text promises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from components import tasks
from components.tasks.splits import collect_all

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


def example(name: str) -> dict[str, Any]:
    """Names that the marked Python block of this name defines."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- executed by a test: {name} -->\n```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"__name__": f"contributing_{name}"}
    exec(compile(code, f"CONTRIBUTING.md: {name}", "exec", dont_inherit=True), names)
    return names


def test_the_example_task_is_built_by_name_drawn_in_splits_and_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASKS", tasks.TASKS.copy())
    example("task")
    task = tasks.build("reverse", digits=4)
    splits = collect_all(task, {"train": 20, "test": 5}, seed=0)
    assert not {x.prompt for x in splits["train"]} & {x.prompt for x in splits["test"]}
    for drawn in splits["test"]:
        assert drawn.answer == drawn.prompt[:0:-1] and len(drawn.answer) == task.canvas_length
        assert set(drawn.prompt + drawn.answer) <= set(task.alphabet)
        assert (task.score(drawn.answer, drawn).correct, task.score("", drawn).dense) == (1.0, 0.0)
        assert task.score("x" + drawn.answer[1:], drawn).dense == 0.75
