"""What several processes evaluate is what one does; tests/e2e/test_shared_evaluation.py has real ones."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from components.core import processes
from components.decode.prompts import Prompts
from components.evaluation.evaluate import Candidate, Scope, table
from components.policies.rules import heuristic
from tests.toy_domain import KeyFirst

OF_A_RUN = ("tokens_per_second", "workers", "rows_in_flight", "tokens_per_forward")


@pytest.mark.parametrize(("size", "prompts"), [(2, 7), (3, 2)], ids=["uneven", "one has no prompt"])
def test_every_process_has_the_result_of_one(monkeypatch: pytest.MonkeyPatch, size: int, prompts: int) -> None:
    """Threads in place of processes; what they exchange goes through JSON as there."""
    task = KeyFirst()
    drawn, denoiser = task.prompts().take(range(prompts)), task.denoiser()
    candidates = [Candidate(name, "1", heuristic(name, 1), None) for name in ("random", "confidence")]

    def evaluated(_: int) -> list[dict[str, Any]]:
        own.rank = _
        found = [asdict(result) for result in table(denoiser, candidates, drawn, [0, 1], Scope("toy"))]
        return [{name: value for name, value in one.items() if name not in OF_A_RUN} for one in found]

    own, meet, box = threading.local(), threading.Barrier(size, timeout=60), ["" for _ in range(size)]
    alone = evaluated(0)

    def gathered(value: Any) -> list[Any]:
        box[own.rank] = json.dumps(value)
        meet.wait()
        found = [json.loads(text) for text in box]
        meet.wait()
        return found

    monkeypatch.setattr(processes, "size", lambda: size)
    monkeypatch.setattr(processes, "rank", lambda: own.rank)
    monkeypatch.setattr(processes, "gathered", gathered)
    with ThreadPoolExecutor(size) as pool:
        for found in pool.map(evaluated, range(size)):
            np.testing.assert_equal(found, alone)
    assert alone[0]["seeds"] == 2 and alone[1]["seeds"] == 1


def test_a_process_takes_its_own_prompts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many candidates are decoded."""
    task, taken, take = KeyFirst(), list[list[int]](), Prompts.take
    drawn = task.prompts().take(range(2))
    monkeypatch.setattr(processes, "size", lambda: 2)
    monkeypatch.setattr(processes, "gathered", lambda value: [value, value])
    monkeypatch.setattr(Prompts, "take", lambda self, index: taken.append(list(index)) or take(self, index))
    candidates = [Candidate("confidence", f"{k}", heuristic("confidence", k), None) for k in (1, 2)]
    results = table(task.denoiser(), candidates, drawn, [0], Scope("toy"))
    assert taken == [[0]] and [result.prompts for result in results] == [2, 2]
