"""A frozen dLLM that keeps its answers: rules that are swept over the same prompts meet the same canvases again.

In the default sweep of the worded sudoku three of four canvases had been met before.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..core.types import Canvas, RowState
from .protocol import Denoiser

BYTES = 2**29  # of kept answers; beyond, those go that have not been asked for the longest time


class RememberedDenoiser:
    """``inner``, a stateless denoiser on a CPU, which is not sent a canvas whose answer is kept. For one thread.

    Kept are the hidden states of the canvas. Columns of the prompt are zero: not for policies that read them. In
    bfloat16 an answer depends on the shape of the forward that gave it, so that the order of decodes may change a text;
    in the default sweep it changed none.

    credit: seconds that the looks would have taken beyond what they took: a look with answers from memory is reckoned
    at the mean per row of the others, and keeping answers is not counted.
    """

    stateless = True

    def __init__(self, inner: Denoiser, most: int = BYTES) -> None:
        self.inner, self.most = inner, most
        self.mask_id, self.forbidden_ids = inner.mask_id, inner.forbidden_ids
        self.vocabulary, self.width, self.device = inner.vocabulary, inner.width, inner.device
        self.credit = 0.0
        self._kept: dict[bytes, Tensor] = {}
        self._bytes = 0
        self._spent, self._rows = 0.0, 0

    def start(self, canvas: Canvas) -> RowState | None:
        return None

    def hidden(self, canvas: Canvas, state: RowState | None = None) -> tuple[Tensor, RowState | None]:
        begin = time.perf_counter()
        keys = _keys(canvas)
        found = [self._taken(key) for key in keys]
        new = [row for row, answer in enumerate(found) if answer is None]
        fresh_bTD, seconds = self._asked(canvas, new) if new else (None, 0.0)
        if fresh_bTD is not None and len(new) == len(keys):
            whole_BTD = fresh_bTD
            self._spent, self._rows = self._spent + seconds, self._rows + len(keys)
        else:
            old = [row for row, answer in enumerate(found) if answer is not None]
            kept_bLD = torch.stack([answer for answer in found if answer is not None])
            seconds = len(keys) * self._spent / self._rows
            whole_BTD = kept_bLD.new_zeros(*canvas.ids_BT.shape, kept_bLD.shape[-1])
            whole_BTD[old, canvas.start :] = kept_bLD
            if fresh_bTD is not None:
                whole_BTD[new] = fresh_bTD
        for row, (key, answer_LD) in enumerate(zip(keys, found, strict=True)):
            self._keep(key, whole_BTD[row, canvas.start :].clone() if answer_LD is None else answer_LD)
        self.credit += seconds - (time.perf_counter() - begin)
        return whole_BTD, None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return self.inner.logits(hidden_ND)

    def _asked(self, canvas: Canvas, rows: list[int]) -> tuple[Tensor, float]:
        """What ``inner`` answers to these rows, and in how many seconds."""
        some = canvas if len(rows) == len(canvas.ids_BT) else canvas.rows(torch.tensor(rows))
        begin = time.perf_counter()
        hidden_bTD, _ = self.inner.hidden(some, None)
        return hidden_bTD, time.perf_counter() - begin

    def _taken(self, key: bytes) -> Tensor | None:
        """The answer, where it is kept. It goes back behind the others, as the one that was asked for last."""
        answer_LD = self._kept.pop(key, None)
        self._bytes -= 0 if answer_LD is None else answer_LD.nbytes
        return answer_LD

    def _keep(self, key: bytes, answer_LD: Tensor) -> None:
        if key in self._kept:  # two rows may hold one canvas
            return
        self._kept[key] = answer_LD
        self._bytes += answer_LD.nbytes
        while self._bytes > self.most:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes


def _keys(canvas: Canvas) -> list[bytes]:
    """What each row is, whatever its padding."""
    ids_BT = canvas.ids_BT.masked_fill(~canvas.attend_BT, -1).numpy()
    first = canvas.attend_BT.to(torch.uint8).argmax(-1).tolist()
    return [row_T[begin:].tobytes() for row_T, begin in zip(ids_BT, first, strict=True)]
