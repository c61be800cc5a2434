"""The decode batch: the rows of a job that are being decoded now, as tensors with a common leading axis.

A row's life: ``admit`` (join), ``refresh`` (forward and readout), ``observation`` (what a policy sees), ``advance``
(commit, count the step), ``retire`` (leave with its result). A batch is replaced, never changed in place, so that
recorded observations may share its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from components.core.errors import CheckpointError
from components.core.rng import row_keys
from components.core.timer import Timer
from components.core.types import Action, Canvas, Needs, Observation, RowState
from components.decode import readout
from components.decode.job import DecodeOptions, Job
from components.denoisers.protocol import Denoiser, attended


@dataclass(frozen=True)
class DecodeBatch:
    """B rows. fields: the readout's statistics (and features) by Observation field name, valid where not stale.

    stale_B: the row's canvas changed since the denoiser last saw it. prompt_B: prompt lengths. block_B: the current
    block's number; in_block_B: steps spent in it.
    """

    row_B: Tensor
    ids_BT: Tensor
    attend_BT: Tensor
    masked_BL: Tensor
    order_BL: Tensor
    step_B: Tensor
    length_B: Tensor
    size_B: Tensor
    block_B: Tensor
    in_block_B: Tensor
    policy_B: Tensor
    key_B: Tensor
    prompt_B: Tensor
    stale_B: Tensor
    start: int
    fields: dict[str, Tensor] = field(default_factory=dict)
    state: RowState | None = None
    answer_BL: Tensor | None = None
    alpha_B: Tensor | None = None

    def __len__(self) -> int:
        return len(self.row_B)

    def tensors(self) -> dict[str, Tensor]:
        return {name: v for name, v in vars(self).items() if isinstance(v, Tensor)}

    def keep(self, index: Tensor) -> DecodeBatch:
        """The rows that a mask or an index picks."""
        return replace(
            self,
            **{name: t[index] for name, t in self.tensors().items()},
            fields={name: t[index] for name, t in self.fields.items()},
            state=None if self.state is None else {name: t[index] for name, t in self.state.items()},
        )

    def join(self, other: DecodeBatch) -> DecodeBatch:
        """These rows, then the other's; fresh rows have no fields yet and get zeros (they are stale)."""
        return replace(
            self,
            **_concatenate([self.tensors(), other.tensors()]),
            fields={n: torch.cat([t, t.new_zeros(len(other), *t.shape[1:])]) for n, t in self.fields.items()},
            state=None if self.state is None else _concatenate([self.state, other.state or {}]),
        )

    @property
    def block_BL(self) -> Tensor:
        """Positions of the current block."""
        position_L = torch.arange(self.masked_BL.shape[1], device=self.masked_BL.device)
        low_B1 = (self.block_B * self.size_B).unsqueeze(1)
        return (position_L >= low_B1) & (position_L < low_B1 + self.size_B.unsqueeze(1))

    @property
    def eligible_BL(self) -> Tensor:
        """Masked positions of the current block."""
        return self.masked_BL & self.block_BL

    def observation(self, needs: Needs, eligible_BL: Tensor) -> Observation:
        chosen = dict(self.fields)
        chosen.pop("log_probs", None)
        if not needs.drift:
            chosen.pop("drift_BLH", None)
        if needs.features == "sequence":
            chosen["attend_BT"] = self.attend_BT
        if needs.answer and self.answer_BL is not None:
            chosen["answer_BL"] = self.answer_BL
        if self.alpha_B is not None:
            chosen["alpha_B"] = self.alpha_B
        start = self.start if needs.features == "sequence" else 0
        return Observation(
            self.masked_BL,
            eligible_BL,
            self.step_B,
            self.length_B,
            canvas_start=start,
            attention_layers=needs.attention,
            **chosen,
        )


