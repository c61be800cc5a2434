"""A training round in its parts, and the policy's update against its bare arithmetic."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.bench.measure import in_turn, median_seconds
from components.denoisers.protocol import Denoiser
from components.policies.store import LearnedPolicy
from components.prompts import Prompts
from components.stopwatch import Stopwatch
from components.trainers.reinforce import Collected, Objective, Plan, collect, optimiser_for, update
from components.types import Steps

BATCHES = (64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Round:
    """Median seconds of one round's parts; pairs: recorded (row, step) pairs."""

    rollout: float
    reward: float
    update: float
    pairs: int

    def flat(self) -> dict[str, Any]:
        whole = self.rollout + self.reward + self.update
        shares = {f"share_{n}": getattr(self, n) / whole for n in ("rollout", "reward", "update")}
        return {"rollout_seconds": self.rollout, "reward_seconds": self.reward, "update_seconds": self.update,
                "pairs": self.pairs} | shares  # fmt: skip


def training_round(
    policy: LearnedPolicy, denoiser: Denoiser, prompts: Prompts, plan: Plan, objective: Objective, repeats: int
) -> tuple[Round, Collected]:
    """``repeats`` rounds from the same weights (a copy of them learns); and the last one's experience."""
    parts: list[dict[str, float]] = []
    found = None
    for number in range(repeats + 1):
        student, watch = copy.deepcopy(policy), Stopwatch()
        found = collect(student, None, None, denoiser, prompts, plan, objective, number, watch)
        with watch("update"):
            update(student, None, optimiser_for(student, plan), found, plan, objective)
        parts.append(dict(watch.seconds))
    assert found is not None
    rollout, reward, updated = (statistics.median(p[n] for p in parts[1:]) for n in ("rollout", "reward", "update"))
    return Round(rollout, reward, updated, len(found.steps.row_N)), found


@dataclass(frozen=True)
class Throughput:
    """(row, step) pairs per second: of the whole update, and of the policy's forward and backward alone at its best
    batch; share: their ratio, the median over pairs of runs."""

    update_pairs_per_second: float
    bare_pairs_per_second: float
    best_batch: int
    share: float


def update_throughput(
    policy: LearnedPolicy, found: Collected, plan: Plan, objective: Objective, repeats: int,
    batches: Sequence[int] = BATCHES,
) -> Throughput:  # fmt: skip
    """The update of a round's pairs, all of them given an advantage, beside ``log_prob`` and its gradient alone."""
    student, steps = copy.deepcopy(policy), found.steps
    advantage_R = found.advantage_R.where(found.advantage_R != 0, 0.1)
    whole = Collected(found.job, found.rollout, steps, found.reward_R, found.correct_R, found.dense_R, advantage_R)
    optimiser = optimiser_for(student, plan)
    # The batches are cut beforehand: what is measured is arithmetic.
    cuts = {size: [steps.pairs(n) for n in _numbers(steps).split(size)] for size in batches if size <= len(steps.row_N)}
    device = steps.row_N.device

    def bare(parts: Sequence[Steps]) -> None:
        student.zero_grad(set_to_none=True)
        for part in parts:
            student.distribution(part.observation).log_prob(part.action).sum().backward()

    trial = in_turn([lambda parts=parts: bare(parts) for parts in cuts.values()], repeats, device)
    best = min(zip(cuts, trial, strict=True), key=lambda pair: median_seconds(pair[1]))[0]
    ours, alone = in_turn(
        [lambda: update(student, None, optimiser, whole, plan, objective), lambda: bare(cuts[best])], repeats, device
    )
    pairs = len(steps.row_N)
    share = statistics.median(objective.epochs * b.seconds / a.seconds for a, b in zip(ours, alone, strict=True))
    return Throughput(objective.epochs * pairs / median_seconds(ours), pairs / median_seconds(alone), best, share)


def _numbers(steps: Steps):
    import torch

    return torch.arange(len(steps.row_N), device=steps.row_N.device)
