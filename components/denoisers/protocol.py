"""The frozen dLLM as the decode loop sees it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from components.core.types import Canvas, RowState


class Denoiser(Protocol):
    """Row i of what it returns always speaks of position i (a Dream-like model shifts inside).

    mask_id        the id of a masked position.
    forbidden_ids  int64, never committed: the mask itself, ids that the tokenizer cannot decode.
    vocabulary     width of the logits.
    width          width of the hidden states.
    device         where the canvas must be.
    stateless      True: the same canvas always gets the same answer, so that it need not be asked twice.
    """

    mask_id: int
    forbidden_ids: Tensor
    vocabulary: int
    width: int
    stateless: bool
    device: torch.device

    def start(self, canvas: Canvas) -> RowState | None:
        """The state of rows that have not been looked at yet; None for a stateless denoiser."""
        ...

    def hidden(self, canvas: Canvas, state: RowState | None) -> tuple[Tensor, RowState | None]:
        """(B, T, D) features that predict each position, and the rows' next state."""
        ...

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """(N, V) logits of any N positions; called only for positions that somebody reads."""
        ...
