"""Labels for pair shifts, from the frozen model alone: no reward, no checker, no answers.

At each visited state the present prediction is committed at one position i alone, and the frozen model runs again.
The label is the new log-odds of the present prediction t_j at every other masked j. One forward per i gives a whole
row of labels. Any denoiser, canvas length and block length will do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import DataError
from ..core.files import beside, put_aside, unpacking
from ..core.rng import generator, seed_of
from ..core.types import Needs, Observation, Rollout, Steps
from ..decode.batch import admit
from ..decode.dependence import after_commit
from ..decode.engine import rollout
from ..decode.job import DecodeOptions, Job
from ..decode.prompts import Prompts
from ..decode.refresh import tokens_per_forward
from ..denoisers.protocol import Denoiser
from ..policies.protocol import Policy

BASE = Needs("masked", statistics=("log_odds",))  # inputs of the labels themselves


@dataclass(frozen=True)
class Probing:
    """The states and positions to probe, in chunks of ``prompts`` decoded canvases.

    states, probes: at most so many states of a chunk, and positions of a state, are probed; drawn where there are more.
    on_policy_from: from this chunk on the policy itself draws half of the rows; None: never. validation_share: the
    share of prompts that is never trained on, for the figure of merit. block_length None: full diffusion. frontier: of
    the block's masks, so many are eligible; None: all.
    """

    chunks: int
    prompts: int
    states: int
    probes: int
    on_policy_from: int | None
    validation_share: float
    block_length: int | None
    seed: int
    frontier: int | None = None


@dataclass(frozen=True)
class Labels:
    """S probed states.

    observation  inputs of the policy, and the present log-odds l_j.
    position_SN     int64, the probed positions; -1 behind the last one.
    after_SNL    float32, the log-odds of the present predictions after each probe.
    held_S       bool, states of the prompts that are held out.
    """

    observation: Observation
    position_SN: Tensor
    after_SNL: Tensor
    held_S: Tensor

    def __len__(self) -> int:
        return len(self.held_S)

    def rows(self, index: Tensor) -> Labels:
        return Labels(self.observation.rows(index), self.position_SN[index], self.after_SNL[index], self.held_S[index])

    def to(self, device: torch.device) -> Labels:
        obs = replace(self.observation, **{name: t.to(device) for name, t in self.observation.tensors().items()})
        return Labels(obs, self.position_SN.to(device), self.after_SNL.to(device), self.held_S.to(device))

    @property
    def pairs_SNL(self) -> Tensor:
        """The labeled pairs: i was probed, j is another masked position."""
        position_L = torch.arange(self.after_SNL.shape[-1], device=self.after_SNL.device)
        other_SNL = (self.position_SN.unsqueeze(-1) >= 0) & (self.position_SN.unsqueeze(-1) != position_L)
        return other_SNL & self.observation.masked_BL.unsqueeze(1)


def cost(prompts: Prompts, plan: Probing) -> int:
    """Upper bound of the frozen model's row-forwards: the visits, then the probes."""
    length = max(prompts.lengths, default=0)
    return plan.chunks * (plan.prompts * length + plan.states * min(plan.probes, length))


def collect(
    policy: Policy, reference: Policy, denoiser: Denoiser, prompts: Prompts, plan: Probing, number: int
) -> Labels:
    """The labels of chunk ``number``, on the CPU; a function of the arguments alone.

    DataError if no visited state has two masks.
    """
    chosen = prompts.take(_drawn(len(prompts), plan, number))
    job = chosen.job(plan.block_length, plan.frontier, answers=reference.needs.answer)
    policies: list[Policy] = [reference]
    if plan.on_policy_from is not None and number >= plan.on_policy_from:
        policies = [policy, reference]
        by_reference_R = torch.ones_like(job.policy_R)
        by_reference_R[::2] = 0
        job = replace(job, policy_R=by_reference_R)
    options = DecodeOptions(
        seed=seed_of(plan.seed, "influence", "visit", number), record=True, needs=policy.needs | BASE
    )
    visited = rollout(denoiser, policies, job, options)
    steps = _some(visited.steps, plan.states, generator(plan.seed, "influence", "states", number))
    position_SN = _positions(steps.observation, plan.probes, generator(plan.seed, "influence", "probes", number))
    after_SNL = _probe(denoiser, job, steps, _states(visited, steps, denoiser.mask_id), position_SN)
    held_R = torch.tensor([seed_of(plan.seed, "held", x.uid) < plan.validation_share * 2**63 for x in chosen.examples])[
        job.prompt_R
    ]
    return Labels(steps.observation, position_SN, after_SNL, held_R.to(steps.row_N.device)[steps.row_N]).to(
        torch.device("cpu")
    )


