"""The engine decides what a plain lock-step loop decides, whatever is switched on; and what every decode must obey."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.bench.reference import reference_rollout
from components.core.errors import SettingsError
from components.core.rng import generator, mix
from components.core.types import Canvas, Needs, Observation, Rollout, RowState, Steps
from components.decode import memory
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers import embedded
from components.denoisers.protocol import Denoiser
from components.maths.distributions import ActionDistribution, Bernoulli, Deterministic
from components.policies.confidence import PAPER, ConfidencePolicy, Shape
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.feature import FeaturePolicy, FeatureShape
from components.policies.heuristics import (
    Klass,
    MaxConfidence,
    SoftmaxConfidence,
    SuppressTokens,
    Threshold,
    TopKRandom,
)
from components.policies.protocol import Policy
from components.policies.rules import heuristic
from components.policies.teacher import Teacher
from tests.doubles import Accepting

torch.set_num_threads(1)

VOCABULARY, MASK = 12, 0


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
        self.asked: list[tuple[int, ...]] = []

    def start(self, canvas: Canvas) -> RowState | None:
        return None

    def hidden(self, canvas: Canvas, state: RowState | None) -> tuple[Tensor, RowState | None]:
        place_T = torch.arange(canvas.ids_BT.shape[1]) - canvas.start
        content_BT = mix(mix(canvas.ids_BT) ^ mix(place_T * 3 + 1)).masked_fill(~canvas.attend_BT, 0)
        key_BT1 = mix(content_BT.sum(1, keepdim=True) ^ mix(place_T)).unsqueeze(-1)
        bits = mix(key_BT1 ^ mix(torch.arange(self.vocabulary) * 7 + 5)) >> 11 & (2**53 - 1)
        self.asked += [tuple(ids[attend].tolist()) for ids, attend in zip(canvas.ids_BT, canvas.attend_BT, strict=True)]
        return self.sharpness * 2 * ((bits.double() + 0.5) * 2.0**-53 - 0.5), state

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return hidden_ND


@dataclass
class Remembering(Table):
    """What it said before moves what it says now: a vector per row, and a number per row and position."""

    stateless: bool = False

    def start(self, canvas: Canvas) -> RowState | None:
        return {
            "mood": torch.zeros(len(canvas.ids_BT), self.vocabulary, dtype=torch.float64),
            "heat": torch.zeros(canvas.ids_BT.shape, dtype=torch.float64),
        }

    def hidden(self, canvas: Canvas, state: RowState | None) -> tuple[Tensor, RowState | None]:
        assert state is not None
        fresh_BTD, _ = super().hidden(canvas, None)
        hidden_BTD = fresh_BTD + state["mood"].unsqueeze(1) + state["heat"].unsqueeze(-1) * fresh_BTD
        heat_BT = (0.5 * state["heat"] + 0.1 * fresh_BTD[..., 1]).masked_fill(~canvas.attend_BT, 0.0)
        return hidden_BTD, {"mood": 0.5 * state["mood"] + fresh_BTD[:, canvas.start], "heat": heat_BT}


@dataclass(frozen=True)
class Sight:
    """A policy that reads the frozen model's features over the whole sequence."""

    @property
    def needs(self) -> Needs:
        return Needs(features="sequence")

    def score(self, obs: Observation) -> Tensor:
        assert obs.features_BTD is not None and obs.attend_BT is not None
        weight_BT1 = obs.attend_BT.unsqueeze(-1).double()
        mean_BD = (obs.features_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
        return (obs.features_BTD[:, obs.canvas_start :] * mean_BD.unsqueeze(1)).sum(-1)

    def distribution(self, obs: Observation) -> ActionDistribution:
        return Bernoulli(self.score(obs), obs.eligible_BL)


@dataclass(frozen=True)
class Reading:
    """Another policy that also asks for more than it reads."""

    policy: Policy
    needs: Needs

    def score(self, obs: Observation) -> Tensor:
        return self.policy.score(obs)

    def distribution(self, obs: Observation) -> ActionDistribution:
        return self.policy.distribution(obs)


@dataclass(frozen=True)
class Sometimes:
    """Another policy in even steps, nothing in odd ones."""

    policy: Policy

    @property
    def needs(self) -> Needs:
        return Needs()

    def score(self, obs: Observation) -> Tensor:
        return self.policy.score(obs)

    def distribution(self, obs: Observation) -> ActionDistribution:
        inner = self.policy.distribution(obs)
        assert isinstance(inner, Deterministic)
        return replace(inner, selected_BL=inner.selected_BL & (obs.step_B % 2 == 0).unsqueeze(1))


@dataclass(frozen=True)
class Never:
    """Draws nothing, ever."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def score(self, obs: Observation) -> Tensor:
        return torch.full(obs.masked_BL.shape, -1e9, dtype=torch.float64)

    def distribution(self, obs: Observation) -> ActionDistribution:
        return Bernoulli(self.score(obs), obs.eligible_BL)


@dataclass(frozen=True)
class Patient:
    """Commits what has been stable for three looks, else nothing: a stateful rule with empty draws."""

    @property
    def needs(self) -> Needs:
        return Needs(drift=3)

    def score(self, obs: Observation) -> Tensor:
        assert obs.drift_BLH is not None
        return -obs.drift_BLH.amax(-1)

    def distribution(self, obs: Observation) -> ActionDistribution:
        return Deterministic(self.score(obs) > -2.0, obs.eligible_BL, self.score(obs))


def learned(shape: Shape, seed: int = 0) -> ConfidencePolicy:
    """A random policy in float64, its modulation and projections away from their zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = ConfidencePolicy(replace(shape, bias=-1.0)).double()
        for weight in policy.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    return policy.eval()


def paper_b(width: int, shortlist: int) -> FeaturePolicy:
    """A random feature policy in float64, its last layer away from zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = FeaturePolicy(
            FeatureShape(width, heads=2, mlp_width=16, hidden=1, top_k=4, shortlist=shortlist)
        ).double()
        policy.head.weight.data.normal_()
    return policy.eval()


def coupled(width: int = 0, **shape: Any) -> CoupledPolicy:
    """A random coupled policy in float64, its shifts and its mixture away from where they start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small: dict[str, Any] = (
            dict(top_k=4, width=8, heads=2, mlp_width=8, pair_width=6, tau=-0.5, features=width) | shape
        )
        policy = CoupledPolicy(CoupledShape(**small)).double()
        for weight in policy.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    return policy.eval()


SMALL: dict[str, Any] = dict(width=8, heads=2, mlp_width=16)
POLICIES: dict[str, Callable[[int], Policy]] = {
    **{
        name: lambda width, n=name, v=value: heuristic(n, v)
        for name, value in dict(
            random=2,
            left_to_right=1,
            confidence=3,
            margin=1,
            entropy=2,
            threshold=0.5,
            factor=0.9,
            entropy_bound=0.7,
            klass=0.4,
            mean_field=0.6,
            overlap=0.8,
            overlap_rise=0.3,
            spread=0.8,
        ).items()
    },
    "klass_3": lambda width: Klass(0.2, 5.0, history=3, per_step=2),
    "max_confidence": lambda width: MaxConfidence(),
    "softmax_confidence": lambda width: SoftmaxConfidence(0.1),
    "top_k_random": lambda width: TopKRandom(3),
    "suppressed": lambda width: SuppressTokens(Threshold(0.4), (3, 4)),
    "suppressed_as_llada_does": lambda width: SuppressTokens(heuristic("margin", 2), (3, 4), renormalize=True),
    "learned": lambda width: learned(Shape(**SMALL)),
    "learned_paper": lambda width: learned(replace(PAPER, **SMALL)),
    "learned_top": lambda width: learned(Shape(inputs=("top", "margin"), top_k=3, **SMALL)),
    "learned_dpls": lambda width: learned(Shape(action="dpls", **SMALL)),
    "learned_categorical": lambda width: learned(Shape(action="categorical", **SMALL)),
    "learned_features": lambda width: learned(Shape(features=width, **SMALL)),
    "learned_bound": lambda width: learned(Shape(inputs=("bound", "log_odds"), where="eligible", **SMALL)),
    "paper_b": lambda width: paper_b(width, shortlist=0),
    "paper_b_top_k": lambda width: paper_b(width, shortlist=3),
    "coupled": lambda width: coupled(),
    "coupled_places": lambda width: coupled(width, offsets=2, positions=8),
    "coupled_categorical": lambda width: coupled(action="categorical"),
    "accept": lambda width: Accepting(coupled()),
    "sight": lambda width: Sight(),
    "never": lambda width: Never(),
    "patient": lambda width: Patient(),
    "teacher": lambda width: Teacher(),
}


def transformer(layout: str, seed: int) -> Denoiser:
    """A random tiny transformer in float64 whose predictions are neither flat nor certain."""
    denoiser, _ = embedded.build(layout, "abcdefg", embedded.Shape(16, 2, 2, 24, 64), seed=seed)
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
    answers = [torch.randint(1, VOCABULARY - 1, (length,), generator=source) for _, length, _ in sizes]
    return Job(
        prompts,
        prompt_R,
        prompt_R + 100,
        member_R,
        length_P[prompt_R],
        block_P[prompt_R],
        (member_R >= group - experts).long(),
        answers=answers,
    )


def partly_filled(job: Job, seed: int) -> Job:
    """The job with about half of each canvas given, whole blocks and whole canvases now and then."""
    source = generator("filled", seed)
    shape = (len(job), int(job.length_R.max()))
    ids_RL = torch.randint(1, VOCABULARY - 1, shape, generator=source)
    share_R1 = torch.rand(len(job), 1, generator=source) * 1.2
    return replace(job, canvas_RL=ids_RL.masked_fill(torch.rand(shape, generator=source) > share_R1, -1))


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
        assert mine is theirs is None or torch.equal(mine, theirs), name
    torch.testing.assert_close(one.log_prob_N, other.log_prob_N, rtol=tolerance, atol=tolerance)
    theirs = other.observation.tensors()
    for name, mine in one.observation.tensors().items():
        if name in ("features_BTD", "attend_BT"):  # padded to the batch's, not to the job's longest prompt
            continue
        torch.testing.assert_close(mine, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def assert_lawful(done: Rollout, job: Job, force: bool) -> None:
    """What holds for every decode: see the assertions."""
    length_R = job.length_R
    valid_RL = torch.arange(done.canvas_RL.shape[1]) < length_R.unsqueeze(1)
    assert bool((done.nfe_R <= length_R).all())
    assert torch.equal(done.canvas_RL == -1, ~valid_RL)
    given_RL = torch.zeros_like(valid_RL) if job.canvas_RL is None else (job.canvas_RL >= 0) & valid_RL
    asked_RL = valid_RL & ~given_RL
    # Behind the end of a text nothing was decoded, and nothing is left.
    behind_RL = behind_ends(done, asked_RL, job.end_ids)
    assert torch.equal(done.order_RL >= 0, (done.canvas_RL != MASK) & asked_RL & ~behind_RL)
    assert not job.end_ids or bool((done.canvas_RL[behind_RL] == job.end_ids[0]).all())
    assert torch.equal(done.finished_R, ((done.order_RL >= 0) | ~asked_RL | behind_RL).all(1))
    assert job.canvas_RL is None or torch.equal(done.canvas_RL[given_RL], job.canvas_RL[given_RL])
    assert torch.equal(done.nfe_R == 0, ~asked_RL.any(1))
    assert bool((done.order_RL < done.nfe_R.unsqueeze(1)).all())
    if force:
        assert bool(done.finished_R.all())
    steps = done.steps
    if steps is None:  # every canvas was given whole
        return
    # A row's recorded steps are 0, 1, ... nfe - 1, each once.
    assert torch.equal(torch.bincount(steps.row_N, minlength=len(job)), done.nfe_R)
    order_NL, canvas_NL = done.order_RL[steps.row_N], done.canvas_RL[steps.row_N]
    committed_NL, step_N1 = steps.action.committed_BL, steps.step_N.unsqueeze(1)
    assert committed_NL is not None and steps.observation.token_BL is not None
    # Masked at a step is what is committed then or later, or never: what is committed stays committed.
    assert torch.equal(steps.observation.masked_BL, ((order_NL >= step_N1) | (order_NL < 0)) & asked_RL[steps.row_N])
    assert torch.equal(committed_NL, order_NL == step_N1)
    # The token that was predicted when a position was committed is what the canvas holds in the end.
    assert torch.equal(steps.observation.token_BL[committed_NL], canvas_NL[committed_NL])
    if force:
        assert bool(committed_NL.any(1).all())


def behind_ends(done: Rollout, asked_RL: Tensor, end_ids: tuple[int, ...]) -> Tensor:
    """What was asked for and never committed, behind the first end with nothing missing before it."""
    behind_RL = torch.zeros_like(asked_RL)
    for row, (ids, order, asked) in enumerate(
        zip(done.canvas_RL.tolist(), done.order_RL.tolist(), asked_RL.tolist(), strict=True)
    ):
        for place in range(len(ids)):
            if asked[place] and order[place] < 0:
                break
            if asked[place] and ids[place] in end_ids:
                behind_RL[row, place:] = asked_RL[row, place:] & (done.order_RL[row, place:] < 0)
                break
    return behind_RL


def assert_blocks_in_order(done: Rollout, job: Job) -> None:
    """No position is committed before every position of the blocks in front of it."""
    never = 10_000
    for row, (length, block) in enumerate(zip(job.length_R.tolist(), job.block_R.tolist(), strict=True)):
        blocks = []
        for order, ids in zip(
            done.order_RL[row, :length].split(block), done.canvas_RL[row, :length].split(block), strict=True
        ):
            asked = [
                never if when < 0 else when
                for when, token in zip(order.tolist(), ids.tolist(), strict=True)
                if when >= 0 or token == MASK
            ]
            blocks += [asked] if asked else []
        for one, following in itertools.pairwise(blocks):
            assert max(one) < min(following) or min(following) == never


# --- engine and reference ----------------------------------------------------------------------------------------

# All optimisations on, each one off alone, all off; few rows in flight, few positions in a forward; in workers.
SWITCHES = [
    dict(rows=3),
    dict(workers=3, rows=4),
    dict(rows=3, refill=False),
    dict(reuse=False),
    dict(rows=4, tokens=20, workers=2),
    dict(rows=2, refill=False, reuse=False, tokens=1),
]
MODES = [dict(force_commit=True), dict(force_commit=False), dict(choose="mode")]


@pytest.mark.e2e
@pytest.mark.parametrize("name", POLICIES)
def test_engine_decides_what_the_reference_decides_for_every_policy_and_switch(name: str):
    denoiser, job = Table(), job_of(MIXED, group=2)
    policy = POLICIES[name](denoiser.width)
    for mode, chosen in zip(MODES, (SWITCHES, SWITCHES[-2:], SWITCHES[-1:]), strict=True):
        base = DecodeOptions(seed=5, record=True, **mode)
        wanted = reference_rollout(denoiser, policy, job, base)
        for switches in chosen:
            found = rollout(denoiser, policy, job, replace(base, **switches))
            assert_same(found, wanted)
            assert_lawful(found, job, base.force_commit)
            assert_blocks_in_order(found, job)


@pytest.mark.e2e
@pytest.mark.parametrize("which", ["llada", "dream"])
@pytest.mark.parametrize(
    "name",
    ["learned", "learned_features", "paper_b_top_k", "coupled", "coupled_attention", "sight", "entropy_bound", "klass"],
)
def test_engine_decides_what_the_reference_decides_over_transformers(which: str, name: str):
    denoiser, job = DENOISERS[which](), job_of(MIXED, group=2)
    # A table shows no attention, so that this policy is not among those that are decoded with anything.
    make = {"coupled_attention": lambda width: coupled(width, attention=(-1, 0))} | POLICIES
    policy, base = make[name](denoiser.width), DecodeOptions(seed=5, force_commit=False, record=True)
    wanted = reference_rollout(denoiser, policy, job, base)
    for switches in SWITCHES[-2:]:
        # transformers' RMSNorm goes through float32 even in a float64 model
        assert_same(rollout(denoiser, policy, job, replace(base, **switches)), wanted, tolerance=1e-4)


@st.composite
def situations(draw: st.DrawFn):
    lengths = st.integers(1, 8).flatmap(
        lambda n: st.tuples(st.integers(0, 6), st.just(n), st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
    )
    group = draw(st.integers(1, 3))
    experts = draw(st.integers(0, group - 1)) if group > 1 else 0
    options = DecodeOptions(
        seed=draw(st.integers(0, 99)),
        choose=draw(st.sampled_from(["sample", "mode"])),
        force_commit=draw(st.booleans()),
        step_limit=draw(st.sampled_from(["canvas", "block"])),
        record=True,
        steer_all_masks=experts > 0 and draw(st.booleans()),
        rows=draw(st.integers(1, 9)),
        tokens=draw(st.sampled_from([None, 1, 30])),
        refill=draw(st.booleans()),
        reuse=draw(st.booleans()),
        workers=draw(st.sampled_from([None, 1, 2, 3])),
    )
    job = job_of(draw(st.lists(lengths, min_size=1, max_size=5)), group, draw(st.integers(0, 9)), experts)
    job = partly_filled(job, draw(st.integers(0, 99))) if draw(st.booleans()) else job
    ends = draw(st.sampled_from([(), (), (4,), (9, 4, 1)]))
    job = replace(job, frontier=draw(st.sampled_from([None, None, 1, 2, 5])), end_ids=ends)
    names = (draw(st.sampled_from(sorted(POLICIES))), draw(st.sampled_from(sorted(POLICIES))))
    return draw(st.sampled_from(["table", "remembering"])), names, job, options, draw(st.sampled_from([None, 1, 3]))


@pytest.mark.e2e
@settings(max_examples=100, deadline=None)
@given(situations())
def test_engine_decides_what_the_reference_decides_anywhere(situation: tuple[Any, ...]):
    which, (first, second), job, options, room = situation
    denoiser = DENOISERS[which]()
    policies = [POLICIES[first](denoiser.width)]
    if bool((job.policy_R > 0).any()):
        expert = POLICIES[second](denoiser.width)
        # All of a job's policies leave the same tokens out of their statistics, or none.
        policies.append(expert if expert.needs.late == policies[0].needs.late else policies[0])
    wanted = reference_rollout(denoiser, policies, job, replace(options, rows=64))
    if room is not None:  # so many times the memory that one row takes
        needs = policies[0].needs | policies[-1].needs
        needs = needs | Needs(where="masked") if options.steer_all_masks else needs
        sizes = memory.count(job, denoiser, needs, record=True)
        options = replace(options, rows=None, memory=room * (sizes.row + sizes.forward(sum(job.shape))))
    found = rollout(denoiser, policies, job, options)
    assert_same(found, wanted)
    assert_lawful(found, job, options.force_commit and options.step_limit == "canvas")
    if options.step_limit == "canvas":
        assert_blocks_in_order(found, job)
    if options.reuse and denoiser.stateless:
        assert found.useful == found.forwards
    assert found.useful <= found.forwards


def test_a_block_with_masks_behind_the_frontier_ends_after_as_many_steps_as_it_has_masks() -> None:
    """Row 1 commits its first position at step 0, skips the second at step 1, and is in the next block at step 2."""
    denoiser = Table()
    policy, job = POLICIES["accept"](denoiser.width), replace(job_of([(0, 4, 2)], 2, 0, 0), frontier=1)
    options = DecodeOptions(seed=0, force_commit=False, step_limit="block", record=True)
    found = rollout(denoiser, policy, job, options)
    assert found.order_RL.tolist() == [[-1, -1, 3, -1], [0, -1, 2, -1]]
    assert_same(found, reference_rollout(denoiser, policy, job, options))


@pytest.mark.parametrize("name", ["learned", "learned_dpls", "paper_b", "coupled"])
def test_a_thinned_record_is_part_of_the_whole_one_and_the_decode_is_the_same(name: str):
    denoiser, job = Table(), job_of(MIXED, group=3)
    policy, options = POLICIES[name](denoiser.width), DecodeOptions(seed=8, force_commit=False, record=True, rows=4)
    changes = (dict(record_share=1.0), dict(record_share=0.5), dict(record_share=0.5, rows=2, refill=False))
    whole, half, other = (rollout(denoiser, policy, job, replace(options, **change)) for change in changes)
    assert whole.steps is not None and half.steps is not None
    kept_N = half.steps.row_N * 10_000 + half.steps.step_N
    assert 0.3 < len(kept_N) / len(whole.steps.row_N) < 0.7
    chosen = torch.isin(whole.steps.row_N * 10_000 + whole.steps.step_N, kept_N)
    assert_same(half, replace(whole, steps=whole.steps.pairs(chosen)))
    assert_same(other, half)


# --- what is not computed ----------------------------------------------------------------------------------------


def test_no_canvas_is_asked_about_twice_and_no_finished_one_at_all():
    denoiser, job = Table(), job_of([(4, 8, 8), (5, 8, 4), (6, 6, 2)], group=1)
    policy = learned(Shape(**SMALL))
    done = rollout(denoiser, policy, job, DecodeOptions(seed=3, force_commit=False, record=True, rows=2))
    assert len(denoiser.asked) == done.forwards == done.useful == len(set(denoiser.asked))
    assert all(MASK in ids for ids in denoiser.asked)
    assert done.steps is not None and done.steps.action.committed_BL is not None
    empty = ~done.steps.action.committed_BL.any(1)
    assert int(empty.sum()) > 0  # the situation is the one that reuse is for
    # One forward per step, less those after an empty draw. (A row that gives up after one has no step left to save.)
    last = done.steps.step_N + 1 == done.nfe_R[done.steps.row_N]
    assert done.forwards == int(done.nfe_R.sum()) - int((empty & ~last).sum())


def test_a_stateful_denoiser_is_asked_at_every_step_of_every_row():
    denoiser, job = Remembering(), job_of(MIXED, group=2)
    done = rollout(denoiser, learned(Shape(**SMALL)), job, DecodeOptions(force_commit=False, rows=4))
    assert done.forwards == done.useful == int(done.nfe_R.sum()) == len(denoiser.asked)


def test_a_policy_without_hidden_states_asks_no_dllm_for_its_fingerprint():
    """It takes a few values of every tensor."""

    class Nameless(Table):
        @property
        def fingerprint(self) -> str:
            raise AssertionError("the weights were read")

    assert bool(rollout(Nameless(), Threshold(0.5), job_of([(3, 8, 4)], group=1)).finished_R.all())


def test_the_head_runs_only_where_somebody_reads():
    class Counting(Table):
        read = 0

        def logits(self, hidden_ND: Tensor) -> Tensor:
            self.read += len(hidden_ND)
            return hidden_ND

    job, options = job_of([(3, 8, 4)], group=1), DecodeOptions()
    left_to_right = heuristic("left_to_right", 1)
    for where, wanted in (("eligible", 2 * (4 + 3 + 2 + 1)), ("masked", sum(range(1, 9))), ("all", 8 * 8)):
        denoiser = Counting()
        rollout(denoiser, Reading(left_to_right, Needs(where=where)), job, options)
        assert denoiser.read == wanted, where


# --- rows and their neighbours -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["table", "remembering", "llada"])
@pytest.mark.parametrize("make", [lambda: learned(Shape(**SMALL)), coupled], ids=["learned", "coupled"])
def test_a_row_decodes_alone_as_in_company_and_in_any_order(which: str, make: Callable[[], Policy]):
    denoiser, job = DENOISERS[which](), job_of(MIXED, group=2)
    policy, options = make(), DecodeOptions(seed=1, rows=3)
    together = rollout(denoiser, policy, job, options)
    shuffled = torch.randperm(len(job), generator=generator("shuffle"))
    moved = rollout(denoiser, policy, pick(job, shuffled), options)
    for name in ("canvas_RL", "order_RL", "nfe_R"):
        assert torch.equal(getattr(moved, name), getattr(together, name)[shuffled]), name
    for row in range(len(job)):
        alone = rollout(denoiser, policy, pick(job, torch.tensor([row])), options)
        length = int(job.length_R[row])
        assert torch.equal(alone.canvas_RL[0, :length], together.canvas_RL[row, :length])
        assert torch.equal(alone.order_RL[0, :length], together.order_RL[row, :length])


def pick(job: Job, rows: Tensor) -> Job:
    """The rows of a job as a job of their own; their noise addresses go with them."""
    names = ("prompt_R", "uid_R", "member_R", "length_R", "block_R", "policy_R")
    return Job(job.prompts, *(getattr(job, name)[rows] for name in names))


def test_members_of_a_group_draw_differently_and_seeds_too():
    job, policy = job_of([(4, 8, 8)], group=8), learned(Shape(**SMALL))
    one, other = (rollout(Table(), policy, job, DecodeOptions(seed=seed)) for seed in (1, 2))
    assert len({tuple(o) for o in one.order_RL.tolist()}) > 4
    assert not torch.equal(one.order_RL, other.order_RL)
    assert torch.equal(rollout(Table(), policy, job, DecodeOptions(seed=1)).order_RL, one.order_RL)


def test_no_global_generator_is_touched():
    before = torch.random.get_rng_state()
    rollout(Table(), learned(Shape(**SMALL)), job_of(MIXED, group=2), DecodeOptions(record=True))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- experts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["bernoulli", "dpls", "coupled"])
def test_a_steered_row_is_drawn_by_the_expert_and_judged_by_the_learning_policy_over_all_masks(action: str):
    denoiser, job = Table(), job_of([(4, 8, 2), (2, 8, 4)], group=4, experts=1)
    policy = coupled() if action == "coupled" else learned(Shape(action=action, **SMALL))
    expert = Threshold(0.5)
    done = rollout(denoiser, [policy, expert], job, DecodeOptions(seed=7, record=True, steer_all_masks=True, rows=5))
    alone = rollout(denoiser, expert, job, DecodeOptions(seed=7))
    steered_R = job.policy_R > 0
    assert torch.equal(done.order_RL[steered_R], alone.order_RL[steered_R])
    steps = done.steps
    assert steps is not None
    steered_N = steered_R[steps.row_N]
    obs, act = steps.observation, steps.action
    assert torch.equal(obs.eligible_BL[steered_N], obs.masked_BL[steered_N])
    assert not torch.equal(obs.eligible_BL[~steered_N], obs.masked_BL[~steered_N])
    assert act.committed_BL is not None and torch.equal(act.drawn_BL[steered_N], act.committed_BL[steered_N])
    torch.testing.assert_close(policy.distribution(obs).log_prob(act), steps.log_prob_N)
    assert bool(steps.log_prob_N.isfinite().all())


def test_a_forced_commit_is_not_recorded_as_drawn():
    done = rollout(Table(), Never(), job_of(MIXED, group=1), DecodeOptions(record=True))
    assert done.steps is not None and not bool(done.steps.action.drawn_BL.any())
    committed_BL = done.steps.action.committed_BL
    assert committed_BL is not None and bool((committed_BL.sum(1) == 1).all())
    assert bool((done.steps.log_prob_N == 0).all())


# --- endings -----------------------------------------------------------------------------------------------------


def test_a_row_that_never_draws_gives_up_after_as_many_steps_as_its_canvas_is_long():
    job = job_of(MIXED, group=1)
    done = rollout(Table(), Never(), job, DecodeOptions(force_commit=False))
    assert torch.equal(done.nfe_R, job.length_R)
    assert not bool(done.finished_R.any())
    assert done.forwards == len(job)


def test_paper_a_s_cap_leaves_a_block_after_as_many_steps_as_it_is_long():
    """One position in every second step: half of each block stays masked."""
    job = job_of([(3, 8, 4)], group=1)
    policy = Sometimes(heuristic("left_to_right", 1))
    done = rollout(Table(), policy, job, DecodeOptions(force_commit=False, step_limit="block"))
    assert done.order_RL.tolist() == [[0, 2, -1, -1, 4, 6, -1, -1]]
    assert done.nfe_R.tolist() == [8]


def test_what_is_given_stays_costs_nothing_and_is_not_decoded():
    job = job_of([(3, 8, 2)], group=1)
    given = torch.tensor([[5, 6, -1, -1, 7, 7, -1, 8]])
    done = rollout(Table(), heuristic("left_to_right", 1), replace(job, canvas_RL=given), DecodeOptions())
    assert done.order_RL.tolist() == [[-1, -1, 0, 1, -1, -1, 2, -1]]
    assert torch.equal(done.canvas_RL[given >= 0], given[given >= 0]) and job.masks_R.tolist() == [8]
    assert replace(job, canvas_RL=given).masks_R.tolist() == [3]
    whole = rollout(Table(), Never(), replace(job, canvas_RL=given.clamp(min=1)), DecodeOptions())
    assert (whole.nfe_R.tolist(), whole.forwards, whole.finished_R.tolist()) == ([0], 0, [True])


def test_an_empty_job_and_impossible_blocks():
    job = job_of([(3, 6, 3)], group=1)
    assert len(rollout(Table(), Never(), pick(job, torch.zeros(0, dtype=torch.int64))).nfe_R) == 0
    for length, block in ((8, 3), (8, 0), (8, 16), (0, 1)):
        with pytest.raises(SettingsError):
            Job.of([torch.tensor([1])], length, block)
