"""Reinforcement of a policy over a frozen denoiser: the loop that paper A's GRPO and paper B's UPO share.

Per iteration: rollouts, scores, rewards, advantages, then ``num_epochs`` optimizer steps on the recorded (row, step)
pairs. The frozen model is never run in the update. What differs between the papers is in ``Objective`` and in the
policy's action distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from components.core import workers
from components.core.rng import generator, seed_of
from components.core.timer import Timer
from components.core.types import Needs, Rollout, Steps
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.decode.prompts import Prompts
from components.denoisers.protocol import Denoiser
from components.maths import objectives
from components.maths.divergence import Draw, divergence, entropy
from components.policies.protocol import Policy
from components.policies.store import LearnedPolicy
from components.trainers.clipping import clip_finite
from components.trainers.plan import Objective, Plan
from components.trainers.rewards import REWARDS


@dataclass
class Experience:
    """The experience of iteration ``number``."""

    job: Job
    rollout: Rollout
    steps: Steps
    reward_R: Tensor
    correct_R: Tensor
    dense_R: Tensor
    advantage_R: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    number: int = 0


def optimizer_for(policy: LearnedPolicy, plan: Plan) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        policy.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay
    )


def collect(
    policy: LearnedPolicy,
    reference: Policy | None,
    expert: Policy | None,
    denoiser: Denoiser,
    prompts: Prompts,
    plan: Plan,
    objective: Objective,
    number: int,
    timer: Timer,
) -> Experience:
    """Rollouts, scores, rewards and advantages of iteration ``number``; everything drawn is addressed by it. What is
    recorded also holds what the reference reads."""
    policies: list[Policy] = [policy] if expert is None else [policy, expert]
    needs = Needs() if reference is None else reference.needs
    source = generator(plan.seed, "reinforce", "prompts", number)
    chosen = prompts.take(torch.randperm(len(prompts), generator=source)[: plan.prompts].tolist())
    answers = needs.answer or any(p.needs.answer for p in policies)
    alpha_P = None
    if objective.alphas:
        draw = generator(plan.seed, "reinforce", "alpha", number)
        alpha_P = torch.tensor(objective.alphas)[torch.randint(len(objective.alphas), (len(chosen),), generator=draw)]
    job = chosen.job(plan.block_length, plan.group, plan.experts, plan.expert_block, answers, alpha_P)
    options = DecodeOptions(
        seed=seed_of(plan.seed, "reinforce", "rollout", number),
        force_commit=plan.force_commit,
        step_limit=plan.step_limit,
        record=True,
        needs=needs,
        record_share=objective.record_share,
        steer_all_masks=plan.experts > 0,
        rows=plan.rollout_rows,
    )
    with timer("rollout"):
        decoded = rollout(denoiser, policies, job, options)
    with timer("reward"):
        _, correct_R, dense_R = chosen.scores(job, decoded)
        signal_R = correct_R if objective.signal == "correct" else dense_R
        alpha = objective.alpha if job.alpha_R is None else job.alpha_R
        reward_R = REWARDS[objective.reward](signal_R, decoded.nfe_R.cpu(), job.length_R, alpha)
        advantage_R = objectives.group_advantages(reward_R, job.prompt_R, objective.normalize_advantage)
    assert decoded.steps is not None
    experience = Experience(job, decoded, decoded.steps, reward_R, correct_R, dense_R, advantage_R, number=number)
    experience.metrics = _describe(experience)
    return experience


def _describe(experience: Experience) -> dict[str, float]:
    own_R = experience.job.policy_R == 0  # steered rows stay out of logged rewards
    reward_R = experience.reward_R[own_R]
    groups = experience.job.prompt_R[own_R]
    spread_R = objectives.group_advantages(reward_R, groups)
    size = int(groups.max()) + 1
    # Each draw's surprise is an unbiased estimate of the entropy it was drawn from.
    drawn_N = experience.steps.log_prob_N[own_R[experience.steps.row_N]]
    std_P = (torch.zeros(size).index_add(0, groups, spread_R**2) / groups.bincount(minlength=size)).sqrt()
    return {
        "reward/mean": float(reward_R.mean()),
        "reward/group_std": float(std_P.mean()),
        "reward/mixed_groups": float((std_P > 0).float().mean()),
        "reward/correct": float(experience.correct_R[own_R].mean()),
        "reward/dense": float(experience.dense_R[own_R].mean()),
        "decode/entropy": -float(drawn_N.mean()) if len(drawn_N) else 0.0,
        "decode/nfe": float(experience.rollout.nfe_R.cpu()[own_R].float().mean()),
        "decode/useful": experience.rollout.useful / max(experience.rollout.forwards, 1),
        "decode/finished": float(experience.rollout.finished_R.cpu()[own_R].float().mean()),
    }


def update(
    policy: LearnedPolicy,
    reference: Policy | None,
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    plan: Plan,
    objective: Objective,
) -> dict[str, float]:
    """Take ``objective.num_epochs`` optimizer steps on the iteration's pairs; the surrogate's figures.

    SettingsError before a step on a loss or a gradient that is not finite.
    """
    steps = experience.steps
    live_N = _live(experience, objective)
    weight_N = objectives.pair_weights(
        steps.row_N, experience.rollout.nfe_R, experience.job.length_R, objective.weighting
    )
    weight_N = weight_N / objective.record_share
    steered_N = (experience.job.policy_R > 0)[steps.row_N]
    old_N = objectives.mixture_log_prob(steps.log_prob_N, steered_N, plan.group, plan.experts)
    weights = [p for p in policy.parameters() if p.requires_grad]
    totals: dict[str, float] = {}

    def loss(chosen: Tensor) -> tuple[Tensor, dict[str, float]]:
        part = steps.pairs(chosen)
        return surrogate(
            policy,
            reference,
            part,
            old_N[chosen],
            experience.advantage_R[part.row_N],
            weight_N[chosen],
            steered_N[chosen],
            plan,
            objective,
        )

    for epoch in range(objective.num_epochs):
        optimizer.zero_grad(set_to_none=True)
        sums = {"loss": 0.0, "kl": 0.0, "entropy": 0.0, "clipped": 0.0}
        works = [partial(loss, chosen) for chosen in live_N.split(objective.micro_batch)] if len(live_N) else []
        for seen in workers.add_gradients(works, weights):
            for name, value in seen.items():
                sums[name] += value
        norm = clip_finite(policy, plan.clip_norm, sums["loss"], f"iteration {experience.number}")
        optimizer.step()
        if epoch == 0:
            totals["policy/gradient_norm"] = norm
            pairs = max(len(live_N), 1)
            totals |= {"policy/entropy": sums["entropy"] / pairs, "policy/kl": sums["kl"] / pairs}
        totals["policy/clipped"] = sums["clipped"] / max(len(live_N), 1)
        totals["policy/loss"] = sums["loss"]
    return totals


def _live(experience: Experience, objective: Objective) -> Tensor:
    """The pairs of the update: those with an advantage or, where the divergence has a weight, all."""
    live_N = torch.arange(len(experience.steps.row_N))
    return live_N if objective.kl_coef > 0 else live_N[experience.advantage_R[experience.steps.row_N] != 0]


def surrogate(
    policy: LearnedPolicy,
    reference: Policy | None,
    part: Steps,
    old_n: Tensor,
    advantage_n: Tensor,
    weight_n: Tensor,
    steered_n: Tensor,
    plan: Plan,
    objective: Objective,
) -> tuple[Tensor, dict[str, float]]:
    """Minus the weighted sum over pairs of the clipped term, plus kl_coef x divergence.

    With ratio 1, weighting "constant" and kl_coef 0 its mean gradient is that of minus the expected reward, times
    (1 - 1/G) because the baseline holds the row itself, over L. The rest is not the gradient of the reward:

    - weighting "row": (1 - 1/G) (grad E[R/T] - E[R] grad E[1/T]), short trajectories counting more per step;
    - beyond the first epoch: of the clipped ratio per step, not of the trajectory's;
    - the divergence: of the sum over visited states of P(state) divergence(state) / L with P(state) held fixed; of a
      coupled draw estimated without bias from its own recorded draws (``maths.divergence``), steered rows left out;
    - steered rows: of the expert's action times the policy's share of its mixture likelihood;
    - normalize_advantage: each group counts as if its rewards were as far apart as any other's.

    record_share changes no mean: a step that is stored counts for 1/record_share.
    """
    distribution = policy.distribution(part.observation)
    own_n = distribution.log_prob(part.action)
    log_prob_n = objectives.mixture_log_prob(own_n, steered_n, plan.group, plan.experts)
    gain_n = objectives.clipped(log_prob_n, old_n, advantage_n, objective.clip_eps)
    loss = -(weight_n * gain_n).sum()
    pulled_n = torch.zeros_like(gain_n)
    if reference is not None:
        learns = objective.kl_coef > 0
        with torch.set_grad_enabled(learns):
            target = reference.distribution(part.observation)
            draw = Draw(part.action, own_n, old_n, steered_n)
            pulled_n = divergence(distribution, target, draw, objective.divergence, learns)
        if learns:
            loss = loss + objective.kl_coef * (weight_n * pulled_n).sum()
    with torch.no_grad():
        ratio_n = (log_prob_n - old_n).exp()
        beyond = ((ratio_n - 1).abs() > objective.clip_eps).float().sum()
    return loss, {
        "loss": float(loss.detach()),
        "kl": float(pulled_n.detach().sum()),
        "entropy": float(entropy(distribution, own_n).sum()),
        "clipped": float(beyond),
    }


def reinforce(
    policy: LearnedPolicy,
    denoiser: Denoiser,
    prompts: Prompts,
    plan: Plan,
    objective: Objective,
    after: Callable[[int, dict[str, float]], None],
    optimizer: torch.optim.Optimizer,
    first: int = 0,
    reference: Policy | None = None,
    expert: Policy | None = None,
    before: tuple[float, float] | None = None,
) -> None:
    """Iterations ``first`` to ``plan.iterations``; ``after(iteration, metrics)`` logs, validates and saves.

    before: "decode/temperature" and "decode/entropy" of the last iteration, where a training goes on.
    """
    for number in range(first, plan.iterations):
        timer = Timer()
        fall = plan.min_lr_ratio + (1 - plan.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * number / plan.iterations))
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * min(1.0, (number + 1) / max(plan.warmup, 1)) * fall
        policy.eval()
        served = policy.temperature
        temperature = plan.temperature_at(number, before)
        policy.temperature = served * temperature
        try:
            experience = collect(policy, reference, expert, denoiser, prompts, plan, objective, number, timer)
            with timer("update"):
                learnt = update(policy, reference, optimizer, experience, plan, objective)
        finally:  # an interrupted iteration must not leave its temperature on the policy
            policy.temperature = served
        times = {f"seconds/{name}": value for name, value in timer.seconds.items()}
        before = temperature, experience.metrics["decode/entropy"]
        after(number, experience.metrics | {"decode/temperature": temperature} | learnt | times)
