"""What may be asked of a decode beside its policy: rows that stop at the end of their text, a frontier, canvases that
are partly filled, and going on when memory runs out. Each beside a loop written out for one row."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from components.core.errors import SettingsError
from components.core.types import Canvas, Observation, RowState
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers.formula import FormulaDenoiser
from components.policies.confidence import Shape
from components.policies.heuristics import SuppressTokens
from components.policies.protocol import Policy
from components.policies.rules import heuristic
from tests.unit.test_rollout import (
    MASK,
    SMALL,
    Patient,
    Remembering,
    Table,
    assert_same,
    coupled,
    job_of,
    learned,
    partly_filled,
)

SIZES = [(3, 12, 12), (1, 8, 4), (5, 12, 6), (0, 6, 2), (4, 10, 10)]
ENDS = (9, 4)


def naive(denoiser: Table, job: Job, row: int, threshold: float) -> tuple[list[int], list[int], int]:
    """One row by the threshold rule, as one would write it down: canvas, orders, forward passes."""
    length, size = int(job.length_R[row]), int(job.block_R[row])
    prompt = job.prompts[int(job.prompt_R[row])].tolist()
    given = [-1] * length if job.canvas_RL is None else job.canvas_RL[row, :length].tolist()
    canvas, order, forwards = [MASK if i < 0 else i for i in given], [-1] * length, 0
    while MASK in canvas:
        block = canvas.index(MASK) // size
        open_now = [p for p in range(block * size, min(length, (block + 1) * size)) if canvas[p] == MASK]
        open_now = open_now[: job.frontier]
        ids = torch.tensor([prompt + canvas])
        hidden, _ = denoiser.hidden(Canvas(ids, torch.ones_like(ids).bool(), len(prompt)), None)
        logits = denoiser.logits(hidden[0, len(prompt) :]).index_fill(-1, denoiser.forbidden_ids, -torch.inf)
        sure, token = logits.softmax(-1).max(-1)
        best = max(open_now, key=lambda p: (float(sure[p]), -p))
        for p in open_now:
            if p == best or float(sure[p]) >= threshold:
                canvas[p], order[p] = int(token[p]), forwards
        forwards += 1
        for p in range(canvas.index(MASK) if MASK in canvas else 0):
            if given[p] < 0 and canvas[p] in job.end_ids:
                canvas = [job.end_ids[0] if i == MASK else i for i in canvas]
                break
    return canvas, order, forwards


COSTS: list[dict[str, Any]] = [
    dict(),
    dict(rows=2),
    dict(rows=3, refill=False, reuse=False),
    dict(workers=2, tokens=20),
]


@pytest.mark.parametrize("filled", [False, True], ids=["masks", "filled"])
@pytest.mark.parametrize("end_ids", [(), ENDS], ids=str)
@pytest.mark.parametrize("frontier", [None, 1, 3])
def test_a_decode_is_what_a_plain_loop_over_one_row_writes(
    frontier: int | None, end_ids: tuple[int, ...], filled: bool
):
    denoiser, job = Table(), job_of(SIZES, group=4)
    job = replace(partly_filled(job, 3) if filled else job, frontier=frontier, end_ids=end_ids)
    wanted = [naive(denoiser, job, row, 0.5) for row in range(len(job))]
    for cost in COSTS:
        done = rollout(denoiser, heuristic("threshold", 0.5), job, DecodeOptions(**cost))
        for row, (canvas, order, forwards) in enumerate(wanted):
            assert done.canvas_RL[row, : len(canvas)].tolist() == canvas
            assert done.order_RL[row, : len(order)].tolist() == order
            assert int(done.nfe_R[row]) == forwards
        assert bool(done.finished_R.all())
    saved = int(rollout(denoiser, heuristic("threshold", 0.5), replace(job, end_ids=()), DecodeOptions()).nfe_R.sum())
    assert (sum(forwards for *_, forwards in wanted) < saved) == bool(end_ids)


def ends_second(canvas: Canvas) -> Tensor:
    """Sure of every position, the later the surer; the end of the text is predicted at position 1."""
    token_L, height_L = torch.tensor([2, 1, 3, 4]), torch.tensor([4.0, 3.0, 2.0, 1.0])
    return (torch.nn.functional.one_hot(token_L, 5) * height_L.unsqueeze(1)).expand(len(canvas.ids_BT), -1, -1)


def test_an_end_with_a_mask_before_it_ends_nothing_and_what_is_filled_is_not_paid_for():
    denoiser, job = FormulaDenoiser(ends_second, 5), Job.of([torch.tensor([4])], 4, 4)
    one_by_one = heuristic("confidence", 1)
    plain, early = (rollout(denoiser, one_by_one, replace(job, end_ids=ids), DecodeOptions()) for ids in ((), (1,)))
    assert (plain.nfe_R.tolist(), plain.canvas_RL.tolist()) == ([4], [[2, 1, 3, 4]])
    assert (early.nfe_R.tolist(), early.canvas_RL.tolist()) == ([2], [[2, 1, 1, 1]])
    assert early.order_RL.tolist() == [[0, 1, -1, -1]] and early.forwards == 2 and bool(early.finished_R.all())
    # From the right the end comes before what stands in front of it, and all four positions are paid for.
    right_to_left = FormulaDenoiser(lambda canvas: ends_second(canvas) * torch.tensor([0.1, 1, 2, 4]).unsqueeze(1), 5)
    late = rollout(right_to_left, one_by_one, replace(job, end_ids=(1,)), DecodeOptions())
    assert (late.nfe_R.tolist(), late.canvas_RL.tolist()) == ([4], [[2, 1, 3, 4]])


def test_an_end_that_was_given_ends_nothing():
    denoiser, job = FormulaDenoiser(ends_second, 5), Job.of([torch.tensor([4])], 4, 4)
    job = replace(job, canvas_RL=torch.tensor([[1, 3, -1, -1]]), end_ids=(1,))
    done = rollout(denoiser, heuristic("confidence", 1), job, DecodeOptions())
    assert (done.canvas_RL.tolist(), done.nfe_R.tolist()) == ([[1, 3, 3, 4]], [2])


def test_a_frontier_that_leaves_nothing_is_refused():
    with pytest.raises(SettingsError, match="frontier=0"):
        replace(job_of(SIZES, group=1), frontier=0)


# --- partly filled canvases ------------------------------------------------------------------------------------------


def test_a_row_gets_as_many_steps_as_it_began_with_masks():
    """A policy that never draws, unforced; and paper A's cap, by block."""
    job = replace(job_of([(3, 8, 4)], group=1), canvas_RL=torch.tensor([[5, -1, 5, 5, -1, -1, -1, 6]]))
    never = heuristic("left_to_right", 1)
    assert job.masks_R.tolist() == [4]
    from tests.unit.test_rollout import Never, Sometimes

    assert rollout(Table(), Never(), job, DecodeOptions(force_commit=False)).nfe_R.tolist() == [4]
    capped = rollout(Table(), Sometimes(never), job, DecodeOptions(force_commit=False, step_limit="block"))
    assert capped.order_RL.tolist() == [[-1, 0, -1, -1, -1, 2, -1, -1]] or capped.order_RL[0, 1] == 0
    assert capped.nfe_R.tolist() == [4]


