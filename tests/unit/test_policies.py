"""What the learned policies compute: published sizes and starts, and independence of padding, batch and company."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.core.errors import CheckpointError, SettingsError
from components.core.types import Needs, Observation
from components.decode import readout
from components.maths.distributions import Bernoulli, Categorical
from components.maths.plackett_luce import DPLS
from components.policies import store
from components.policies.confidence import PAPER, ConfidencePolicy, Shape, entropy_before, rotate, sinusoid
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.feature import FeaturePolicy, FeatureShape
from components.policies.heuristics import EntropyBound, TopKRandom, shortlist
from components.policies.teacher import Teacher

torch.set_num_threads(1)

RICH = Shape(inputs=("log_odds", "entropy", "margin", "top"), top_k=3, features=8, width=16, heads=2, mlp_width=32)


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
        masked,
        masked & (torch.arange(length) < length // 2 + 1),
        torch.arange(rows) % 3,
        sizes,
        token_BL=torch.randint(0, 9, (rows, length), generator=source),
        confidence_BL=top[..., 0],
        log_odds_BL=torch.logit(top[..., 0], 1e-6) * valid,
        margin_BL=(top[..., 0] - top[..., 1]),
        entropy_BL=rand(rows, length) * valid,
        top_BLK=top,
        features_BTD=(rand(rows, prompt + length, 8) - 0.5),
        canvas_start=prompt,
        attend_BT=torch.cat([torch.ones(rows, prompt, dtype=torch.bool), valid], 1),
    )


def stirred(policy: nn.Module, seed: int = 3) -> Any:
    """float64 weights away from their zero initialisation, so that every path counts."""
    source = torch.Generator().manual_seed(seed)
    for weight in policy.double().parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=source, dtype=torch.float64)
    return policy


SHAPES = {
    "paper": PAPER,
    "default": Shape(width=16, mlp_width=32),
    "rich": RICH,
    "long period": replace(RICH, period=10000.0, where="eligible"),
    "conditioned": replace(RICH, alphas=(0.3, 9.0), where="all"),
    "bound": Shape(inputs=("bound", "entropy"), width=16, mlp_width=32),
    "feature": FeatureShape(8, heads=2, mlp_width=16, top_k=2),
    "feature, shortlist": FeatureShape(8, heads=2, mlp_width=16, top_k=3, shortlist=2),
}
every_shape = pytest.mark.parametrize("name", SHAPES)


def policy_of(name: str) -> Any:
    shape = SHAPES[name]
    return stirred(ConfidencePolicy(shape) if isinstance(shape, Shape) else FeaturePolicy(shape))


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
def test_padding_behind_a_canvas_changes_nothing(name: str):
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
def test_neighbours_change_nothing(name: str):
    policy, obs = policy_of(name), observe()
    together = policy.score(obs)
    for row in range(4):
        index = torch.tensor([row])
        assert torch.allclose(policy.score(obs.rows(index)), together[index], atol=1e-12)


@pytest.mark.parametrize("where", ["eligible", "masked", "all"])
def test_what_another_policy_needs_is_not_seen(where: str):
    """In a job with a policy that reads more positions, more probabilities or the whole sequence, nothing changes."""
    policy, obs = stirred(ConfidencePolicy(replace(RICH, where=where))), observe()
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
    policy = ConfidencePolicy(Shape(width=16, mlp_width=32)).double()
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


def test_rounded_it_reads_what_the_release_reads():
    """A softmax in the model's bfloat16, and a time embedding that went through it; all else is the same policy."""
    logits_BLV = (3 * torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0))).bfloat16()
    logits_BLV[0, 0], logits_BLV[0, 0, 7] = 0.0, 10.5  # .9987: 1 in bfloat16
    ours = readout.statistics(logits_BLV.float().flatten(0, 1), Needs())["confidence"].unflatten(0, (2, 6))
    theirs = logits_BLV.softmax(-1).amax(-1).float()
    assert ours[0, 0] < theirs[0, 0] == 1 and not torch.equal(ours, theirs)
    every, seen = torch.ones(2, 6, dtype=torch.bool), []
    obs = Observation(every, every, torch.tensor([0, 0]), torch.tensor([6, 6]), confidence_BL=ours)
    exact, rounded = (ConfidencePolicy(replace(PAPER, rounded=switch)) for switch in (False, True))
    rounded.load_state_dict(stirred(exact).float().state_dict())
    # At step 0 the time embedding is ones and zeros, in any type.
    assert torch.equal(rounded.score(obs), exact.score(replace(obs, confidence_BL=theirs)))
    assert not torch.equal(rounded.score(obs), exact.score(obs))
    rounded.time.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    rounded.score(replace(obs, step_B=torch.tensor([1, 5])))
    assert torch.equal(seen[0], sinusoid(torch.tensor([1 / 6, 5 / 6]), 128, 1.0).bfloat16().float())


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    rolled = rotate(q.expand(1, 1, 7, 8)) @ rotate(k.expand(1, 1, 7, 8)).transpose(-1, -2)
    for shift in range(1, 6):
        assert torch.allclose(rolled[0, 0, shift:, :-shift].diagonal(), rolled[0, 0, shift, 0], atol=1e-6)


