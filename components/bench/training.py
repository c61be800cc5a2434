"""A training iteration in its parts."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass

from ..decode.prompts import Prompts
from ..denoisers.protocol import Denoiser
from ..policies.store import LearnedPolicy
from ..trainers.reinforce import Method, collect, optimizer_for, update
from .measure import Synchronised

PARTS = ("rollout", "reward", "update")


@dataclass(frozen=True)
class IterationCost:
    """Median seconds of an iteration by PARTS, and their shares.

    pairs: recorded (row, step) pairs. live: those that the update learns from; the others' groups had one reward.
    """

    rows: int
    pairs: int
    live: int
    seconds: dict[str, float]
    shares: dict[str, float]


def training_iteration(
    policy: LearnedPolicy,
    denoiser: Denoiser,
    prompts: Prompts,
    method: Method,
    repeats: int,
    limit: float | None = None,
) -> IterationCost:
    """``repeats`` iterations from the same weights (a copy of them learns), after one that warms up; fewer where
    ``limit`` seconds are over, but one."""
    parts: list[dict[str, float]] = []
    found, begin = None, time.perf_counter()
    for number in range(repeats + 1):
        if limit is not None and number > 1 and time.perf_counter() - begin > limit:
            break
        student, timer = copy.deepcopy(policy), Synchronised(denoiser.device)
        found = collect(student, denoiser, prompts, method, number, timer)
        with timer("update"):
            update(student, optimizer_for(student, method.plan), found, method)
        parts.append(timer.seconds)
    assert found is not None
    seconds = {name: statistics.median(p[name] for p in parts[1:]) for name in PARTS}
    live = int((found.advantage_R[found.steps.row_N] != 0).sum())
    return IterationCost(
        len(found.job),
        len(found.steps.row_N),
        live,
        seconds,
        {name: value / sum(seconds.values()) for name, value in seconds.items()},
    )
