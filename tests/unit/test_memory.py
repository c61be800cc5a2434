"""Rows in flight and positions per forward come from a budget of bytes, and change no decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import SettingsError
from components.core.timer import Timer
from components.core.types import STATISTICS, Needs
from components.decode import memory
from components.decode.batch import DecodeBatch, admit
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.decode.refresh import Facts, refresh, tokens_per_forward
from components.denoisers import TransformerDenoiser, embedded
from components.denoisers.protocol import Denoiser
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.heuristics import Klass, Threshold
from tests.messages import has_remedy

torch.set_num_threads(1)

CPU = torch.device("cpu")
LENGTH = 8


@pytest.fixture(scope="module")
def denoiser():
    return embedded.build("llada", "abcdefg", embedded.Shape(16, 2, 2, 24, 64), seed=1)[0]


def job_of(rows: int) -> Job:
    prompts = [torch.arange(5, 8), torch.tensor([6])]
    return Job.of(prompts, LENGTH, LENGTH // 2, group=rows // 2)


def bytes_of(seen: DecodeBatch) -> int:
    held = [*seen.tensors().values(), *seen.fields.values(), *(seen.state or {}).values()]
    return sum(t.nbytes for t in {t.data_ptr(): t for t in held}.values())


@pytest.mark.parametrize(
    "needs",
    [
        Needs(),
        Needs(statistics=STATISTICS, top_k=5),
        Needs(features="sequence"),
        Needs(features="canvas", where="all"),
        Needs(drift=3),
        Needs(answer=True),
        Needs(top_k=5, top_ids=True),
        Needs(attention=(0, -1)),
    ],
)
def test_a_row_in_flight_takes_no_more_than_is_counted_and_not_far_less(denoiser: TransformerDenoiser, needs: Needs):
    job = job_of(40)
    job = replace(job, answers=[torch.full((LENGTH,), 5)] * 2) if needs.answer else job
    batch = admit(job, torch.arange(40), denoiser, 0)
    seen, _ = refresh(batch, denoiser, needs, Timer(), Facts.of(batch, needs, every=True))
    counted = memory.count(job, denoiser, needs).row
    held = bytes_of(seen) / 40
    policy = LENGTH * 12 * 2**10
    assert memory._COPIES * held <= counted <= memory._COPIES * held * 1.5 + 2 * policy + 16 * 2**10


def test_a_recorded_step_takes_no_more_than_is_counted_and_not_far_less(denoiser: TransformerDenoiser):
    job, policy = job_of(40), ConfidencePolicy(Shape(width=8, heads=2, mlp_width=16, features=16)).eval()
    steps = rollout(denoiser, policy, job, DecodeOptions(record=True, force_commit=False)).steps
    assert steps is not None
    held = [*steps.observation.tensors().values(), steps.action.drawn_BL, steps.row_N, steps.step_N, steps.log_prob_N]
    kept = sum(t.nbytes for t in held) / len(steps.row_N)
    bare, whole, half = (
        memory.count(job, denoiser, policy.needs, record, keep).row
        for record, keep in ((False, 1.0), (True, 1.0), (True, 0.5))
    )
    assert kept <= (whole - bare) / LENGTH <= 1.5 * kept
    assert half - bare == pytest.approx((whole - bare) / 2, rel=0.01)


def test_what_grows_with_the_vocabulary_is_only_what_keeps_distributions(denoiser: TransformerDenoiser):
    class Wide:
        def __init__(self) -> None:
            self.__dict__.update(vars(denoiser), vocabulary=126_464, start=denoiser.start)

    job = job_of(2)
    large = cast(Denoiser, Wide())
    narrow, wide = (memory.count(job, d, Needs()) for d in (denoiser, large))
    assert wide.row == narrow.row
    assert wide.forward(10**6) - 10**6 * wide.position <= 2 * sum(wide.chunks) + 3 * wide.chunks[1]  # chunked
    assert memory.count(job, large, Klass(0.5, 1.0).needs).row > LENGTH * 126_464 * 4


@settings(max_examples=200, deadline=None)
@given(
    budget=st.integers(1, 10**8),
    whole=st.integers(1, 600),
    row=st.integers(100, 10**6),
    rows=st.integers(1, 600),
    given_rows=st.booleans(),
    position=st.integers(100, 10**5),
    tokens=st.one_of(st.none(), st.integers(1, 5000)),
)
def test_what_is_found_keeps_within_the_budget_and_cannot_be_more(
    budget: int, whole: int, row: int, rows: int, given_rows: bool, position: int, tokens: int | None
):
    sizes = memory.Bytes(row, position, 400, (10**6, 10**4))
    limit = rows if given_rows else None
    try:
        found, positions = memory.fit(sizes, whole, CPU, budget, limit, tokens)
    except SettingsError as refusal:
        assert row + sizes.forward(whole) > budget
        assert has_remedy(str(refusal))
        return
    asked = tokens or tokens_per_forward(CPU)
    most = memory.FORWARDS * max(1, asked // whole) if limit is None else limit
    taken = sizes.forward(max(whole, positions))
    assert 1 <= found <= most and 1 <= positions <= asked
    assert found * row + taken <= budget
    # One more row, or a longer forward within its quarter, would not fit.
    assert found == most or (found + 1) * row + taken > budget
    assert positions in (asked, whole) or (positions + 1) * position > budget // 4


@pytest.mark.parametrize(
    "policy", [Threshold(0.3), Klass(0.2, 5.0), ConfidencePolicy(Shape(width=8, heads=2, mlp_width=16))]
)
def test_any_budget_decodes_the_same(
    denoiser: TransformerDenoiser, policy: Threshold | Klass | ConfidencePolicy, monkeypatch: pytest.MonkeyPatch
):
    job = job_of(12)
    sizes = memory.count(job, denoiser, policy.needs, record=True)
    least, whole = sizes.row + sizes.forward(sum(job.shape)), []
    inside = memory.fit
    monkeypatch.setattr(memory, "fit", lambda *given: whole.append(inside(*given)) or whole[-1])
    wanted = rollout(denoiser, policy, job, DecodeOptions(seed=2, record=True))
    for budget in (least, 2 * least, 5 * least):
        found = rollout(denoiser, policy, job, DecodeOptions(seed=2, record=True, memory=budget))
        for name in ("canvas_RL", "order_RL", "nfe_R", "finished_R"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert [rows for rows, _ in whole] == sorted({rows for rows, _ in whole[1:]}) or whole[0][0] > whole[1][0] == 1
    with pytest.raises(SettingsError, match="one row of 11 positions"):
        rollout(denoiser, policy, job, DecodeOptions(record=True, memory=least - 1))


def test_memory_does_not_grow_with_the_number_of_prompts(
    denoiser: TransformerDenoiser, monkeypatch: pytest.MonkeyPatch
):
    """The largest batch of a job of 400 rows is that of a job of 40."""
    most: dict[int, int] = {}
    inside = refresh

    def watched(seen: DecodeBatch, *rest: Any, **named: Any):
        result = inside(seen, *rest, **named)
        most[size] = max(most.get(size, 0), bytes_of(result[0]))
        return result

    monkeypatch.setattr("components.decode.engine.refresh", watched)
    for size in (40, 400):
        rollout(denoiser, Threshold(0.3), job_of(size), DecodeOptions(rows=16))
    assert most[400] <= most[40] * 1.01


def test_what_is_free_is_what_the_machine_says():
    assert 2**20 < memory.free_bytes(CPU) < 2**50
