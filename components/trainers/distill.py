"""Imitation of a reference policy by exact likelihood, on the states that reference and student visit.

A deterministic rule is imitated by cross-entropy, -log pi(its action); a stochastic one of the same kind by the closed
form of KL(reference || student), of another kind by the cross-entropy of its draws. From half of the iterations on,
the student draws half of the rows and imitates the reference there too (DAgger, Ross et al. 2011). It thus learns from
states that its own mistakes lead to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import SettingsError
from ..core.rng import Noise, generator, seed_of
from ..core.types import Observation, Steps
from ..decode.engine import rollout
from ..decode.job import DecodeOptions
from ..decode.prompts import Prompts
from ..denoisers.protocol import Denoiser
from ..maths.distributions import Deterministic
from ..policies.protocol import Policy
from ..policies.store import LearnedPolicy
from .clipping import clip_finite


@dataclass(frozen=True)
class DistillPlan:
    """Schedule of an imitation.

    iterations: batches of ``prompts`` decoded canvases, with one optimizer step per ``micro_batch`` (row, step) pairs.
    learning_rate falls by a cosine to zero.
    """

    iterations: int
    prompts: int
    micro_batch: int
    learning_rate: float
    block_length: int | None
    seed: int
    frontier: int | None = None


def imitation_loss(student: Policy, reference: Policy, observation: Observation, noise: Noise) -> Tensor:
    """(n,) KL(reference || student) per observation; where a draw replaces it, up to the reference's own entropy."""
    target, own = reference.distribution(observation), student.distribution(observation)
    if type(target) is type(own) or isinstance(target, Deterministic):
        return target.kl(own)
    return -own.log_prob(target.sample(noise))


def imitate(
    student: LearnedPolicy,
    reference: Policy,
    denoiser: Denoiser,
    prompts: Prompts,
    plan: DistillPlan,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train ``student`` in place; ``report(iteration, metrics)`` after each iteration."""
    weights = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=plan.learning_rate, weight_decay=0.0)
    for number in range(plan.iterations):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * 0.5 * (1 + math.cos(math.pi * number / plan.iterations))
        steps = _visit(student, reference, denoiser, prompts, plan, number)
        losses = []
        order = torch.randperm(len(steps.row_N), generator=generator(plan.seed, "distil", "order", number))
        for chosen in order.split(plan.micro_batch):
            part = steps.pairs(chosen)
            noise = Noise(part.row_N + number * len(order), part.step_N)
            loss = imitation_loss(student, reference, part.observation, noise).mean()
            if bool(loss.isinf()):
                raise SettingsError(
                    f"{type(student).__name__} cannot draw what {reference} draws: the imitation loss is "
                    f"{float(loss.detach())}. Use an action of several positions, or a rule that commits one."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clip_finite(student, 1.0, float(loss.detach()), f"iteration {number} of distillation")
            optimizer.step()
            losses.append(float(loss.detach()))
        report(number, {"distill/loss": sum(losses) / len(losses), "distill/pairs": float(len(order))})


def _visit(
    student: LearnedPolicy, reference: Policy, denoiser: Denoiser, prompts: Prompts, plan: DistillPlan, number: int
) -> Steps:
    """The states of one iteration, drawn by the reference; from half of the iterations on also by the student."""
    source = generator(plan.seed, "distil", "prompts", number)
    chosen = prompts.take(torch.randperm(len(prompts), generator=source)[: plan.prompts].tolist())
    job = chosen.job(plan.block_length, plan.frontier, answers=reference.needs.answer)
    by_reference_R = torch.ones_like(job.policy_R)
    if 2 * number >= plan.iterations:
        by_reference_R[::2] = 0
    options = DecodeOptions(seed=seed_of(plan.seed, "distil", "rollout", number), record=True)
    steps = rollout(denoiser, [student, reference], replace(job, policy_R=by_reference_R), options).steps
    assert steps is not None
    return steps
