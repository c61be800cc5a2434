"""What is kept of a coupled policy's first step: it is the decode's own, and of nobody else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from components.core.types import Rollout
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers import embedded
from components.evaluation import view
from components.evaluation.view import first_views
from components.policies.coupled import CoupledPolicy, draws_by_shifts
from components.policies.rules import heuristic
from tests.unit.test_coupled_policy import PLAIN, policy_of

PROMPTS = [torch.tensor([3, 4]), torch.tensor([5]), torch.tensor([6, 3, 4])]


def decoded(policy: Any, block: int = 6, record: bool = True) -> Rollout:
    denoiser, _ = embedded.build("llada", "abcdefg", embedded.Shape(16, 2, 2, 24, 64), seed=1)
    return rollout(denoiser, policy, Job.of(PROMPTS, 6, block), DecodeOptions(choose="mode", record=record))


@pytest.mark.parametrize("action", ["accept", "coupled"])
@pytest.mark.parametrize("block", [3, 6])
def test_the_view_is_the_first_step_of_the_decode_and_changes_nothing_in_it(action: str, block: int) -> None:
    policy = policy_of(replace(PLAIN, action=action))
    done = decoded(policy, block)
    assert torch.equal(done.canvas_RL, decoded(policy, block, record=False).canvas_RL)
    views = first_views(policy, done, [6, 6, 6])
    for row, seen in enumerate(views):
        assert seen is not None
        assert seen["taken"] == (done.order_RL[row] == 0).nonzero().squeeze(1).tolist()
        assert [utility is not None for utility in seen["alone"]] == [i < block for i in range(6)]
        assert seen["shift"][0][0] == 0.0 and len({len(line) for line in [seen["alone"], *seen["shift"]]}) == 1


def test_the_numbers_are_the_policys_own_whatever_the_row_and_the_temperature() -> None:
    policy = policy_of(PLAIN)
    cool = first_views(policy, decoded(policy), [6, 6, 6])
    policy.temperature = 5.0
    done = decoded(policy)
    warm = first_views(policy, done, [6, 6, 6])
    assert done.steps is not None
    for row in range(3):
        pair = ((done.steps.row_N == row) & (done.steps.step_N == 0)).nonzero().squeeze(1)
        obs = done.steps.observation.rows(pair)
        seen, other = warm[row], cool[row]
        assert seen is not None and other is not None
        assert seen["alone"] == other["alone"] and seen["shift"] == other["shift"]
        torch.testing.assert_close(torch.tensor([seen["alone"]]), policy.score(obs), rtol=0, atol=0.0051)
        torch.testing.assert_close(torch.tensor([seen["shift"]]), policy(obs)[1], rtol=0, atol=0.0051)


def test_policies_without_pair_shifts_have_none_and_long_canvases_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for policy in (
        heuristic("threshold", 0.9),
        CoupledPolicy(replace(PLAIN, pair_shifts=False)),
        CoupledPolicy(replace(PLAIN, action="categorical")),
    ):
        assert not draws_by_shifts(policy) and first_views(policy, decoded(policy), [6, 6, 6]) == [None] * 3
    policy = policy_of(PLAIN)
    assert first_views(policy, decoded(policy, record=False), [6, 6, 6]) == [None] * 3
    monkeypatch.setattr(view, "LONGEST", 5)
    assert first_views(policy, decoded(policy), [6, 6, 6]) == [None] * 3
