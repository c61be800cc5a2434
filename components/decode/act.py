"""One step's decision: every row's action, drawn by the row's policy, and its record for the update."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core.rng import Noise
from ..core.types import Action, Needs, Steps
from ..maths.distributions import ActionDistribution, commit
from ..maths.masked import rank_of, sort_eligible
from ..policies.protocol import Policy
from .batch import DecodeBatch
from .job import DecodeOptions

_KEEP = 32  # a noise stream that no distribution draws from


def decide(
    policies: list[Policy], batch: DecodeBatch, needs: Needs, options: DecodeOptions
) -> tuple[Action, Steps | None]:
    """What every row does, and its record. The learning policy runs once: one distribution draws and is recorded."""
    obs, noise = batch.observation(needs), Noise(batch.key_B, batch.step_B)
    if len(policies) == 1:
        distribution = policies[0].distribution(obs)
        action = _draw(distribution, obs.eligible_BL, noise, options)
        if not options.record:
            return action, None
        return action, Steps(batch.row_B, batch.step_B, obs, action, distribution.log_prob(action))
    shown, steered_B1 = obs, (batch.policy_B > 0).unsqueeze(1)
    if options.steer_all_masks:
        shown = replace(obs, eligible_BL=torch.where(steered_B1, obs.masked_BL, obs.eligible_BL))
    learning = policies[0].distribution(shown) if options.record else None
    draws: list[tuple[Tensor, Action]] = []
    for number, policy in enumerate(policies):
        rows_b = (batch.policy_B == number).nonzero().squeeze(1)
        if len(rows_b) and number == 0 and learning is not None:
            draws.append((rows_b, _draw(learning, shown.eligible_BL, noise, options).rows(rows_b)))
        elif len(rows_b):
            part, own = obs.rows(rows_b), Noise(noise.key_B[rows_b], noise.step_B[rows_b])
            drawn = _draw(policy.distribution(part), part.eligible_BL, own, options)
            ordered = learning is None or drawn.rank_BL is not None
            draws.append((rows_b, drawn if ordered else _by_score(drawn, policy.score(part))))
    action = _merge(draws, obs.masked_BL)
    if learning is None:
        return action, None
    # What another policy committed counts as drawn.
    assert action.committed_BL is not None
    action = replace(action, drawn_BL=torch.where(steered_B1, action.committed_BL, action.drawn_BL))
    return action, Steps(batch.row_B, batch.step_B, shown, action, learning.log_prob(action))


def thin(record: Steps, batch: DecodeBatch, keep: float) -> Steps:
    """The record, each of its steps with probability ``keep``."""
    if keep >= 1:
        return record
    return record.pairs(Noise(batch.key_B, batch.step_B).uniform(_KEEP, 1).squeeze(1) < keep)


def _draw(distribution: ActionDistribution, eligible_BL: Tensor, noise: Noise, options: DecodeOptions) -> Action:
    action = distribution.mode() if options.choose == "mode" else distribution.sample(noise)
    return commit(distribution, action, eligible_BL, options.force_commit)


def _merge(draws: list[tuple[Tensor, Action]], masked_BL: Tensor) -> Action:
    """One action out of those of different rows."""
    drawn_BL, committed_BL = torch.zeros_like(masked_BL), torch.zeros_like(masked_BL)
    rank_BL = torch.full_like(masked_BL, -1, dtype=torch.int64)
    for rows_b, part in draws:
        assert part.committed_BL is not None
        drawn_BL[rows_b], committed_BL[rows_b] = part.drawn_BL, part.committed_BL
        if part.rank_BL is not None:
            rank_BL[rows_b] = part.rank_BL
    return Action(drawn_BL, rank_BL, committed_BL)


def _by_score(action: Action, score_BL: Tensor) -> Action:
    """An unordered rule's commits as if drawn one after the other, best first: what an ordered policy is steered to."""
    assert action.committed_BL is not None
    order_BL, _ = sort_eligible(score_BL, action.committed_BL)
    return replace(action, rank_BL=rank_of(order_BL).masked_fill(~action.committed_BL, -1))
