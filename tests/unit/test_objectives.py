"""Advantages and surrogates against their formulas, written out a second time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from components.maths.objectives import (
    additive,
    clipped,
    group_advantages,
    mixture_log_prob,
    multiplicative,
    pair_weights,
    speed,
)

torch.set_num_threads(1)

rewards = st.lists(st.integers(0, 8), min_size=6, max_size=6).map(lambda r: torch.tensor(r, dtype=torch.float64) / 8)
GROUPS = torch.tensor([0, 0, 1, 1, 1, 0])


@given(rewards, st.floats(-3, 3))
def test_advantages_sum_to_zero_per_group_and_ignore_a_shift(reward, shift):
    advantage = group_advantages(reward, GROUPS)
    for group in (0, 1):
        assert float(advantage[group == GROUPS].sum()) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(group_advantages(reward + shift, GROUPS), advantage, atol=1e-12)


@given(rewards, st.permutations(range(6)))
def test_advantages_move_with_their_rows(reward, order):
    moved = torch.tensor(order)
    assert torch.allclose(group_advantages(reward[moved], GROUPS[moved]), group_advantages(reward, GROUPS)[moved])


@pytest.mark.parametrize("normalize_advantage", [False, True])
def test_a_group_that_agrees_has_no_advantage(normalize_advantage):
    advantage = group_advantages(torch.tensor([1.0, 1.0, 0.5, 0.5, 0.5, 1.0]), GROUPS, normalize_advantage)
    assert torch.equal(advantage, torch.zeros(6))


def test_advantages_by_hand():
    reward = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.5])
    assert torch.allclose(group_advantages(reward, GROUPS), torch.tensor([0.5, -0.5, 1 / 3, 1 / 3, -2 / 3, 0.0]))
    std = math.sqrt((0.25 + 0.25) / 3)
    assert group_advantages(reward, GROUPS, normalize_advantage=True)[0].item() == pytest.approx(0.5 / std, rel=1e-3)


def test_pair_weights_by_hand():
    """Two rows of 2 and 3 steps on canvases of 4: (1/G) sum_g (1/T_g) sum_t, and (1/G) sum_g (1/L) sum_t."""
    row, steps, length = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([2, 3]), torch.tensor([4, 4])
    assert torch.allclose(pair_weights(row, steps, length, "row"), torch.tensor([1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6]))
    assert torch.allclose(pair_weights(row, steps, length, "constant"), torch.full((5,), 1 / 8))


def test_pair_weights_do_not_depend_on_which_pairs_were_kept():
    row, steps, length = torch.tensor([1]), torch.tensor([2, 3]), torch.tensor([4, 4])
    assert pair_weights(row, steps, length, "row").item() == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),  # the policy gradient where nothing has moved
        (1.8, 2.0, 3.0, 0.0),  # a gain beyond 1 + eps is cut
        (0.3, 2.0, 0.6, 0.6),  # a loss of what is good is never cut
        (0.3, -2.0, -1.0, 0.0),  # and a loss of what is bad only down to 1 - eps
        (1.8, -2.0, -3.6, -3.6),  # more of what is bad is never cut
    ],
)
def test_the_five_branches_of_the_clip(ratio, advantage, value, slope):
    log_prob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    gain = clipped(log_prob, torch.zeros(1), torch.tensor([advantage]), 0.5)
    (gradient,) = torch.autograd.grad(gain.sum(), log_prob)
    assert gain.item() == pytest.approx(value)
    assert gradient.item() == pytest.approx(slope)  # d gain / d log_prob = ratio * advantage where not cut


def test_mixture_likelihood_of_steered_rows():
    """log(G/(G+E) pi(u) + 1/(G+E)) for what the expert drew, log pi(u) for the rest."""
    log_pi = torch.tensor([-0.3, -5.0, -torch.inf, -5.0], dtype=torch.float64, requires_grad=True)
    steered = torch.tensor([False, True, True, False])
    mixed = mixture_log_prob(log_pi, steered, members=3, experts=1)
    wanted = torch.where(steered, torch.log(0.75 * log_pi.exp() + 0.25), log_pi)
    assert torch.allclose(mixed, wanted)
    (gradient,) = torch.autograd.grad(mixed[:2].sum() + mixed[2] + mixed[3], log_pi)
    share = 0.75 * math.exp(-5) / (0.75 * math.exp(-5) + 0.25)
    assert torch.allclose(gradient, torch.tensor([1.0, share, 0.0, 1.0], dtype=torch.float64))
    assert mixture_log_prob(log_pi, steered, members=3, experts=0) is log_pi


def reward_at(nfe: int, alpha: float, score: float = 1.0, length: int = 8) -> Tensor:
    return multiplicative(torch.tensor([score]), torch.tensor([nfe]), torch.tensor([length]), alpha)[0]


def test_reward_at_one_and_at_all_steps():
    """As released, one step is worth 1 and L steps (1/L)^alpha, not 0; more steps than L count as L."""
    assert reward_at(1, 3.0).item() == 1
    assert reward_at(8, 3.0).item() == pytest.approx((1 / 8) ** 3)
    assert reward_at(99, 1.0).item() == reward_at(8, 1.0).item()
    assert reward_at(5, 0.0).item() == 1 and reward_at(1, 0.0, score=0.0).item() == 0


@given(st.integers(1, 7), st.sampled_from([0.3, 1.0, 3.0, 10.0]))
def test_fewer_steps_are_worth_more_and_only_if_right(nfe, alpha):
    assert reward_at(nfe, alpha) > reward_at(nfe + 1, alpha)
    assert reward_at(nfe, alpha, score=0.0).item() == 0


def test_the_additive_reward_prefers_a_fast_mistake_to_a_slow_one():
    found = additive(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1, 8, 8]), torch.tensor([8, 8, 8]), 1.0)
    assert torch.allclose(found, torch.tensor([-1 / 8, -1.0, 0.0]))


def test_speed_is_taken_over_the_rows_own_canvas():
    assert torch.allclose(speed(torch.tensor([2, 2]), torch.tensor([4, 8])), torch.tensor([3 / 4, 7 / 8]))
