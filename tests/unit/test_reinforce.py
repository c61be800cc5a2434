"""One round of training: what is recorded, what is learned from, what moves,"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from components.core.errors import SettingsError
from components.core.rng import Noise
from components.core.timer import Timer
from components.core.types import Needs, Observation
from components.decode.engine import rollout
from components.decode.job import DecodeOptions
from components.export.states import Watched
from components.maths.coupled import CoupledPlackettLuce
from components.maths.divergence import Draw, divergence, entropy
from components.maths.objectives import group_advantages
from components.policies.confidence import PAPER, ConfidencePolicy
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.feature import FeaturePolicy, FeatureShape
from components.policies.heuristics import Quota, Threshold
from components.policies.protocol import Policy
from components.policies.store import LearnedPolicy
from components.policies.teacher import Teacher
from components.trainers.checkpoints import TrainState
from components.trainers.distill import DistillPlan, imitate
from components.trainers.experience import Experience
from components.trainers.plan import Objective, Plan
from components.trainers.reinforce import Method, collect, optimizer_for, reinforce, update
from tests.doubles import learner, snapshot
from tests.toy_domain import KeyFirst

torch.set_num_threads(1)

PLAN = Plan(iterations=2, prompts=6, group=4, learning_rate=1e-2, seed=0, block_length=2, warmup=1)
OBJECTIVE, START = Objective(), TrainState()


def head(seed: int = 0, shortlist: int = 0) -> FeaturePolicy:
    torch.manual_seed(seed)
    return FeaturePolicy(FeatureShape(16, heads=2, mlp_width=16, top_k=3, shortlist=shortlist))


def coupled(seed: int = 0, **shape: Any) -> CoupledPolicy:
    """Far from its zero initialisation, so that shifts and mixture count."""
    torch.manual_seed(seed)
    small: dict[str, Any] = dict(top_k=3, width=8, heads=2, mlp_width=8, pair_width=6, tau=-1.0)
    policy = CoupledPolicy(CoupledShape(**small | shape))
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return policy


def gathered(
    task: Any,
    policy: LearnedPolicy,
    plan: Plan = PLAN,
    objective: Objective = OBJECTIVE,
    reference: Policy | None = None,
    expert: Policy | None = None,
) -> Experience:
    method = Method(plan, objective, reference, expert)
    return collect(policy, task.denoiser(), task.prompts(), method, 0, Timer())


def run(
    task: Any, policy: LearnedPolicy, plan: Plan = PLAN, objective: Objective = OBJECTIVE, state: TrainState = START
) -> list[dict[str, float]]:
    """The figures of every iteration of a training."""
    method, optimizer = Method(plan, objective), optimizer_for(policy, plan)
    iterations = reinforce(policy, optimizer, task.denoiser(), task.prompts(), method, state)
    return [metrics for _, metrics in iterations]


@pytest.mark.parametrize(
    "policy",
    [learner(), learner(action="dpls"), head(), head(shortlist=2), coupled(), coupled(features=16)],
    ids=lambda p: type(p).__name__,
)
def test_the_first_epoch_has_ratio_one_and_the_next_has_not(key_first: KeyFirst, policy: LearnedPolicy):
    experience = gathered(key_first, policy, objective=Objective(alpha=0.5, signal="dense"))
    old = snapshot(policy)
    again = policy.distribution(experience.steps.observation).log_prob(experience.steps.action)
    assert torch.allclose(again, experience.steps.log_prob_N, atol=1e-6)
    once = update(policy, optimizer_for(policy, PLAN), experience, Method(PLAN, Objective(num_epochs=1)))
    assert once["policy/clipped"] == 0
    moved = policy.distribution(experience.steps.observation).log_prob(experience.steps.action)
    assert not torch.allclose(moved, experience.steps.log_prob_N, atol=1e-6)
    assert any(not torch.equal(old[name], value) for name, value in policy.state_dict().items())


def test_a_step_raises_the_likelihood_of_what_was_better_than_its_group(key_first: KeyFirst):
    policy = learner()
    experience = gathered(key_first, policy, objective=Objective(alpha=0.5, signal="dense"))
    assert torch.equal(experience.advantage_R, group_advantages(experience.reward_R, experience.job.prompt_R))
    before = (experience.advantage_R[experience.steps.row_N] * experience.steps.log_prob_N).sum()
    update(policy, optimizer_for(policy, PLAN), experience, Method(PLAN, Objective(num_epochs=1)))
    after = policy.distribution(experience.steps.observation).log_prob(experience.steps.action)
    assert (experience.advantage_R[experience.steps.row_N] * after).sum() > before


def test_groups_that_agree_teach_nothing(key_first: KeyFirst):
    policy = learner()
    experience = gathered(key_first, policy)
    experience = replace(experience, advantage_R=torch.zeros_like(experience.advantage_R))
    old = snapshot(policy)
    update(policy, optimizer_for(policy, PLAN), experience, Method(PLAN, Objective()))
    assert all(torch.equal(old[name], value) for name, value in policy.state_dict().items())


def test_the_update_does_not_depend_on_how_it_is_cut(key_first: KeyFirst):
    """Gradients are added up over pieces of any size."""
    experience = gathered(key_first, learner(), objective=Objective(alpha=0.5, signal="dense"))
    results = []
    for pairs in (5, 10_000):
        policy = learner()
        update(
            policy, optimizer_for(policy, PLAN), experience, Method(PLAN, Objective(num_epochs=1, micro_batch=pairs))
        )
        results.append(snapshot(policy))
    assert all(torch.allclose(results[0][name], results[1][name], atol=1e-5) for name in results[0])


def limited(policy: LearnedPolicy, most: int, error: Exception) -> LearnedPolicy:
    """The policy where no more pairs than ``most`` have room in an update."""
    plain = policy.distribution

    def distribution(obs: Observation):
        if torch.is_grad_enabled() and len(obs.step_B) > most:
            raise error
        return plain(obs)

    policy.distribution = distribution  # type: ignore[method-assign]
    return policy


def test_where_memory_runs_out_an_update_adds_up_smaller_pieces(key_first: KeyFirst, caplog: pytest.LogCaptureFixture):
    objective = Objective(alpha=0.5, signal="dense", num_epochs=2)
    experience = gathered(key_first, learner(), objective=objective)
    live = int((experience.advantage_R[experience.steps.row_N] != 0).sum())
    fits = live // 2 // 2
    assert fits > 1
    refused = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    weights, figures = [], []
    for policy, pairs in ((learner(), live), (limited(learner(), fits, refused), 10_000), (learner(), fits)):
        method = Method(PLAN, replace(objective, micro_batch=pairs))
        figures.append(update(policy, optimizer_for(policy, PLAN), experience, method))
        weights.append(snapshot(policy))
    whole, halved, small = weights
    assert all(torch.equal(halved[name], small[name]) for name in small) and figures[1] == figures[2]
    assert all(torch.allclose(halved[name], whole[name], atol=1e-5) for name in whole)
    told = [record.message for record in caplog.records if "Out of memory" in record.message]
    assert len(told) == 2, "one message per halving, none in the second epoch"
    assert f"{live} rows" in told[0] and f"going on with {fits}." in told[1]


def test_a_training_remembers_what_had_room(key_first: KeyFirst, caplog: pytest.LogCaptureFixture):
    plan = replace(PLAN, iterations=4)
    refused = RuntimeError("CUDA error: out of memory")
    policy = limited(learner(), 8, refused)
    assert len(run(key_first, policy, plan, Objective(signal="dense", micro_batch=16))) == 4
    assert [record.message for record in caplog.records if "Out of memory" in record.message] == [
        "Out of memory with 16 rows in a piece of the update: going on with 8."
    ]


@pytest.mark.parametrize(
    ("most", "error"),
    [(0, torch.OutOfMemoryError("CUDA out of memory.")), (8, RuntimeError("sizes differ"))],
    ids=["one pair that does not fit", "any other error"],
)
def test_what_no_smaller_piece_would_help_is_raised(key_first: KeyFirst, most: int, error: Exception):
    experience = gathered(key_first, learner(), objective=Objective(signal="dense"))
    policy = limited(learner(), most, error)
    with pytest.raises(type(error), match=str(error)):
        update(policy, optimizer_for(policy, PLAN), experience, Method(PLAN, Objective(signal="dense")))


def test_training_is_a_function_of_its_seed(key_first: KeyFirst):
    results = []
    for _ in range(2):
        policy = learner()
        assert len(run(key_first, policy, objective=Objective(signal="dense"))) == PLAN.iterations
        results.append(snapshot(policy))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_stored_steps_are_a_share_of_all(key_first: KeyFirst):
    """Half of them; rewards and decoded texts are those of the whole."""
    policy, plan = learner(), replace(PLAN, prompts=12, group=16)
    whole, half = (gathered(key_first, policy, plan, Objective(record_share=share)) for share in (1.0, 0.5))
    assert torch.equal(whole.reward_R, half.reward_R)
    every, kept = (set(zip(x.steps.row_N.tolist(), x.steps.step_N.tolist(), strict=True)) for x in (whole, half))
    assert kept < every
    assert abs(len(kept) - len(every) / 2) < 5 * math.sqrt(len(every)) / 2


@pytest.mark.parametrize("weighting", ["row", "constant"])
@pytest.mark.parametrize("kind", [learner, coupled])
def test_the_mean_update_over_what_may_be_stored_is_that_of_all_steps(
    key_first: KeyFirst, weighting: str, kind: Callable[..., LearnedPolicy]
):
    """All 2^N choices of N steps, each with its probability: gradient and pull are those of the whole, exactly."""
    keep, plan = 0.3, replace(PLAN, prompts=1, group=2, block_length=4)
    whole = gathered(key_first, kind().double(), plan)
    whole = replace(whole, advantage_R=torch.tensor([0.5, -0.5], dtype=torch.float64))
    count = len(whole.steps.row_N)
    assert 3 <= count <= 7

    def step(kept_N: torch.Tensor, share: float) -> torch.Tensor:
        """What plain gradient descent of rate 1 takes off the weights."""
        policy, reference = kind().double(), kind(1).double()
        before = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()
        objective = Objective(num_epochs=1, kl_coef=1.0, weighting=weighting, record_share=share)
        experience = replace(whole, steps=whole.steps.pairs(kept_N))
        descent = torch.optim.SGD(policy.parameters(), lr=1.0)
        update(policy, descent, experience, Method(replace(plan, clip_norm=math.inf), objective, reference))
        return before - torch.nn.utils.parameters_to_vector(policy.parameters()).detach()

    every = torch.tensor(list(itertools.product([False, True], repeat=count)))
    chance = torch.where(every, keep, 1 - keep).double().prod(1)
    mean = sum(p * step(kept_N, keep) for p, kept_N in zip(chance, every, strict=True))
    wanted = step(every[-1], 1.0)
    assert wanted.abs().max() > 1e-3
    assert torch.allclose(torch.as_tensor(mean), wanted, atol=1e-9)


def test_what_the_reference_reads_is_recorded(key_first: KeyFirst):
    """A learner that reads three numbers per position, pulled to one that reads the whole sequence, or the answer."""
    for reference in (head(), ConfidencePolicy(replace(PAPER, width=16, mlp_width=16)), Teacher()):
        experience = gathered(key_first, learner(), reference=reference)
        assert reference.distribution(experience.steps.observation).entropy().shape == experience.steps.row_N.shape
    taught = Objective(kl_coef=0.1, divergence="ce")
    policy = learner()
    experience = gathered(key_first, policy, objective=taught, reference=Teacher())
    assert experience.steps.observation.answer_BL is not None
    assert math.isfinite(
        update(policy, optimizer_for(policy, PLAN), experience, Method(PLAN, taught, Teacher()))["policy/kl"]
    )


def test_an_expert_decodes_in_its_own_blocks_and_stays_out_of_the_figures(key_first: KeyFirst):
    """Steered rows: any block length, all masks eligible in what is recorded, a behaviour of their own."""
    plan = replace(PLAN, block_length=None, experts=1, expert_block=1)
    expert = Quota("left_to_right", 1)
    experience = gathered(key_first, learner(), plan, Objective(signal="dense"), expert=expert)
    steered = experience.job.policy_R == 1
    assert int(steered.sum()) == plan.prompts and len(steered) == plan.prompts * (plan.group + 1)
    assert torch.equal(experience.rollout.order_RL[steered], torch.arange(4).expand(plan.prompts, 4))
    pairs = steered[experience.steps.row_N]
    seen = experience.steps.observation
    assert torch.equal(seen.eligible_BL[pairs], seen.masked_BL[pairs])
    assert bool((experience.steps.log_prob_N[pairs] > -torch.inf).all())
    assert experience.metrics["reward/mean"] == pytest.approx(float(experience.reward_R[~steered].mean()))
    update(learner(), optimizer_for(learner(), plan), experience, Method(plan, Objective()))


def test_a_job_without_answers_is_refused_to_a_teacher(key_first: KeyFirst):
    with pytest.raises(SettingsError, match="answers=True"):
        rollout(key_first.denoiser(), Teacher(), key_first.prompts().job(None))


def test_one_training_for_every_speed(key_first: KeyFirst):
    """Each group draws its alpha; its members are asked for, recorded with, and rewarded by the same one."""
    alphas, plan = (0.0, 3.0), replace(PLAN, prompts=12)
    experience = gathered(key_first, learner(alphas=alphas), plan, Objective(alphas=alphas, signal="dense"))
    alpha_R = experience.job.alpha_R
    assert alpha_R is not None and set(alpha_R.tolist()) == set(alphas)
    for prompt in range(plan.prompts):
        assert len(set(alpha_R[experience.job.prompt_R == prompt].tolist())) == 1
    assert experience.steps.observation.alpha_B is not None
    assert torch.equal(experience.steps.observation.alpha_B, alpha_R[experience.steps.row_N])
    speed = (4 - experience.rollout.nfe_R + 1) / 4
    assert torch.allclose(experience.reward_R, experience.dense_R * speed**alpha_R)
    again = gathered(key_first, learner(alphas=alphas), plan, Objective(alphas=alphas, signal="dense"))
    assert again.job.alpha_R is not None and torch.equal(again.job.alpha_R, alpha_R)


def test_one_alpha_of_a_list_is_that_alpha(key_first: KeyFirst):
    """What is drawn from one number is that number: same rollouts, rewards and update."""
    results = []
    for objective in (Objective(alpha=2.0, signal="dense"), Objective(alphas=(2.0,), signal="dense")):
        policy = learner()
        experience = gathered(key_first, policy, objective=objective)
        update(policy, optimizer_for(policy, PLAN), experience, Method(PLAN, objective))
        results.append((experience, snapshot(policy)))
    (one, ours), (other, theirs) = results
    assert torch.equal(one.rollout.canvas_RL, other.rollout.canvas_RL) and torch.equal(one.reward_R, other.reward_R)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("policy", [learner(action="dpls"), coupled()], ids=lambda p: type(p).__name__)
def test_an_expert_s_commits_are_recorded_best_first(key_first: KeyFirst, policy: LearnedPolicy):
    """An ordered policy is steered to the expert's own order of preference, not to that of the positions."""
    plan = replace(PLAN, block_length=None, experts=1)
    experience = gathered(key_first, policy, plan, expert=Threshold(0.5))
    steps = experience.steps
    steered = (experience.job.policy_R == 1)[steps.row_N]
    seen, action = steps.observation, steps.action
    confidence_BL, rank_BL = seen.confidence_BL, action.rank_BL
    assert confidence_BL is not None and rank_BL is not None
    several = 0
    for row in steered.nonzero().flatten().tolist():
        drawn = action.drawn_BL[row].nonzero().flatten().tolist()
        wanted = sorted(drawn, key=lambda k: (-float(confidence_BL[row, k]), k))
        assert sorted(drawn, key=lambda k: int(rank_BL[row, k])) == wanted
        assert sorted(rank_BL[row, drawn].tolist()) == list(range(len(drawn)))
        several += wanted != drawn
    assert several > 0


