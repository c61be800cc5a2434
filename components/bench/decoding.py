"""Engine against reference loop: the same job, the same policy, in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from components.bench.measure import Timed, in_turn, median_seconds, peak_bytes, speedup
from components.bench.reference import reference_rollout
from components.denoisers.protocol import Denoiser
from components.policies.protocol import Policy
from components.rollout import Job, Options, rollout
from components.stopwatch import Stopwatch
from components.types import Rollout

SECTIONS = ("denoiser", "readout", "policy", "bookkeeping")


@dataclass(frozen=True)
class Case:
    """A policy and how it decodes. options.rows are the rows in flight, and the reference's batch."""

    name: str
    policy: Policy
    options: Options


@dataclass(frozen=True)
class Comparison:
    """speedup: median of paired ratios, reference / engine. useful: row-forwards whose answer a decision depended on
    for the first time, over all. same: share of rows with the same canvas, order and NFE. shares: of the engine's wall
    time; what is left out of them (admission, results) is "rest". Memory in bytes above what was held before."""

    name: str
    rows: int
    length: int
    nfe: float
    nfe_longest: int
    engine_tokens_per_second: float
    reference_tokens_per_second: float
    speedup: float
    speedup_lowest: float
    speedup_highest: float
    engine_useful: float
    reference_useful: float
    same: float
    shares: dict[str, float]
    engine_peak: int | None
    reference_peak: int | None

    def flat(self) -> dict[str, Any]:
        """One level deep, for tables and trackers."""
        found = asdict(self)
        shares = found.pop("shares")
        return found | {f"share_{name}": value for name, value in shares.items()}


def compare(denoiser: Denoiser, job: Job, case: Case, repeats: int) -> Comparison:
    """Decodes the job ``repeats`` times by either; the first pair is not counted."""
    watches: list[Stopwatch] = []

    def engine() -> Rollout:
        watches.append(Stopwatch())
        return rollout(denoiser, case.policy, job, case.options, watches[-1])

    ours, theirs = in_turn(
        [engine, lambda: reference_rollout(denoiser, case.policy, job, case.options)], repeats, denoiser.device
    )
    mine, plain = ours[-1].value, theirs[-1].value
    ratios = sorted(b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True))
    tokens = int((mine.order_RL >= 0).sum())
    return Comparison(
        case.name, len(job), int(job.length_R.max()), float(mine.nfe_R.float().mean()), int(mine.nfe_R.max()),
        tokens / median_seconds(ours), tokens / median_seconds(theirs), speedup(ours, theirs), ratios[0], ratios[-1],
        mine.useful / max(mine.forwards, 1), plain.useful / max(plain.forwards, 1), same_rows(mine, plain),
        _shares(watches[1:], ours), peak_bytes(ours), peak_bytes(theirs),
    )  # fmt: skip


def _shares(watches: Sequence[Stopwatch], runs: Sequence[Timed]) -> dict[str, float]:
    found = {
        name: statistics.median(w.seconds[name] / t.seconds for w, t in zip(watches, runs, strict=True))
        for name in SECTIONS
    }
    return found | {"rest": max(0.0, 1 - sum(found.values()))}


def same_rows(one: Rollout, other: Rollout) -> float:
    """Share of rows that ended with the same canvas, by the same order, in as many steps."""
    same_R = (one.canvas_RL == other.canvas_RL).all(1) & (one.order_RL == other.order_RL).all(1)
    return float((same_R & (one.nfe_R == other.nfe_R)).float().mean())


def compare_all(
    denoiser: Denoiser, job: Job, cases: Sequence[Case], repeats: int, after: Callable[[Comparison], None]
) -> list[Comparison]:
    found = []
    for case in cases:
        found.append(compare(denoiser, job, case, repeats))
        after(found[-1])
    return found


def slices(denoiser: Denoiser, job: Job, case: Case, tokens: Sequence[int], repeats: int) -> dict[int, float]:
    """Seconds of the whole job by sequence positions per forward of the denoiser: what ``Options.tokens`` is best."""

    def run(size: int) -> Callable[[], Any]:
        return lambda: rollout(denoiser, case.policy, job, replace(case.options, tokens=size))

    timings = in_turn([run(size) for size in tokens], repeats, denoiser.device)
    return {size: median_seconds(many) for size, many in zip(tokens, timings, strict=True)}


def random_job(prompts: int, prompt_length: int, length: int, vocabulary: int, seed: int = 0) -> Job:
    """Prompts of random ids, half to all of ``prompt_length`` long."""
    source = torch.Generator().manual_seed(seed)
    sizes = torch.randint(max(1, prompt_length // 2), prompt_length + 1, (prompts,), generator=source).tolist()
    ids = [torch.randint(4, vocabulary, (size,), generator=source) for size in sizes]
    return Job.of(ids, length, length)
