"""A dLLM written down as a function of the canvas, for exact enumeration, self-checks and tests on tiny canvases."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.types import Canvas, RowState


class FormulaDenoiser:
    """``formula(canvas) -> logits_BLV`` for the canvas positions; its hidden states are the logits themselves.

    In float64 everything that is read from it is float64 too.
    """

    stateless = True

    def __init__(self, formula: Callable[[Canvas], Tensor], vocabulary: int, mask_id: int = 0) -> None:
        self.formula, self.vocabulary, self.width, self.mask_id = formula, vocabulary, vocabulary, mask_id
        self.device = torch.device("cpu")
        self.forbidden_ids = torch.tensor([mask_id])

    def start(self, canvas: Canvas) -> RowState | None:
        return None

    def hidden(self, canvas: Canvas, state: RowState | None) -> tuple[Tensor, RowState | None]:
        return F.pad(self.formula(canvas), (0, 0, canvas.start, 0)), state

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return hidden_ND
