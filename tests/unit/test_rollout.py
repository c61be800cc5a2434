"""The engine decides what a plain lock-step loop decides, whatever is switched on; and what every decode must obey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.bench.reference import reference_rollout
from components.denoisers import embedded
from components.denoisers.protocol import Denoiser
from components.errors import SettingsError
from components.maths.distributions import ActionDistribution, Bernoulli
from components.policies.confidence import PAPER, ConfidencePolicy, Shape
from components.policies.heuristics import (
    HEURISTICS,
    Klass,
    MaxConfidence,
    SoftmaxConfidence,
    SuppressTokens,
    Threshold,
    TopKRandom,
    heuristic,
)
from components.policies.protocol import Policy
from components.rng import generator, mix
from components.rollout import Job, Options, rollout
from components.types import Canvas, Needs, Observation, Rollout, RowState, Steps

torch.set_num_threads(1)

VOCABULARY, MASK = 11, 0


# --- doubles -----------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """Random logits as a hash of the row's own content, bit for bit the same in every batch, padding and order."""

    sharpness: float = 4.0
    mask_id: int = MASK
    vocabulary: int = VOCABULARY
    width: int = VOCABULARY
    stateless: bool = True
    device = torch.device("cpu")
    forbidden_ids = torch.tensor([MASK, VOCABULARY - 1])

    def __post_init__(self) -> None:
        self.asked: list[Tensor] = []

    def start(self, canvas: Canvas) -> RowState | None:
        return None

    def hidden(self, canvas: Canvas, state: RowState | None) -> tuple[Tensor, RowState | None]:
        place_T = torch.arange(canvas.ids_BT.shape[1]) - canvas.start
        content_BT = mix(mix(canvas.ids_BT) ^ mix(place_T * 3 + 1)).masked_fill(~canvas.attend_BT, 0)
        key_BT1 = mix(content_BT.sum(1, keepdim=True) ^ mix(place_T)).unsqueeze(-1)
        bits = mix(key_BT1 ^ mix(torch.arange(self.vocabulary) * 7 + 5)) >> 11 & (2**53 - 1)
        self.asked += list(canvas.ids_BT[:, canvas.start :])
        return self.sharpness * 2 * ((bits.double() + 0.5) * 2.0**-53 - 0.5), state

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return hidden_ND


@dataclass
class Remembering(Table):
    """What it said before moves what it says now: a vector per row, and a number per row and position."""

    stateless: bool = False

    def start(self, canvas: Canvas) -> RowState | None:
        return {"mood": torch.zeros(len(canvas.ids_BT), self.vocabulary, dtype=torch.float64),
                "heat": torch.zeros(canvas.ids_BT.shape, dtype=torch.float64)}  # fmt: skip

    def hidden(self, canvas: Canvas, state: RowState | None) -> tuple[Tensor, RowState | None]:
        assert state is not None
        fresh_BTD, _ = super().hidden(canvas, None)
        hidden_BTD = fresh_BTD + state["mood"].unsqueeze(1) + state["heat"].unsqueeze(-1) * fresh_BTD
        heat_BT = (0.5 * state["heat"] + 0.1 * fresh_BTD[..., 1]).masked_fill(~canvas.attend_BT, 0.0)
        return hidden_BTD, {"mood": 0.5 * state["mood"] + fresh_BTD[:, canvas.start], "heat": heat_BT}


