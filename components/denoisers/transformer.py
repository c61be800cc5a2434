"""A Hugging Face decoder used as a bidirectional dLLM: LLaDA as native Llama, Dream as native Qwen2.

Every quirk of a model family ends here: the attention mask, the shift by one, the ids that must not be committed.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import DataError
from ..core.types import Canvas, RowState
from .fingerprint import fingerprint

# What is asked of this thread's forward: threads share a model.
_ASKED: ContextVar[_Asked | None] = ContextVar("asked", default=None)


class _Asked:
    """The layers whose attention is sought, the canvas' first column, and what has been found."""

    def __init__(self, layers: set[int], start: int) -> None:
        self.layers, self.start, self.found = layers, start, dict[int, Tensor]()


class TransformerDenoiser:
    """``model``: a native causal-LM class of transformers. ``tokens``: the ids that the tokenizer can decode.
    ``shifted``: the model's logits at i predict position i + 1 (Dream)."""

    stateless = True

    def __init__(self, model: Any, mask_id: int, tokens: Collection[int], shifted: bool) -> None:
        self.model = model.eval().requires_grad_(False)
        self.mask_id = mask_id
        self.shifted = shifted
        self.vocabulary: int = model.config.vocab_size
        self.width: int = model.config.hidden_size
        self.device: torch.device = getattr(model, "split_device", model.device)
        # A layer that lies on the disk comes and goes: one thread at a time.
        self._turn = Lock() if hasattr(model, "split_device") else nullcontext()
        self.positions: int = model.config.max_position_embeddings
        self.forbidden_ids = forbidden(mask_id, tokens, self.vocabulary).to(self.device)
        self.attention_layers: int = model.config.num_hidden_layers
        for layer in model.model.layers:
            layer.self_attn.register_forward_pre_hook(_look_on, with_kwargs=True)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.model)

    def start(self, canvas: Canvas) -> RowState | None:
        return None

    def hidden(self, canvas: Canvas, state: RowState | None = None) -> tuple[Tensor, RowState | None]:
        with torch.no_grad(), self._turn:
            return self.features(canvas.ids_BT, canvas.attend_BT), state

    def attended(
        self, canvas: Canvas, state: RowState | None, layers: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, RowState | None]:
        """See ``Attending``. Only these layers are computed a second time, by an explicit softmax."""
        wanted = [layer % self.attention_layers for layer in layers]
        asked = _Asked(set(wanted), canvas.start)
        token = _ASKED.set(asked)
        try:
            hidden_BTD, state = self.hidden(canvas, state)
        finally:
            _ASKED.reset(token)
        valid_BL1 = canvas.attend_BT[:, canvas.start :, None]
        # Where the model is split, each layer's is on the layer's card.
        found = [asked.found[layer].to(self.device).where(valid_BL1, 0.0) for layer in wanted]
        attention_BLLA = torch.stack(found, -1)
        return hidden_BTD, attention_BLLA, state

    def features(self, ids_BT: Tensor, attend_BT: Tensor) -> Tensor:
        """(B, T, D) last hidden states, aligned; with gradients if the caller's mode allows (pretraining)."""
        return self.aligned(self.states(ids_BT, places(attend_BT), attend_BT), attend_BT)

    def states(self, ids_BW: Tensor, place_BW: Tensor, attend_BT: Tensor, cache: Any = None) -> Tensor:
        """(B, W, D) last hidden states of W tokens at their places, as the model gives them; they attend to T columns:
        themselves, or what ``cache.update(keys, values, layer)`` makes of theirs."""
        check_positions(attend_BT, self.positions)
        states_BWD: Tensor = self.model.model(
            input_ids=ids_BW,
            # A four-dimensional mask is taken as it is: keys that are padding are closed, nothing is causal.
            attention_mask=attend_BT[:, None, None, :].expand(-1, 1, ids_BW.shape[1], -1),
            position_ids=place_BW,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return states_BWD.to(self.device)  # where the model is split, its last layer is elsewhere

    def aligned(self, states_BTD: Tensor, attend_BT: Tensor) -> Tensor:
        """The same, column i speaking of position i. Nothing speaks of a shifted row's first token: it keeps its own
        state, never that of the padding before it, which there is or is not depending on the batch."""
        if not self.shifted:
            return states_BTD
        first_BT = attend_BT & ~F.pad(attend_BT[:, :-1], (1, 0))
        return states_BTD.where(first_BT.unsqueeze(-1), F.pad(states_BTD[:, :-1], (0, 0, 1, 0)))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        with torch.no_grad(), self._turn:
            return self.model.lm_head(hidden_ND).to(self.device)


def _look_on(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a layer attends: what it is going to attend to, if somebody asks."""
    asked = _ASKED.get()
    if asked is not None and module.layer_idx in asked.layers - asked.found.keys():
        states_BTD = args[0] if args else kwargs["hidden_states"]
        with torch.no_grad():
            asked.found[module.layer_idx] = _weights(
                module, states_BTD, asked.start, kwargs["position_embeddings"], kwargs["attention_mask"]
            )


def _weights(module: Any, states_BTD: Tensor, start: int, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """(B, L, L) softmax(q k^T) of canvas positions, over the whole sequence, mean over heads; Llama, Qwen2, Qwen3."""
    cos, sin = rotary
    q_BHLd, k_BHTd = (
        _turned(_heads(module, kind, x).transpose(1, 2), cos[:, first:], sin[:, first:])
        for kind, x, first in (("q", states_BTD[:, start:], start), ("k", states_BTD, 0))
    )
    mask = mask[:, :, start:]
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, torch.finfo(torch.float32).min)
    total = torch.zeros((), device=states_BTD.device)
    heads = q_BHLd.shape[1]
    for head in range(heads):  # one at a time: all at once would be as large as the activations of several layers
        k_BTd = k_BHTd[:, head // module.num_key_value_groups]
        score_BLT = (q_BHLd[:, head] @ k_BTd.transpose(1, 2) * module.scaling).float() + mask[:, 0]
        total = total + score_BLT.softmax(-1)[..., start:]
    return total / heads


def _heads(module: Any, kind: str, states_BTD: Tensor) -> Tensor:
    """(B, T, H, d) queries or keys before the rotation; Qwen3 normalizes them head by head."""
    heads = getattr(module, f"{kind}_proj")(states_BTD).unflatten(-1, (-1, module.head_dim))
    return getattr(module, f"{kind}_norm", torch.nn.Identity())(heads)


def _turned(x_BHTd: Tensor, cos_BTd: Tensor, sin_BTd: Tensor) -> Tensor:
    """Rotary positions as the native classes apply them: on halves."""
    low, high = x_BHTd.chunk(2, -1)
    return x_BHTd * cos_BTd.unsqueeze(1) + torch.cat([-high, low], -1) * sin_BTd.unsqueeze(1)


def places(attend_BT: Tensor) -> Tensor:
    """(B, T) what the rotary positions count: a row's own tokens, from 0 on."""
    return (attend_BT.cumsum(-1) - 1).clamp(min=0)


def forbidden(mask_id: int, tokens: Collection[int], vocabulary: int) -> Tensor:
    """The ids that must not be committed: the mask, and those that are no token (a vocabulary may have holes)."""
    return torch.tensor(sorted({mask_id, *range(vocabulary)} - (set(tokens) - {mask_id})))


def check_positions(attend_BT: Tensor, positions: int) -> None:
    """DataError if a row has more tokens than the model has positions: beyond them it gives garbage without an error.
    The tokens are counted only where the padded width is beyond them too."""
    if attend_BT.shape[1] > positions and int(attend_BT.sum(-1).max()) > positions:
        raise DataError(
            f"a prompt and its canvas take {int(attend_BT.sum(-1).max())} positions, this dLLM has {positions} "
            f"(max_position_embeddings). Use a shorter prompt or canvas."
        )
