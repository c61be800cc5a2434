"""Pair shifts learned by probing the frozen model: no reward, no checker, no answers.

At each visited state the present prediction is committed at one position i alone. The frozen model is asked again: by
how much did the log-odds of the present prediction t_j move, at every other masked j? One forward per i gives the whole
row of shifts. The policy's shifts are fitted to it by the cross-entropy of sigma(l_j + w_ij) against the soft label
sigma(l_j given i).

Figure of merit: the share of the shift's divergence that is still *unexplained*,

    (cross-entropy - the labels' entropy) / (cross-entropy without shifts - the labels' entropy),

1 for a policy that knows no pair, 0 for the frozen model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from components.decode import readout
from components.denoisers.protocol import Denoiser
from components.core.errors import DataError
from components.decode.batch import Job, admit, slice_tokens
from components.policies.coupled import CoupledPolicy
from components.policies.protocol import Policy
from components.decode.prompts import Prompts
from components.core.rng import generator, seed_of
from components.decode.engine import Options, rollout
from components.trainers import checkpoints
from components.core.types import Canvas, Needs, Observation, Rollout, Steps

BASE = Needs("masked", statistics=("log_odds",))  # what the labels themselves are about


@dataclass(frozen=True)
class Influence:
    """Chunks of ``prompts`` decoded canvases, of which ``states`` states are probed at most, at ``probes`` positions
    each at most (drawn where there are more).

    From chunk ``own_from`` on half of the rows are drawn by the policy itself; never where it is None.
    epochs: passes over the stored labels in batches of ``batch`` states. learning_rate falls by a cosine to zero.
    held: share of the prompts that is never trained on, for the figure of merit.
    """

    chunks: int
    prompts: int
    states: int
    probes: int
    own_from: int | None
    epochs: int
    batch: int
    learning_rate: float
    held: float
    block_length: int | None
    seed: int


@dataclass(frozen=True)
class Labels:
    """S probed states of one chunk.

    observation  what a policy may read there, and the present log-odds l_j.
    place_SN     int64, the positions that were committed, one alone; -1 where there were fewer.
    after_SNL    float32, the log-odds of the present predictions after that.
    held_S       bool, states of the prompts that are held out.
    """

    observation: Observation
    place_SN: Tensor
    after_SNL: Tensor
    held_S: Tensor

    def __len__(self) -> int:
        return len(self.held_S)

    def rows(self, index: Tensor) -> Labels:
        return Labels(self.observation.rows(index), self.place_SN[index], self.after_SNL[index], self.held_S[index])

    @property
    def pairs_SNL(self) -> Tensor:
        """Pairs that count: i was probed, j is another masked position."""
        place_L = torch.arange(self.after_SNL.shape[-1], device=self.after_SNL.device)
        other_SNL = (self.place_SN.unsqueeze(-1) >= 0) & (self.place_SN.unsqueeze(-1) != place_L)
        return other_SNL & self.observation.masked_BL.unsqueeze(1)


def cost(prompts: Prompts, plan: Influence) -> int:
    """Row-forwards of the frozen model at most: the visits, then the probes."""
    length = max(prompts.lengths, default=0)
    return plan.chunks * (plan.prompts * length + plan.states * min(plan.probes, length))


def collect(
    policy: CoupledPolicy, reference: Policy, denoiser: Denoiser, prompts: Prompts, plan: Influence, number: int
) -> Labels:
    """The labels of chunk ``number``, a function of the arguments alone. DataError if no state has two masks."""
    order = _drawn(len(prompts), plan, number)
    job = prompts.take(order).job(plan.block_length, answers=reference.needs.answer)
    by_reference_R = torch.ones_like(job.policy_R)
    if plan.own_from is not None and number >= plan.own_from:
        by_reference_R[::2] = 0
    job = replace(job, policy_R=by_reference_R)
    options = Options(seed=seed_of(plan.seed, "influence", "visit", number), record=True, needs=policy.needs | BASE)
    visited = rollout(denoiser, [policy, reference], job, options)
    steps = _some(visited.steps, plan.states, generator(plan.seed, "influence", "states", number))
    place_SN = _places(steps.observation, plan.probes, generator(plan.seed, "influence", "probes", number))
    after_SNL = _probe(denoiser, job, steps, _states(visited, steps, denoiser.mask_id), place_SN)
    held_P = torch.tensor([seed_of(plan.seed, "held", prompts.examples[p].uid) / 2**63 < plan.held for p in order])
    return Labels(steps.observation, place_SN, after_SNL, held_P[job.prompt_R][steps.row_N.cpu()].to(place_SN.device))


def _drawn(count: int, plan: Influence, number: int) -> list[int]:
    """The prompts of chunk ``number``: every one once before any comes a second time."""
    first, last = number * plan.prompts, (number + 1) * plan.prompts
    rounds = range(first // count, -(-last // count))
    pool = [torch.randperm(count, generator=generator(plan.seed, "influence", "prompts", r)) for r in rounds]
    begin = first - rounds[0] * count
    return torch.cat(pool)[begin : begin + plan.prompts].tolist()


def _some(steps: Steps | None, count: int, source: torch.Generator) -> Steps:
    """``count`` of the steps, evenly drawn, of those with at least two masks."""
    several_N = torch.zeros(0, dtype=torch.bool) if steps is None else steps.observation.masked_BL.sum(-1) > 1
    if steps is None or not bool((several_N & steps.observation.eligible_BL.any(-1)).any()):
        raise DataError("No visited state has two masks. Give longer canvases, or a slower reference rule.")
    found_N = (several_N & steps.observation.eligible_BL.any(-1)).nonzero().squeeze(1)
    # Rows land in an order that depends on the lanes: by row and step it does not.
    found_N = found_N[(steps.row_N[found_N] * (int(steps.step_N.max()) + 1) + steps.step_N[found_N]).argsort()]
    chosen = torch.randperm(len(found_N), generator=source)[:count].sort().values
    return steps.pairs(found_N[chosen.to(found_N.device)])


def _places(obs: Observation, probes: int, source: torch.Generator) -> Tensor:
    """(S, N) eligible positions, drawn where there are more than ``probes``; -1 behind the last."""
    eligible_SL = obs.eligible_BL
    most = min(probes, int(eligible_SL.sum(-1).max()))
    draw_SL = torch.rand(eligible_SL.shape, generator=source).to(eligible_SL.device).masked_fill(~eligible_SL, 2.0)
    order_SN = draw_SL.argsort(-1)[:, :most]
    return order_SN.masked_fill(~eligible_SL.gather(1, order_SN), -1).sort(-1, descending=True).values


def _states(visited: Rollout, steps: Steps, mask_id: int) -> Tensor:
    """(S, L) the canvases at these steps: what had been committed before them."""
    order_SL, canvas_SL = visited.order_RL[steps.row_N], visited.canvas_RL[steps.row_N]
    there_SL = (order_SL >= 0) & (order_SL < steps.step_N.unsqueeze(1))
    return canvas_SL.where(there_SL, mask_id)


def _probe(denoiser: Denoiser, job: Job, steps: Steps, ids_SL: Tensor, place_SN: Tensor) -> Tensor:
    """(S, N, L) log-odds of the present predictions after one commit each, in slices that bound memory."""
    obs = steps.observation
    assert obs.token_BL is not None
    state_M, probe_M = (place_SN >= 0).nonzero(as_tuple=True)
    after_SNL = torch.zeros(*place_SN.shape, ids_SL.shape[1], dtype=torch.float32, device=ids_SL.device)
    most = max(1, slice_tokens(denoiser.device) // sum(job.shape))
    for part in torch.arange(len(state_M), device=state_M.device).split(most):
        state_m, probe_m = state_M[part], probe_M[part]
        place_m1 = place_SN[state_m, probe_m].unsqueeze(1)
        token_mL = obs.token_BL[state_m]
        ids_mL = ids_SL[state_m].scatter(1, place_m1, token_mL.gather(1, place_m1))
        masked_mL = obs.masked_BL[state_m].scatter(1, place_m1, False)
        hidden_mLD = _hidden(denoiser, job, steps.row_N[state_m], ids_mL, obs.eligible_BL[state_m])
        odds_N = readout.log_odds_of(denoiser.logits, hidden_mLD[masked_mL], denoiser.forbidden_ids,
                                     token_mL[masked_mL], denoiser.vocabulary)  # fmt: skip
        odds_mL = torch.zeros_like(ids_mL, dtype=torch.float32).masked_scatter(masked_mL, odds_N.float())
        after_SNL[state_m, probe_m] = odds_mL
    return after_SNL


def _hidden(denoiser: Denoiser, job: Job, row_m: Tensor, ids_mL: Tensor, block_mL: Tensor) -> Tensor:
    """(m, L, D) what the frozen model sees in these canvases behind their rows' prompts."""
    row_m = row_m.cpu()
    # A rows' own job: its start has the prompts' padding, and positions behind a shorter canvas.
    prompts = [job.prompts[p] for p in job.prompt_R[row_m].tolist()]
    own = Job(prompts, torch.arange(len(row_m)), job.uid_R[row_m], job.member_R[row_m], job.length_R[row_m],
              job.block_R[row_m], job.policy_R[row_m])  # fmt: skip
    flight = admit(own, torch.arange(len(row_m)), denoiser, 0)
    length = flight.masked_BL.shape[1]
    ids_BT = torch.cat([flight.ids_BT[:, : flight.start], ids_mL[:, :length]], 1)
    block_BT = F.pad(block_mL[:, :length], (flight.start, 0))
    hidden_BTD, _ = denoiser.hidden(Canvas(ids_BT, flight.attend_BT, flight.start, block_BT), flight.state)
    return F.pad(hidden_BTD[:, flight.start :], (0, 0, 0, ids_mL.shape[1] - length))