def admit(job: Job, rows: Tensor, denoiser: Denoiser, seed: int) -> DecodeBatch:
    """Fresh decode batches for the given rows of the job: prompt padded on the left, canvas all masks."""
    prompt, longest = job.shape
    device, count = denoiser.device, len(rows)
    ids_BT = torch.full((count, prompt + longest), denoiser.mask_id)
    attend_BT = torch.zeros(count, prompt + longest, dtype=torch.bool)
    lengths = []
    for i, p in enumerate(job.prompt_R[rows].tolist()):
        ids = job.prompts[p]
        ids_BT[i, prompt - len(ids) : prompt] = ids
        attend_BT[i, prompt - len(ids) : prompt] = True
        lengths.append(len(ids))
    length_B = job.length_R[rows]
    masked_BL = torch.arange(longest) < length_B.unsqueeze(1)
    attend_BT[:, prompt:] = masked_BL
    if job.canvas_RL is not None:
        ids_BT[:, prompt:] = torch.where(masked_BL, job.canvas_RL[rows].cpu(), denoiser.mask_id)
        masked_BL = masked_BL & (ids_BT[:, prompt:] == denoiser.mask_id)
    zeros_B = torch.zeros(count, dtype=torch.int64, device=device)
    masked_BL, size_B = masked_BL.to(device), job.block_R[rows].to(device)
    batch = DecodeBatch(
        row_B=rows.to(device),
        ids_BT=ids_BT.to(device),
        attend_BT=attend_BT.to(device),
        masked_BL=masked_BL,
        order_BL=torch.full((count, longest), -1, device=device),
        step_B=zeros_B,
        length_B=length_B.to(device),
        size_B=size_B,
        block_B=next_block(masked_BL, size_B, zeros_B),
        in_block_B=zeros_B,
        policy_B=job.policy_R[rows].to(device),
        key_B=row_keys(seed, job.uid_R[rows], job.member_R[rows]).to(device),
        prompt_B=torch.tensor(lengths, dtype=torch.int64, device=device),
        stale_B=torch.ones(count, dtype=torch.bool, device=device),
        start=prompt,
        answer_BL=None if job.answers is None else _answers(job.answers, job.prompt_R[rows], longest).to(device),
        alpha_B=None if job.alpha_R is None else job.alpha_R[rows].float().to(device),
    )
    return replace(batch, state=denoiser.start(Canvas(batch.ids_BT, batch.attend_BT, prompt)))


def next_block(masked_BL: Tensor, size_B: Tensor, from_B: Tensor) -> Tensor:
    """(B,) the first block, from block ``from_B`` on, that has a mask; a number beyond the last if none has."""
    position_L = torch.arange(masked_BL.shape[1], device=masked_BL.device)
    ahead_BL = masked_BL & (position_L >= (from_B * size_B).unsqueeze(1))
    first_B = ahead_BL.to(torch.uint8).argmax(-1) // size_B
    return torch.where(ahead_BL.any(-1), first_B, masked_BL.shape[1])


def _answers(answers: Sequence[Tensor], prompt_R: Tensor, length: int) -> Tensor:
    """(B, length) the prompts' reference answers, -1 behind the shorter ones."""
    answer_BL = torch.full((len(prompt_R), length), -1)
    for i, p in enumerate(prompt_R.tolist()):
        answer_BL[i, : len(answers[p])] = answers[p]
    return answer_BL


def refresh(
    batch: DecodeBatch, denoiser: Denoiser, needs: Needs, timer: Timer, every: bool, tokens: int | None = None
) -> tuple[DecodeBatch, int]:
    """The batch with fresh fields for its stale rows (for all rows if ``every``), and how many rows were asked.

    Rows go through the denoiser in slices of about ``tokens`` sequence positions; None: ``tokens_per_forward``.
    """
    rows_b = torch.arange(len(batch), device=batch.row_B.device) if every else batch.stale_B.nonzero().squeeze(1)
    if len(rows_b) == 0:
        return _unchanged(batch, rows_b), 0
    parts = [_forward(batch, some_b, denoiser, needs, timer) for some_b in _slices(batch, rows_b, tokens)]
    with timer("readout"):
        fields = _concatenate([fields for fields, _ in parts])
        state = None if parts[0][1] is None else _concatenate([state or {} for _, state in parts])
        whole = len(rows_b) == len(batch)
        if not whole:
            fields = {n: _scatter(batch, n, rows_b, value) for n, value in fields.items()}
        fresh = replace(batch, fields=fields, state=state, stale_B=torch.zeros_like(batch.stale_B))
    return (fresh if whole else _unchanged(fresh, rows_b)), len(rows_b)


def tokens_per_forward(device: torch.device) -> int:
    """Sequence positions in one forward. On a CPU what stays in the cache: in float32 at width 128 forwards of 1,000 to
    4,000 positions are 1.2 to 1.5 times as fast per row as those of 10,000, and no slower in bfloat16."""
    return 2560 if device.type == "cpu" else 65536


