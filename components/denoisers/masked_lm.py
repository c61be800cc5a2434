"""Any masked language model of transformers (BERT, RoBERTa, DistilBERT, ModernBERT, ESM ...) as a dLLM.

Rows are sent with their padding on the right, as these models were trained, so that positions that a model counts by
column are right too. The output head is the model's own code, run on hidden states in place of its encoder's.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ..core.types import Canvas, RowState
from .fingerprint import fingerprint
from .transformer import check_positions, forbidden


class MaskedLMDenoiser:
    """``model``: a native ...ForMaskedLM class. ``tokens``: the ids that the tokenizer can decode. ``pad_id``: what
    stands at padding."""

    stateless = True

    def __init__(self, model: Any, mask_id: int, tokens: Collection[int], pad_id: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.mask_id, self.pad_id = mask_id, pad_id
        self.width: int = model.config.hidden_size
        self.device: torch.device = model.device
        self.positions = _positions(model)
        self._head = _head(model)
        self.vocabulary: int = self.logits(torch.zeros(1, self.width, device=self.device, dtype=model.dtype)).shape[-1]
        self.forbidden_ids = forbidden(mask_id, tokens, self.vocabulary).to(self.device)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.model)

    def start(self, canvas: Canvas) -> RowState | None:
        return None

    def hidden(self, canvas: Canvas, state: RowState | None = None) -> tuple[Tensor, RowState | None]:
        check_positions(canvas.attend_BT, self.positions)
        order_BT = (~canvas.attend_BT).to(torch.uint8).argsort(dim=-1, stable=True)
        attend_BT = canvas.attend_BT.gather(1, order_BT)
        ids_BT = canvas.ids_BT.gather(1, order_BT).masked_fill(~attend_BT, self.pad_id)
        with torch.no_grad():
            states_BTD = self.model.base_model(input_ids=ids_BT, attention_mask=attend_BT.long())[0]
        back_BTD = order_BT.argsort(dim=-1).unsqueeze(-1).expand_as(states_BTD)
        return states_BTD.gather(1, back_BTD), state

    def logits(self, hidden_ND: Tensor) -> Tensor:
        with torch.no_grad():
            return self._head(inputs_embeds=hidden_ND.unsqueeze(0)).logits[0]


class _Given(nn.Module):
    """An encoder that returns the hidden states it is given, whatever else comes with them."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)  # pyright: ignore[reportArgumentType]


def _head(model: Any) -> Any:
    """The model with the same weights and ``_Given`` for its encoder."""
    head = copy.copy(model)
    head._modules = dict(model._modules) | {model.base_model_prefix: _Given()}
    return head


def _positions(model: Any) -> int:
    """The longest row. RoBERTa's table also has rows for padding and what is before it; YOSO's has two that are never
    read."""
    stated = model.config.max_position_embeddings
    for name, module in model.named_modules():
        table, before = getattr(module, "weight", None), getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(table, Tensor) and table.ndim == 2:
            return min(stated, len(table) - (0 if before is None else before + 1))
    return stated