def losses(policy: CoupledPolicy, labels: Labels) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over the pairs: cross-entropy, the same without shifts, the labels' entropy; and how many pairs."""
    obs, pairs_SNL = labels.observation, labels.pairs_SNL
    assert obs.log_odds_BL is not None
    _, shift_SLL, _ = policy(obs)
    place_SN1 = labels.place_SN.clamp(min=0).unsqueeze(-1)
    shift_SNL = shift_SLL.gather(1, place_SN1.expand(-1, -1, shift_SLL.shape[-1]))
    now_SNL = obs.log_odds_BL.to(shift_SNL.dtype).unsqueeze(1).expand_as(shift_SNL)
    after_M, now_M, shift_M = (x[pairs_SNL] for x in (labels.after_SNL.to(shift_SNL.dtype), now_SNL, shift_SNL))
    target_M = torch.sigmoid(after_M)
    made, without, least = (
        F.binary_cross_entropy_with_logits(x, target_M, reduction="sum") for x in (now_M + shift_M, now_M, after_M)
    )
    return made, without, least, pairs_SNL.sum()


def unexplained(policy: CoupledPolicy, labels: list[Labels], batch: int, held: bool) -> float:
    """The figure of merit over the held-out states, or over those that are trained on."""
    total = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for chunk in labels:
            for index in (chunk.held_S == held).nonzero().squeeze(1).split(batch):
                total += torch.stack(losses(policy, chunk.rows(index))[:3]).double().cpu()
    made, without, least = total.tolist()
    return (made - least) / max(without - least, 1e-12)


