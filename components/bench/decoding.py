"""Engine against reference loop: the same job, the same policy, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.types import Rollout
from ..decode.engine import rollout
from ..decode.job import DecodeOptions, Job
from ..denoisers.protocol import Denoiser
from ..policies.protocol import Policy
from .measure import Synchronised, Timed, in_turn, median_seconds, peak_bytes, ratios
from .reference import reference_rollout

SECTIONS = ("denoiser", "readout", "policy", "bookkeeping")


@dataclass(frozen=True)
class Case:
    """A policy and how it decodes. options.rows are the rows in flight, and the reference's batch."""

    name: str
    policy: Policy
    options: DecodeOptions


@dataclass(frozen=True)
class Side:
    """What one of the two loops cost. useful: row-forwards whose answer a decision depended on for the first time, over
    all. shares of the wall time, by SECTIONS: the readout has the output head, bookkeeping all that is nowhere else
    (admission, commits, results). peak: bytes above what was held before, None where the system does not tell."""

    seconds: float
    tokens_per_second: float
    forwards: int
    useful: float
    shares: dict[str, float]
    peak: int | None


@dataclass(frozen=True)
class Comparison:
    """speedup: median, lowest and highest of the paired ratios reference seconds / engine seconds. same: share of rows
    that ended with the same canvas, by the same order, in as many steps."""

    name: str
    rows: int
    length: int
    nfe: float
    nfe_longest: int
    speedup: tuple[float, float, float]
    same: float
    engine: Side
    reference: Side


def compare(denoiser: Denoiser, job: Job, case: Case, repeats: int, seconds: float | None = None) -> Comparison:
    """Decodes the job ``repeats`` times by either, fewer where ``seconds`` are over; the first pair is not counted."""
    ours, ours_by_section = watched(rollout, denoiser, job, case)
    theirs, theirs_by_section = watched(reference_rollout, denoiser, job, case)
    fast, plain = in_turn([ours, theirs], repeats, denoiser.device, seconds)
    mine, other = fast[-1].value, plain[-1].value
    return Comparison(
        case.name,
        len(job),
        int(job.length_R.max()),
        float(mine.nfe_R.float().mean()),
        int(mine.nfe_R.max()),
        ratios(fast, plain),
        same_rows(mine, other),
        _side(fast, ours_by_section[1:]),
        _side(plain, theirs_by_section[1:]),
    )


def watched(
    loop: Callable[..., Rollout], denoiser: Denoiser, job: Job, case: Case
) -> tuple[Callable[[], Rollout], list[dict[str, float]]]:
    """A run of the loop, and where the seconds of each of its calls will be found."""
    seconds: list[dict[str, float]] = []

    def run() -> Rollout:
        timer = Synchronised(denoiser.device)
        seconds.append(timer.seconds)
        return loop(denoiser, case.policy, job, case.options, timer)

    return run, seconds


def _side(runs: Sequence[Timed], seconds: Sequence[dict[str, float]]) -> Side:
    done: Rollout = runs[-1].value
    whole = sum(t.seconds for t in runs)
    shares = {name: sum(s[name] for s in seconds) / whole for name in SECTIONS[:-1]}
    tokens, typical = int((done.order_RL >= 0).sum()), median_seconds(runs)
    return Side(
        typical,
        tokens / typical,
        done.forwards,
        done.useful / max(done.forwards, 1),
        shares | {SECTIONS[-1]: 1 - sum(shares.values())},
        peak_bytes(runs),
    )


def same_rows(one: Rollout, other: Rollout) -> float:
    """Share of rows that ended with the same canvas, by the same order, in as many steps."""
    same_R = (one.canvas_RL == other.canvas_RL).all(1) & (one.order_RL == other.order_RL).all(1)
    return float((same_R & (one.nfe_R == other.nfe_R)).float().mean())
