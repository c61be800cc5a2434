"""What a learned policy is compared with: the sweep of the heuristics."""

from __future__ import annotations

import torch

from components.core.types import Canvas
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers.formula import FormulaDenoiser
from components.evaluation.evaluate import Candidate, Sweep, evaluate, table
from components.policies.rules import heuristic

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


def test_a_table_of_many_candidates_at_a_time_is_each_of_them_alone(key_first):
    """Random rules and deterministic ones; the threads are as many as before."""
    denoiser, prompts, before = key_first.denoiser(), key_first.prompts(), torch.get_num_threads()
    rules = [("random", 1), ("confidence", 1), ("random", 2), ("threshold", 0.6), ("entropy_bound", 0.5)]
    candidates = [Candidate(name, str(value), heuristic(name, value), None) for name, value in rules]
    torch.set_num_threads(2)
    try:
        ticks: list[int] = []
        cells = table(denoiser, candidates, prompts, [0, 1, 2], ticks.append)
        assert torch.get_num_threads() == 2 and len(ticks) == len(candidates)
    finally:
        torch.set_num_threads(before)
    for cell, candidate in zip(cells, candidates, strict=True):
        alone = evaluate(denoiser, candidate, prompts, [0, 1, 2])
        assert cell.candidate is candidate and cell.unfinished == alone.unfinished == 0
        assert torch.equal(cell.correct_SP, alone.correct_SP) and torch.equal(cell.nfe_SP, alone.nfe_SP)
        assert len(cell.correct_SP) == (3 if candidate.family == "random" else 1)
