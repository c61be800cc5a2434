"""A training round in its parts, and the policy's update against its bare arithmetic."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from components.bench.measure import Synchronised, in_turn, median_seconds
from components.core.types import Steps
from components.decode.prompts import Prompts
from components.denoisers.protocol import Denoiser
from components.policies.store import LearnedPolicy
from components.trainers.experience import Experience
from components.trainers.plan import Objective, Plan
from components.trainers.reinforce import Method, collect, optimizer_for, update

BATCHES = (64, 128, 256, 512, 1024, 2048)


PARTS = ("rollout", "reward", "update")


@dataclass(frozen=True)
class Round:
    """One round's median seconds by PARTS and their shares; pairs: recorded (row, step) pairs; live: those of them that
    the update learns from, the others' groups having had one reward."""

    rows: int
    pairs: int
    live: int
    seconds: dict[str, float]
    shares: dict[str, float]


def training_round(
    policy: LearnedPolicy,
    denoiser: Denoiser,
    prompts: Prompts,
    plan: Plan,
    objective: Objective,
    repeats: int,
    limit: float | None = None,
) -> tuple[Round, Experience]:
    """``repeats`` iterations from the same weights (a copy of them learns), after one that warms up; fewer where
    ``limit`` seconds are over, but one; and the last one's experience."""
    parts: list[dict[str, float]] = []
    found, method, begin = None, Method(plan, objective), time.perf_counter()
    for number in range(repeats + 1):
        if limit is not None and number > 1 and time.perf_counter() - begin > limit:
            break
        student, timer = copy.deepcopy(policy), Synchronised(denoiser.device)
        found = collect(student, denoiser, prompts, method, number, timer)
        with timer("update"):
            update(student, optimizer_for(student, plan), found, method)
        parts.append(timer.seconds)
    assert found is not None
    seconds = {name: statistics.median(p[name] for p in parts[1:]) for name in PARTS}
    live = int((found.advantage_R[found.steps.row_N] != 0).sum())
    return Round(
        len(found.job),
        len(found.steps.row_N),
        live,
        seconds,
        {name: value / sum(seconds.values()) for name, value in seconds.items()},
    ), found


@dataclass(frozen=True)
class Throughput:
    """(row, step) pairs per second: of the whole update, and of the policy's forward and backward alone at its best
    batch; share: their ratio, the median over pairs of runs."""

    update_pairs_per_second: float
    bare_pairs_per_second: float
    best_batch: int
    share: float


def update_throughput(
    policy: LearnedPolicy,
    found: Experience,
    plan: Plan,
    objective: Objective,
    repeats: int,
    seconds: float | None = None,
    batches: Sequence[int] = BATCHES,
) -> Throughput:
    """The update of a round's pairs, all of them given an advantage, beside ``log_prob`` and its gradient alone."""
    student, steps = copy.deepcopy(policy), found.steps
    advantage_R = found.advantage_R.where(found.advantage_R != 0, 0.1)
    whole = Experience(found.job, found.rollout, steps, found.reward_R, found.correct_R, found.dense_R, advantage_R)
    optimizer = optimizer_for(student, plan)
    # The batches are cut beforehand: what is measured is arithmetic.
    pairs, device = len(steps.row_N), steps.row_N.device
    number_N = torch.arange(pairs, device=device)
    cuts = {
        size: [steps.pairs(n) for n in number_N.split(size)] for size in batches if size <= pairs or size == batches[0]
    }

    def bare(parts: Sequence[Steps]) -> None:
        student.zero_grad(set_to_none=True)
        for part in parts:
            student.distribution(part.observation).log_prob(part.action).sum().backward()

    trial = in_turn(
        [lambda parts=parts: bare(parts) for parts in cuts.values()], repeats, device, seconds and seconds / 2
    )
    best = min(zip(cuts, trial, strict=True), key=lambda pair: median_seconds(pair[1]))[0]
    ours, alone = in_turn(
        [lambda: update(student, optimizer, whole, Method(plan, objective)), lambda: bare(cuts[best])],
        repeats,
        device,
        seconds and seconds / 2,
    )
    share = statistics.median(objective.num_epochs * b.seconds / a.seconds for a, b in zip(ours, alone, strict=True))
    return Throughput(objective.num_epochs * pairs / median_seconds(ours), pairs / median_seconds(alone), best, share)