def test_an_unfinished_row_is_wrong_even_if_it_reads_like_a_right_one(key_first: KeyFirst):
    """A mask behind an end token does not show in the text; it must not lend its score to, or take it from, others."""
    prompts = key_first.prompts().take([0])
    job = prompts.job(None, group=2)
    done = rollout(
        key_first.denoiser(), Teacher(), prompts.job(None, group=2, answers=True), DecodeOptions(choose="mode")
    )
    for first in (True, False):
        torn = replace(done, finished_R=torch.tensor([first, not first]))
        _, correct, _ = prompts.scores(job, torn)
        assert correct.tolist() == [float(first), float(not first)]


def test_a_rule_that_the_student_cannot_draw_is_refused(key_first: KeyFirst):
    plan = DistillPlan(iterations=1, prompts=4, micro_batch=64, learning_rate=1e-3, block_length=None, seed=0)
    with pytest.raises(SettingsError, match="cannot draw"):
        imitate(head(), Threshold(0.1), key_first.denoiser(), key_first.prompts(), plan, lambda _, m: None)


def test_distillation_visits_the_states_of_its_frontier(key_first: KeyFirst):
    """Both drawers' states: the student draws too from half of the iterations on."""
    plan = DistillPlan(iterations=2, prompts=4, micro_batch=64, learning_rate=1e-3, block_length=None, seed=0)
    for frontier, most in ((None, 4), (2, 2)):
        seen: list[int] = []
        reference = Watched(Threshold(0.9), lambda obs, _, seen=seen: seen.extend(obs.eligible_BL.sum(-1).tolist()))
        task = key_first.denoiser(), key_first.prompts(), replace(plan, frontier=frontier)
        imitate(learner(), reference, *task, lambda _, m: None)
        assert max(seen) == most


