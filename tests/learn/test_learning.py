"""Both papers' methods learn a best order that is known, and UPO's theorems hold, all judged by the exact oracle.

No sampling enters a verdict: rewards and distributions of the learned policies are enumerated.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from components.core.types import STATISTICS, Needs
from components.decode.oracle import enumerate_decoding, follow
from components.maths.objectives import multiplicative
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.feature import FeaturePolicy, FeatureShape
from components.policies.heuristics import MaxConfidence, Quota, SoftmaxConfidence, TopKRandom
from components.policies.protocol import Policy
from components.policies.store import LearnedPolicy
from components.policies.teacher import Teacher
from components.trainers.distill import DistillPlan, imitate
from components.trainers.plan import Objective, Plan
from components.trainers.reinforce import Method, optimizer_for, reinforce
from tests.lattice import best, data_divergence, text_distribution
from tests.toy_domain import KeyFirst, ManyTexts

torch.set_num_threads(1)
pytestmark = pytest.mark.learn

WORDS = 16
NEEDS = Needs("masked", 4, "sequence", answer=True, statistics=STATISTICS)


def values(task: Any, policy: Policy, alpha: float, choose: str = "mode", single: bool = False) -> tuple[float, float]:
    """Exact expected reward of the policy, and of the best order, as means over the task's prompts."""
    prompts, denoiser = task.prompts(), task.denoiser()
    found, possible = [], []
    for index, example in enumerate(prompts.examples):
        lattice = enumerate_decoding(denoiser, prompts.take([index]).job(None, answers=True), NEEDS, single=single)
        texts = [prompts.encoder.text(canvas) for canvas in lattice.ends.canvas_RL]
        score = torch.tensor([task.score(text, example).correct for text in texts])
        nfe = lattice.ends.nfe_R
        reward = multiplicative(score, nfe, torch.full_like(nfe, task.canvas_length), alpha)
        with torch.no_grad():
            found.append(follow(lattice, policy, choose).expected(reward).item())
        possible.append(best(lattice, reward)[0])
    return sum(found) / len(found), sum(possible) / len(possible)


def trained(
    policy: LearnedPolicy, task: Any, plan: Plan, objective: Objective, reference: Policy | None = None
) -> list[float]:
    method, optimizer = Method(plan, objective, reference), optimizer_for(policy, plan)
    iterations = reinforce(policy, optimizer, task.denoiser(), task.prompts(), method)
    return [metrics["reward/mean"] for _, metrics in iterations]


def confidence_policy(seed: int, **knobs: Any) -> ConfidencePolicy:
    torch.manual_seed(seed)
    return ConfidencePolicy(Shape(width=32, mlp_width=64, bias=-1.0, **knobs))


def test_one_policy_learns_a_speed_for_each_alpha(key_first: KeyFirst):
    """Trained for both, asked for either. A quarter right at once is worth more than all right in two steps where speed
    counts (alpha = 8: .25 against .75^8), and less where it does not (0)."""
    policy = confidence_policy(0, alphas=(0.0, 8.0))
    plan = Plan(iterations=80, prompts=12, group=8, learning_rate=5e-3, seed=0, block_length=None, force_commit=False)
    trained(policy, key_first, plan, Objective(alphas=(0.0, 8.0), signal="dense"))
    prompts, denoiser, steps = key_first.prompts(), key_first.denoiser(), []
    for policy.speed, best_steps in ((0.0, 2.0), (8.0, 1.0)):
        exact = []
        for index in range(len(prompts)):
            lattice = enumerate_decoding(denoiser, prompts.take([index]).job(None, answers=True), NEEDS)
            with torch.no_grad():
                exact.append(follow(lattice, policy).expected(lattice.ends.nfe_R).item())
        steps.append(sum(exact) / len(exact))
        assert steps[-1] == pytest.approx(best_steps, abs=0.1)


def feature_policy(seed: int, shortlist: int = 0) -> FeaturePolicy:
    torch.manual_seed(seed)
    return FeaturePolicy(FeatureShape(WORDS, heads=2, mlp_width=32, top_k=4, shortlist=shortlist))


def test_the_task_is_one_that_confidence_gets_wrong(key_first: KeyFirst):
    """One position a step, most confident first, is never right; the best order needs two steps of four."""
    assert values(key_first, Quota("confidence", 1), 1.0)[0] == 0
    assert values(key_first, Quota("entropy", 1), 1.0)[0] == 0
    assert values(key_first, Quota("random", 1), 0.0, "sample")[0] == pytest.approx(1 / 4)
    assert values(key_first, Quota("random", 1), 1.0)[1] == pytest.approx(3 / 4)


@pytest.mark.parametrize("seed", [0, 1])
def test_paper_a_learns_the_best_order_and_its_speed(key_first: KeyFirst, seed: int):
    """Bernoulli, alpha = 1: the key alone, then everything else at once. Decoded greedily it is the best that can be
    done; drawn, within 2 % of it."""
    policy = confidence_policy(seed)
    plan = Plan(iterations=60, prompts=8, group=8, learning_rate=3e-3, seed=seed, block_length=None, force_commit=False)
    rewards = trained(policy, key_first, plan, Objective(alpha=1.0, weighting="constant"))
    assert rewards[0] < 0.2
    for choose in ("mode", "sample"):
        found, possible = values(key_first, policy, 1.0, choose)
        assert found >= 0.98 * possible


