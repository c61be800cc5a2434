"""Headroom of a task and a dLLM: what order, speed and dependence could gain, measured before any policy is trained.

Order: whether an order learned on one half of the prompts beats max-confidence on the other half, at one position per
step. The best of many random orders is luck in part. Speed: the accuracy of the swept heuristics at half of the
forwards at which they saturate. Dependence: the share of that loss that the frozen model's exact pair shifts win back,
and the total correlation of the sets that a rule commits. Without headroom every policy ends level with the rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.types import Needs, Observation, Rollout
from ..decode.batch import DecodeBatch
from ..decode.dependence import decode_by, exact_shifts, total_correlation
from ..decode.engine import rollout
from ..decode.job import DecodeOptions
from ..decode.prompts import Prompts
from ..denoisers.protocol import Denoiser
from ..maths.distributions import ActionDistribution, Deterministic, commit
from ..maths.greedy import greedy_set
from ..maths.masked import masked_argmax, one_hot
from ..maths.pareto import front_at, upper_hull
from ..policies.rules import RULES, heuristic
from .evaluate import Candidate, evaluate, interval
from .results import EvalResult

ORDER_HEADROOM = 0.05
AT_HALF = 0.85
SATURATED = 0.01  # as good as the best: within one point of it
QUARTER = 0.25  # share of a position's commits that do no harm
RIDGE = 0.02  # pull of each position's weight to the common one, per rollout
BUDGETS = ((math.inf, 1.0), (0.2, 1.0), (0.8, 1.0), (0.2, 0.0), (0.8, 0.0))
"""gamma and the joint probability's share of the risk, of each greedy set by exact pair shifts."""
DRAWS = 4  # sampled prefixes per step of the total correlation


@dataclass(frozen=True)
class HarmOrder:
    """One position per step, the least harmful first.

    Harm is ``weight_L`` x what a position's -log probability has above ``floor_L``, the uncertainty that does no harm
    there. Equals go by confidence.
    """

    weight_L: Tensor
    floor_L: Tensor

    @property
    def needs(self) -> Needs:
        return Needs()

    def score(self, obs: Observation) -> Tensor:
        assert obs.confidence_BL is not None
        unsure_BL = _unsure(obs.confidence_BL)
        length = unsure_BL.shape[1]
        harm_BL = (unsure_BL - self.floor_L[:length]).clamp(min=0) * self.weight_L[:length]
        return -harm_BL - 1e-3 * unsure_BL

    def distribution(self, obs: Observation) -> ActionDistribution:
        score_BL, eligible_BL = self.score(obs), obs.eligible_BL
        chosen_BL = one_hot(masked_argmax(score_BL, eligible_BL), eligible_BL) & eligible_BL
        return Deterministic(chosen_BL, eligible_BL, score_BL)


def _unsure(confidence: Tensor) -> Tensor:
    return -confidence.double().clamp(min=1e-12).log()