@pytest.mark.parametrize("block_length", [None, 2])
def test_a_coupled_policy_learns_with_expert_thinned_steps_and_pull(key_first: KeyFirst, block_length: int | None):
    """All switches together; what is recorded is what is computed again, and every parameter but the shifts' learns."""
    plan = replace(PLAN, prompts=12, experts=1, expert_block=1, block_length=block_length)
    objective = Objective(alpha=0.5, signal="dense", record_share=0.7, kl_coef=0.1, num_epochs=2)
    policy, reference = coupled(features=16, alphas=(0.0, 2.0)), coupled(1, features=16, alphas=(0.0, 2.0))
    experience = gathered(key_first, policy, plan, replace(objective, alphas=(0.0, 2.0)), reference, Threshold(0.5))
    again = policy.distribution(experience.steps.observation).log_prob(experience.steps.action)
    torch.testing.assert_close(again, experience.steps.log_prob_N, atol=1e-5, rtol=1e-5)
    assert bool(again.isfinite().all())
    old = snapshot(policy)
    seen = update(policy, optimizer_for(policy, plan), experience, Method(plan, objective, reference))
    assert all(math.isfinite(value) for value in seen.values()) and seen["policy/kl"] != 0
    still = {name for name, value in policy.state_dict().items() if torch.equal(old[name], value)}
    # The first pick is free and the second ends a block of two: no risk is ever paid there.
    free = {"cost", "mix.weight", "mix.bias"} if block_length == 2 else set()
    shifts = {name for name in old if name.startswith("shifts.")}
    assert shifts and {name for name in still if not name.endswith("key.bias")} - shifts == free and shifts <= still


