"""Every rule worked by hand on one canvas of six positions, and what must hold on any canvas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.core.errors import SettingsError
from components.core.rng import Noise
from components.core.types import Observation
from components.maths.distributions import Categorical, commit
from components.policies.heuristics import (
    EntropyBound,
    Factor,
    Klass,
    MaxConfidence,
    Quota,
    SoftmaxConfidence,
    SuppressTokens,
    Threshold,
    TopKRandom,
    shortlist,
)
from components.policies.protocol import Policy
from components.policies.rules import heuristic
from tests.doubles import picks

torch.set_num_threads(1)

# Position 3 is committed. By confidence the others come 4, 1, 2, 0, 5.
CONFIDENCE = [0.50, 0.95, 0.90, 0.99, 0.97, 0.30]
MARGIN = [0.10, 0.91, 0.92, 0.98, 0.90, 0.05]
ENTROPY = [0.80, 0.20, 0.35, 0.05, 0.15, 1.20]
DRIFT = [[0.0, 0.0], [0.005, 0.2], [0.001, 0.001], [0.0, 0.0], [0.001, 0.002], [0.0, 0.0]]
END = 7


def example(**changes: Any) -> Observation:
    confidence = torch.tensor([changes.pop("confidence", CONFIDENCE)])
    masked = torch.tensor([[True, True, True, False, True, True]])
    given: dict[str, Any] = {
        "token_BL": torch.tensor([[0, 1, 2, 3, END, 5]]),
        "margin_BL": torch.tensor([MARGIN]),
        "entropy_BL": torch.tensor([ENTROPY]),
        "drift_BLH": torch.tensor([DRIFT]),
    }
    given |= {name: torch.tensor([value]) for name, value in changes.items()}
    eligible = given.pop("eligible_BL", masked)
    return Observation(
        masked,
        eligible,
        torch.tensor([1]),
        torch.tensor([6]),
        confidence_BL=confidence,
        log_odds_BL=torch.logit(confidence),
        **given,
    )


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (Quota("left_to_right", 2), {0, 1}),
        (Quota("confidence", 1), {4}),
        (Quota("confidence", 2), {4, 1}),
        (Quota("confidence", 3), {4, 1, 2}),
        (Quota("confidence", 4), {4, 1, 2}),  # 5 left at 4 per step are two steps: 3 and 2
        (Quota("margin", 1), {2}),
        (Quota("margin", 2), {2, 1}),
        (Quota("entropy", 2), {4, 1}),
        (Threshold(0.9), {1, 2, 4}),
        (Threshold(0.91), {1, 4}),
        (Threshold(0.98), {4}),  # nobody passes: the best
        (Factor(1.0), {4, 1, 2}),  # (n+1)(1-c): .06 .15 .40 2.5 3.5
        (Factor(0.2), {4, 1}),
        (Factor(0.05), {4}),
        (Factor(2.6), {4, 1, 2, 0}),
        (EntropyBound(0.1), {4}),  # sums without the largest: 0 .15 .35 .70 1.50
        (EntropyBound(0.16), {4, 1}),
        (EntropyBound(0.36), {4, 1, 2}),
        (EntropyBound(0.71), {4, 1, 2, 0}),
        (EntropyBound(9.0), {0, 1, 2, 4, 5}),
        (Klass(0.9, 0.01), {4}),  # 1 is confident and not stable, 2 stable and not above .9
        (Klass(0.8, 0.01), {4, 2}),
        (Klass(0.9, 0.01, history=1), {4, 1}),
        (Klass(0.9, 1e-4, per_step=2), {4, 1}),  # nobody is stable: the most confident
        (MaxConfidence(), {4}),
        (SuppressTokens(Quota("confidence", 1), (END,)), {1}),
        (SuppressTokens(Quota("entropy", 1), (END,)), {1}),
        (SuppressTokens(Quota("margin", 4), (END,)), {2, 1, 0}),
        (SuppressTokens(Threshold(0.9), (END,)), {1, 2}),
        (SuppressTokens(Threshold(0.0), (END,)), {0, 1, 2, 5}),
        (SuppressTokens(Factor(1.0), (END,)), {1, 2}),
        (SuppressTokens(EntropyBound(0.6), (END,)), {1, 2, 0}),
        (SuppressTokens(EntropyBound(9.0), (END,)), {0, 1, 2, 5}),
        (SuppressTokens(Klass(0.9, 0.01), (END,)), {1}),
        (SuppressTokens(EntropyBound(9.0), (0, 1, 2, END, 5)), {0}),  # nothing else is left
    ],
    ids=str,
)
def test_worked_by_hand(rule: Policy, wanted: set[int]):
    assert picks(rule, example()) == wanted


def test_soft_references_worked_by_hand():
    obs = example()
    soft = SoftmaxConfidence(0.05).distribution(obs)
    assert isinstance(soft, Categorical)
    weight = (torch.tensor(CONFIDENCE) / 0.05).exp() * obs.masked_BL[0]
    assert torch.allclose(soft.log_probs_BL[0].exp(), weight / weight.sum(), atol=1e-6)
    uniform = TopKRandom(3).distribution(obs)
    assert isinstance(uniform, Categorical)
    third = torch.tensor([0, 1 / 3, 1 / 3, 0, 1 / 3, 0])
    assert torch.allclose(uniform.log_probs_BL[0].exp(), third)
    few = TopKRandom(3).distribution(example(eligible_BL=[False, True, False, False, False, True]))
    assert isinstance(few, Categorical)
    assert torch.allclose(few.log_probs_BL[0].exp(), torch.tensor([0, 0.5, 0, 0, 0, 0.5]))


def test_the_softmax_reference_is_not_flat_at_low_confidence():
    """Released, with the sum over the vocabulary, .5 and .3 of 126k words were equally likely; here e^4 apart."""
    soft = SoftmaxConfidence(0.05).distribution(example())
    assert isinstance(soft, Categorical)
    log_p = soft.log_probs_BL[0]
    assert float(log_p[0] - log_p[5]) == pytest.approx(0.2 / 0.05, abs=1e-4)


def test_ties_are_broken_by_the_lowest_index_and_split_by_the_reference():
    obs = example(confidence=[0.4, 0.9, 0.9, 0.9, 0.9, 0.4])
    assert picks(Quota("confidence", 1), obs) == {1}
    assert picks(Threshold(0.95), obs) == {1}
    assert shortlist(obs, 2)[0].nonzero().flatten().tolist() == [1, 2]
    tied = MaxConfidence().distribution(obs)
    assert isinstance(tied, Categorical)
    assert torch.allclose(tied.log_probs_BL[0].exp(), torch.tensor([0, 1 / 3, 1 / 3, 0, 1 / 3, 0]))


def test_a_rule_keeps_to_the_eligible_positions():
    block = example(eligible_BL=[True, False, False, False, False, True])
    assert picks(Threshold(0.9), block) == {0}
    assert picks(Factor(9.0), block) == {0, 5}
    assert picks(EntropyBound(0.1), block) == {0}
    assert picks(Quota("confidence", 3), block) == {0, 5}


RULES = (
    [
        heuristic(name, value)
        for name, value in [
            ("random", 1),
            ("random", 3),
            ("left_to_right", 2),
            ("confidence", 3),
            ("margin", 1),
            ("entropy", 2),
            ("threshold", 0.7),
            ("threshold", 0.0),
            ("factor", 1.0),
            ("entropy_bound", 0.3),
            ("klass", 0.5),
        ]
    ]
    + [Factor(-1.0), EntropyBound(-1.0), SoftmaxConfidence(), MaxConfidence(), TopKRandom(2)]
    + [
        SuppressTokens(rule, (0, 1))
        for rule in (Quota("confidence", 2), Threshold(0.5), EntropyBound(1.0), Klass(0.5, 1.0))
    ]
)


def statistics(masked: Tensor, eligible: Tensor, step: int, seed: int) -> Observation:
    """Random statistics, coarse enough for ties, zero where the loop would not read."""
    source = torch.Generator().manual_seed(seed * 1000 + step)

    def coarse(top: float) -> Tensor:
        value = torch.randint(0, 5, masked.shape, generator=source) / 4 * top
        return value.masked_fill(~eligible, 0.0)

    confidence = coarse(1.0)
    rows = len(masked)
    return Observation(
        masked,
        eligible,
        torch.full((rows,), step),
        torch.full((rows,), masked.shape[1]),
        token_BL=torch.randint(0, 3, masked.shape, generator=source),
        confidence_BL=confidence,
        log_odds_BL=torch.logit(confidence).clamp(-30, 30),
        margin_BL=coarse(1.0),
        entropy_BL=coarse(2.0),
        drift_BLH=torch.stack([coarse(0.02), coarse(0.02)], -1),
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 9), block=st.integers(1, 9), rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_rule_finishes_every_row_in_at_most_as_many_steps_as_it_has_positions(
    rule: Policy, length: int, block: int, rows: int, seed: int
):
    """Each step commits at least one position of every unfinished row, only eligible ones, none twice; finished rows
    are left alone; the block order is kept."""
    masked = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.8
    position = torch.arange(length)
    for step in range(int(masked.sum(-1).max())):
        first = torch.where(masked, position, length).amin(-1, keepdim=True) // block
        eligible = masked & (position // block == first)
        obs = statistics(masked, eligible, step, seed)
        distribution = rule.distribution(obs)
        action = distribution.sample(Noise(torch.arange(rows) + seed, obs.step_B))
        assert not (action.drawn_BL & ~eligible).any()
        assert torch.equal(action.drawn_BL.any(-1), eligible.any(-1))  # a rule never relies on a forced commit
        assert bool((distribution.log_prob(action) > -torch.inf).all())
        done = commit(distribution, action, eligible, force=True)
        assert done.committed_BL is not None and torch.equal(done.committed_BL, done.drawn_BL)
        masked = masked & ~action.drawn_BL
    assert not masked.any()


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 12), per_step=st.integers(1, 13))
def test_quotas_are_llada_s_schedule(length: int, per_step: int):
    """ceil(L/K) steps, floor(L/steps) each, the remainder one each to the earliest; nothing is left masked."""
    steps = -(-length // per_step)
    wanted = [length // steps + (i < length % steps) for i in range(steps)]
    masked, counts = torch.ones(1, length, dtype=torch.bool), []
    while masked.any():
        drawn = Quota("confidence", per_step).distribution(statistics(masked, masked, len(counts), 0)).mode().drawn_BL
        counts.append(int(drawn.sum()))
        masked = masked & ~drawn
    assert counts == wanted and sum(counts) == length


@pytest.mark.parametrize("rule", [r for r in RULES if not isinstance(r, Quota) or r.order != "random"], ids=str)
def test_neighbours_and_padding_change_nothing(rule: Policy):
    masked = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    obs = statistics(masked, masked & (torch.arange(6) < 4), 3, 1)
    together = rule.distribution(obs).mode().drawn_BL
    for row in range(5):
        index = torch.tensor([row])
        assert torch.equal(rule.distribution(obs.rows(index)).mode().drawn_BL, together[index])
    named = obs.tensors()
    wide = {
        n: torch.cat([t, torch.zeros(5, 2, *t.shape[2:], dtype=t.dtype)], 1) for n, t in named.items() if t.ndim > 1
    }
    assert torch.equal(rule.distribution(replace(obs, **wide)).mode().drawn_BL[:, :6], together)


def test_a_rule_refuses_a_number_that_would_commit_nothing():
    for wrong in (
        lambda: Quota("worst"),
        lambda: Quota("random", 0),
        lambda: TopKRandom(0),
        lambda: SoftmaxConfidence(0),
    ):
        with pytest.raises(SettingsError):
            wrong()


def test_a_missing_statistic_is_named():
    bare = Observation(
        torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1).long(), torch.tensor([2])
    )
    with pytest.raises(ValueError, match="entropy_BL"):
        EntropyBound(0.1).distribution(bare)