def test_one_policy_for_every_speed():
    """Conditioned on alpha it is what it was before, then answers to what it is asked for, each row by itself, where
    the observation says it or else by the policy's own speed; others never look."""
    obs = observe()
    plain = policy_of("rich")
    before = plain.score(obs)
    plain.add_alpha_input((0.3, 9.0))
    for asked in (0.3, 9.0):
        plain.speed = asked
        assert torch.equal(plain.score(obs), before)
    mixed = replace(obs, alpha_B=torch.tensor([0.3, 9.0, 9.0, 0.3]))
    for name, looks in (("conditioned", True), ("rich", False), ("feature", False)):
        policy = policy_of(name)
        slow, per_row = policy.score(obs), policy.score(mixed)
        policy.speed = 9.0
        fast = policy.score(obs)
        assert torch.allclose(fast, slow) is not looks
        assert torch.allclose(per_row[1:3], fast[1:3], atol=1e-12)
        policy.speed = 0.3
        assert torch.allclose(per_row[::3], policy.score(obs)[::3], atol=1e-6)  # .3 in float32


def test_a_threshold_on_the_bound_is_the_entropy_bound_rule():
    """What EB-Sampler compares with gamma is an input: one threshold on it is the rule, ties and blocks included."""
    obs = observe()
    assert obs.entropy_BL is not None
    tied = replace(obs, entropy_BL=(obs.entropy_BL * 4).round() / 4)
    for seen in (obs, tied):
        assert seen.entropy_BL is not None
        before = entropy_before(seen.entropy_BL, seen.eligible_BL)
        for gamma in (0.0, 0.3, 0.9, 9.0):
            rule = EntropyBound(gamma).distribution(seen).mode().drawn_BL
            assert torch.equal((before <= gamma) & seen.eligible_BL, rule)


# --- the feature head ---------------------------------------------------------------------------------------------


def test_the_feature_head_has_the_size_of_the_release():
    """At LLaDA-8B's width: a block of 218.1M and an MLP of 50.6M weights, twice the 134.36M of the paper, which is what
    counting weights that are packed in 4 bits gives."""
    with torch.device("meta"):
        policy = FeaturePolicy(FeatureShape(features=4096, heads=32, mlp_width=12288, shortlist=5))
    assert sum(p.numel() for p in policy.block.parameters()) == 218_112_000
    assert sum(p.numel() for p in policy.parameters()) == pytest.approx(2 * 134.36e6, abs=0.01e6)


def test_prompt_padding_changes_nothing_for_the_feature_head():
    policy, obs = policy_of("feature"), observe()
    assert obs.features_BTD is not None and obs.attend_BT is not None
    left = F.pad(obs.features_BTD, (0, 0, 3, 0), value=7.0)
    padded = replace(obs, features_BTD=left, attend_BT=F.pad(obs.attend_BT, (3, 0)), canvas_start=obs.canvas_start + 3)
    assert torch.allclose(policy.score(padded), policy.score(obs), atol=1e-10)


def test_the_feature_head_reads_the_prompt_and_other_positions():
    policy, obs = policy_of("feature"), observe()
    assert obs.features_BTD is not None
    for column in (0, obs.canvas_start + 1):
        moved = obs.features_BTD.clone()
        moved[:, column] += 1.0
        difference = policy.score(replace(obs, features_BTD=moved)) - policy.score(obs)
        assert bool((difference.abs().amax(-1) > 1e-6).all())


def test_a_fresh_feature_head_is_uniform_over_its_candidates():
    """The Top-K realisation starts as its own reference; KL to it is 0."""
    obs = observe()
    fresh = FeaturePolicy(FeatureShape(8, heads=2, mlp_width=16, top_k=3, shortlist=2)).double()
    reference = TopKRandom(2).distribution(obs)
    assert torch.allclose(fresh.distribution(obs).kl(reference), torch.zeros(4, dtype=torch.float64), atol=1e-7)
    everywhere = FeaturePolicy(FeatureShape(8, heads=2, mlp_width=16, top_k=3)).double().distribution(obs)
    assert isinstance(everywhere, Categorical)
    count = obs.eligible_BL.sum(-1, keepdim=True).double()
    assert torch.allclose(everywhere.log_probs_BL.exp(), obs.eligible_BL / count.clamp(min=1))