def _slices(batch: DecodeBatch, rows_b: Tensor, tokens: int | None) -> Sequence[Tensor]:
    """The rows in as few equal slices as keep within ``tokens``."""
    longest = int(batch.prompt_B.max()) + batch.masked_BL.shape[1]
    most = max(1, (tokens or tokens_per_forward(rows_b.device)) // longest)
    return rows_b.tensor_split(-(-len(rows_b) // most))


def _forward(
    batch: DecodeBatch, rows_b: Tensor, denoiser: Denoiser, needs: Needs, timer: Timer
) -> tuple[dict[str, Tensor], RowState | None]:
    """Fields and states of some rows of the batch."""
    if len(rows_b) < len(batch):
        batch = batch.keep(rows_b) if needs.drift else replace(batch, fields={}).keep(rows_b)
    with timer("denoiser"):
        # Columns that are padding in every row are not sent, unless a state may be laid out by columns.
        cut = batch.start - int(batch.prompt_B.max()) if batch.state is None else 0
        block_BT = None if batch.state is None else F.pad(batch.block_BL, (batch.start, 0))
        canvas = Canvas(batch.ids_BT[:, cut:], batch.attend_BT[:, cut:], batch.start - cut, block_BT)
        hidden_bTD, attention_bLLA, state = attended(denoiser, canvas, batch.state, needs.attention)
    with timer("readout"):
        hidden_bLD = hidden_bTD[:, batch.start - cut :]
        fields = _read(batch, denoiser, needs, hidden_bLD)
        if attention_bLLA is not None:
            fields["attention_BLLA"] = attention_bLLA
        if needs.features == "canvas":
            fields["features_BTD"] = hidden_bLD
        elif needs.features == "sequence":
            fields["features_BTD"] = F.pad(hidden_bTD, (0, 0, cut, 0))
        _require_finite(batch, fields)
    return fields, state


def _require_finite(batch: DecodeBatch, fields: Mapping[str, Tensor]) -> None:
    """CheckpointError where logits or hidden states that are read are not finite: they would decode to anything."""
    for name, what in (("confidence_BL", "logits"), ("features_BTD", "hidden states")):
        value = fields.get(name)
        if value is None or bool(value.isfinite().all()):
            continue
        row, column = (~value.isfinite()).nonzero()[0, :2].tolist()
        at = column - (value.shape[1] - batch.masked_BL.shape[1])
        raise CheckpointError(
            f"row {int(batch.row_B[row])} of the job, canvas position {at}, step {int(batch.step_B[row])}: the dLLM's "
            f"{what} ({name}) are NaN or infinite. Load it in float32, or compare its weights with their source."
        )


def _concatenate(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return dict(parts[0]) if len(parts) == 1 else {n: torch.cat([p[n] for p in parts]) for n in parts[0]}


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


def _read(seen: DecodeBatch, denoiser: Denoiser, needs: Needs, hidden_bLD: Tensor) -> dict[str, Tensor]:
    """Statistics at the positions that the needs name, zero elsewhere."""
    valid_bL = seen.attend_BT[:, seen.start :]
    where_bL = {"eligible": seen.eligible_BL, "masked": seen.masked_BL, "all": valid_bL}[needs.where]
    position_N = where_bL.flatten().nonzero().squeeze(1)
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


def advance(batch: DecodeBatch, action: Action, needs: Needs, options: DecodeOptions) -> DecodeBatch:
    """Commits, counts the step, moves on to the next block where this one is done."""
    commit_BL = action.committed_BL
    assert commit_BL is not None
    canvas_BL = torch.where(commit_BL, batch.fields["token_BL"], batch.ids_BT[:, batch.start :])
    masked_BL = batch.masked_BL & ~commit_BL
    changed_B = commit_BL.any(-1)
    in_block_B = batch.in_block_B + 1
    exhausted_B = in_block_B >= batch.size_B if options.step_limit == "block" else torch.zeros_like(changed_B)
    block_B = next_block(masked_BL, batch.size_B, batch.block_B + exhausted_B)
    next_B = block_B != batch.block_B
    # A new block without a changed canvas still needs its positions read.
    stale_B = batch.stale_B | changed_B | (next_B if needs.where == "eligible" else torch.zeros_like(next_B))
    return replace(
        batch,
        ids_BT=torch.cat([batch.ids_BT[:, : batch.start], canvas_BL], 1),
        masked_BL=masked_BL,
        order_BL=torch.where(commit_BL, batch.step_B.unsqueeze(1), batch.order_BL),
        step_B=batch.step_B + 1,
        block_B=block_B,
        in_block_B=in_block_B.masked_fill(next_B, 0),
        stale_B=stale_B,
    )


def is_done(batch: DecodeBatch, options: DecodeOptions) -> Tensor:
    done_B = ~batch.masked_BL.any(-1) | (batch.step_B >= batch.length_B)
    return done_B | (batch.block_B * batch.size_B >= batch.length_B) if options.step_limit == "block" else done_B


def retire(batch: DecodeBatch, done_B: Tensor) -> dict[str, Tensor]:
    """The results of finished rows and nothing else: neither prompts nor fields outlive them."""
    valid_bL = batch.attend_BT[done_B, batch.start :]
    return {
        "row": batch.row_B[done_B],
        "canvas_RL": batch.ids_BT[done_B, batch.start :].masked_fill(~valid_bL, -1),
        "order_RL": batch.order_BL[done_B],
        "nfe_R": batch.step_B[done_B],
        "finished_R": ~batch.masked_BL[done_B].any(-1),
        "policy_R": batch.policy_B[done_B],
    }