@pytest.mark.parametrize("shape", [dict(action="categorical"), {}], ids=["categorical", "coupled"])
def test_upo_s_objective_takes_a_coupled_policy(key_first: KeyFirst, shape: dict[str, Any]):
    """Its reference is a rule, its reward has no speed; one position per step where the action says so."""
    policy = coupled(**shape)
    objective = Objective(alpha=0.0, signal="dense", kl_coef=1e-2, divergence="ce", clip_eps=0.2)
    rule = Quota("confidence", 1)
    experience = gathered(key_first, policy, objective=objective, reference=rule)
    if shape:
        assert bool((experience.rollout.nfe_R == 4).all())
    target = rule.distribution(experience.steps.observation)
    before = -target.kl(policy.distribution(experience.steps.observation)).mean()
    strong = replace(objective, kl_coef=100.0)
    seen = update(policy, optimizer_for(policy, PLAN), experience, Method(PLAN, strong, rule))
    assert math.isfinite(seen["policy/kl"])
    assert -target.kl(policy.distribution(experience.steps.observation)).mean() > before


def test_a_wide_canvas_of_orders_is_estimated_not_enumerated(key_first: KeyFirst):
    """Sixteen open positions have 10^13 orders; pull, entropy and divergence are estimates from the drawn ones."""
    masked_BL = torch.ones(64, 16, dtype=torch.bool)
    draw = Noise(torch.arange(64), torch.zeros(64, dtype=torch.int64))
    odds_BL = draw.uniform(5, 16).float() * 4 - 2
    policy, other = (
        CoupledPlackettLuce(odds_BL, odds_BL * w, torch.zeros(64, 16, 16), odds_BL * 0, masked_BL) for w in (0.0, 0.2)
    )
    action = policy.sample(draw)
    own_n = policy.log_prob(action)
    with pytest.raises(ValueError, match="too many"):
        policy.kl(other)
    experience = divergence(policy, other, Draw(action, own_n, own_n, own_n > 0), "kl", learns=True)
    torch.testing.assert_close(experience, own_n - other.log_prob(action))
    assert torch.equal(entropy(policy, own_n), -own_n)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reward": "sum"},
        {"signal": "both"},
        {"weighting": "step"},
        {"divergence": "js"},
        {"record_share": 0.0},
        {"record_share": 1.5},
        {"num_epochs": 0},
    ],
)
def test_an_objective_that_cannot_work_is_refused(wrong: dict[str, Any]):
    with pytest.raises(SettingsError):
        Objective(**wrong)