def test_the_last_block_of_a_given_canvas_may_be_shorter_and_of_a_canvas_of_masks_may_not():
    job = job_of([(3, 7, 7)], group=1)
    given = replace(job, canvas_RL=torch.tensor([[5, -1, 5, -1, -1, -1, -1]]), block_R=torch.tensor([3]))
    done = rollout(Table(), heuristic("threshold", 0.0), given, DecodeOptions())
    assert done.order_RL.tolist() == [[-1, 0, -1, 1, 1, 1, 2]] and done.nfe_R.tolist() == [3]
    with pytest.raises(SettingsError, match="does not divide"):
        replace(job, canvas_RL=torch.full((1, 7), -1), block_R=torch.tensor([3]))


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass
class Small(Table):
    """A table on a machine that holds so many rows of a forward pass, and no more."""

    most: int = 3

    def hidden(self, canvas: Canvas, state: RowState | None) -> tuple[Tensor, RowState | None]:
        if len(canvas.ids_BT) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().hidden(canvas, state)


@dataclass
class SmallRemembering(Remembering):
    most: int = 3

    def hidden(self, canvas: Canvas, state: RowState | None) -> tuple[Tensor, RowState | None]:
        if len(canvas.ids_BT) > self.most:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
            )
        return super().hidden(canvas, state)


@dataclass(frozen=True)
class SmallPolicy:
    """Another policy where at most two rows fit."""

    policy: Any

    @property
    def needs(self):
        return self.policy.needs

    def score(self, obs: Observation):
        return self.policy.score(obs)

    def distribution(self, obs: Observation):
        if len(obs.step_B) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return self.policy.distribution(obs)


