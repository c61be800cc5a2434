"""What a learned policy is compared with: the sweep of the heuristics."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.core.errors import DataError
from components.core.types import Canvas
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers.formula import FormulaDenoiser
from components.evaluation.evaluate import Candidate, Scope, Sweep, evaluate, table
from components.evaluation.results import (
    KINDS,
    PER_PROMPT,
    EvalResult,
    read_results,
    write_results,
    write_table,
)
from components.policies.rules import heuristic
from tests.messages import has_remedy
from tests.outputs import read_table
from tests.toy_domain import KeyFirst

END = 1


def ends_first(canvas: Canvas) -> torch.Tensor:
    """A language model before it has written anything: the second half is the end of the text, and sure of it."""
    token_L, height_L = torch.tensor([2, 3, END, END]), torch.tensor([1.0, 2.0, 8.0, 9.0])
    logits_LV = torch.nn.functional.one_hot(token_L, 5) * height_L.unsqueeze(1)
    return logits_LV.expand(len(canvas.ids_BT), -1, -1)


def when(candidate: Candidate) -> tuple[int, int]:
    """The steps at which the last word and the first end are committed."""
    job = Job.of([torch.tensor([4])], 4, candidate.block_length or 4)
    done = rollout(FormulaDenoiser(ends_first, 5), candidate.policy, job, DecodeOptions(choose="mode"))
    assert bool(done.finished_R.all())
    return int(done.order_RL[0, :2].max()), int(done.order_RL[0, 2:].min())


def test_over_the_whole_canvas_ends_of_the_text_come_last_where_they_are_named():
    sizes, reads = (1, None), ("threshold", "factor", "entropy_bound", "confidence", "margin", "entropy")
    numbers = {"threshold": [0.9], "factor": [1.0], "entropy_bound": [0.1], "confidence": [1, 2]}
    numbers |= {name: [1] for name in ("random", "left_to_right", "margin", "entropy")}
    plain, late = (Sweep(sizes, numbers, ids).candidates(4) for ids in ((), frozenset({END})))
    assert [(c.family, c.setting, c.block_length) for c in plain] == [
        (c.family, c.setting, c.block_length) for c in late
    ]
    for one, other in zip(plain, late, strict=True):
        if one.block_length is not None:
            assert one.policy == other.policy
        elif one.family in reads:
            (word, end), (last_word, first_end) = when(one), when(other)
            assert end < word, one
            assert last_word < first_end, other
        elif one.family == "left_to_right":
            assert when(one) == when(other)


def test_a_table_of_many_candidates_at_a_time_is_each_of_them_alone(key_first: KeyFirst):
    """Random rules and deterministic ones; the threads are as many as before."""
    denoiser, prompts, before = key_first.denoiser(), key_first.prompts(), torch.get_num_threads()
    rules = [("random", 1), ("confidence", 1), ("random", 2), ("threshold", 0.6), ("entropy_bound", 0.5)]
    candidates = [Candidate(name, str(value), heuristic(name, value), None) for name, value in rules]
    torch.set_num_threads(2)
    try:
        ticks: list[int] = []
        scope = Scope("key_first", "formula", "tune")
        results = table(denoiser, candidates, prompts, [0, 1, 2], scope, ticks.append)
        assert torch.get_num_threads() == 2 and len(ticks) == len(candidates)
    finally:
        torch.set_num_threads(before)
    for result, candidate in zip(results, candidates, strict=True):
        alone = evaluate(denoiser, candidate, prompts, [0, 1, 2], scope)
        assert result == replace(alone, tokens_per_second=result.tokens_per_second)
        assert (result.family, result.setting) == (candidate.family, candidate.setting) and result.unfinished == 0
        assert (result.task, result.denoiser, result.split) == ("key_first", "formula", "tune")
        assert np.array_equal(result.correct_P, alone.correct_P) and np.array_equal(result.nfe_P, alone.nfe_P)
        assert result.seeds == (3 if candidate.family == "random" else 1)


def test_a_result_is_the_mean_of_its_prompts_and_outlives_its_file(key_first: KeyFirst, tmp_path: Path):
    """The lines hold what every prompt gave, the table all but that; both are read as they were written."""
    prompts = key_first.prompts()
    results = [
        evaluate(key_first.denoiser(), Candidate(name, "1", heuristic(name, 1), None), prompts, [0, 1, 2])
        for name in ("random", "left_to_right", "confidence")
    ]
    for result in results:
        assert result.prompts == len(prompts) == result.correct_P.size == result.nfe_P.size
        assert result.accuracy == pytest.approx(result.correct_P.mean()) and result.nfe == pytest.approx(4.0)
        assert result.accuracy_low <= result.accuracy <= result.accuracy_high and result.block_length == 4
    assert 0 < results[0].accuracy < 1, "random orders are right now and then"
    write_results(tmp_path / "results.jsonl", results)
    write_table(tmp_path / "table.csv", results)
    again = read_results(tmp_path / "results.jsonl")
    assert again == results == read_table(tmp_path / "table.csv")
    for one, other in zip(results, again, strict=True):
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in PER_PROMPT)
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()[0] == ",".join(KINDS)


@pytest.mark.parametrize("line", ['{"task": "a"}', '{"task": "a", "correct_P": "x", "nfe_P": []}'])
def test_a_line_that_is_no_result_is_refused_with_its_number(key_first: KeyFirst, tmp_path: Path, line: str):
    candidate = Candidate("random", "1", heuristic("random", 1), None)
    found = evaluate(key_first.denoiser(), candidate, key_first.prompts(), [0])
    write_results(tmp_path / "results.jsonl", [found])
    with (tmp_path / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match="line 2 is no result") as refused:
        read_results(tmp_path / "results.jsonl")
    assert has_remedy(str(refused.value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("family", None),
        ("nfe", "5"),
        ("block_length", 4.5),
        ("seeds", []),
        ("task", 1),
        ("nfe", -1),
        ("accuracy_low", -0.5),
    ],
)
def test_a_result_of_other_types_is_refused_by_its_line(tmp_path: Path, name: str, value: object) -> None:
    head = {"task": "t", "family": "threshold", "setting": "0.9", "block_length": 4, "choose": "mode"}
    path = tmp_path / "results.jsonl"
    write_results(path, [EvalResult.of_prompts(head, [1.0, 0.0], [2.0, 3.0])])
    (whole,) = read_results(path)
    assert whole.nfe == 2.5 and math.isnan(whole.dense), "NaN is null in the file"
    row = json.loads(path.read_text(encoding="utf-8")) | {name: value}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"results\.jsonl, line 1 is no result \({name}="):
        read_results(path)


def test_a_frontier_is_swept_over_the_whole_canvas_and_every_label_carries_it(key_first: KeyFirst):
    """Rules that are run in blocks, and no others; the cells differ by their settings, and decode as they say."""
    numbers = {"threshold": [0.5], "factor": [1.0], "confidence": [1]}
    sweep = Sweep((2, None), numbers, frontiers=(None, 1, 2, 64))
    cells = [(c.family, c.setting, c.block_length, c.frontier) for c in sweep.candidates(4)]
    ungated = [("threshold", "0.5", 2, None), ("threshold", "0.5", None, None)]
    gated = [("threshold", f"0.5, first {w}", None, w) for w in (1, 2)]
    assert cells[:4] == ungated + gated and cells[-1] == ("confidence", "1", None, None)
    assert len({cell[:3] for cell in cells}) == len(cells) == 9
    narrow = [c for c in sweep.candidates(4, wide=False) if c.family == "factor"]
    assert [c.setting for c in narrow] == ["1"], "in other tables only the strongest are run in blocks"
    denoiser, prompts = key_first.denoiser(), key_first.prompts()
    first = next(c for c in sweep.candidates(4) if c.frontier == 1)
    result, again = (
        evaluate(denoiser, Candidate("threshold", "", heuristic(name, 1), None, frontier=w), prompts, [0])
        for name, w in (("threshold", 1), ("left_to_right", None))
    )
    found = evaluate(denoiser, first, prompts, [0])
    assert found.setting == "0.5, first 1" and found.nfe == again.nfe == result.nfe == 4.0
    assert np.array_equal(found.correct_P, again.correct_P), "one position at a time from the left"


def test_a_result_says_that_rows_stopped_at_the_end_of_their_text(key_first: KeyFirst, tmp_path: Path):
    """On file too, and as a column of a table only where they did."""
    prompts = key_first.prompts()
    stopping = replace(prompts, encoder=stopped(prompts.encoder))
    rule = Candidate("left_to_right", "1", heuristic("left_to_right", 1), None)
    plain, early = (evaluate(key_first.denoiser(), rule, p, [0]) for p in (prompts, stopping))
    assert (plain.end_of_text, early.end_of_text) == (0, 1) and early.nfe < plain.nfe == 4.0
    for result in (plain, early):
        write_results(tmp_path / "results.jsonl", [result])
        write_table(tmp_path / "table.csv", [result])
        assert read_results(tmp_path / "results.jsonl") == read_table(tmp_path / "table.csv") == [result]
        header = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()[0]
        assert ("end_of_text" in header) == bool(result.end_of_text)


def stopped(encoder: Any):
    """The letter c ends a text."""
    found = type(encoder)()
    found.end_ids, found.stop_ids = frozenset({3}), (3,)
    return found
