"""The frozen dLLM as the decode loop sees it."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from ..core.errors import SettingsError
from ..core.types import Canvas, RowState


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


class Attending(Denoiser, Protocol):
    """A denoiser that can show its attention.

    attention_layers  how many layers it has; 0, or no such attribute, where it cannot.
    """

    attention_layers: int

    def attended(
        self, canvas: Canvas, state: RowState | None, layers: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, RowState | None]:
        """``hidden``, with (B, L, L, A) attention between canvas positions, float32, mean over heads, zero at padding.
        Negative layers count from the last. Row i is the row of position i itself, shifted layout or not."""
        ...


def attention_layers(denoiser: Denoiser) -> int:
    """How many layers' attention the denoiser can show."""
    return getattr(denoiser, "attention_layers", 0)


def attended(
    denoiser: Denoiser, canvas: Canvas, state: RowState | None, layers: tuple[int, ...]
) -> tuple[Tensor, Tensor | None, RowState | None]:
    """Hidden states, the attention of these layers (None if there are none) and the next state."""
    if not layers:
        hidden_BTD, state = denoiser.hidden(canvas, state)
        return hidden_BTD, None, state
    have = attention_layers(denoiser)
    if not all(-have <= layer < have for layer in layers):
        raise SettingsError(
            f"A policy reads the attention of layers {layers}; {type(denoiser).__name__} shows {have}. "
            f"Use layers that it has, no cache, or a policy without attention."
        )
    return cast(Attending, denoiser).attended(canvas, state, layers)
