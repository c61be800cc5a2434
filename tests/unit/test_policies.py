"""What the learned policies compute: published sizes and starts, and independence of padding, batch and company."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.errors import CheckpointError, SettingsError
from components.maths.distributions import Bernoulli
from components.maths.plackett_luce import DPLS
from components.policies import store
from components.policies.confidence import PAPER, ConfidencePolicy, Shape, rotate, sinusoid
from components.types import Observation

torch.set_num_threads(1)

RICH = Shape(inputs=("log_odds", "entropy", "margin", "top"), top_k=3, features=5, width=16, heads=2, inner=32)


def observe(rows: int = 4, length: int = 6, seed: int = 0, prompt: int = 2) -> Observation:
    """Random statistics of canvases of different lengths, the longest ``length``, features over the whole sequence."""
    source = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=source, dtype=torch.float64)

    sizes = torch.tensor([length, length - 2, length - 1, length, 3])[:rows]
    valid = torch.arange(length) < sizes[:, None]
    masked = (rand(rows, length) < 0.7) & valid
    top = rand(rows, length, 3).sort(-1, descending=True).values * valid[..., None]
    return Observation(
        masked, masked & (torch.arange(length) < length // 2 + 1), torch.arange(rows) % 3, sizes,
        token_BL=torch.randint(0, 9, (rows, length), generator=source), confidence_BL=top[..., 0],
        log_odds_BL=torch.logit(top[..., 0], 1e-6) * valid, margin_BL=(top[..., 0] - top[..., 1]),
        entropy_BL=rand(rows, length) * valid, top_BLK=top,
        features_BTD=(rand(rows, prompt + length, 5) - 0.5), canvas_start=prompt,
        attend_BT=torch.cat([torch.ones(rows, prompt, dtype=torch.bool), valid], 1),
    )  # fmt: skip


def stirred(policy: nn.Module, seed: int = 3) -> nn.Module:
    """float64 weights away from their zero initialisation, so that every path counts."""
    source = torch.Generator().manual_seed(seed)
    for weight in policy.double().parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=source, dtype=torch.float64)
    return policy


SHAPES = {
    "paper": PAPER,
    "default": Shape(width=16, inner=32),
    "rich": RICH,
    "long period": replace(RICH, period=10000.0, where="eligible"),
    "conditioned": replace(RICH, alpha=True, where="all"),
}
every_shape = pytest.mark.parametrize("name", SHAPES)


def policy_of(name: str) -> ConfidencePolicy:
    policy = stirred(ConfidencePolicy(SHAPES[name]))
    assert isinstance(policy, ConfidencePolicy)
    return policy


def test_the_paper_s_policy_has_the_published_size():
    assert sum(p.numel() for p in ConfidencePolicy(PAPER).parameters()) == 331_265


def test_the_first_unmasking_probability_is_the_published_one():
    """About .12 at a bias of -2 (sigmoid(-2) = .119; the release logs .124), and a half at a bias of 0."""
    obs = observe(rows=5)
    for bias, low, high in ((-2.0, 0.09, 0.16), (0.0, 0.4, 0.6)):
        seen = []
        for seed in range(8):
            torch.manual_seed(seed)
            distribution = ConfidencePolicy(replace(PAPER, bias=bias)).distribution(obs)
            assert isinstance(distribution, Bernoulli)
            seen.append(distribution.probability_BL[obs.eligible_BL].mean().detach())
        assert low < float(torch.stack(seen).mean()) < high


@every_shape
def test_padding_behind_a_canvas_changes_nothing(name):
    policy, obs = policy_of(name), observe()
    named = obs.tensors()
    garbage = torch.Generator().manual_seed(9)

    def longer(field: str, value: Tensor) -> Tensor:
        if value.ndim < 2:
            return value
        extra = torch.randn(len(value), 3, *value.shape[2:], generator=garbage, dtype=torch.float64) * 5
        closed = field in ("masked_BL", "eligible_BL", "attend_BT")
        return torch.cat([value, torch.zeros_like(extra).bool() if closed else extra.to(value.dtype)], 1)

    wide = replace(obs, **{field: longer(field, value) for field, value in named.items()})
    valid = torch.arange(6) < obs.length_B[:, None]
    assert torch.allclose(policy.score(wide)[:, :6][valid], policy.score(obs)[valid], atol=1e-12)


@every_shape
def test_neighbours_change_nothing(name):
    policy, obs = policy_of(name), observe()
    together = policy.score(obs)
    for row in range(4):
        index = torch.tensor([row])
        assert torch.allclose(policy.score(obs.rows(index)), together[index], atol=1e-12)


@pytest.mark.parametrize("where", ["eligible", "masked", "all"])
def test_what_another_policy_needs_is_not_seen(where):
    """In a job with a policy that reads more positions, more probabilities or the whole sequence, nothing changes."""
    policy = stirred(ConfidencePolicy(replace(RICH, where=where)))
    assert isinstance(policy, ConfidencePolicy)
    obs = observe()
    read = {"eligible": obs.eligible_BL, "masked": obs.masked_BL, "all": torch.ones_like(obs.masked_BL)}[where]
    statistics = ("confidence_BL", "log_odds_BL", "entropy_BL", "margin_BL", "top_BLK")
    named = {n: v * (read if v.ndim == 2 else read[..., None]) for n, v in obs.tensors().items() if n in statistics}
    assert obs.features_BTD is not None
    alone = replace(obs, features_BTD=obs.features_BTD[:, 2:], attend_BT=None, canvas_start=0, **named)
    assert obs.top_BLK is not None
    crowded = replace(obs, top_BLK=F.pad(obs.top_BLK, (0, 4), value=0.01))
    assert torch.allclose(policy.score(crowded), policy.score(alone), atol=1e-12)


def test_frozen_features_enter_through_a_zero_initialised_projection():
    torch.manual_seed(0)
    policy = ConfidencePolicy(RICH)
    obs = observe()
    assert obs.features_BTD is not None
    other = replace(obs, features_BTD=obs.features_BTD + torch.randn_like(obs.features_BTD))
    assert torch.equal(policy.score(obs), policy.score(other))
    policy.features.weight.data.normal_()
    assert not torch.allclose(policy.score(obs), policy.score(other))


def test_the_zero_initialised_block_is_an_ordinary_pre_norm_block():
    """Gates are 1 + alpha: with the modulation at zero neither time nor mask bit counts, and both halves are open."""
    torch.manual_seed(0)
    policy = ConfidencePolicy(Shape(width=16, inner=32)).double()
    block, x = policy.block, torch.randn(2, 5, 16, dtype=torch.float64)
    h = block.norm_1(x)
    q, k, v = (f(h).view(2, 5, 2, 8).transpose(1, 2) for f in (block.query, block.key, block.value))
    mixed = torch.softmax(rotate(q) @ rotate(k).transpose(-1, -2) / 8**0.5, -1) @ v
    y = x + block.out(mixed.transpose(1, 2).reshape(2, 5, 16))
    y = y + block.down(F.gelu(block.up(block.norm_2(y))))
    bit, open_to_all = torch.rand(2, 5, 1) < 0.5, torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    assert torch.allclose(block(x, torch.randn(2, 2, 16, dtype=torch.float64), bit, open_to_all), y, atol=1e-10)


def test_mask_bit_and_time_condition_each_position():
    policy, obs = policy_of("default"), observe()
    later = replace(obs, step_B=obs.step_B + 1)
    assert not torch.allclose(policy.score(later), policy.score(obs))
    # Time is steps over the row's own length: half of a canvas is half of a canvas.
    whole = replace(obs, length_B=torch.full_like(obs.length_B, 6))
    double = replace(whole, step_B=2 * whole.step_B, length_B=2 * whole.length_B)
    assert torch.allclose(policy.score(double), policy.score(whole), atol=1e-12)
    position = int(obs.masked_BL[0].nonzero()[0])
    flipped = obs.masked_BL.clone()
    flipped[0, position] = False
    difference = policy.score(replace(obs, masked_BL=flipped, eligible_BL=flipped & obs.eligible_BL)) - policy.score(
        obs
    )
    assert difference[0, position].abs() > 1e-6 and not difference[1:].any()


def test_the_time_embedding_of_the_release_has_one_frequency():
    t = torch.tensor([0.25, 0.75])
    found = sinusoid(t, 8, period=1.0)
    assert torch.allclose(found, torch.cat([t.cos()[:, None].expand(2, 4), t.sin()[:, None].expand(2, 4)], 1))
    assert len(sinusoid(t, 8, period=10000.0)[0, :4].unique()) == 4


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    rolled = rotate(q.expand(1, 1, 7, 8)) @ rotate(k.expand(1, 1, 7, 8)).transpose(-1, -2)
    for shift in range(1, 6):
        assert torch.allclose(rolled[0, 0, shift:, :-shift].diagonal(), rolled[0, 0, shift, 0], atol=1e-6)


def test_one_policy_for_every_speed():
    """Conditioned on alpha it starts blind to it, then answers to what it is asked for; others never look."""
    obs = observe()
    torch.manual_seed(0)
    fresh = ConfidencePolicy(SHAPES["conditioned"])
    before = fresh.score(obs)
    fresh.speed = 9.0
    assert torch.equal(fresh.score(obs), before)
    for name, looks in (("conditioned", True), ("rich", False)):
        policy = policy_of(name)
        slow = policy.score(obs)
        policy.speed = 9.0
        assert torch.allclose(policy.score(obs), slow) is not looks


@every_shape
def test_every_weight_learns(name):
    policy, obs = policy_of(name), observe()
    distribution = policy.distribution(obs)
    distribution.entropy().sum().backward()
    dead = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias on all keys shifts every attention score of a query alike.
    assert set(dead) <= {"block.key.bias"}


def test_the_action_is_the_shape_s_with_the_policy_s_temperature():
    obs = observe()
    policy = ConfidencePolicy(PAPER, temperature=0.5, scale=1.5).double()
    cool = policy.distribution(obs)
    assert isinstance(cool, Bernoulli) and (cool.temperature, cool.scale) == (0.5, 1.5)
    assert torch.allclose(cool.probability_BL[obs.eligible_BL],
                          (1.5 * torch.sigmoid(policy.score(obs) / 0.5)).clamp(max=1)[obs.eligible_BL])  # fmt: skip
    assert isinstance(ConfidencePolicy(replace(PAPER, action="dpls")).distribution(obs), DPLS)


@every_shape
def test_a_policy_comes_back_from_its_folder(name, tmp_path):
    policy = policy_of(name).float()
    store.save(policy, tmp_path)
    loaded = store.load(tmp_path)
    assert loaded.shape == policy.shape
    assert torch.equal(loaded.score(observe()), policy.score(observe()))


def test_a_broken_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no whole policy"):
        store.load(tmp_path)
    store.save(ConfidencePolicy(SHAPES["default"]), tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps(described | {"kind": "oracle"}))
    with pytest.raises(CheckpointError, match="not known"):
        store.load(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(described | {"shape": described["shape"] | {"width": 32}}))
    with pytest.raises(CheckpointError, match="no whole policy"):
        store.load(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"inputs": ()}, {"inputs": ("colour",)}, {"action": "coin"}, {"width": 18}, {"top_k": 2}, {"where": "here"}],
)
def test_a_shape_that_cannot_work_is_refused(wrong):
    with pytest.raises((SettingsError, ValueError)):
        ConfidencePolicy(Shape(**wrong)).needs  # noqa: B018


def test_a_missing_input_is_named():
    with pytest.raises(ValueError, match="entropy"):
        ConfidencePolicy(Shape()).score(replace(observe(), entropy_BL=None))
