"""The rows in flight: those of a job that are being decoded now, as tensors with a common leading axis.

A flight is replaced, never changed in place, so that recorded observations may share its tensors. Rows join
(``admit``), are looked at by the denoiser (``look``), and leave (``keep``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from components.core.errors import SettingsError
from components.core.rng import row_keys
from components.core.timer import Stopwatch
from components.core.types import Canvas, Needs, Observation, RowState
from components.decode import readout
from components.denoisers.protocol import Denoiser, attended


@dataclass(frozen=True)
class Job:
    """R rows to decode. ``prompts``: P tensors of ids; row i fills a canvas of ``length_R[i]`` masks behind
    ``prompts[prompt_R[i]]``, in blocks of ``block_R[i]``, drawn by policy number ``policy_R[i]``. ``uid_R`` and
    ``member_R`` address its noise: they, not the place in the job, decide what is drawn.

    ``canvas_RL``: ids to start from where a canvas is partly filled already (masks where it is not); None: all masks.
    ``answers``: the prompts' reference answers as canvases, for policies that need them. ``alpha_R``: the speed
    exponents asked for, of policies that are conditioned on them; None: the policy's own.

    SettingsError if a block length does not divide its canvas.
    """

    prompts: Sequence[Tensor]
    prompt_R: Tensor
    uid_R: Tensor
    member_R: Tensor
    length_R: Tensor
    block_R: Tensor
    policy_R: Tensor
    canvas_RL: Tensor | None = None
    answers: Sequence[Tensor] | None = None
    alpha_R: Tensor | None = None

    def __post_init__(self) -> None:
        for length, block in torch.stack([self.length_R, self.block_R], 1).unique(dim=0).tolist():
            if length < 1:
                raise SettingsError(f"a canvas of {length} positions; there would be nothing to decode; use at least 1")
            if block < 1 or length % block:
                fits = [d for d in range(1, length + 1) if length % d == 0]
                raise SettingsError(f"block_length={block} does not divide the canvas of {length}; the last "
                                    f"{length % block if block > 0 else length} positions would never be committed; "
                                    f"use one of {fits}")  # fmt: skip

    def __len__(self) -> int:
        return len(self.prompt_R)

    @staticmethod
    def of(
        prompts: Sequence[Tensor], length: int, block_length: int, group: int = 1, uids: Sequence[int] | None = None
    ) -> Job:
        """``group`` rows for each prompt, next to one another; ``uids`` default to the prompts' places."""
        prompt_R = torch.arange(len(prompts)).repeat_interleave(group)
        uid_P = torch.arange(len(prompts)) if uids is None else torch.tensor(uids, dtype=torch.int64)
        same = torch.ones_like(prompt_R)
        return Job(prompts, prompt_R, uid_P[prompt_R], torch.arange(group).repeat(len(prompts)), same * length,
                   same * block_length, same * 0)  # fmt: skip

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Longest prompt and longest canvas."""
        return max((len(p) for p in self.prompts), default=0), int(self.length_R.max()) if len(self) else 0


@dataclass(frozen=True)
class Flight:
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

    def keep(self, index: Tensor) -> Flight:
        """The rows that a mask or an index picks."""
        return replace(
            self,
            **{name: t[index] for name, t in self.tensors().items()},
            fields={name: t[index] for name, t in self.fields.items()},
            state=None if self.state is None else {name: t[index] for name, t in self.state.items()},
        )

    def join(self, other: Flight) -> Flight:
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
        return Observation(self.masked_BL, eligible_BL, self.step_B, self.length_B, canvas_start=start,
                           attention_layers=needs.attention, **chosen)  # fmt: skip


def admit(job: Job, rows: Tensor, denoiser: Denoiser, seed: int) -> Flight:
    """Fresh flights for the given rows of the job: prompt padded on the left, canvas all masks."""
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
    flight = Flight(
        row_B=rows.to(device), ids_BT=ids_BT.to(device), attend_BT=attend_BT.to(device),
        masked_BL=masked_BL, order_BL=torch.full((count, longest), -1, device=device), step_B=zeros_B,
        length_B=length_B.to(device), size_B=size_B, block_B=open_block(masked_BL, size_B, zeros_B), in_block_B=zeros_B,
        policy_B=job.policy_R[rows].to(device), key_B=row_keys(seed, job.uid_R[rows], job.member_R[rows]).to(device),
        prompt_B=torch.tensor(lengths, dtype=torch.int64, device=device),
        stale_B=torch.ones(count, dtype=torch.bool, device=device), start=prompt,
        answer_BL=None if job.answers is None else _answers(job.answers, job.prompt_R[rows], longest).to(device),
        alpha_B=None if job.alpha_R is None else job.alpha_R[rows].float().to(device),
    )  # fmt: skip
    return replace(flight, state=denoiser.start(Canvas(flight.ids_BT, flight.attend_BT, prompt)))


def open_block(masked_BL: Tensor, size_B: Tensor, from_B: Tensor) -> Tensor:
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


def look(
    flight: Flight, denoiser: Denoiser, needs: Needs, watch: Stopwatch, every: bool, tokens: int | None = None
) -> tuple[Flight, int]:
    """The flight with fresh fields for its stale rows (for all rows if ``every``), and how many rows were asked.

    Rows go through the denoiser in slices of about ``tokens`` sequence positions; None: ``slice_tokens``.
    """
    rows_b = torch.arange(len(flight), device=flight.row_B.device) if every else flight.stale_B.nonzero().squeeze(1)
    if len(rows_b) == 0:
        return _unchanged(flight, rows_b), 0
    parts = [_look_at(flight, some_b, denoiser, needs, watch) for some_b in _slices(flight, rows_b, tokens)]
    with watch("readout"):
        fields = _concatenate([fields for fields, _ in parts])
        state = None if parts[0][1] is None else _concatenate([state or {} for _, state in parts])
        whole = len(rows_b) == len(flight)
        if not whole:
            fields = {n: _scatter(flight, n, rows_b, value) for n, value in fields.items()}
        fresh = replace(flight, fields=fields, state=state, stale_B=torch.zeros_like(flight.stale_B))
    return (fresh if whole else _unchanged(fresh, rows_b)), len(rows_b)


def slice_tokens(device: torch.device) -> int:
    """Sequence positions in one forward. On a CPU what stays in the cache: in float32 at width 128 forwards of 1,000 to
    4,000 positions are 1.2 to 1.5 times as fast per row as those of 10,000, and no slower in bfloat16."""
    return 2560 if device.type == "cpu" else 65536


def _slices(flight: Flight, rows_b: Tensor, tokens: int | None) -> Sequence[Tensor]:
    """The rows in as few equal slices as keep within ``tokens``."""
    longest = int(flight.prompt_B.max()) + flight.masked_BL.shape[1]
    most = max(1, (tokens or slice_tokens(rows_b.device)) // longest)
    return rows_b.tensor_split(-(-len(rows_b) // most))


def _look_at(
    flight: Flight, rows_b: Tensor, denoiser: Denoiser, needs: Needs, watch: Stopwatch
) -> tuple[dict[str, Tensor], RowState | None]:
    """Fields and states of some rows of the flight."""
    if len(rows_b) < len(flight):
        flight = flight.keep(rows_b) if needs.drift else replace(flight, fields={}).keep(rows_b)
    with watch("denoiser"):
        # Columns that are padding in every row are not sent, unless a state may be laid out by columns.
        cut = flight.start - int(flight.prompt_B.max()) if flight.state is None else 0
        block_BT = None if flight.state is None else F.pad(flight.block_BL, (flight.start, 0))
        canvas = Canvas(flight.ids_BT[:, cut:], flight.attend_BT[:, cut:], flight.start - cut, block_BT)
        hidden_bTD, attention_bLLA, state = attended(denoiser, canvas, flight.state, needs.attention)
    with watch("readout"):
        hidden_bLD = hidden_bTD[:, flight.start - cut :]
        fields = _read(flight, denoiser, needs, hidden_bLD)
        if attention_bLLA is not None:
            fields["attention_BLLA"] = attention_bLLA
        if needs.features == "canvas":
            fields["features_BTD"] = hidden_bLD
        elif needs.features == "sequence":
            fields["features_BTD"] = F.pad(hidden_bTD, (0, 0, cut, 0))
    return fields, state


def _concatenate(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return dict(parts[0]) if len(parts) == 1 else {n: torch.cat([p[n] for p in parts]) for n in parts[0]}


def _scatter(flight: Flight, name: str, rows_b: Tensor, value: Tensor) -> Tensor:
    old = flight.fields.get(name)
    if old is None:
        old = value.new_zeros(len(flight), *value.shape[1:])
    return old.index_copy(0, rows_b, value)


def _unchanged(flight: Flight, looked_b: Tensor) -> Flight:
    """Rows that were not asked again saw the same distributions twice: the newest drift is 0 where there is one."""
    drift = flight.fields.get("drift_BLH")
    if drift is None:
        return flight
    rest_B = torch.ones(len(flight), dtype=torch.bool, device=drift.device).index_fill(0, looked_b, False)
    unread_BL1 = flight.fields["log_probs"][..., :1].isnan()
    newest_BL1 = torch.zeros_like(drift[..., :1]).masked_fill(unread_BL1, torch.inf)
    shifted = torch.cat([newest_BL1, drift[..., :-1]], -1)
    return replace(flight, fields=flight.fields | {"drift_BLH": torch.where(rest_B[:, None, None], shifted, drift)})


_NAMES = {"top": "top_BLK", "top_ids": "top_ids_BLK"}


def _read(seen: Flight, denoiser: Denoiser, needs: Needs, hidden_bLD: Tensor) -> dict[str, Tensor]:
    """Statistics at the positions that the needs name, zero elsewhere."""
    valid_bL = seen.attend_BT[:, seen.start :]
    where_bL = {"eligible": seen.eligible_BL, "masked": seen.masked_BL, "all": valid_bL}[needs.where]
    place_N = where_bL.flatten().nonzero().squeeze(1)
    hidden_ND = hidden_bLD.flatten(0, 1).index_select(0, place_N)
    found = readout.read(denoiser.logits, hidden_ND, denoiser.forbidden_ids, needs, denoiser.vocabulary)
    log_probs_NV = found.pop("log_probs", None)
    fields: dict[str, Tensor] = {}
    for name, value in found.items():
        full = value.new_zeros(where_bL.numel(), *value.shape[1:]).index_copy_(0, place_N, value)
        fields[_NAMES.get(name, f"{name}_BL")] = full.unflatten(0, where_bL.shape)
    if log_probs_NV is not None:
        fields |= _drift(seen, where_bL, log_probs_NV, needs.drift)
    return fields


def _drift(seen: Flight, where_bL: Tensor, log_probs_NV: Tensor, history: int) -> dict[str, Tensor]:
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
