"""Policies x prompts x seeds -> results with intervals: accuracy, NFE, tokens per second.

A policy is compared with heuristics that were swept. Random rules are averaged over decode seeds; deterministic rules
are decoded once (``seeds`` = 1). Intervals are bootstrap percentiles over prompts and, within a prompt,
over its decode seeds. Several processes share the prompts; each of them has the whole result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import processes, workers
from ..core.rng import generator, seed_of
from ..core.types import Rollout
from ..decode.engine import rollout
from ..decode.job import DecodeOptions, Job
from ..decode.prompts import Prompts
from ..denoisers.protocol import Denoiser
from ..denoisers.remembered import BYTES, RememberedDenoiser
from ..policies.heuristics import SuppressTokens
from ..policies.protocol import Policy
from ..policies.rules import RULES, heuristic, is_random, known
from .order import order_2P
from .results import EvalResult

RESAMPLES = 2000


@dataclass(frozen=True)
class Candidate:
    """A policy to evaluate: its family and setting as the tables name them. block_length None: full diffusion.
    frontier: of the block's masks, so many are eligible; None: all."""

    family: str
    setting: str
    policy: Policy
    block_length: int | None
    choose: str = "mode"
    frontier: int | None = None


@dataclass(frozen=True)
class Scope:
    """The task, dLLM and split that candidates are compared on, by name."""

    task: str
    denoiser: str = ""
    split: str = "test"


