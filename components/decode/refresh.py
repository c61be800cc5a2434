"""Asking the denoiser: a forward pass over the rows that changed, and what policies read of it.

``refresh`` gives a batch its fields. A row whose canvas is as the denoiser saw it keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.devices import reads_wait
from ..core.errors import CheckpointError
from ..core.timer import Timer
from ..core.types import Canvas, Needs, RowState
from ..denoisers.protocol import Denoiser, attended
from . import readout
from .batch import DecodeBatch, concatenate


@dataclass(frozen=True)
class Facts:
    """What the host has to know of a batch's rows, read in one wait for the device. Lists have an entry per row.

    where_BL: positions that the needs read; reads: their number. done: the row is over. stale: it is to be looked at.
    prompt: its prompt's length. broken: a statistic or hidden state of the last look is not finite.
    """

    where_BL: Tensor
    done: list[int]
    stale: list[int]
    prompt: list[int]
    reads: list[int]
    broken: list[int]

    @staticmethod
    def of(batch: DecodeBatch, needs: Needs, every: bool = False, done_B: Tensor | None = None) -> Facts:
        """every: all rows are to be looked at, stale or not."""
        where_BL, waits, no = _where(batch, needs), reads_wait(batch.row_B.device), [0] * len(batch)
        read = {"stale": batch.stale_B, "prompt": batch.prompt_B, "reads": where_BL.sum(-1)}
        if done_B is not None:
            read["done"] = done_B
            if waits:
                read["broken"] = _broken(batch.fields)
        told: list[list[int]] = (
            torch.stack(list(read.values())).tolist() if waits else [value.tolist() for value in read.values()]
        )
        lists = {"done": no, "broken": no} | dict(zip(read, told, strict=True))
        return Facts(where_BL, **lists | {"stale": [1] * len(batch) if every else lists["stale"]})


def refresh(
    batch: DecodeBatch, denoiser: Denoiser, needs: Needs, timer: Timer, facts: Facts, tokens: int | None = None
) -> tuple[DecodeBatch, int]:
    """The batch with fresh fields for its stale rows, and how many rows were asked.

    Rows go through the denoiser in slices of about ``tokens`` sequence positions; None: ``tokens_per_forward``.
    """
    device = batch.row_B.device
    rows = [row for row, stale in enumerate(facts.stale) if stale]
    if not rows:
        return _unchanged(batch, _numbers(rows, device)), 0
    parts = [_forward(batch, some, facts, denoiser, needs, timer) for some in _slices(facts, rows, device, tokens)]
    with timer("readout"):
        fields = concatenate([fields for fields, _ in parts])
        state = None if parts[0][1] is None else concatenate([state or {} for _, state in parts])
        fresh = replace(batch, fields=fields, state=state, stale_B=torch.zeros_like(batch.stale_B))
        if len(rows) < len(batch):
            rows_b = _numbers(rows, device)
            fields = {name: _scatter(batch, name, rows_b, value) for name, value in fields.items()}
            fresh = _unchanged(replace(fresh, fields=fields), rows_b)
    return fresh, len(rows)


def _numbers(rows: list[int], device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)


def tokens_per_forward(device: torch.device) -> int:
    """Sequence positions in one forward. On a CPU what stays in the cache: in float32 at width 128 forwards of 1,000 to
    4,000 positions are 1.2 to 1.5 times as fast per row as those of 10,000, and no slower in bfloat16."""
    return 2560 if device.type == "cpu" else 65536


def _slices(facts: Facts, rows: list[int], device: torch.device, tokens: int | None) -> list[list[int]]:
    """The rows in as few equal slices as keep within ``tokens``."""
    longest = max(facts.prompt) + facts.where_BL.shape[1]
    most = max(1, (tokens or tokens_per_forward(device)) // longest)
    if len(rows) <= most:
        return [rows]
    return [part.tolist() for part in torch.tensor(rows).tensor_split(-(-len(rows) // most))]


def _forward(
    batch: DecodeBatch, rows: list[int], facts: Facts, denoiser: Denoiser, needs: Needs, timer: Timer
) -> tuple[dict[str, Tensor], RowState | None]:
    """Fields and states of some rows of the batch."""
    where_bL = facts.where_BL
    if len(rows) < len(batch):
        rows_b = _numbers(rows, batch.row_B.device)
        batch, where_bL = (batch if needs.drift else replace(batch, fields={})).keep(rows_b), where_bL[rows_b]
    with timer("denoiser"):
        # Columns that are padding in every row are not sent, unless a state may be laid out by columns.
        cut = batch.start - max(facts.prompt[row] for row in rows) if batch.state is None else 0
        block_BT = None if batch.state is None else F.pad(batch.block_BL, (batch.start, 0))
        canvas = Canvas(batch.ids_BT[:, cut:], batch.attend_BT[:, cut:], batch.start - cut, block_BT)
        hidden_bTD, attention_bLLA, state = attended(denoiser, canvas, batch.state, needs.attention)
    with timer("readout"):
        hidden_bLD = hidden_bTD[:, batch.start - cut :]
        fields = _read(batch, denoiser, needs, hidden_bLD, (where_bL, sum(facts.reads[row] for row in rows)))
        if attention_bLLA is not None:
            fields["attention_BLLA"] = attention_bLLA
        if needs.features == "canvas":
            fields["features_BTD"] = hidden_bLD
        elif needs.features == "sequence":
            fields["features_BTD"] = F.pad(hidden_bTD, (0, 0, cut, 0))
        if not reads_wait(hidden_bLD.device):  # there ``Facts`` has it, a little later
            require_finite(batch, fields)
    return fields, state


def _broken(fields: Mapping[str, Tensor]) -> Tensor:
    """(B,) whether logits or hidden states that are read are not finite."""
    read = [fields[name] for name in ("confidence_BL", "features_BTD") if name in fields]
    return torch.stack([~value.isfinite().flatten(1).all(-1) for value in read]).any(0)


def require_finite(batch: DecodeBatch, fields: Mapping[str, Tensor], ago: int = 0) -> None:
    """CheckpointError where logits or hidden states that are read are not finite: they would decode to anything. ago:
    steps since they were read."""
    for name, what in (("confidence_BL", "logits"), ("features_BTD", "hidden states")):
        value = fields.get(name)
        # A sum that is finite has finite terms, and is read faster.
        if value is None or math.isfinite(value.sum()) or bool(value.isfinite().all()):
            continue
        row, column = (~value.isfinite()).nonzero()[0, :2].tolist()
        at = column - (value.shape[1] - batch.masked_BL.shape[1])
        raise CheckpointError(
            f"row {int(batch.row_B[row])} of the job, canvas position {at}, step {int(batch.step_B[row]) - ago}: the "
            f"dLLM's {what} ({name}) are NaN or infinite. Load it in float32, or compare its weights with their source."
        )


def _scatter(batch: DecodeBatch, name: str, rows_b: Tensor, value: Tensor) -> Tensor:
    old = batch.fields.get(name)
    if old is None:
        old = value.new_zeros(len(batch), *value.shape[1:])
    return old.index_copy(0, rows_b, value)


def _unchanged(batch: DecodeBatch, fresh_b: Tensor) -> DecodeBatch:
    """Rows that were not asked again saw the same distributions twice: the newest drift is 0 where there is one."""
    drift = batch.fields.get("drift_BLH")
    if drift is None:
        return batch
    rest_B = torch.ones(len(batch), dtype=torch.bool, device=drift.device).index_fill(0, fresh_b, False)
    unread_BL1 = batch.fields["log_probs"][..., :1].isnan()
    newest_BL1 = torch.zeros_like(drift[..., :1]).masked_fill(unread_BL1, torch.inf)
    shifted = torch.cat([newest_BL1, drift[..., :-1]], -1)
    return replace(batch, fields=batch.fields | {"drift_BLH": torch.where(rest_B[:, None, None], shifted, drift)})


_NAMES = {"top": "top_BLK", "top_ids": "top_ids_BLK"}


def _where(batch: DecodeBatch, needs: Needs) -> Tensor:
    """(B, L) the positions that the needs name."""
    if needs.where == "all":
        return batch.attend_BT[:, batch.start :]
    return batch.masked_BL if needs.where == "masked" else batch.eligible_BL


def _read(
    seen: DecodeBatch, denoiser: Denoiser, needs: Needs, hidden_bLD: Tensor, where: tuple[Tensor, int]
) -> dict[str, Tensor]:
    """Statistics at the positions ``where``, of which so many are true, zero elsewhere."""
    where_bL, reads = where
    position_N = torch.nonzero_static(where_bL.flatten(), size=reads).squeeze(1)
    hidden_ND = hidden_bLD.flatten(0, 1).index_select(0, position_N)
    found = readout.read(denoiser.logits, hidden_ND, denoiser.forbidden_ids, needs, denoiser.vocabulary)
    log_probs_NV = found.pop("log_probs", None)
    fields: dict[str, Tensor] = {}
    for name, value in found.items():
        full = value.new_zeros(where_bL.numel(), *value.shape[1:]).index_copy_(0, position_N, value)
        fields[_NAMES.get(name, f"{name}_BL")] = full.unflatten(0, where_bL.shape)
    if log_probs_NV is not None:
        fields |= _drift(seen, where_bL, log_probs_NV, needs.drift)
    return fields


def _drift(seen: DecodeBatch, where_bL: Tensor, log_probs_NV: Tensor, history: int) -> dict[str, Tensor]:
    """KL to the previous look at each position, newest first; +inf before there were two looks."""
    shape = (*where_bL.shape, log_probs_NV.shape[-1])
    before = seen.fields.get("log_probs")
    fresh_b = seen.step_B == 0
    if before is None:
        before = log_probs_NV.new_full(shape, torch.nan)
    before = before.masked_fill(fresh_b[:, None, None], torch.nan)
    past = seen.fields.get("drift_BLH")
    if past is None:
        past = log_probs_NV.new_full((*where_bL.shape, history), torch.inf)
    past = past.masked_fill(fresh_b[:, None, None], torch.inf)
    newest = log_probs_NV.new_full(where_bL.shape, torch.inf)
    newest[where_bL] = readout.drift(log_probs_NV, before[where_bL])
    kept = torch.full_like(before, torch.nan)
    kept[where_bL] = log_probs_NV
    return {"drift_BLH": torch.cat([newest.unsqueeze(-1), past[..., :-1]], -1), "log_probs": kept}
