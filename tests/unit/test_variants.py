"""Rules and controls over a trained policy's pair shifts: plain loops, what they reduce to, and the same in batches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from components.core.errors import SettingsError
from components.core.types import Observation
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers import embedded
from components.export.states import random_observation
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.dependence import pairs_of
from components.policies.heuristics import EntropyBound
from components.policies.rules import PAIR_ROWS
from components.policies.variants import (
    dependence,
    distance_shifts,
    graph_shifts,
    information,
    shuffled_shifts,
    variant,
)
from components.tasks import build
from components.tasks.graph import graph_of
from components.tasks.sudoku import peers_of
from tests.unit.test_coupled_policy import PLAIN, policy_of

torch.set_num_threads(1)
NAMES = tuple(PAIR_ROWS)
GRAPH = ((1, 2), (0,), (0,), (4,), (3,))


def made(name: str, policy: CoupledPolicy, number: float) -> Any:
    return variant(name, policy, number, lambda: GRAPH)


def states(count: int = 20, trained: bool = True) -> list[tuple[CoupledPolicy, Observation]]:
    policy = policy_of(PLAIN, trained)
    return [(policy, random_observation(policy, 4, 6, "variants", n)) for n in range(count)]


def some(selected_BL: Tensor, row: int) -> set[int]:
    return set(selected_BL[row].nonzero().flatten().tolist())


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def told(before: float, after: float) -> float:
    p, q = sigma(after), sigma(before)
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 6.0])
def test_both_rules_are_a_plain_loop(gamma: float) -> None:
    sizes = set()
    for policy, obs in states():
        assert obs.log_odds_BL is not None and obs.entropy_BL is not None
        shift_BLL = policy(obs)[1].tolist()
        for shared in (True, False):
            found = made("mi_bound" if shared else "demask", policy, gamma).distribution(obs).mode().drawn_BL
            for row in range(4):
                odds, h, w = obs.log_odds_BL[row].tolist(), obs.entropy_BL[row].tolist(), shift_BLL[row]
                taken: list[int] = []
                spent = 0.0
                for i in sorted(some(obs.eligible_BL, row), key=lambda i: (h[i] if shared else -odds[i], i)):
                    if shared:
                        pairs = [
                            (told(odds[i], odds[i] + w[j][i]) + told(odds[j], odds[j] + w[i][j])) / 2 for j in taken
                        ]
                    else:
                        pairs = [abs(sigma(odds[i] + w[j][i]) - sigma(odds[i])) for j in taken]
                    if taken and spent + sum(pairs) > gamma:
                        break
                    spent += sum(pairs) + (h[i] if shared else 0.0)
                    taken.append(i)
                assert some(found, row) == set(taken)
                sizes.add(len(taken))
    assert len(sizes) > 2 or gamma == 0.0


def test_pairs_worked_by_hand() -> None:
    policy, obs = states(1)[0]
    everything = torch.ones(1, 2, dtype=torch.bool)
    two = replace(obs.rows(torch.tensor([0])), masked_BL=everything, eligible_BL=everything)
    two = replace(two, **{n: t[:, :2] for n, t in two.tensors().items() if n.endswith(("BL", "BLK"))})
    assert two.log_odds_BL is not None
    a, b = two.log_odds_BL[0].tolist()
    ((_, forth), (back, _)) = policy(two)[1][0].tolist()
    expected = (told(b, b + forth) + told(a, a + back)) / 2
    assert information(policy, two)[0].flatten().tolist() == pytest.approx([0, expected, expected, 0], rel=1e-6)
    moved = abs(sigma(b + forth) - sigma(b)), abs(sigma(a + back) - sigma(a))
    assert dependence(policy, two)[0].flatten().tolist() == pytest.approx([0, moved[0], moved[1], 0], rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 3.0])
def test_without_shifts_one_is_the_entropy_bound_and_the_other_takes_everything(gamma: float) -> None:
    for policy, obs in states(40, trained=False):
        assert bool((policy(obs)[1] == 0).all())
        plain = EntropyBound(gamma).distribution(obs).mode().drawn_BL
        assert torch.equal(made("mi_bound", policy, gamma).distribution(obs).mode().drawn_BL, plain)
        assert torch.equal(made("demask", policy, gamma).distribution(obs).mode().drawn_BL, obs.eligible_BL)


def test_a_larger_budget_takes_more_and_shared_information_less() -> None:
    for policy, obs in states():
        for rule in ("mi_bound", "demask"):
            less, more = (made(rule, policy, gamma).distribution(obs).mode().drawn_BL for gamma in (0.5, 2.0))
            assert not (less & ~more).any() and torch.equal(less.any(-1), obs.eligible_BL.any(-1))
        assert not (made("mi_bound", policy, 2.0).distribution(obs).mode().drawn_BL & ~_bound(obs, 2.0)).any()


def _bound(obs: Observation, gamma: float) -> Tensor:
    return EntropyBound(gamma).distribution(obs).mode().drawn_BL


def test_shuffled_rows_are_those_of_other_masked_positions_and_the_same_when_padded() -> None:
    for policy, obs in states():
        own_BLL = torch.arange(6.0).view(1, 6, 1).expand(4, 6, 6)  # every row holds its number
        found = shuffled_shifts(obs, own_BLL)
        for row in range(4):
            masked = sorted(some(obs.masked_BL, row))
            sources = [int(found[row, i, 0]) for i in masked]
            assert sorted(sources) == masked
            assert len(masked) < 2 or all(source != i for source, i in zip(sources, masked, strict=True))
        wide_BL = torch.cat([obs.masked_BL, torch.zeros(4, 3, dtype=torch.bool)], 1)
        wide = shuffled_shifts(
            replace(obs, masked_BL=wide_BL, eligible_BL=wide_BL), torch.arange(9.0).view(1, 9, 1).expand(4, 9, 9)
        )
        assert torch.equal(wide[:, :6, :6][obs.masked_BL], found[obs.masked_BL])
        control = made("shuffled", policy, 0.0).distribution(obs).shift_BLL
        assert bool((control[~pairs_of(obs.masked_BL)] == 0).all())


def test_controls_have_the_shifts_that_they_name_and_the_rest_of_the_policy() -> None:
    policy, obs = states(1)[0]
    pairs = pairs_of(obs.masked_BL)
    # Of both signs: this policy's are all negative.
    policy.shifts.register_forward_hook(lambda _, __, shift_BLL: (shift_BLL + 3.7).masked_fill(~pairs, 0.0))
    bias_BL, shift_BLL, mix_BL = policy(obs)
    place = torch.arange(6)
    apart = -4.0 / (place - place.unsqueeze(1)).abs().clamp(min=1)
    assert torch.equal(distance_shifts(obs, shift_BLL)[0], apart)
    edges = torch.zeros(6, 6)
    for i, j in ((0, 1), (0, 2), (3, 4)):
        edges[i, j] = edges[j, i] = -4.0
    assert torch.equal(graph_shifts(GRAPH)(obs, shift_BLL)[0], edges)
    low, high = shift_BLL.clamp(max=0), shift_BLL.clamp(min=0)
    assert bool((low < 0).any()) and bool((high > 0).any()) and torch.equal(low + high, shift_BLL)
    for name, wanted in (("distance", apart), ("graph", edges), ("negative", low), ("positive", high)):
        control = made(name, policy, 2.5).distribution(obs)
        assert torch.equal(control.shift_BLL, wanted.expand(4, 6, 6).masked_fill(~pairs, 0.0))
        assert torch.equal(control.bias_BL, bias_BL) and torch.equal(control.mix_BL, mix_BL)
        assert torch.equal(control.tau, policy.tau + 2.5) and policy.offset == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_decode_is_the_same_however_it_is_batched_and_padded(name: str) -> None:
    denoiser, _ = embedded.build("llada", "abcdefg", embedded.Shape(16, 2, 2, 24, 64), seed=1)
    policy = policy_of(replace(PLAIN, offsets=3, features=16))
    policy.bias.weight.data.zero_()
    row = made(name, policy, 1.0 if name in NAMES[:2] else 4.0)
    job = Job.of([torch.arange(5, 5 + n) for n in (1, 3, 4)], 8, 8, group=2)
    whole = rollout(denoiser, row, job, DecodeOptions(seed=3))
    assert bool(whole.finished_R.all())
    for cost in (dict(rows=1), dict(rows=5, workers=2), dict(rows=5, refill=False), dict(tokens=16), dict(reuse=False)):
        other = rollout(denoiser, row, job, replace(DecodeOptions(seed=3), **cost))
        assert torch.equal(whole.canvas_RL, other.canvas_RL) and torch.equal(whole.order_RL, other.order_RL)


def test_rows_need_pair_shifts_that_sets_are_drawn_by() -> None:
    for shape in (replace(PLAIN, pair_shifts=False), replace(PLAIN, action="categorical")):
        with pytest.raises(SettingsError, match=r"mi_bound reads pair shifts.* Remove it"):
            made("mi_bound", CoupledPolicy(shape), 1.0)


def test_the_constraint_graph_of_a_task() -> None:
    grid = peers_of(2, 2)
    for name in ("sudoku_many", "sudoku_unique", "worded_many"):
        assert graph_of(build(name)) == grid
    assert len(graph_of(build("sudoku_long"))) == 36
    pair = graph_of(build("sudoku_pair"))
    assert pair[:16] == grid and pair[16] == tuple(16 + peer for peer in grid[0]) and len(pair) == 32
    with pytest.raises(SettingsError, match=r"task number_sorting has no constraint graph. Leave"):
        graph_of(build("number_sorting"))


def test_the_default_shape_has_rows() -> None:
    policy = CoupledPolicy(CoupledShape())
    assert all(made(name, policy, 1.0).needs == policy.needs for name in NAMES)