def interval(value_SP: Tensor, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean: prompts are drawn with replacement, then each one's seeds."""
    seeds, prompts = value_SP.shape
    source = generator("bootstrap", seeds, prompts)
    means: list[Tensor] = []
    for size in [250] * (resamples // 250):
        prompt_kP = torch.randint(prompts, (size, prompts), generator=source)
        seed_kSP = torch.randint(seeds, (size, seeds, prompts), generator=source)
        means.append(value_SP[seed_kSP, prompt_kP.unsqueeze(1)].mean((1, 2)))
    low, high = torch.quantile(torch.cat(means), torch.tensor([0.025, 0.975])).tolist()
    return low, high


def evaluate(
    denoiser: Denoiser, candidate: Candidate, prompts: Prompts, seeds: Sequence[int], scope: Scope | None = None
) -> EvalResult:
    """Decode every prompt, once per seed where the candidate is random.

    scope: names for the result; None: the first prompt's task.
    """
    scope = scope or Scope(prompts.tasks[0].name)
    return _score(candidate, prompts, scope, [_decode(denoiser, candidate, _own(prompts), seeds)])


@dataclass(frozen=True)
class _Decoded:
    """A job, its rollout by each seed, and the seconds of all of them together."""

    prompts: Prompts
    job: Job
    done: list[Rollout]
    seconds: float


def _decode(denoiser: Denoiser, candidate: Candidate, prompts: Prompts, seeds: Sequence[int]) -> _Decoded:
    random = candidate.choose == "sample" or is_random(candidate.family)
    job = prompts.job(candidate.block_length, candidate.frontier, answers=candidate.policy.needs.answer)
    # The memory has no attention, and the speed of a learned policy is measured without it.
    if isinstance(denoiser, RememberedDenoiser) and (candidate.family not in RULES or candidate.policy.needs.attention):
        denoiser = denoiser.inner
    begin, known = time.perf_counter(), _credit(denoiser)
    done = [
        rollout(denoiser, candidate.policy, job, DecodeOptions(seed=seed, choose="sample" if random else "mode"))
        for seed in (seeds if random else seeds[:1])
    ]
    return _Decoded(prompts, job, done, time.perf_counter() - begin + _credit(denoiser) - known)


def _credit(denoiser: Denoiser) -> float:
    return denoiser.credit if isinstance(denoiser, RememberedDenoiser) else 0.0


def _own(prompts: Prompts) -> Prompts:
    """The prompts that this process decodes and scores."""
    return prompts if processes.size() == 1 else prompts.take(processes.shard(range(len(prompts))))


def _values_SKP(part: _Decoded) -> Tensor:
    """Correct, dense, NFE, masks left, AR-ness@1 and tau of the prompts; float64 holds each exactly."""
    seeds = []
    for one in part.done:
        _, correct_R, dense_R = part.prompts.scores(part.job, one)
        order_2R = torch.from_numpy(order_2P(one.order_RL.cpu().numpy()))
        values = (correct_R, dense_R, one.nfe_R.cpu(), ~one.finished_R.cpu(), *order_2R)
        seeds.append(torch.stack([value_R.double() for value_R in values]))
    return torch.stack(seeds)


def _score(candidate: Candidate, prompts: Prompts, scope: Scope, parts: Sequence[_Decoded]) -> EvalResult:
    """The result on all prompts. parts: this process's prompts, dealt out in turn."""
    value_SKP = processes.unsharded(_in_turn([_values_SKP(part) for part in parts]))
    masks_P = processes.unsharded(_in_turn([part.job.masks_R for part in parts]))
    job, done, seconds = parts[0].job, parts[0].done, sum(part.seconds for part in parts)
    correct_SP, dense_SP, nfe_SP = (value_SP.contiguous() for value_SP in value_SKP[:, :3].float().unbind(1))
    accuracy, nfe = interval(correct_SP), interval(nfe_SP)
    return EvalResult(
        task=scope.task,
        denoiser=scope.denoiser,
        split=scope.split,
        family=candidate.family,
        setting=candidate.setting,
        block_length=candidate.block_length or prompts.longest,
        choose=candidate.choose,
        prompts=len(prompts),
        seeds=len(done),
        accuracy=float(correct_SP.mean()),
        accuracy_low=accuracy[0],
        accuracy_high=accuracy[1],
        dense=float(dense_SP.mean()),
        nfe=float(nfe_SP.mean()),
        nfe_low=nfe[0],
        nfe_high=nfe[1],
        tokens_per_second=int(masks_P.sum()) * len(done) / max(processes.gathered(seconds)),
        unfinished=float(value_SKP[:, 3].sum()),
        workers=done[0].shares[0],
        rows_in_flight=done[0].shares[1],
        tokens_per_forward=done[0].shares[2],
        end_of_text=int(bool(job.end_ids)),
        correct_P=correct_SP.mean(0).double().numpy(),
        nfe_P=nfe_SP.mean(0).double().numpy(),
        seeds_2SP=torch.stack([correct_SP, nfe_SP]).double().numpy() if len(done) > 1 else np.zeros(0),
        masks_P=masks_P.double().numpy() if prompts.canvases else np.zeros(0),
        order_2P=value_SKP[:, 4:].numpy().mean(0),
    )


def _in_turn(parts: Sequence[Tensor]) -> Tensor:
    """The tensor whose last axis was dealt out in turn."""
    whole = parts[0].new_zeros(*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
    for i, part in enumerate(parts):
        whole[..., i :: len(parts)] = part
    return whole


@dataclass(frozen=True)
class Sweep:
    """The rules to compare with, each at its ``numbers``, in the order of the table of rules.

    Whether a rule is also run in blocks of those ``block_lengths`` that divide the canvas is an entry of that table.
    None stands for the whole canvas, full diffusion. There these rules are run at each of the ``frontiers`` too, and
    rules that read statistics commit positions that predict one of ``late_ids`` (the end of the text) last; with
    ``renormalize`` exactly as LLaDA's own baseline does.
    """

    block_lengths: Sequence[int | None]
    numbers: Mapping[str, Sequence[float]]
    late_ids: Collection[int] = ()
    frontiers: Sequence[int | None] = (None,)
    renormalize: bool = False

    def rule(self, family: str, value: float, size: int | None) -> Policy:
        policy = heuristic(family, value)
        if not self.late_ids or size is not None:
            return policy
        return SuppressTokens(policy, tuple(sorted(self.late_ids)), self.renormalize)

    def candidates(self, length: int, wide: bool = True) -> list[Candidate]:
        """wide: for the main table. Else only rules with ``Rule.everywhere``."""
        named = {known(family) for family in self.numbers}
        windows: list[tuple[int | None, int | None]] = []
        for size in self.block_lengths:
            if size is None:
                windows += [(None, f) for f in self.frontiers if f is None or f < length]
            elif size < length and length % size == 0:
                windows.append((size, None))
        return [
            Candidate(family, label(value, frontier), self.rule(family, value, size), size, frontier=frontier)
            for family, rule in RULES.items()
            if family in named and (wide or rule.everywhere)
            for size, frontier in (
                windows if rule.blocks == "always" or (wide and rule.blocks == "table") else [(None, None)]
            )
            for value in self.numbers[family]
        ]


def label(value: float, frontier: int | None) -> str:
    """A rule's setting as the tables name it: its number, and its frontier where it has one."""
    return f"{value:g}" if frontier is None else f"{value:g}, first {frontier}"


def table(
    denoiser: Denoiser,
    candidates: Sequence[Candidate],
    prompts: Prompts,
    seeds: Sequence[int],
    scope: Scope,
    progress: Callable[[int], None] | None = None,
) -> list[EvalResult]:
    """One result per candidate; ``progress(1)`` after each.

    On a CPU the prompts are dealt out to as many workers as torch has threads. A canvas that several rules reach goes
    through the dLLM once. Tokens per second are those of one worker that sends every canvas.
    """
    uids = [example.uid for example in prompts.examples]
    processes.require_same([len(candidates), seed_of(*uids)], "candidates or prompts")
    results: list[EvalResult] = []
    own = _own(prompts)
    number = min(workers.count(denoiser.device, len(candidates)), max(1, len(own)))
    parts = [own.take(range(i, len(own), number)) for i in range(number)] if number > 1 else [own]
    use = len(candidates) > 1 and denoiser.stateless and denoiser.device.type == "cpu"
    own_denoisers = [RememberedDenoiser(denoiser, BYTES // number) if use else denoiser for _ in parts]
    with workers.queues(number) as queues:
        decoded = [
            iter(run(lambda candidate, dllm=dllm, part=part: _decode(dllm, candidate, part, seeds), candidates))
            for run, dllm, part in zip(queues, own_denoisers, parts, strict=True)
        ]
        for candidate in candidates:
            results.append(_score(candidate, prompts, scope, [next(part) for part in decoded]))
            if progress is not None:
                progress(1)
    return results
