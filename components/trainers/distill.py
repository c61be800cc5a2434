"""Imitation of a reference policy by exact likelihood, on the states that reference and student visit.

A deterministic rule is imitated by cross-entropy, -log pi(its action); a stochastic one of the same kind by the closed
form of KL(reference || student), of another kind by the cross-entropy of its draws. From half of the rounds on, half of
the rows are drawn by the student while the reference says what it would have done there (DAgger, Ross et al. 2011), so
that the student also knows the states that its own mistakes lead to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from components.core.errors import SettingsError
from components.core.rng import Noise, generator, seed_of
from components.core.types import Observation, Steps
from components.decode.engine import rollout
from components.decode.job import DecodeOptions
from components.decode.prompts import Prompts
from components.denoisers.protocol import Denoiser
from components.maths.distributions import Deterministic
from components.policies.protocol import Policy
from components.policies.store import LearnedPolicy
from components.trainers.clipping import clip_finite


@dataclass(frozen=True)
class DistillPlan:
    """rounds: batches of ``prompts`` decoded canvases; each is used for one optimiser step per ``pairs`` (row, step)
    pairs. learning_rate falls by a cosine to zero."""

    rounds: int
    prompts: int
    pairs: int
    learning_rate: float
    block_length: int | None
    seed: int
    frontier: int | None = None


def imitation_loss(student: Policy, reference: Policy, observation: Observation, noise: Noise) -> Tensor:
    """(n,) KL(reference || student) per observation, up to the reference's own entropy where its draw stands in."""
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
    """Trains ``student`` in place; ``report(round, metrics)`` after each round."""
    optimiser = torch.optim.AdamW(student.parameters(), lr=plan.learning_rate, weight_decay=0.0)
    for number in range(plan.rounds):
        for group in optimiser.param_groups:
            group["lr"] = plan.learning_rate * 0.5 * (1 + math.cos(math.pi * number / plan.rounds))
        steps = _visit(student, reference, denoiser, prompts, plan, number)
        losses = []
        order = torch.randperm(len(steps.row_N), generator=generator(plan.seed, "distil", "order", number))
        for chosen in order.split(plan.pairs):
            part = steps.pairs(chosen)
            noise = Noise(part.row_N + number * len(order), part.step_N)
            loss = imitation_loss(student, reference, part.observation, noise).mean()
            if bool(loss.isinf()):
                raise SettingsError(
                    f"{type(student).__name__} cannot draw what {reference} does; the imitation loss "
                    f"is {float(loss.detach())}; use an action that can (a categorical one commits one "
                    f"position per step), or a rule that commits what it can"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            clip_finite(student, 1.0, float(loss.detach()), f"round {number} of distillation")
            optimiser.step()
            losses.append(float(loss.detach()))
        report(number, {"distill/loss": sum(losses) / len(losses), "distill/pairs": float(len(order))})


def _visit(
    student: LearnedPolicy, reference: Policy, denoiser: Denoiser, prompts: Prompts, plan: DistillPlan, number: int
) -> Steps:
    """The states of one round: by the reference, from half of the rounds on by the student too."""
    source = generator(plan.seed, "distil", "prompts", number)
    chosen = prompts.take(torch.randperm(len(prompts), generator=source)[: plan.prompts].tolist())
    job = chosen.job(plan.block_length, answers=reference.needs.answer)
    by_reference_R = torch.ones_like(job.policy_R)
    if 2 * number >= plan.rounds:
        by_reference_R[::2] = 0
    options = DecodeOptions(seed=seed_of(plan.seed, "distil", "rollout", number), record=True)
    job = replace(job, policy_R=by_reference_R, frontier=plan.frontier)
    steps = rollout(denoiser, [student, reference], job, options).steps
    assert steps is not None
    return steps