def test_the_temperature_falls_or_stays_or_holds_an_entropy():
    plan = Plan(iterations=10, prompts=2, group=2, learning_rate=1.0, seed=0, block_length=None, temperature=3.0)
    assert [plan.temperature_at(n) for n in (0, 5)] == [3.0, 2.0]
    assert replace(plan, anneal=False).temperature_at(5, (2.0, 0.1)) == 3.0
    held = replace(plan, entropy=0.4)
    assert held.temperature_at(0) == 3.0
    assert held.temperature_at(1, (2.0, 0.4)) == 2.0
    assert held.temperature_at(1, (2.0, 0.1)) > held.temperature_at(1, (2.0, 0.3)) > 2.0
    assert 1.0 < held.temperature_at(1, (2.0, 0.5)) < 2.0
    assert held.temperature_at(1, (2.0, 40.0)) == held.temperature_at(1, (2.0, 0.8))  # no faster than that
    assert held.temperature_at(1, (1.05, 9.0)) == 1.0 and held.temperature_at(1, (19.5, 0.0)) == 20.0


def test_a_held_entropy_is_held_and_the_likelihood_is_that_of_the_temperature(key_first: KeyFirst):
    """A policy that is far too sure explores as much as was asked; what it would do by its mode does not change."""
    policy = learner()
    with torch.no_grad():
        policy.head.weight.mul_(30)
        policy.head.bias.zero_()
    plan = Plan(iterations=40, prompts=16, group=8, learning_rate=0.0, seed=3, block_length=None, entropy=1.4)
    seen = run(key_first, policy, plan, Objective(num_epochs=1))
    assert seen[0]["decode/temperature"] == 1.0 and seen[0]["decode/entropy"] < 1.2
    assert sum(m["decode/entropy"] for m in seen[-8:]) / 8 == pytest.approx(1.4, abs=0.15)
    assert seen[-1]["decode/temperature"] > 1.5 and policy.temperature == 1.0
    state = TrainState(34, (seen[34]["decode/temperature"], seen[34]["decode/entropy"]))
    again = run(key_first, policy, plan, Objective(num_epochs=1), state)
    kept = ("decode/temperature", "decode/entropy", "reward/mean")
    assert [[m[k] for k in kept] for m in again] == [[m[k] for k in kept] for m in seen[35:]]


def test_the_learning_rate_rises_and_falls_to_its_floor(key_first: KeyFirst):
    rates: list[float] = []
    for floor in (0.0, 1.0):
        plan = Plan(
            iterations=4, prompts=2, group=2, learning_rate=1.0, seed=0, block_length=None, warmup=2, min_lr_ratio=floor
        )
        policy = learner()
        optimizer = optimizer_for(policy, plan)
        method = Method(plan, Objective(num_epochs=1))
        iterations = reinforce(policy, optimizer, key_first.denoiser(), key_first.prompts(), method)
        rates += [optimizer.param_groups[0]["lr"] for _ in iterations]
    assert rates[4:] == [0.5, 1.0, 1.0, 1.0]
    assert rates[:4] == pytest.approx([0.5, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2])


def test_needs_add_up():
    one = Needs("eligible", 3, "sequence", 0, statistics=["margin", "entropy"])
    both = one | Needs("masked", 1, "canvas", 2, answer=True, statistics={"log_odds", "margin"})
    assert both == Needs("masked", 3, "sequence", 2, True, ("entropy", "log_odds", "margin"))
