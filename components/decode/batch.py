"""The decode batch: the rows of a job that are being decoded now, as tensors with a common leading axis.

A row's life: ``admit`` (join), ``refresh.refresh`` (forward and readout), ``observation`` (what a policy sees),
``advance`` (commit, count the step), ``retire`` (leave with its result). A batch is replaced, never changed in place,
so that recorded observations may share its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.rng import row_keys
from ..core.types import Action, Canvas, Needs, Observation, RowState
from ..denoisers.protocol import Denoiser
from .job import DecodeOptions, Job


@dataclass(frozen=True)
class DecodeBatch:
    """B rows. fields: the readout's statistics (and features) by Observation field name, valid where not stale.

    eligible_BL: masked positions of the current block; with a frontier, the first so many of them.
    stale_B: the row's canvas changed since the denoiser last saw it. prompt_B: prompt lengths. asked_B: masks that the
    row began with, and the most steps it gets. block_B: the current block's number; in_block_B: steps spent in it.
    in_blocks, frontier, end_ids: the job's.
    """

    row_B: Tensor
    ids_BT: Tensor
    attend_BT: Tensor
    masked_BL: Tensor
    eligible_BL: Tensor
    order_BL: Tensor
    step_B: Tensor
    length_B: Tensor
    asked_B: Tensor
    size_B: Tensor
    block_B: Tensor
    in_block_B: Tensor
    policy_B: Tensor
    key_B: Tensor
    prompt_B: Tensor
    stale_B: Tensor
    start: int
    in_blocks: bool
    fields: dict[str, Tensor] = field(default_factory=dict)
    state: RowState | None = None
    answer_BL: Tensor | None = None
    alpha_B: Tensor | None = None
    frontier: int | None = None
    end_ids: tuple[int, ...] = ()

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
        """These rows, then the other's. Rows without a field that others have get zeros: they are stale."""
        fields = {n: torch.cat([t, other.fields.get(n, _zeros(t, len(other)))]) for n, t in self.fields.items()}
        fields |= {n: torch.cat([_zeros(t, len(self)), t]) for n, t in other.fields.items() if n not in fields}
        return replace(
            self,
            **concatenate([self.tensors(), other.tensors()]),
            fields=fields,
            state=None if self.state is None else concatenate([self.state, other.state or {}]),
        )

    @property
    def block_BL(self) -> Tensor:
        """Positions of the current block."""
        return _block(self.masked_BL.shape[1], self.block_B, self.size_B)

    def observation(self, needs: Needs) -> Observation:
        """What a policy with these needs sees."""
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
            self.eligible_BL,
            self.step_B,
            self.length_B,
            canvas_start=start,
            attention_layers=needs.attention,
            **chosen,
        )


def admit(job: Job, rows: Tensor, denoiser: Denoiser, seed: int) -> DecodeBatch:
    """Fresh decode batches for the given rows of the job: prompt padded on the left, canvas all masks but for what
    is given."""
    prompt, longest = job.shape
    device, count, length_B = denoiser.device, len(rows), job.length_R[rows]
    ids_BT, attend_BT, masked_BL = _sequences(job, rows, denoiser.mask_id)
    zeros_B = torch.zeros(count, dtype=torch.int64, device=device)
    masked_BL, size_B = masked_BL.to(device), job.block_R[rows].to(device)
    block_B = next_block(masked_BL, size_B, zeros_B) if job.in_blocks else zeros_B
    batch = DecodeBatch(
        row_B=rows.to(device),
        ids_BT=ids_BT.to(device),
        attend_BT=attend_BT.to(device),
        masked_BL=masked_BL,
        eligible_BL=eligible(masked_BL, block_B, size_B, job.in_blocks, job.frontier),
        order_BL=torch.full((count, longest), -1, device=device),
        step_B=zeros_B,
        length_B=length_B.to(device),
        asked_B=masked_BL.sum(-1),
        size_B=size_B,
        block_B=block_B,
        in_block_B=zeros_B,
        policy_B=job.policy_R[rows].to(device),
        key_B=row_keys(seed, job.uid_R[rows], job.member_R[rows]).to(device),
        prompt_B=attend_BT[:, :prompt].sum(1).to(device),
        stale_B=torch.ones(count, dtype=torch.bool, device=device),
        start=prompt,
        in_blocks=job.in_blocks,
        answer_BL=None if job.answers is None else _answers(job.answers, job.prompt_R[rows], longest).to(device),
        alpha_B=None if job.alpha_R is None else job.alpha_R[rows].float().to(device),
        frontier=job.frontier,
        end_ids=job.end_ids,
    )
    return replace(batch, state=denoiser.start(Canvas(batch.ids_BT, batch.attend_BT, prompt)))