@pytest.mark.parametrize("seed", [0, 1])
def test_paper_b_learns_the_best_order(key_first: KeyFirst, seed: int):
    """Categorical over the most confident positions, pulled to the uniform reference: the key comes first."""
    policy = feature_policy(seed, shortlist=4)
    assert values(key_first, policy, 0.0, "sample", single=True)[0] == pytest.approx(1 / 4)
    plan = Plan(iterations=60, prompts=8, group=6, learning_rate=3e-3, seed=seed, block_length=None)
    objective = Objective(alpha=0.0, weighting="constant", kl_coef=1e-3, divergence="kl", num_epochs=4)
    trained(policy, key_first, plan, objective, TopKRandom(4))
    for choose in ("mode", "sample"):
        found, possible = values(key_first, policy, 0.0, choose, single=True)
        assert found >= 0.98 * possible


def taught(student: LearnedPolicy, teacher: Policy, task: Any, rounds: int, seed: int) -> list[float]:
    losses: list[float] = []
    plan = DistillPlan(rounds, prompts=12, micro_batch=64, learning_rate=1e-2, block_length=None, seed=seed)
    imitate(student, teacher, task.denoiser(), task.prompts(), plan, lambda _, m: losses.append(m["distill/loss"]))
    return losses


def test_a_student_of_a_teacher_that_knows_the_answer(key_first: KeyFirst):
    """The teacher commits what is right: the key, then everything. Its student, who does not know the answer, reaches
    the best order by imitation alone."""
    job = key_first.prompts().take([1]).job(None, answers=True)
    lattice = enumerate_decoding(key_first.denoiser(), job, NEEDS)
    exact = follow(lattice, Teacher())
    assert lattice.ends.nfe_R[int(exact.mass_N.argmax())] == 2 and exact.mass_N.max() == 1
    policy = confidence_policy(0)
    taught(policy, Teacher(), key_first, 40, 0)
    found, possible = values(key_first, policy, 1.0)
    assert found >= 0.98 * possible


@pytest.mark.parametrize("reference", [MaxConfidence(), SoftmaxConfidence(0.05)], ids=["max", "softmax"])
def test_the_realisations_start_from_their_reference(key_first: KeyFirst, reference: MaxConfidence | SoftmaxConfidence):
    """Taught by cross-entropy or KL, the feature head draws like its reference: what it is then pulled to."""
    policy, prompts = feature_policy(0), key_first.prompts()
    losses = taught(policy, reference, key_first, 120, 0)
    assert losses[-1] < 0.25 * losses[0]
    job = prompts.take([2]).job(None, answers=True)
    lattice = enumerate_decoding(key_first.denoiser(), job, NEEDS, single=True)
    with torch.no_grad():
        ours, theirs = (follow(lattice, p).mass_N for p in (policy, reference))
        first = lattice.levels[0].observation
        apart = reference.distribution(first).kl(policy.distribution(first))
    assert apart.item() < 0.2
    assert (ours - theirs).abs().sum().item() < 0.05


# --- UPO's theorems ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_upo_improves_on_its_reference_and_comes_nearer_to_the_data(many_texts: ManyTexts, seed: int):
    """Theorem 1: E[r] of the optimised policy is above the reference's. Theorem 2: KL(data || policy) is below. The
    data are what an ideal model would write: the reference's texts, given that they are right."""
    reference, policy = TopKRandom(3), feature_policy(seed, shortlist=3)
    prompts, denoiser = many_texts.prompts(), many_texts.denoiser()
    lattice = enumerate_decoding(denoiser, prompts.take([0]).job(None, answers=True), NEEDS, single=True)
    written = text_distribution(lattice, follow(lattice, reference))
    right = [canvas for canvas, p in sorted(written.items()) if float(p) > 0][::2]
    hit = sum(float(written[canvas]) for canvas in right)
    assert len(right) >= 3 and 0.2 < hit < 0.7
    data = {canvas: float(written[canvas]) / hit for canvas in right}
    task = replace(many_texts, right=frozenset(prompts.encoder.text(torch.tensor(canvas)) for canvas in right))

    def judged(who: Policy) -> tuple[float, float]:
        with torch.no_grad():
            exact = follow(lattice, who)
            made = text_distribution(lattice, exact)
            return sum(float(made[canvas]) for canvas in right), data_divergence(data, lattice, exact).item()

    reward, divergence = judged(reference)
    assert divergence == pytest.approx(-math.log(hit), abs=1e-5)
    assert judged(policy) == pytest.approx((reward, divergence), abs=1e-4)  # it starts as the reference
    plan = Plan(iterations=60, prompts=1, group=64, learning_rate=3e-3, seed=seed, block_length=None)
    trained(policy, task, plan, Objective(alpha=0.0, weighting="constant", kl_coef=0.2, num_epochs=4), reference)
    better, nearer = judged(policy)
    assert better > reward + 0.1
    assert nearer < divergence - 0.1