def test_the_shortlist_is_the_most_confident_positions():
    policy, obs = policy_of("feature, shortlist"), observe()
    distribution = policy.distribution(obs)
    assert torch.equal(distribution.log_probs_BL > -torch.inf, shortlist(obs, 2))
    assert not (distribution.mode().drawn_BL & ~shortlist(obs, 2)).any()


def test_the_sampling_temperature_is_inside_the_likelihood():
    policy, obs = policy_of("feature"), observe()
    policy.temperature = 0.8
    wanted = torch.log_softmax((policy.score(obs) / 0.8).masked_fill(~obs.eligible_BL, -torch.inf), -1)
    found, some = policy.distribution(obs).log_probs_BL, obs.eligible_BL
    assert torch.allclose(found[some], wanted[some])


def test_the_teacher_commits_what_is_right_or_the_best():
    """By hand: rows with two right positions, with one outside the block, with none."""
    token, answer = torch.tensor([[1, 2, 3, 4]] * 3), torch.tensor([[1, 9, 3, 9], [9, 9, 9, 4], [9, 9, 9, 9]])
    eligible = torch.tensor([[True, True, True, False]] * 3)
    odds = torch.tensor([[0.0, 3.0, 1.0, 9.0]] * 3)
    obs = Observation(
        torch.ones(3, 4, dtype=torch.bool),
        eligible,
        torch.zeros(3).long(),
        torch.full((3,), 4),
        token_BL=token,
        log_odds_BL=odds,
        answer_BL=answer,
    )
    drawn = Teacher().distribution(obs).mode().drawn_BL
    assert drawn.tolist() == [[True, False, True, False], [False, True, False, False], [False, True, False, False]]
    with pytest.raises(ValueError, match="answers=True"):
        Teacher().distribution(replace(obs, answer_BL=None))


@every_shape
def test_every_weight_learns(name: str):
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
    assert torch.allclose(
        cool.probability_BL[obs.eligible_BL],
        (1.5 * torch.sigmoid(policy.score(obs) / 0.5)).clamp(max=1)[obs.eligible_BL],
    )
    assert isinstance(ConfidencePolicy(replace(PAPER, action="dpls")).distribution(obs), DPLS)


@every_shape
def test_a_policy_comes_back_from_its_folder(name: str, tmp_path: Path):
    policy = policy_of(name).float()
    store.save(policy, tmp_path)
    loaded = store.load(tmp_path)
    assert loaded.shape == policy.shape
    assert torch.equal(loaded.score(observe()), policy.score(observe()))


def test_a_broken_folder_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no whole policy"):
        store.load(tmp_path)
    store.save(ConfidencePolicy(SHAPES["default"]), tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps(described | {"kind": "oracle"}))
    with pytest.raises(CheckpointError, match=r"kind 'oracle' is unknown\. Use .*\]\)\. Train one"):
        store.load(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(described | {"shape": described["shape"] | {"width": 32}}))
    with pytest.raises(CheckpointError, match="no whole policy"):
        store.load(tmp_path)


def test_a_policy_stored_under_the_former_names_of_its_shape_is_read(tmp_path: Path):
    """policy.json of older runs has inner, pair and pairs."""
    policy = CoupledPolicy(CoupledShape(top_k=3, width=8, heads=2, mlp_width=12, pair_width=6, pair_shifts=False))
    store.save(policy, tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text(encoding="utf-8"))
    names = {new: old for old, new in store.FORMER.items()}
    described["shape"] = {names.get(name, name): value for name, value in described["shape"].items()}
    assert {"inner", "pair", "pairs"} <= set(described["shape"])
    (tmp_path / "policy.json").write_text(json.dumps(described), encoding="utf-8")
    assert store.load(tmp_path).shape == policy.shape


@pytest.mark.parametrize(
    "wrong",
    [{"inputs": ()}, {"inputs": ("colour",)}, {"action": "coin"}, {"width": 18}, {"top_k": 2}, {"where": "here"}],
)
def test_a_shape_that_cannot_work_is_refused(wrong: dict[str, Any]):
    with pytest.raises((SettingsError, ValueError)):
        ConfidencePolicy(Shape(**wrong)).needs  # noqa: B018


@pytest.mark.parametrize("wrong", [{"features": 9}, {"features": 0}, {"hidden": 0}, {"top_k": 0}, {"shortlist": -1}])
def test_a_feature_shape_that_cannot_work_is_refused(wrong: dict[str, Any]):
    with pytest.raises(SettingsError):
        FeatureShape(**({"features": 8, "heads": 2} | wrong))


def test_a_missing_input_is_named():
    with pytest.raises(ValueError, match="entropy"):
        ConfidencePolicy(Shape()).score(replace(observe(), entropy_BL=None))
    with pytest.raises(ValueError, match="whole sequence"):
        policy_of("feature").score(replace(observe(), attend_BT=None))
