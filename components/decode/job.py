"""A decode job: the rows to decode, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import SettingsError
from ..core.types import Needs


@dataclass(frozen=True)
class Job:
    """R rows to decode. ``prompts``: P tensors of ids; row i fills a canvas of ``length_R[i]`` positions behind
    ``prompts[prompt_R[i]]``, in blocks of ``block_R[i]``, drawn by policy number ``policy_R[i]``. ``uid_R`` and
    ``member_R`` address its noise: they, not the place in the job, decide what is drawn.

    ``canvas_RL``: ids to start from where a canvas is partly filled already, -1 where it is not; None: all masks. What
    is given stays, and costs nothing: blocks without a mask are passed over, and the last block may be shorter.
    ``answers``: the prompts' reference answers as canvases, for policies that need them. ``alpha_R``: the speed
    exponents asked for, of policies that are conditioned on them; None: the policy's own.

    ``frontier``: only so many of the block's masks, the first ones, are eligible; None: all. ``end_ids``: a row is over
    as soon as it commits one of these with no mask before it. Masks behind it get the first of them; they are committed
    by nobody and cost nothing. Empty: no token ends a row.

    SettingsError if a block length does not divide a canvas that is all masks, or for a frontier below 1.
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
    frontier: int | None = None
    end_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.frontier is not None and self.frontier < 1:
            raise SettingsError(f"frontier={self.frontier} leaves nothing to decode. Use at least 1, or null.")
        whole_R = self.masks_R == self.length_R
        for length, block in torch.stack([self.length_R, self.block_R], 1)[whole_R].unique(dim=0).tolist():
            if length < 1:
                raise SettingsError(f"a canvas of {length} positions has nothing to decode. Use at least 1.")
            if block < 1 or length % block:
                fits = [d for d in range(1, length + 1) if length % d == 0]
                raise SettingsError(f"block_length={block} does not divide the canvas of {length}. Use one of {fits}.")

    def __len__(self) -> int:
        return len(self.prompt_R)

    @staticmethod
    def of(
        prompts: Sequence[Tensor],
        length: int,
        block_length: int | None,
        group: int = 1,
        uids: Sequence[int] | None = None,
    ) -> Job:
        """``group`` rows for each prompt, next to one another; ``uids`` default to the prompts' places. block_length
        None: the whole canvas."""
        prompt_R = torch.arange(len(prompts)).repeat_interleave(group)
        uid_P = torch.arange(len(prompts)) if uids is None else torch.tensor(uids, dtype=torch.int64)
        same = torch.ones_like(prompt_R)
        return Job(
            prompts,
            prompt_R,
            uid_P[prompt_R],
            torch.arange(group).repeat(len(prompts)),
            same * length,
            same * (length if block_length is None else block_length),
            same * 0,
        )

    @cached_property
    def masks_R(self) -> Tensor:
        """Positions to decode: what a row's forward passes are measured against."""
        if self.canvas_RL is None:
            return self.length_R
        valid_RL = torch.arange(self.canvas_RL.shape[1]) < self.length_R.unsqueeze(1)
        return ((self.canvas_RL.cpu() < 0) & valid_RL).sum(1)

    @cached_property
    def in_blocks(self) -> bool:
        """Whether any row has more than one block."""
        return bool((self.block_R < self.length_R).any())

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Longest prompt and longest canvas."""
        return max((len(p) for p in self.prompts), default=0), int(self.length_R.max()) if len(self) else 0


@dataclass(frozen=True)
class DecodeOptions:
    """How a job is decoded. The last six change the cost and, in float32 and float64, no result. In bfloat16 a row's
    logits depend on the shapes of the forwards that it shares (2 of 120 texts differed), so that workers, rows, memory
    and tokens may change a text there; ``Rollout.shares`` records what they were.

    seed    the run's seed, part of every row's noise address.
    choose  "sample" or "mode".
    force_commit  the best position where a draw is empty (evaluation always; training: train.force_commit).
    step_limit    "canvas" or "block", see above.
    record  keep every step's observation, action and log-probability.
    needs   what else the recorded observations must hold: of a reference that will be asked about them.
    record_share  share of the steps that is recorded, each with this probability.
    steer_all_masks   record rows that another policy drew with all masks eligible (expert steering: the learning
            policy is to learn the block order too).
    rows    rows in flight at most; None: as many as are of use.
    workers   parts of the job that are decoded side by side on a CPU, see ``workers``; None: as many as are of use.
    memory  bytes for the rows in flight and the forwards, which bound both; None: half of what the device has free.
    tokens  sequence positions in one forward of the denoiser at most; None: what suits the device.
    refill  waiting rows join as soon as others finish; False: the next ``rows`` start when all have finished.
    reuse   do not ask a stateless denoiser twice about one canvas.
    """

    seed: int = 0
    choose: str = "sample"
    force_commit: bool = True
    step_limit: str = "canvas"
    record: bool = False
    needs: Needs = Needs()  # noqa: RUF009 (frozen)
    record_share: float = 1.0
    steer_all_masks: bool = False
    rows: int | None = None
    workers: int | None = None
    memory: int | None = None
    tokens: int | None = None
    refill: bool = True
    reuse: bool = True