@dataclass(frozen=True)
class Sight:
    """A policy that reads the frozen model's features over the whole sequence."""

    needs: Needs = Needs(features="sequence")  # noqa: RUF009 (frozen)

    def score(self, obs: Observation) -> Tensor:
        assert obs.features_BTD is not None and obs.attend_BT is not None
        weight_BT1 = obs.attend_BT.unsqueeze(-1).double()
        mean_BD = (obs.features_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
        return (obs.features_BTD[:, obs.canvas_start :] * mean_BD.unsqueeze(1)).sum(-1)

    def distribution(self, obs: Observation) -> ActionDistribution:
        return Bernoulli(self.score(obs), obs.eligible_BL)


@dataclass(frozen=True)
class Never:
    """Draws nothing, ever."""

    needs: Needs = Needs()  # noqa: RUF009 (frozen)

    def score(self, obs: Observation) -> Tensor:
        return torch.full(obs.masked_BL.shape, -1e9, dtype=torch.float64)

    def distribution(self, obs: Observation) -> ActionDistribution:
        return Bernoulli(self.score(obs), obs.eligible_BL)


def learned(shape: Shape, seed: int = 0) -> ConfidencePolicy:
    """A random policy in float64, its modulation and projections away from their zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = ConfidencePolicy(replace(shape, bias=-1.0)).double()
        for weight in policy.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    return policy.eval()


SMALL = dict(width=8, heads=2, inner=16)
POLICIES: dict[str, Callable[[int], Policy]] = {
    **{name: lambda width, n=name, v=value: heuristic(n, v) for name, value in
       dict(random=2, left_to_right=1, confidence=3, margin=1, entropy=2, threshold=0.5, factor=0.9,
            entropy_bound=0.7, klass=0.4).items()},
    "klass_3": lambda width: Klass(0.2, 5.0, history=3, per_step=2),
    "max_confidence": lambda width: MaxConfidence(),
    "softmax_confidence": lambda width: SoftmaxConfidence(0.1),
    "top_k_random": lambda width: TopKRandom(3),
    "suppressed": lambda width: SuppressTokens(Threshold(0.4), (3, 4)),
    "learned": lambda width: learned(Shape(**SMALL)),
    "learned_paper": lambda width: learned(replace(PAPER, **SMALL)),
    "learned_top": lambda width: learned(Shape(inputs=("top", "margin"), top_k=3, **SMALL)),
    "learned_dpls": lambda width: learned(Shape(action="dpls", **SMALL)),
    "learned_categorical": lambda width: learned(Shape(action="categorical", **SMALL)),
    "learned_features": lambda width: learned(Shape(features=width, **SMALL)),
    "sight": lambda width: Sight(),
    "never": lambda width: Never(),
}  # fmt: skip


def transformer(layout: str, seed: int) -> Denoiser:
    """A random tiny transformer in float64 whose predictions are neither flat nor certain."""
    denoiser, _ = embedded.build(layout, "abcdefg", width=16, layers=2, heads=2, inner=24, positions=64, seed=seed)
    denoiser.model.double()
    with torch.no_grad():
        for name, weight in denoiser.model.named_parameters():
            weight *= 12.0 if "lm_head" in name else 4.0 if weight.ndim == 2 else 1.0
    return denoiser


DENOISERS: dict[str, Callable[[], Denoiser]] = {
    "table": Table,
    "remembering": Remembering,
    "llada": lambda: transformer("llada", 1),
    "dream": lambda: transformer("dream", 2),
}


def job_of(sizes: list[tuple[int, int, int]], group: int, seed: int = 0, experts: int = 0) -> Job:
    """One prompt per (prompt length, canvas length, block length); the last ``experts`` members are policy 1's."""
    source = generator("job", seed)
    prompts = [torch.randint(1, VOCABULARY - 1, (size,), generator=source) for size, _, _ in sizes]
    prompt_R = torch.arange(len(sizes)).repeat_interleave(group)
    member_R = torch.arange(group).repeat(len(sizes))
    _, length_P, block_P = torch.tensor(sizes).T
    return Job(prompts, prompt_R, prompt_R + 100, member_R, length_P[prompt_R], block_P[prompt_R],
               (member_R >= group - experts).long())  # fmt: skip


# A transformer that sees nothing but masks says the same at each of them, up to rounding: no prompt is empty here.
MIXED = [(3, 6, 3), (1, 8, 8), (5, 4, 1), (2, 6, 2), (4, 8, 4)]


# --- laws --------------------------------------------------------------------------------------------------------


def pairs_in_order(steps: Steps) -> Steps:
    return steps.pairs((steps.row_N * 10_000 + steps.step_N).argsort())


def assert_same(found: Rollout, wanted: Rollout, tolerance: float = 1e-9) -> None:
    for name in ("canvas_RL", "order_RL", "nfe_R", "finished_R", "policy_R"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    if wanted.steps is None:
        return
    assert found.steps is not None
    one, other = pairs_in_order(found.steps), pairs_in_order(wanted.steps)
    assert torch.equal(one.row_N, other.row_N) and torch.equal(one.step_N, other.step_N)
    for name in ("drawn_BL", "rank_BL", "committed_BL"):
        mine, theirs = getattr(one.action, name), getattr(other.action, name)
        assert (mine is None and theirs is None) or torch.equal(mine, theirs), name
    torch.testing.assert_close(one.log_prob_N, other.log_prob_N, rtol=tolerance, atol=tolerance)
    theirs = other.observation.tensors()
    for name, mine in one.observation.tensors().items():
        if name in ("features_BTD", "attend_BT"):  # padded to the batch's, not to the job's longest prompt
            continue
        torch.testing.assert_close(mine, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def assert_lawful(done: Rollout, job: Job, force: bool) -> None:
    """What holds for every decode: see the assertions."""
    steps = done.steps
    assert steps is not None
    length_R = job.length_R
    valid_RL = torch.arange(done.canvas_RL.shape[1]) < length_R.unsqueeze(1)
    assert bool((done.nfe_R <= length_R).all())
    assert torch.equal(done.canvas_RL == -1, ~valid_RL)
    assert torch.equal((done.order_RL >= 0) & valid_RL, (done.canvas_RL != MASK) & valid_RL)
    assert torch.equal(done.finished_R, ((done.order_RL >= 0) | ~valid_RL).all(1))
    assert bool((done.order_RL < done.nfe_R.unsqueeze(1)).all())
    if force:
        assert bool(done.finished_R.all())
    # A row's recorded steps are 0, 1, ... nfe - 1, each once.
    assert torch.equal(torch.bincount(steps.row_N, minlength=len(job)), done.nfe_R)
    order_NL, canvas_NL = done.order_RL[steps.row_N], done.canvas_RL[steps.row_N]
    committed_NL, step_N1 = steps.action.committed_BL, steps.step_N.unsqueeze(1)
    assert committed_NL is not None and steps.observation.token_BL is not None
    # Masked at a step is what is committed then or later, or never: what is committed stays committed.
    assert torch.equal(steps.observation.masked_BL, ((order_NL >= step_N1) | (order_NL < 0)) & valid_RL[steps.row_N])
    assert torch.equal(committed_NL, (order_NL == step_N1) & valid_RL[steps.row_N])
    # The token that was predicted when a position was committed is what the canvas holds in the end.
    assert torch.equal(steps.observation.token_BL[committed_NL], canvas_NL[committed_NL])
    # Blocks in order: nobody is committed while an earlier block has masks (cap "canvas").
    if force:
        assert bool(committed_NL.any(1).all())


# --- engine and reference ----------------------------------------------------------------------------------------

# Everything on; one thing off at a time, or few rows at a time; everything off.
SWITCHES = [dict(rows=3), dict(rows=3, refill=False), dict(reuse=False), dict(rows=4, tokens=20), dict(rows=2, refill=False, reuse=False, tokens=1)]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("which", DENOISERS)
def test_engine_decides_what_the_reference_decides_for_every_policy_and_switch(which: str, name: str):
    denoiser, job = DENOISERS[which](), job_of(MIXED, group=2)
    policy = POLICIES[name](denoiser.width)
    # transformers' RMSNorm goes through float32 even in a float64 model
    tolerance = 1e-9 if isinstance(denoiser, Table) else 1e-4
    for force, choose in ((True, "sample"), (False, "sample"), (True, "mode")):
        base = Options(seed=5, force=force, choose=choose, record=True)
        wanted = reference_rollout(denoiser, policy, job, base)
        for switches in SWITCHES if which == "table" else SWITCHES[::3]:
            found = rollout(denoiser, policy, job, replace(base, **switches))
            assert_same(found, wanted, tolerance)
        assert_lawful(found, job, force and name != "never" or force)


@st.composite
def situations(draw):
    lengths = st.integers(1, 8).flatmap(
        lambda n: st.tuples(st.integers(0, 6), st.just(n), st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
    )
    group = draw(st.integers(1, 3))
    experts = draw(st.integers(0, group - 1)) if group > 1 else 0
    options = Options(
        seed=draw(st.integers(0, 99)), choose=draw(st.sampled_from(["sample", "mode"])), force=draw(st.booleans()),
        cap=draw(st.sampled_from(["canvas", "block"])), record=True, widen=experts > 0 and draw(st.booleans()),
        rows=draw(st.integers(1, 9)), tokens=draw(st.sampled_from([None, 1, 30])), refill=draw(st.booleans()), reuse=draw(st.booleans()),
    )  # fmt: skip
    job = job_of(draw(st.lists(lengths, min_size=1, max_size=5)), group, draw(st.integers(0, 9)), experts)
    names = (draw(st.sampled_from(sorted(POLICIES))), draw(st.sampled_from(sorted(POLICIES))))
    return draw(st.sampled_from(["table", "remembering"])), names, job, options


@settings(max_examples=150, deadline=None)
@given(situations())
def test_engine_decides_what_the_reference_decides_anywhere(situation):
    which, (first, second), job, options = situation
    denoiser = DENOISERS[which]()
    policies = [POLICIES[first](denoiser.width)]
    if bool((job.policy_R > 0).any()):
        policies.append(POLICIES[second](denoiser.width))
    wanted = reference_rollout(denoiser, policies, job, replace(options, rows=64))
    found = rollout(denoiser, policies, job, options)
    assert_same(found, wanted)
    assert_lawful(found, job, options.force and options.cap == "canvas")
    if options.reuse and denoiser.stateless:
        assert found.useful == found.forwards
    assert found.useful <= found.forwards
