"""The parts of the coupled policy that read single positions: a block over them, and what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import Observation

if TYPE_CHECKING:
    from .coupled import CoupledShape

_ODDS = 1 / 8  # brings log-odds of +-30 to a few units


class Mixer(nn.Module):
    """A pre-norm block over positions: attention, then feed-forward. It has no positions of its own."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def forward(self, x_BLW: Tensor, attend_B1LL: Tensor) -> Tensor:
        h = self.norm_1(x_BLW)
        split = (*h.shape[:2], self.heads, -1)
        q, k, v = (f(h).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend_B1LL)
        x_BLW = x_BLW + self.out(mixed.transpose(1, 2).reshape(h.shape))
        return x_BLW + self.down(F.gelu(self.up(self.norm_2(x_BLW))))


class Reader(nn.Module):
    """Every position after the block, from its log-odds, entropy, largest probabilities and mask bit.

    alpha: whether the speed exponent is an input (``add_alpha``).
    """

    def __init__(self, shape: CoupledShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.stem = nn.Linear(2 + shape.top_k, width)
        self.bit = nn.Embedding(2, width)
        if shape.positions:
            self.place = nn.Embedding(shape.positions, width)
        if shape.features:
            self.add_features(shape.features)
        self.blocks = nn.ModuleList(Mixer(width, shape.heads, shape.mlp_width) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(width)

    def add_features(self, features: int) -> None:
        """Read hidden states of this width; they count for nothing until they are trained."""
        self.features = nn.Linear(features, self.shape.width, bias=False, device=self.stem.weight.device)
        nn.init.zeros_(self.features.weight)

    def add_alpha(self) -> None:
        """Read the speed exponent; it counts for nothing until it is trained."""
        weight = self.stem.weight
        self.alpha = nn.Linear(1, self.shape.width, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.alpha.weight)
        nn.init.zeros_(self.alpha.bias)

    def forward(self, obs: Observation, alpha_B: Tensor | None = None) -> Tensor:
        """(B, L, W); alpha_B: read only after ``add_alpha``."""
        odds_BL = scaled_odds(obs, self.stem.weight.dtype)
        assert obs.entropy_BL is not None and obs.top_BLK is not None
        top_BLK = obs.top_BLK[..., : self.shape.top_k].to(odds_BL.dtype)
        given_BLF = torch.cat([odds_BL.unsqueeze(-1), obs.entropy_BL.to(odds_BL.dtype).unsqueeze(-1), top_BLK], -1)
        given_BLF = given_BLF.masked_fill(~obs.masked_BL.unsqueeze(-1), 0.0)
        x_BLW = self.stem(given_BLF) + self.bit(obs.masked_BL.long())
        length = obs.masked_BL.shape[1]
        place_L = torch.arange(length, device=odds_BL.device)
        if self.shape.positions:
            # Later positions have none: a longer canvas than the policy was trained on can still be decoded.
            place_LW = self.place(place_L.clamp(max=self.shape.positions - 1))
            x_BLW = x_BLW + place_LW.masked_fill((place_L >= self.shape.positions).unsqueeze(-1), 0.0)
        if self.shape.features:
            assert obs.features_BTD is not None
            states_BLD = obs.features_BTD[:, obs.canvas_start :].to(odds_BL.dtype)
            x_BLW = x_BLW + self.features(F.layer_norm(states_BLD, states_BLD.shape[-1:]))
        if alpha_B is not None:
            x_BLW = x_BLW + self.alpha(alpha_B.log1p().unsqueeze(-1)).unsqueeze(1)
        padding_B11L = (place_L >= obs.length_B.unsqueeze(1))[:, None, None, :]
        # Additive and expanded: ONNX Runtime wants every query's keys, and would make a bool mask into this one.
        attend_B1LL = torch.zeros_like(padding_B11L, dtype=odds_BL.dtype).masked_fill(padding_B11L, -torch.inf)
        attend_B1LL = attend_B1LL.expand(-1, -1, length, -1)
        for block in self.blocks:
            x_BLW = block(x_BLW, attend_B1LL)
        return self.norm(x_BLW)


def scaled_odds(obs: Observation, dtype: torch.dtype) -> Tensor:
    """(B, L) log-odds in units of order one, 0 where a position is committed. ValueError where they are lacking."""
    if obs.log_odds_BL is None or obs.entropy_BL is None or obs.top_BLK is None:
        raise ValueError("The observation has no log-odds, entropy or largest probabilities. Ask for them in Needs.")
    return (obs.log_odds_BL * _ODDS).to(dtype).masked_fill(~obs.masked_BL, 0.0)