def _sequences(job: Job, rows: Tensor, mask_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, positions to attend to, and the masks of the canvas."""
    prompt, longest = job.shape
    ids_BT = torch.full((len(rows), prompt + longest), mask_id)
    attend_BT = torch.zeros(len(rows), prompt + longest, dtype=torch.bool)
    for i, p in enumerate(job.prompt_R[rows].tolist()):
        ids = job.prompts[p]
        ids_BT[i, prompt - len(ids) : prompt] = ids
        attend_BT[i, prompt - len(ids) : prompt] = True
    masked_BL = torch.arange(longest) < job.length_R[rows].unsqueeze(1)
    attend_BT[:, prompt:] = masked_BL
    if job.canvas_RL is not None:
        given_BL = job.canvas_RL[rows].cpu()
        ids_BT[:, prompt:] = torch.where(masked_BL & (given_BL >= 0), given_BL, mask_id)
        masked_BL = masked_BL & (given_BL < 0)
    return ids_BT, attend_BT, masked_BL


def next_block(masked_BL: Tensor, size_B: Tensor, from_B: Tensor) -> Tensor:
    """(B,) the first block, from block ``from_B`` on, that has a mask; a number beyond the last if none has."""
    position_L = torch.arange(masked_BL.shape[1], device=masked_BL.device)
    ahead_BL = masked_BL & (position_L >= (from_B * size_B).unsqueeze(1))
    first_B = ahead_BL.to(torch.uint8).argmax(-1) // size_B
    return torch.where(ahead_BL.any(-1), first_B, masked_BL.shape[1])


def eligible(masked_BL: Tensor, block_B: Tensor, size_B: Tensor, in_blocks: bool, frontier: int | None) -> Tensor:
    """Masked positions of each row's block: with a frontier, the first so many of them."""
    open_BL = masked_BL & _block(masked_BL.shape[1], block_B, size_B) if in_blocks else masked_BL
    return open_BL if frontier is None else open_BL & (open_BL.cumsum(-1) <= frontier)


def _block(length: int, block_B: Tensor, size_B: Tensor) -> Tensor:
    """(B, L) the positions of block ``block_B``."""
    position_L = torch.arange(length, device=block_B.device)
    low_B1 = (block_B * size_B).unsqueeze(1)
    return (position_L >= low_B1) & (position_L < low_B1 + size_B.unsqueeze(1))


def _answers(answers: Sequence[Tensor], prompt_R: Tensor, length: int) -> Tensor:
    """(B, length) the prompts' reference answers, -1 behind the shorter ones."""
    answer_BL = torch.full((len(prompt_R), length), -1)
    for i, p in enumerate(prompt_R.tolist()):
        answer_BL[i, : len(answers[p])] = answers[p]
    return answer_BL


def advance(batch: DecodeBatch, action: Action, needs: Needs, options: DecodeOptions) -> DecodeBatch:
    """Commits, ends what is over, counts the step, moves on to the next block where this one is done."""
    commit_BL = action.committed_BL
    assert commit_BL is not None
    canvas_BL = torch.where(commit_BL, batch.fields["token_BL"], batch.ids_BT[:, batch.start :])
    masked_BL = batch.masked_BL & ~commit_BL
    order_BL = torch.where(commit_BL, batch.step_B.unsqueeze(1), batch.order_BL)
    if batch.end_ids:
        canvas_BL, masked_BL = _ended(canvas_BL, masked_BL, order_BL >= 0, batch.end_ids)
    block_B, in_block_B, stale_B = batch.block_B, batch.in_block_B, batch.stale_B | commit_BL.any(-1)
    if batch.in_blocks:
        block_B, in_block_B = _next(batch, masked_BL, options)
        if needs.where == "eligible":  # a new block without a changed canvas still needs its positions read
            stale_B = stale_B | (block_B != batch.block_B)
    return replace(
        batch,
        ids_BT=torch.cat([batch.ids_BT[:, : batch.start], canvas_BL], 1),
        masked_BL=masked_BL,
        eligible_BL=eligible(masked_BL, block_B, batch.size_B, batch.in_blocks, batch.frontier),
        order_BL=order_BL,
        step_B=batch.step_B + 1,
        block_B=block_B,
        in_block_B=in_block_B,
        stale_B=stale_B,
    )


def _next(batch: DecodeBatch, masked_BL: Tensor, options: DecodeOptions) -> tuple[Tensor, Tensor]:
    """Each row's block after this step, and the steps spent in it."""
    in_block_B, from_B = batch.in_block_B + 1, batch.block_B
    if options.step_limit == "block":
        # As many steps as there was something to commit in the block: all of it, but for what was given.
        exhausted_B = in_block_B >= (batch.block_BL & (batch.masked_BL | (batch.order_BL >= 0))).sum(-1)
        from_B = from_B + exhausted_B
    block_B = next_block(masked_BL, batch.size_B, from_B)
    return block_B, in_block_B.masked_fill(block_B != batch.block_B, 0)


def _ended(canvas_BL: Tensor, masked_BL: Tensor, decoded_BL: Tensor, end_ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Canvas and masks with the first of ``end_ids`` in the masks behind a decoded end that has no mask before it."""
    end_BL = torch.stack([canvas_BL == token for token in end_ids]).any(0) & decoded_BL
    over_BL = (end_BL & (masked_BL.cumsum(-1) == 0)).cumsum(-1) > 0
    return canvas_BL.masked_fill(masked_BL & over_BL, end_ids[0]), masked_BL & ~over_BL


def is_done(batch: DecodeBatch, options: DecodeOptions) -> Tensor:
    done_B = ~batch.masked_BL.any(-1) | (batch.step_B >= batch.asked_B)
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


def concatenate(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return dict(parts[0]) if len(parts) == 1 else {n: torch.cat([p[n] for p in parts]) for n in parts[0]}


def _zeros(like: Tensor, rows: int) -> Tensor:
    return like.new_zeros(rows, *like.shape[1:])