def order(denoiser: Denoiser, prompts: Prompts, orders: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of prompts that are right, full diffusion, one position per step; then the figures of a learned order.

    random: right by a random order, the mean over ``orders`` of them; best_of_random: right by at least one of them
    (Pass@K); surest_first: right by max-confidence. headroom = best_of_random - surest_first, luck included. critical:
    whether the order matters, by the second figures. These are of ``HarmOrder``, fitted to the random orders of one
    half of the prompts and evaluated on the other half. gain: above max-confidence, with its interval.
    """
    job = prompts.job(None, group=orders)
    done = rollout(denoiser, heuristic("random", 1), job, DecodeOptions(seed=seed, choose="sample", record=True))
    _, correct_R, _ = prompts.scores(job, done)
    correct_PK = correct_R.unflatten(0, (len(prompts), orders))
    one_by_one = evaluate(denoiser, Candidate("confidence", "1", heuristic("confidence", 1), None), prompts, [seed])
    learned_P = torch.zeros(len(prompts))
    unsure_PKL = _at_commit(done).unflatten(0, (len(prompts), orders))
    for half in (0, 1) if len(prompts) > 1 else ():
        policy = fit_order(unsure_PKL[1 - half :: 2], correct_PK[1 - half :: 2])
        part = list(range(half, len(prompts), 2))
        found = evaluate(denoiser, Candidate("learned_order", "1", policy, None), prompts.take(part), [seed])
        learned_P[half::2] = torch.from_numpy(found.correct_P).float()
    random, best, surest = float(correct_PK.mean()), float(correct_PK.amax(1).mean()), one_by_one.accuracy
    gain_P = learned_P - torch.from_numpy(one_by_one.correct_P).float()
    gain, (low, high) = float(gain_P.mean()), interval(gain_P.unsqueeze(0))
    critical = float(gain >= ORDER_HEADROOM and low > 0)
    luck = {"random": random, "best_of_random": best, "surest_first": surest, "headroom": best - surest}
    learned = {"accuracy": float(learned_P.mean()), "gain": gain, "gain_low": low, "gain_high": high}
    return luck | {"critical": critical}, learned


def _at_commit(done: Rollout) -> Tensor:
    """(R, L) -log probability of each position's token when it was committed; NaN where nothing was."""
    assert done.steps is not None and done.steps.action.committed_BL is not None
    unsure_RL = torch.full(done.order_RL.shape, torch.nan, dtype=torch.float64)
    pair_M, position_M = done.steps.action.committed_BL.nonzero(as_tuple=True)
    row_M = done.steps.row_N[pair_M].cpu()
    confidence_BL = done.steps.observation.confidence_BL
    assert confidence_BL is not None
    unsure_RL[row_M, position_M.cpu()] = _unsure(confidence_BL[pair_M, position_M].cpu())
    return unsure_RL


def fit_order(unsure_PKL: Tensor, correct_PK: Tensor) -> HarmOrder:
    """The cost of uncertainty at each position, from K rollouts of each prompt in random orders.

    A linear fit of the failures within a prompt to the uncertainty above each position's floor, its lowest quarter. One
    weight for all positions, and a deviation of each that a ridge pulls to 0.
    """
    floor_L = unsure_PKL.flatten(0, 1).nanquantile(QUARTER, dim=0).nan_to_num(0.0)
    above_PKL = (unsure_PKL - floor_L).clamp(min=0).nan_to_num(0.0)
    inputs_PKF = torch.cat([above_PKL.sum(-1, keepdim=True), above_PKL], -1)
    inputs_RF = (inputs_PKF - inputs_PKF.mean(1, keepdim=True)).flatten(0, 1)
    failed_PK = 1 - correct_PK.double()
    failed_R = (failed_PK - failed_PK.mean(1, keepdim=True)).flatten()
    pull_F = torch.full_like(inputs_RF[0], RIDGE * len(inputs_RF))
    pull_F[0] = 1e-6 * len(inputs_RF)
    weight_F = torch.linalg.solve(inputs_RF.T @ inputs_RF + pull_F.diag(), inputs_RF.T @ failed_R)
    return HarmOrder((weight_F[0] + weight_F[1:]).clamp(min=0), floor_L)


def speed(results: Sequence[EvalResult]) -> dict[str, float]:
    """Figures of the swept heuristics' front.

    best: its accuracy. saturates_at_nfe: the NFE at which it is within a point of that. at_half: the accuracy at half
    of that NFE. critical: whether speed costs anything.
    """
    nfe, accuracy = [result.nfe for result in results], [result.accuracy for result in results]
    front_nfe, front_accuracy = upper_hull(nfe, accuracy)
    best = float(front_accuracy[-1])
    saturated = float(next(n for n, a in zip(front_nfe, front_accuracy, strict=True) if a >= best - SATURATED))
    half = front_at(nfe, accuracy, saturated / 2)
    return {"best": best, "saturates_at_nfe": saturated, "at_half": half, "critical": float(half <= AT_HALF)}


def oracle(denoiser: Denoiser, prompts: Prompts, gamma: float, share: float) -> tuple[float, float]:
    """Accuracy and NFE of the greedy set by the frozen model's exact pair shifts, full diffusion.

    They take a forward per masked position and step, which the NFE leaves out. A ceiling for pair policies.
    """
    job = prompts.job(None)
    needs = Needs("masked", statistics=("log_odds",))
    done = decode_by(
        denoiser,
        job,
        needs,
        lambda batch: greedy_set(
            batch.fields["log_odds_BL"], exact_shifts(denoiser, batch), batch.eligible_BL, gamma, share
        ),
    )
    _, correct_R, _ = prompts.scores(job, done)
    return float(correct_R.mean()), float(done.nfe_R.double().mean())


def correlation(denoiser: Denoiser, prompts: Prompts, candidate: Candidate, seed: int) -> dict[str, float]:
    """Mean total correlation, in nats, of the sets that a rule commits: of a step, and summed over a decode."""
    policy, total, steps = candidate.policy, 0.0, 0

    def choose(batch: DecodeBatch) -> Tensor:
        nonlocal total, steps
        obs = batch.observation(policy.needs)
        distribution = policy.distribution(obs)
        chosen_BL = commit(distribution, distribution.mode(), obs.eligible_BL, True).committed_BL
        assert chosen_BL is not None
        total += float(total_correlation(denoiser, batch, chosen_BL, DRAWS, seed + steps).sum())
        steps += len(batch)
        return chosen_BL

    decode_by(denoiser, prompts.job(None), policy.needs, choose)
    return {"tc_per_step": total / max(steps, 1), "tc_per_decode": total / len(prompts)}


def dependence(
    denoiser: Denoiser,
    prompts: Prompts,
    swept: Sequence[tuple[Candidate, EvalResult]],
    front: Mapping[str, float],
    seed: int,
) -> dict[str, float | str]:
    """The part of the cost of speed that is dependence between positions that are committed together.

    front: ``speed`` of the swept rules. rule: the full-diffusion rule whose NFE is nearest to half of where it
    saturates, and the total correlation of its sets. oracle_at_half: accuracy of the exact pair shifts there, by the
    hull of ``BUDGETS``; share_of_loss: how much of the front's loss at half it wins back, negative where it is worse
    than the front, 0 where the front loses nothing.
    """
    half = front["saturates_at_nfe"] / 2
    several = [
        (candidate, result)
        for candidate, result in swept
        if candidate.block_length is None and RULES[candidate.family].commits == "several"
    ]
    found: dict[str, float | str] = {"at_nfe": half}
    if several:
        candidate, result = min(several, key=lambda pair: abs(pair[1].nfe - half))
        found |= {"rule": f"{candidate.family}:{candidate.setting}", "rule_nfe": result.nfe}
        found |= correlation(denoiser, prompts, candidate, seed)
    ceiling = [oracle(denoiser, prompts, gamma, share) for gamma, share in BUDGETS]
    at_half = front_at([nfe for _, nfe in ceiling], [accuracy for accuracy, _ in ceiling], half)
    lost = front["best"] - front["at_half"]
    found |= {"oracle_best": max(accuracy for accuracy, _ in ceiling), "oracle_at_half": at_half}
    return found | {"share_of_loss": (at_half - front["at_half"]) / lost if lost > 0 else 0.0}