@pytest.mark.parametrize("options", [dict(refill=False), dict(workers=2)], ids=str)
@pytest.mark.parametrize("policy", [learned(Shape(**SMALL)), Patient()], ids=["learned", "drift"])
@pytest.mark.parametrize("plain, small", [(Table, Small), (Remembering, SmallRemembering)])
def test_where_memory_runs_out_rows_wait_and_end_as_they_would_have(
    plain: Callable[[], Table],
    small: Callable[[], Table],
    policy: Policy,
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
):
    job = job_of(SIZES, group=3)
    base = DecodeOptions(seed=4, force_commit=False, record=True, rows=12, **options)
    wanted = rollout(plain(), policy, job, base)
    with caplog.at_level(logging.WARNING):
        found = rollout(small(), policy, job, base)
    assert_same(found, wanted)
    assert [r.message for r in caplog.records if "Out of memory" in r.message] == [caplog.records[0].message]
    assert found.shares[1] <= 3 < wanted.shares[1]


def test_where_the_policy_runs_out_of_memory_halves_decide_in_turn(caplog: pytest.LogCaptureFixture):
    job, policy = job_of(SIZES, group=3), coupled()
    base = DecodeOptions(seed=4, force_commit=False, record=True, rows=12)
    for make in (Table, Remembering):
        assert_same(rollout(make(), SmallPolicy(policy), job, base), rollout(make(), policy, job, base))
    assert "Out of memory with 12 rows" in caplog.text


def test_one_row_that_does_not_fit_and_any_other_error_are_raised():
    with pytest.raises(torch.OutOfMemoryError):
        rollout(Small(most=0), heuristic("threshold", 0.5), job_of(SIZES, group=1), DecodeOptions())

    class Broken(Table):
        def hidden(self, canvas: Canvas, state: RowState | None) -> tuple[Tensor, RowState | None]:
            raise RuntimeError("sizes differ")

    with pytest.raises(RuntimeError, match="sizes differ"):
        rollout(Broken(), heuristic("threshold", 0.5), job_of(SIZES, group=1), DecodeOptions())


# --- ends of the text that come last ---------------------------------------------------------------------------------


def llada(
    denoiser: Table, prompt: Tensor, length: int, per_step: int, late: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """LLaDA's sampler at temperature 0 with ``confidence_eos_eot_inf``, one row: the prediction is taken first, the
    ids' logits then become -inf, and only then the confidences are read, by a softmax."""
    canvas, order = torch.full((length,), MASK), [-1] * length
    for step in range(-(-length // per_step)):
        ids = torch.cat([prompt, canvas]).unsqueeze(0)
        hidden, _ = denoiser.hidden(Canvas(ids, torch.ones_like(ids).bool(), len(prompt)), None)
        logits = hidden[0, len(prompt) :].index_fill(-1, denoiser.forbidden_ids, -torch.inf)
        token = logits.argmax(-1)
        logits[:, list(late)] = -torch.inf
        sure = logits.softmax(-1).gather(-1, token.unsqueeze(-1)).squeeze(-1).masked_fill(canvas != MASK, -torch.inf)
        for p in sure.topk(per_step).indices.tolist():
            canvas[p], order[p] = token[p], step
    return canvas.tolist(), order


def test_suppressed_ends_are_llada_s_where_renormalized_and_otherwise_not_quite():
    """Over many canvases, with ends that compete for every position. Positions that predict an end tie in LLaDA's
    sampler, so that what comes before the first of them is compared."""
    denoiser, late = Table(sharpness=2.0), (3, 4, 5)
    prompts = [torch.tensor([2 + i % 8, 2 + i // 8 % 8, 1 + i // 64]) for i in range(96)]
    equal = {}
    for renormalize in (True, False):
        policy = SuppressTokens(heuristic("confidence", 1), late, renormalize)
        done = rollout(denoiser, policy, Job.of(prompts, 4, 4), DecodeOptions())
        equal[renormalize] = 0
        for row, prompt in enumerate(prompts):
            canvas, order = llada(denoiser, prompt, 4, 1, late)
            words = next((step for step in range(4) if canvas[order.index(step)] in late), 4)
            first = [order.index(step) for step in range(4)][:words]
            mine = [done.order_RL[row].tolist().index(step) for step in range(4)][:words]
            equal[renormalize] += first == mine
    assert equal[True] == len(prompts) and equal[False] < len(prompts), equal


def test_policies_that_leave_out_different_tokens_are_not_mixed():
    job, rule = job_of(SIZES, group=2), heuristic("threshold", 0.5)
    job = replace(job, policy_R=job.member_R)
    with pytest.raises(SettingsError, match="one after another"):
        rollout(Table(), [rule, SuppressTokens(rule, (3,), renormalize=True)], job, DecodeOptions())