def fit(
    policy: CoupledPolicy, labels: list[Labels], plan: Influence, report: Callable[[int, dict[str, float]], None],
    checkpoint: Path | None = None,
) -> None:  # fmt: skip
    """Trains the policy's shifts in place; ``report(epoch, metrics)`` after each epoch.

    Goes on from ``checkpoint`` where that exists, and writes it after each epoch: killed and started again it ends at
    the same bits.
    """
    optimiser = torch.optim.AdamW(policy.parameters(), lr=plan.learning_rate, weight_decay=0.0)
    done = 0
    if checkpoint is not None and checkpoint.exists():
        done = int(checkpoints.load(checkpoint, policy, optimiser)["epoch"]) + 1
    where = [(c, index) for c, chunk in enumerate(labels) for index in [(~chunk.held_S).nonzero().squeeze(1)]]
    steps = sum(-(-len(index) // plan.batch) for _, index in where)
    for epoch in range(done, plan.epochs):
        source = generator(plan.seed, "influence", "order", epoch)
        batches = [(c, part) for c, index in where
                   for part in index[torch.randperm(len(index), generator=source).to(index.device)].split(plan.batch)]  # fmt: skip
        total = torch.zeros(4, dtype=torch.float64)
        for number, b in enumerate(torch.randperm(len(batches), generator=source).tolist()):
            share = (epoch * steps + number) / (plan.epochs * steps)
            for group in optimiser.param_groups:
                group["lr"] = plan.learning_rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * share)).item())
            chunk, index = batches[b]
            found = losses(policy, labels[chunk].rows(index))
            optimiser.zero_grad(set_to_none=True)
            (found[0] / found[3].clamp(min=1)).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimiser.step()
            total += torch.stack([x.detach().double().cpu() for x in found])
        if checkpoint is not None:
            checkpoints.save(checkpoint, policy, optimiser, {"epoch": epoch})
        report(epoch, _figures(policy, labels, plan, total))


def _figures(policy: CoupledPolicy, labels: list[Labels], plan: Influence, total: Tensor) -> dict[str, float]:
    made, without, least, pairs = total.tolist()
    return {
        "influence/loss": made / max(pairs, 1),
        "influence/unexplained": (made - least) / max(without - least, 1e-12),
        "influence/held_unexplained": unexplained(policy, labels, plan.batch, held=True),
        "influence/pairs": pairs,
    }
