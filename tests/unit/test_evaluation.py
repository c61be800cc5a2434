"""What a learned policy is compared with: the sweep of the heuristics."""

from __future__ import annotations

import torch

from components.denoisers.formula import FormulaDenoiser
from components.evaluation import Candidate, Sweep
from components.rollout import Job, Options, rollout
from components.types import Canvas

END = 1


def ends_first(canvas: Canvas) -> torch.Tensor:
    """A language model before it has written anything: the second half is the end of the text, and sure of it."""
    token_L, height_L = torch.tensor([2, 3, END, END]), torch.tensor([1.0, 2.0, 8.0, 9.0])
    logits_LV = torch.nn.functional.one_hot(token_L, 5) * height_L.unsqueeze(1)
    return logits_LV.expand(len(canvas.ids_BT), -1, -1)


def when(candidate: Candidate) -> tuple[int, int]:
    """The steps at which the last word and the first end are committed."""
    job = Job.of([torch.tensor([4])], 4, candidate.block_length or 4)
    done = rollout(FormulaDenoiser(ends_first, 5), candidate.policy, job, Options(choose="mode"))
    assert bool(done.finished_R.all())
    return int(done.order_RL[0, :2].max()), int(done.order_RL[0, 2:].min())


def test_over_the_whole_canvas_ends_of_the_text_come_last_where_they_are_named():
    sizes, reads = (1, None), ("threshold", "factor", "entropy_bound", "confidence", "margin", "entropy")
    plain, late = (Sweep(sizes, [0.9], [1.0], [0.1], [1, 2], ids).candidates(4) for ids in ((), frozenset({END})))
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
