"""Is there anything to gain? Figures to accept a task by, its difficulty and its dLLM, before any policy is seen.

Order: how far random orders, the best of many random orders and the surest-first order lie apart at one position per
step. Speed: what the swept heuristics still reach at half of the forwards at which they saturate. Where neither is
wide, every policy ends where the rules are, and a comparison says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..decode.engine import rollout
from ..decode.job import DecodeOptions
from ..decode.prompts import Prompts
from ..denoisers.protocol import Denoiser
from ..maths.pareto import front_at, upper_hull
from ..policies.rules import heuristic
from .evaluate import Candidate, evaluate
from .results import EvalResult

ORDER_HEADROOM = 0.15
OVER_RANDOM = 0.08
AT_HALF = 0.85
SATURATED = 0.01  # as good as the best: within one point of it


def order(denoiser: Denoiser, prompts: Prompts, orders: int, seed: int) -> dict[str, float]:
    """Shares of P prompts, full diffusion, one position per step; critical: whether the order matters.

    random: right by a random order, the mean over ``orders`` of them; best_of_random: right by at least one of them
    (Pass@K); surest_first: right by max-confidence. headroom = best_of_random - surest_first.
    """
    job = prompts.job(None, group=orders)
    done = rollout(denoiser, heuristic("random", 1), job, DecodeOptions(seed=seed, choose="sample"))
    _, correct_R, _ = prompts.scores(job, done)
    correct_PK = correct_R.unflatten(0, (len(prompts), orders))
    one_by_one = evaluate(denoiser, Candidate("confidence", "1", heuristic("confidence", 1), None), prompts, [seed])
    random, best, surest = float(correct_PK.mean()), float(correct_PK.amax(1).mean()), one_by_one.accuracy
    critical = best - surest >= ORDER_HEADROOM and surest - random >= OVER_RANDOM
    return {
        "random": random,
        "best_of_random": best,
        "surest_first": surest,
        "headroom": best - surest,
        "critical": float(critical),
    }


def speed(results: Sequence[EvalResult]) -> dict[str, float]:
    """Of the swept heuristics' front: its best accuracy, the NFE at which it is within a point of that (saturates),
    and the accuracy at half that NFE; critical: whether speed costs anything."""
    nfe, accuracy = [result.nfe for result in results], [result.accuracy for result in results]
    front_nfe, front_accuracy = upper_hull(nfe, accuracy)
    best = float(front_accuracy[-1])
    saturated = float(next(n for n, a in zip(front_nfe, front_accuracy, strict=True) if a >= best - SATURATED))
    half = front_at(nfe, accuracy, saturated / 2)
    return {"best": best, "saturates_at_nfe": saturated, "at_half": half, "critical": float(half <= AT_HALF)}
