"""What positions say of each other, asked of the frozen model itself: exact pair shifts, and total correlation.

Each costs forwards that no decode would spend: one per masked position for the shifts, one per further member of a set
for its total correlation. For a stateless denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.rng import generator
from ..core.timer import Timer
from ..core.types import Action, Canvas, Needs, Rollout
from ..denoisers.protocol import Denoiser
from . import readout
from .batch import DecodeBatch, admit, advance, concatenate, is_done, retire
from .job import DecodeOptions, Job
from .refresh import Facts, refresh, tokens_per_forward


@torch.no_grad()
def decode_by(denoiser: Denoiser, job: Job, needs: Needs, choose: Callable[[DecodeBatch], Tensor]) -> Rollout:
    """Decode all rows at once by ``choose``, which gives the positions to commit, (B, L), of fresh rows."""
    batch, options, timer = admit(job, torch.arange(len(job.prompt_R)), denoiser, 0), DecodeOptions(), Timer()
    retired = [retire(batch, is_done(batch, options))]
    batch = batch.keep(~is_done(batch, options))
    while len(batch):
        batch, _ = refresh(batch, denoiser, needs, timer, Facts.of(batch, needs, every=True))
        commit_BL = choose(batch)
        batch = advance(batch, Action(commit_BL, None, commit_BL), needs, options)
        done_B = is_done(batch, options)
        retired.append(retire(batch, done_B))
        batch = batch.keep(~done_B)
    rows: dict[str, Any] = concatenate(retired)
    order_R = rows.pop("row").argsort()
    return Rollout(**{name: value[order_R] for name, value in rows.items()}, forwards=0, useful=0)


@torch.no_grad()
def exact_shifts(denoiser: Denoiser, batch: DecodeBatch) -> Tensor:
    """(B, L, L) what a commit at i adds to the log-odds of the present prediction at j; zero where either has none.

    The batch is fresh, with log-odds at all masked positions.
    """
    odds_BL, token_BL, length = batch.fields["log_odds_BL"], batch.fields["token_BL"], batch.masked_BL.shape[1]
    shift_BLL = torch.zeros(*odds_BL.shape, length, dtype=odds_BL.dtype, device=odds_BL.device)
    state_M, place_M = batch.eligible_BL.nonzero(as_tuple=True)
    for part in torch.arange(len(state_M), device=state_M.device).split(_rows(denoiser, batch)):
        state_m, place_m1 = state_M[part], place_M[part].unsqueeze(1)
        seen = replace(batch, fields={}).keep(state_m)
        after_mL, masked_mL = after_commit(denoiser, seen, token_BL[state_m], place_m1)
        moved_mL = after_mL.to(odds_BL.dtype) - odds_BL[state_m]
        shift_BLL[state_m, place_m1.squeeze(1)] = moved_mL.masked_fill(~masked_mL, 0.0)
    return shift_BLL


@torch.no_grad()
def after_commit(denoiser: Denoiser, seen: DecodeBatch, token_mL: Tensor, place_m1: Tensor) -> tuple[Tensor, Tensor]:
    """(m, L) log-odds of the predictions ``token_mL`` once each row's own is committed at its place, zero where no
    mask is left; and (m, L) the masks that are left. The rows are fresh: the denoiser has not seen them before."""
    masked_mL = seen.masked_BL.scatter(1, place_m1, False)
    ids_mT = seen.ids_BT.scatter(1, place_m1 + seen.start, token_mL.gather(1, place_m1))
    # A cache refreshes at the first look at a row, whatever its block: nothing is stale here.
    block_BT = F.pad(seen.block_BL, (seen.start, 0))
    hidden_mTD, _ = denoiser.hidden(Canvas(ids_mT, seen.attend_BT, seen.start, block_BT), seen.state)
    odds_N = readout.log_odds_of(
        denoiser.logits,
        hidden_mTD[:, seen.start :][masked_mL],
        denoiser.forbidden_ids,
        token_mL[masked_mL],
        denoiser.vocabulary,
    )
    return torch.zeros_like(token_mL, dtype=odds_N.dtype).masked_scatter(masked_mL, odds_N), masked_mL


@torch.no_grad()
def total_correlation(
    denoiser: Denoiser, batch: DecodeBatch, commit_BL: Tensor, draws: int | None, seed: int = 0
) -> Tensor:
    """(B,) in nats: the entropies of a set's positions, each alone, minus the entropy of all together.

    All together: the frozen model's own probabilities, one position after the other from the left. draws: prefixes
    sampled per row, which leaves the mean unbiased. None: every prefix, exact, with |V|^(n-1) forwards for n positions.
    """
    source = generator(seed, "total correlation")
    place_BL = (~commit_BL).long().argsort(dim=-1, stable=True)  # members first, from the left
    count_B, total_B = commit_BL.sum(-1), torch.zeros(len(batch), dtype=torch.float64)
    row_N = torch.arange(len(batch)).repeat_interleave(draws or 1)
    ids_NT, weight_N = batch.ids_BT[row_N], torch.full((len(row_N),), 1.0 / (draws or 1), dtype=torch.float64)
    for member in range(int(count_B.max()) if len(batch) else 0):
        going_N = count_B[row_N].cpu() > member
        row_N, ids_NT, weight_N = row_N[going_N], ids_NT[going_N], weight_N[going_N]
        place_N = place_BL[row_N, member]
        log_NV = _log_probs(denoiser, batch, row_N, ids_NT, place_N)
        if member:
            alone_b = torch.arange(len(batch))[count_B.cpu() > member]
            alone_bV = _log_probs(denoiser, batch, alone_b, batch.ids_BT[alone_b], place_BL[alone_b, member])
            total_B[alone_b] += _entropy(alone_bV)
            total_B.index_add_(0, row_N, -weight_N * _entropy(log_NV))
        if draws is None:
            from_M, token_M = (log_NV > -torch.inf).nonzero(as_tuple=True)
            row_N, weight_N = row_N[from_M], weight_N[from_M] * log_NV.exp()[from_M, token_M]
        else:
            token_M = torch.multinomial(log_NV.exp(), 1, generator=source).squeeze(1)
            from_M = torch.arange(len(row_N))
        column_M1 = (place_N[from_M] + batch.start).unsqueeze(1)
        ids_NT = ids_NT[from_M].scatter(1, column_M1, token_M.unsqueeze(1).to(ids_NT.device))
    return total_B


def _entropy(log_NV: Tensor) -> Tensor:
    return torch.special.entr(log_NV.exp()).sum(-1)


def _log_probs(denoiser: Denoiser, batch: DecodeBatch, row_N: Tensor, ids_NT: Tensor, place_N: Tensor) -> Tensor:
    """(N, V) log-probabilities, float64 on the CPU, at one position of each of these canvases."""
    parts: list[Tensor] = []
    for part in torch.arange(len(row_N)).split(_rows(denoiser, batch)):
        hidden_nLD = _hidden(denoiser, batch, row_N[part], ids_NT[part])
        hidden_nD = hidden_nLD[torch.arange(len(part)), place_N[part]]
        logits_nV = readout.predict(denoiser.logits(hidden_nD), denoiser.forbidden_ids).double().cpu()
        parts.append(logits_nV.log_softmax(-1).masked_fill(logits_nV <= readout.NEVER, -torch.inf))
    return torch.cat(parts)


def _rows(denoiser: Denoiser, batch: DecodeBatch) -> int:
    return max(1, tokens_per_forward(denoiser.device) // batch.ids_BT.shape[1])


def _hidden(denoiser: Denoiser, batch: DecodeBatch, row_m: Tensor, ids_mT: Tensor) -> Tensor:
    """(m, L, D) hidden states of these canvases behind the prompts of these rows."""
    seen = replace(batch, fields={}).keep(row_m)
    hidden_mTD, _ = denoiser.hidden(Canvas(ids_mT, seen.attend_BT, batch.start), seen.state)
    return hidden_mTD[:, batch.start :]
