"""Key-value caches over a frozen dLLM, approximate: an option of the denoiser, off by default (Fast-dLLM, arXiv
2505.22618).

Attention is bidirectional, so that what is committed changes every position's keys and values; a cache goes on using
those of the last refresh, which is a whole forward at the first look at each block. In between only a window is sent:

prefix   from the current block to the end; the prompt's and the earlier blocks' keys and values are kept
dual     the current block alone; what lies behind it is kept too

Exact at a refresh. In between, what is outside the window is *stale*: its hidden states, and so its statistics, are
those of the last refresh. Rules over the current block never see them; a policy that looks further (``where``
"masked" or "all", features) does, and should be trained with the cache that it is decoded with.

A row's window and refreshes depend on its own history alone. Every step asks again, also after an empty draw: it is
cheap. One column before the block is sent too where the logits are shifted: it predicts the block's first position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import SettingsError
from ..core.types import Canvas, RowState
from .protocol import Denoiser
from .transformer import TransformerDenoiser, places

KINDS = ("prefix", "dual")


class CachedDenoiser:
    """``inner`` with a cache of ``kind``. A row carries the keys and values of its last refresh, its last hidden states
    and the first column of its window. Canvases must say which block is current (``block_BT``)."""

    stateless = False

    def __init__(self, inner: TransformerDenoiser, kind: str) -> None:
        if kind not in KINDS:
            raise SettingsError(f"cache {kind!r} is unknown. Use one of {KINDS}, or no cache.")
        self.inner, self.kind = inner, kind
        self.mask_id, self.forbidden_ids = inner.mask_id, inner.forbidden_ids
        self.vocabulary, self.width, self.device = inner.vocabulary, inner.width, inner.device

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    def start(self, canvas: Canvas) -> RowState:
        config, (rows, whole) = self.inner.model.config, canvas.ids_BT.shape
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        zero = torch.zeros((), dtype=self.inner.model.dtype, device=self.device)
        kept = (rows, config.num_hidden_layers, config.num_key_value_heads, whole, size)
        return {
            "keys": zero.new_zeros(kept),
            "values": zero.new_zeros(kept),
            "hidden": zero.new_zeros(rows, whole, self.width),
            "first": torch.full((rows,), -1, device=self.device),
        }

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return self.inner.logits(hidden_ND)

    def hidden(self, canvas: Canvas, state: RowState | None) -> tuple[Tensor, RowState]:
        """Rows whose block is new are refreshed, the others' windows recomputed; see ``Denoiser``."""
        assert state is not None
        first_B, last_B = self._window(canvas)
        new_B = first_B != state["first"]
        state = {**state, "first": first_B}
        with torch.no_grad():
            for chosen_B, act in ((new_B, self._refreshed), (~new_B, self._recomputed)):
                rows_b = chosen_B.nonzero().squeeze(1)
                if len(rows_b) == len(chosen_B):
                    state |= act(canvas, state, first_B, last_B)
                elif len(rows_b):
                    part = {name: t[rows_b] for name, t in state.items()}
                    fresh = act(canvas.rows(rows_b), part, first_B[rows_b], last_B[rows_b])
                    state |= {name: state[name].index_copy(0, rows_b, t) for name, t in fresh.items()}
        return self.inner.aligned(state["hidden"], canvas.attend_BT), state

    def _refreshed(self, canvas: Canvas, state: RowState, first_B: Tensor, last_B: Tensor) -> dict[str, Tensor]:
        kept = _Kept([], [], self.device)
        hidden_BTD = self.inner.states(canvas.ids_BT, places(canvas.attend_BT), canvas.attend_BT, kept)
        return {"hidden": hidden_BTD, "keys": torch.stack(kept.keys, 1), "values": torch.stack(kept.values, 1)}

    def _recomputed(self, canvas: Canvas, state: RowState, first_B: Tensor, last_B: Tensor) -> dict[str, Tensor]:
        """The cache stays as it is: inside the window it is never read again before the next refresh."""
        widest = int((last_B - first_B).max()) + 1
        # A narrower window repeats its last column, which is written once more with the same values.
        offset_W = torch.arange(widest, device=first_B.device)
        column_BW = (first_B.unsqueeze(1) + offset_W).minimum(last_B.unsqueeze(1))
        fresh_BWD = self.inner.states(
            canvas.ids_BT.gather(1, column_BW),
            places(canvas.attend_BT).gather(1, column_BW),
            canvas.attend_BT,
            _Window(state["keys"], state["values"], column_BW),
        )
        index_BWD = column_BW.unsqueeze(-1).expand_as(fresh_BWD)
        return {"hidden": state["hidden"].scatter(1, index_BWD, fresh_BWD)}

    def _window(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """The first and the last column that are recomputed, of every row."""
        if canvas.block_BT is None:
            raise ValueError(
                "The canvas has no block_BT, which the cache needs to recompute the current block. Give it one."
            )
        begin_B = canvas.block_BT.to(torch.uint8).argmax(-1)
        first_B = (begin_B - int(self.inner.shifted)).clamp(min=0)
        if self.kind == "prefix":
            return first_B, torch.full_like(first_B, canvas.ids_BT.shape[1] - 1)
        return first_B, begin_B + canvas.block_BT.sum(-1).clamp(min=1) - 1


def with_cache(denoiser: Denoiser, kind: str) -> Denoiser:
    """The denoiser with a cache: "prefix" or "dual"; "none": as it is. SettingsError for any other, and for a denoiser
    whose attention cannot be cached."""
    if kind == "none":
        return denoiser
    if not isinstance(denoiser, TransformerDenoiser):
        raise SettingsError(f"cache={kind!r}: {type(denoiser).__name__} keeps no keys and values. Use cache: none.")
    return CachedDenoiser(denoiser, kind)


@dataclass(frozen=True)
class _Kept:
    """A transformers cache that only notes every layer's keys and values (B, heads, T, d), all on one device."""

    keys: list[Tensor]
    values: list[Tensor]
    device: torch.device

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        self.keys.append(keys.to(self.device, values.dtype))  # rotated in float32, maybe
        self.values.append(values.to(self.device))
        return keys, values


@dataclass(frozen=True)
class _Window:
    """A transformers cache that puts the window's fresh keys and values in the place of the kept ones, on the layer's
    device."""

    keys: Tensor
    values: Tensor
    column_BW: Tensor

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        device = values.device
        index = self.column_BW.to(device)[:, None, :, None].expand(keys.shape)
        kept, fresh = self.keys[:, layer].to(device), keys.to(values.dtype)
        return kept.scatter(2, index, fresh), self.values[:, layer].to(device).scatter(2, index, values)