def stored(path: Path, key: str, make: Callable[[], Labels]) -> Labels:
    """The labels in a file of this ``key``; else those of ``make``, which are then stored.

    A file that is not whole is put aside. Left in place it would end every later run.
    """
    if path.exists():
        try:
            with unpacking(path, ""), safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                if metadata["key"] == key:
                    return _unpacked({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118
        except (DataError, OSError, SafetensorError) as error:
            put_aside("influence", path, error)
    labels = make()
    tensors = {f"observation/{name}": t for name, t in labels.observation.tensors().items()}
    tensors |= {"position_SN": labels.position_SN, "after_SNL": labels.after_SNL, "held_S": labels.held_S}
    facts = {"canvas_start": labels.observation.canvas_start, "layers": labels.observation.attention_layers}
    with beside(path) as part:
        save_file(
            {name: t.contiguous().clone() for name, t in tensors.items()},
            part,
            metadata={"key": key, "facts": json.dumps(facts)},
        )
    return labels


def _unpacked(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Labels:
    facts = json.loads(metadata["facts"])
    if bad := [name for name, tensor in tensors.items() if bool(tensor.isnan().any())]:
        raise ValueError(f"{bad[0]} holds NaN")
    fields = {name.removeprefix("observation/"): t for name, t in tensors.items() if name.startswith("observation/")}
    obs = Observation(**fields, canvas_start=facts["canvas_start"], attention_layers=tuple(facts["layers"]))
    return Labels(obs, tensors["position_SN"], tensors["after_SNL"], tensors["held_S"])


def _drawn(count: int, plan: Probing, number: int) -> list[int]:
    """The prompts of chunk ``number``: each one once before the first one repeats."""
    first, last = number * plan.prompts, (number + 1) * plan.prompts
    passes = range(first // count, -(-last // count))
    pool = [torch.randperm(count, generator=generator(plan.seed, "influence", "prompts", r)) for r in passes]
    begin = first - passes[0] * count
    return torch.cat(pool)[begin : begin + plan.prompts].tolist()


def _some(steps: Steps | None, count: int, source: torch.Generator) -> Steps:
    """``count`` of the steps, evenly drawn, of those with a pair: something eligible and two masks."""
    if steps is not None:
        obs = steps.observation
        paired_N = ((obs.masked_BL.sum(-1) > 1) & obs.eligible_BL.any(-1)).nonzero().squeeze(1)
        if len(paired_N):
            # Rows are recorded in an order that depends on the workers; by row and step it does not.
            address_N = steps.row_N[paired_N] * (int(steps.step_N.max()) + 1) + steps.step_N[paired_N]
            paired_N = paired_N[address_N.argsort()]
            chosen = torch.randperm(len(paired_N), generator=source)[:count].sort().values
            return steps.pairs(paired_N[chosen.to(paired_N.device)])
    raise DataError("No visited state has two masks. Use longer canvases, or a slower reference rule.")


def _positions(obs: Observation, probes: int, source: torch.Generator) -> Tensor:
    """(S, N) eligible positions, drawn where there are more than ``probes``; -1 behind the last."""
    eligible_SL = obs.eligible_BL
    most = min(probes, int(eligible_SL.sum(-1).max()))
    draw_SL = torch.rand(eligible_SL.shape, generator=source).to(eligible_SL.device).masked_fill(~eligible_SL, 2.0)
    order_SN = draw_SL.argsort(-1)[:, :most]
    return order_SN.masked_fill(~eligible_SL.gather(1, order_SN), -1)


def _states(visited: Rollout, steps: Steps, mask_id: int) -> Tensor:
    """(S, L) the canvases at these steps: what was given, and what had been committed before them."""
    canvas_SL = visited.canvas_RL[steps.row_N]
    return canvas_SL.where(~steps.observation.masked_BL & (canvas_SL >= 0), mask_id)


@torch.no_grad()
def _probe(denoiser: Denoiser, job: Job, steps: Steps, ids_SL: Tensor, position_SN: Tensor) -> Tensor:
    """(S, N, L) log-odds of the present predictions after one commit each, in slices that bound memory."""
    obs = steps.observation
    assert obs.token_BL is not None
    state_M, probe_M = (position_SN >= 0).nonzero(as_tuple=True)
    after_SNL = torch.zeros(*position_SN.shape, ids_SL.shape[1], dtype=torch.float32, device=ids_SL.device)
    most = max(1, tokens_per_forward(denoiser.device) // sum(job.shape))
    for part in torch.arange(len(state_M), device=state_M.device).split(most):
        state_m, probe_m = state_M[part], probe_M[part]
        batch = admit(job, steps.row_N[state_m].cpu(), denoiser, 0)
        ids_mT = torch.cat([batch.ids_BT[:, : batch.start], ids_SL[state_m]], 1)
        masks = {"masked_BL": obs.masked_BL[state_m], "eligible_BL": obs.eligible_BL[state_m]}
        batch = replace(batch, ids_BT=ids_mT, **masks)
        after_mL, _ = after_commit(denoiser, batch, obs.token_BL[state_m], position_SN[state_m, probe_m].unsqueeze(1))
        after_SNL[state_m, probe_m] = after_mL.float()
    return after_SNL
