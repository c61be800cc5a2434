"""A dLLM that keeps its answers gives the same ones, and is asked less."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from components.core.types import Canvas
from components.denoisers import remembered
from components.denoisers.remembered import RememberedDenoiser
from components.evaluation.evaluate import Candidate, Scope, table
from components.policies.rules import heuristic
from tests.toy_domain import KeyFirst


class Counting:
    """A denoiser that counts the rows it is sent."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.rows = inner, list[bytes]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def hidden(self, canvas: Canvas, state: Any) -> tuple[Tensor, Any]:
        self.rows += [row_T.numpy().tobytes() for row_T in canvas.ids_BT]
        return self.inner.hidden(canvas, state)


def _canvas(rows: list[list[int]], padding: int = 0) -> Canvas:
    ids_BT = torch.nn.functional.pad(torch.tensor(rows), (padding, 0), value=9)
    return Canvas(ids_BT, torch.arange(ids_BT.shape[1]).expand_as(ids_BT) >= padding, padding + 2)


def test_an_answer_is_the_same_from_memory_in_other_company_and_padding(key_first: KeyFirst) -> None:
    inner: Any = Counting(key_first.denoiser())
    kept = RememberedDenoiser(inner)
    rows = [[1, 1, 0, 0, 0, 0], [2, 3, 0, 5, 0, 0], [4, 2, 0, 0, 0, 7]]
    first_BTD, _ = kept.hidden(_canvas(rows))
    assert torch.equal(first_BTD, key_first.denoiser().hidden(_canvas(rows), None)[0])
    other = _canvas([rows[2], [3, 1, 0, 0, 0, 0], rows[1]], padding=3)
    second_BTD, _ = kept.hidden(other)
    whole_BTD, _ = key_first.denoiser().hidden(other, None)
    assert torch.equal(second_BTD[:, 5:], whole_BTD[:, 5:])
    assert len(inner.rows) == 4


def test_a_look_with_answers_from_memory_is_reckoned_as_if_all_had_been_asked(
    key_first: KeyFirst, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()  # a second from one look at the clock to the next
    monkeypatch.setattr(remembered.time, "perf_counter", lambda: float(next(clock)))
    kept = RememberedDenoiser(key_first.denoiser())
    kept.hidden(_canvas([[1, 1, 0, 0, 0, 0], [2, 3, 0, 5, 0, 0]]))
    assert kept.credit == 1.0 - 3.0  # the two rows took one second, the whole look three
    kept.hidden(_canvas([[1, 1, 0, 0, 0, 0]]))
    assert kept.credit == -2.0 + 0.5 - 1.0


def test_beyond_its_bytes_the_answer_that_was_longest_unused_goes(key_first: KeyFirst) -> None:
    inner: Any = Counting(key_first.denoiser())
    a, b, c = ([[1 + i, 1, 0, 0, 0, 0]] for i in range(3))
    size = inner.hidden(_canvas(a), None)[0][0, 2:].nbytes
    inner.rows.clear()
    kept = RememberedDenoiser(inner, most=2 * size)
    for rows in (a, b, a, c, a):
        kept.hidden(_canvas(rows))
    assert len(inner.rows) == 3
    kept.hidden(_canvas(b))
    assert len(inner.rows) == 4


def test_a_sweep_sends_no_canvas_twice(key_first: KeyFirst) -> None:
    inner: Any = Counting(key_first.denoiser())
    rules = [("threshold", 0.6), ("threshold", 0.9), ("confidence", 1), ("entropy_bound", 0.5)]
    candidates = [Candidate(name, str(value), heuristic(name, value), None) for name, value in rules]
    table(inner, candidates, key_first.prompts(), [0], Scope("key_first"))
    assert len(inner.rows) == len(set(inner.rows))
