"""The examples of CONTRIBUTING.md run, and do what the text promises."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from components import tasks
from components.core.types import Action, Observation
from components.tasks.splits import collect_all

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


def text_of(name: str) -> str:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- executed by a test: {name} -->\n```python\n(.*?)```", text, re.DOTALL)
    return code


def example(name: str) -> dict[str, Any]:
    """Names that the marked Python block of this name defines, in the package that it belongs to."""
    code = text_of(name)
    package = {"task": "components.tasks", "heuristic": "components.policies"}.get(name, "")
    names: dict[str, Any] = {"__name__": f"contributing_{name}", "__package__": package}
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


def observation(rows: int = 2, length: int = 4) -> Observation:
    """Random statistics; the last position of each row is committed already."""
    source = torch.Generator().manual_seed(0)
    masked_BL = torch.ones(rows, length, dtype=torch.bool)
    masked_BL[:, -1] = False
    return Observation(
        masked_BL,
        masked_BL,
        torch.zeros(rows, dtype=torch.int64),
        torch.full((rows,), length),
        log_odds_BL=torch.randn(rows, length, generator=source),
        margin_BL=torch.rand(rows, length, generator=source),
    )


def test_the_example_policy_has_exact_likelihoods() -> None:
    policy, obs = example("policy")["LinearPolicy"](), observation(rows=1)
    draws = [Action(torch.tensor([[*bits, False]])) for bits in itertools.product([False, True], repeat=3)]
    total = sum(float(policy.distribution(obs).log_prob(action).detach().exp()) for action in draws)
    assert total == pytest.approx(1.0)
