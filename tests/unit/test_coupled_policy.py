"""The coupled policy: where its shifts are zero, what moves them and what must not, and how it is decoded."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from components.core.errors import SettingsError
from components.core.rng import generator
from components.core.types import Needs, Observation
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers import embedded
from components.export.states import random_observation, random_states
from components.maths.coupled import CoupledPlackettLuce
from components.maths.distributions import Categorical
from components.maths.plackett_luce import DPLS
from components.policies import store
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.pairs import shared

torch.set_num_threads(1)

PLAIN = CoupledShape(top_k=4, width=16, heads=2, mlp_width=16, pair_width=12)
RICH = replace(PLAIN, attention=(-1, 0), offsets=3, positions=300, features=8, alphas=(1.0, 4.0))


def policy_of(shape: CoupledShape, trained: bool = True) -> CoupledPolicy:
    """A policy; trained: all of its weights, those that start at zero included, are random and large enough."""
    source = generator("coupled", *astuple(shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = CoupledPolicy(shape).eval().requires_grad_(False)
    for weight in policy.parameters():
        if trained and weight.ndim:
            weight += 0.5 * torch.randn(weight.shape, generator=source)
    return policy


def observed(policy: CoupledPolicy, rows: int = 6, length: int = 9) -> Observation:
    return random_observation(policy, rows, length, "coupled")


def off_BLL(obs: Observation) -> Tensor:
    """Pairs that have no shift."""
    diagonal = torch.eye(obs.masked_BL.shape[1], dtype=torch.bool)
    return ~(obs.masked_BL.unsqueeze(2) & obs.masked_BL.unsqueeze(1)) | diagonal


@pytest.mark.parametrize("shape", [PLAIN, RICH])
def test_shifts_are_zero_on_the_diagonal_and_outside_the_masks_only(shape: CoupledShape):
    policy = policy_of(shape)
    for obs in random_states(policy, 200, "zeros"):
        bias_BL, shift_BLL, mix_BL = policy(obs)
        assert bias_BL.shape == mix_BL.shape == obs.masked_BL.shape and shift_BLL.shape == off_BLL(obs).shape
        assert bool((shift_BLL[off_BLL(obs)] == 0).all())
        assert bool((shift_BLL[~off_BLL(obs)] != 0).all())
        assert bool(((mix_BL > 0) & (mix_BL < 1)).all()) and bool(shift_BLL.isfinite().all())


@pytest.mark.parametrize("shape", [PLAIN, RICH])
def test_an_untrained_policy_decides_on_log_odds_alone(shape: CoupledShape):
    policy = policy_of(shape, trained=False)
    obs = observed(policy)
    bias_BL, shift_BLL, mix_BL = policy(obs)
    assert bool((bias_BL == 0).all()) and bool((shift_BLL == 0).all())
    torch.testing.assert_close(mix_BL, torch.full_like(mix_BL, shape.mix))
    policy.cost.zero_()
    assert obs.log_odds_BL is not None
    utilities_BL = obs.log_odds_BL + policy.tau
    assert torch.equal(policy.distribution(obs).mode().drawn_BL, DPLS(utilities_BL, obs.eligible_BL).mode().drawn_BL)
    torch.testing.assert_close(policy.score(obs), utilities_BL)


def test_without_pairs_there_are_no_shifts_no_pair_parameters_and_no_attention():
    policy = policy_of(replace(RICH, pair_shifts=False))
    assert bool((policy(observed(policy))[1] == 0).all())
    assert not any(name.startswith("pairs.") for name, _ in policy.named_parameters())
    assert policy.needs.attention == ()


def permuted(obs: Observation, order_L: Tensor) -> Observation:
    moved = {n: t[:, order_L] for n, t in obs.tensors().items() if n.rsplit("_", 1)[1].startswith(("BL", "BTD"))}
    if obs.attention_BLLA is not None:
        moved["attention_BLLA"] = obs.attention_BLLA[:, order_L][:, :, order_L]
    return replace(obs, **moved)


@pytest.mark.parametrize("shape", [PLAIN, replace(PLAIN, attention=(0,), features=8)])
def test_without_position_features_it_does_not_matter_where_a_position_is(shape: CoupledShape):
    policy = policy_of(shape)
    obs = observed(policy)
    obs = replace(obs, length_B=torch.full_like(obs.length_B, 9))
    order_L = torch.randperm(9, generator=generator("order"))
    for one, two in zip(policy(obs), policy(permuted(obs, order_L)), strict=True):
        expected = one[:, order_L] if one.ndim == 2 else one[:, order_L][:, :, order_L]
        torch.testing.assert_close(two, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extra", [dict(offsets=3), dict(positions=9)])
def test_position_features_tell_positions_apart(extra: dict[str, Any]):
    policy = policy_of(replace(PLAIN, **extra))
    obs = observed(policy)
    obs = replace(obs, length_B=torch.full_like(obs.length_B, 9))
    order_L = torch.arange(8, -1, -1)
    assert not torch.allclose(policy(permuted(obs, order_L))[1], policy(obs)[1][:, order_L][:, :, order_L], atol=1e-3)


def test_offsets_are_relative_and_clamped():
    """Shifts of two positions do not change when both move by as much; beyond the reach all distances are one."""
    policy = policy_of(replace(PLAIN, offsets=3))
    alone = random_observation(policy, 1, 9, "offsets")
    blank = {n: torch.zeros_like(t) for n, t in alone.tensors().items() if n.endswith(("BL", "BLK"))}
    nothing = replace(alone, length_B=torch.tensor([9]), **blank)

    def shift(i: int, j: int) -> float:
        masked_BL = torch.zeros(1, 9, dtype=torch.bool)
        masked_BL[0, [i, j]] = True
        return float(policy(replace(nothing, masked_BL=masked_BL))[1][0, i, j])

    assert shift(1, 3) == pytest.approx(shift(6, 8), rel=1e-5)
    assert shift(0, 3) == pytest.approx(shift(0, 8), rel=1e-5)
    assert shift(1, 3) != pytest.approx(shift(3, 1), abs=1e-4)
    assert shift(1, 3) != pytest.approx(shift(1, 2), abs=1e-4)


@pytest.mark.parametrize("shape", [PLAIN, RICH])
def test_a_row_is_the_same_alone_in_a_batch_and_padded(shape: CoupledShape):
    policy = policy_of(shape)
    obs = observed(policy, rows=8)
    wide = {
        name: torch.cat([t, torch.ones_like(t[:, :4])], 1)
        for name, t in obs.tensors().items()
        if name.endswith(("BL", "BLK", "BTD"))
    }
    wide |= {name: wide[name].clone() for name in ("masked_BL", "eligible_BL")}
    wide["masked_BL"][:, 9:] = wide["eligible_BL"][:, 9:] = False
    if obs.attention_BLLA is not None:
        wide["attention_BLLA"] = torch.nn.functional.pad(obs.attention_BLLA, (0, 0, 0, 4, 0, 4))
    padded, whole = policy(replace(obs, **wide)), policy(obs)
    for row in range(8):
        alone = policy(obs.rows(torch.tensor([row])))
        for one, two, three in zip(alone, whole, padded, strict=True):
            size = int(obs.length_B[row])
            part = (slice(size),) * (one.ndim - 1)
            torch.testing.assert_close(two[row][part], one[0][part], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(three[row][part], one[0][part], rtol=1e-4, atol=1e-5)


def test_what_marginals_say_of_a_pair_is_that_of_the_whole_distributions():
    source = generator("shared")
    p_BLV = (torch.randn(2, 5, 7, generator=source) * 3).softmax(-1)
    top_BLK, ids_BLK = p_BLV.sort(-1, descending=True)
    masked_BL, number_B = torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    obs = Observation(masked_BL, masked_BL, number_B, number_B + 5, top_BLK=top_BLK, top_ids_BLK=ids_BLK)
    token_BL = p_BLV.argmax(-1)
    theirs_BLL = p_BLV.transpose(1, 2)[torch.arange(2)[:, None], token_BL]  # [b, i, j]: p_j(t_i)
    same_BLL = (token_BL.unsqueeze(2) == token_BL.unsqueeze(1)).float()
    expected = torch.stack([p_BLV @ p_BLV.transpose(1, 2), same_BLL, theirs_BLL, theirs_BLL.transpose(1, 2)], -1)
    torch.testing.assert_close(shared(obs, 7), expected)
    few = shared(obs, 2)
    assert bool((few <= expected + 1e-6).all())  # what is not among the largest counts as 0
    kept_BLV = torch.zeros_like(p_BLV).scatter(-1, ids_BLK[..., :2], top_BLK[..., :2])
    torch.testing.assert_close(few[..., 0], kept_BLV @ kept_BLV.transpose(1, 2))


def test_beside_a_policy_that_reads_more_it_reads_its_own():
    policy = policy_of(replace(PLAIN, attention=(1,)))
    other = policy_of(replace(PLAIN, top_k=6, attention=(-2, 1)))
    both = random_observation(other, 4, 9, "beside")
    assert both.top_BLK is not None and both.top_ids_BLK is not None and both.attention_BLLA is not None
    assert (policy.needs | other.needs) == other.needs and both.attention_layers == (-2, 1)
    own = replace(
        both,
        top_BLK=both.top_BLK[..., :4],
        top_ids_BLK=both.top_ids_BLK[..., :4],
        attention_BLLA=both.attention_BLLA[..., 1:],
        attention_layers=(1,),
    )
    for one, two in zip(policy(both), policy(own), strict=True):
        assert torch.equal(one, two)


def test_hidden_states_and_the_speed_exponent_start_without_effect_and_can_be_withheld():
    policy = CoupledPolicy(PLAIN).eval()
    before = policy(observed(policy))[0]
    policy.add_alpha_input((1.0, 2.0))
    policy.drop_features(5)
    assert policy.shape.alphas == (1.0, 2.0) and policy.needs.features == "canvas"
    obs = observed(policy)
    assert obs.features_BTD is not None and obs.features_BTD.shape[-1] == 5
    assert torch.equal(policy(replace(observed(CoupledPolicy(PLAIN)), features_BTD=obs.features_BTD))[0], before)
    policy.reader.alpha.weight.data.fill_(1.0)
    policy.bias.weight.data.fill_(1.0)
    slow, fast = (policy(replace(obs, alpha_B=torch.full((6,), a)))[0] for a in (0.0, 9.0))
    assert not torch.allclose(slow, fast)
    policy.speed = 9.0
    torch.testing.assert_close(policy(replace(obs, alpha_B=None))[0], fast)


def test_one_number_asks_for_more_or_less_per_step():
    policy = policy_of(PLAIN)
    obs = observed(policy, rows=200)
    drawn = []
    for offset in (-8.0, -2.0, 0.0, 2.0, 8.0):
        policy.offset = offset
        drawn.append(int(policy.distribution(obs).mode().drawn_BL.sum()))
    assert drawn == sorted(drawn) and drawn[0] < drawn[2] < drawn[-1]


def test_actions():
    obs = observed(policy_of(PLAIN))
    coupled, single = policy_of(PLAIN), policy_of(replace(PLAIN, action="categorical"))
    coupled.temperature = single.temperature = 2.0
    made = coupled.distribution(obs)
    assert isinstance(made, CoupledPlackettLuce) and made.temperature == 2.0
    assert torch.equal(made.shift_BLL, coupled(obs)[1])
    made = single.distribution(obs)
    assert isinstance(made, Categorical) and made.temperature == 2.0
    assert bool((made.mode().drawn_BL.sum(-1) == obs.eligible_BL.any(-1)).all())


def test_gradients_reach_every_parameter_through_the_likelihood():
    policy = policy_of(RICH).requires_grad_(True)
    obs = observed(policy, rows=32)
    distribution = policy.distribution(obs)
    distribution.log_prob(distribution.mode()).sum().backward()
    still = [name for name, p in policy.named_parameters() if p.grad is None or not bool(p.grad.any())]
    # A key's bias moves all of a query's weights alike.
    assert [name for name in still if not name.endswith("key.bias")] == []


def test_positions_beyond_the_absolute_ones_have_none():
    """A longer canvas decodes; what is said of its first positions is the same for any embedding of later ones."""
    policy = policy_of(replace(PLAIN, positions=8))
    obs = observed(policy)
    assert obs.masked_BL.shape[1] > 8
    before = policy.score(obs)
    longer = policy_of(replace(PLAIN, positions=obs.masked_BL.shape[1]))
    state = longer.state_dict() | {n: v for n, v in policy.state_dict().items() if not n.endswith("place.weight")}
    for name in ("reader.place.weight", "shifts.reader.place.weight"):
        state[name] = torch.zeros_like(state[name])
        state[name][:8] = policy.state_dict()[name]
    longer.load_state_dict(state)
    assert torch.equal(before, longer.score(obs))
    assert torch.equal(policy(obs)[1], longer(obs)[1])


@pytest.mark.parametrize("wrong", [dict(action="dpls"), dict(heads=3), dict(top_k=0), dict(mix=1.0), dict(kappa=0.0)])
def test_shapes_that_cannot_work_are_refused(wrong: dict[str, Any]):
    with pytest.raises(SettingsError):
        replace(PLAIN, **wrong)


def test_the_default_is_small():
    assert 20_000 < sum(p.numel() for p in CoupledPolicy(CoupledShape()).parameters()) < 24_000


def test_it_is_stored_and_found_again(tmp_path: Path):
    policy = policy_of(RICH)
    store.save(policy, tmp_path)
    again = store.load(tmp_path)
    assert isinstance(again, CoupledPolicy) and again.shape == policy.shape and again.needs == policy.needs
    for one, two in zip(policy(observed(policy)), again(observed(policy)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("block_length", [4, 8])
def test_a_decode_is_the_same_however_it_is_batched(block_length: int):
    denoiser, _ = embedded.build("llada", "abcdefg", embedded.Shape(16, 2, 2, 24, 64), seed=1)
    policy = policy_of(replace(PLAIN, attention=(-1,), features=16))
    policy.offset = 4.0
    job = Job.of([torch.arange(5, 5 + n) for n in (1, 3, 4)], 8, block_length, group=4)
    whole = rollout(denoiser, policy, job, DecodeOptions(seed=3))
    assert bool(whole.finished_R.all()) and int(whole.nfe_R.max()) > int(whole.nfe_R.min())
    plain = DecodeOptions(seed=3)
    for cost in (dict(rows=1), dict(rows=5, workers=2), dict(rows=5, refill=False), dict(tokens=16), dict(reuse=False)):
        other = rollout(denoiser, policy, job, replace(plain, **cost))
        assert torch.equal(whole.canvas_RL, other.canvas_RL) and torch.equal(whole.order_RL, other.order_RL)


def test_needs():
    assert CoupledPolicy(RICH).needs == Needs(
        "masked", 4, "canvas", statistics=("log_odds", "entropy"), top_ids=True, attention=(-1, 0)
    )
