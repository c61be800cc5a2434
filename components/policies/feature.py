"""Paper B's policy (arXiv 2510.05725): one transformer block over the frozen model's hidden states of the whole
sequence, prompt included, then a small MLP per canvas position; one position is drawn, from a softmax over all eligible
ones or over the most confident of them.

The block reads the last hidden states. (The release reads what enters the last block, at LLaDA's width; any denoiser's
states do here.) Weights start at random, the last layer at zero, so that the first policy is uniform: the reference of
the Top-K realisation itself. The other two realisations start from a policy that was taught by ``distil``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import SettingsError
from ..core.types import Needs, Observation
from ..maths.distributions import ActionDistribution, Categorical
from .confidence import rotate
from .heuristics import shortlist

FLAGS = 2  # masked, in the current block


@dataclass(frozen=True)
class FeatureShape:
    """The shape of the policy's parameters; stored beside its weights.

    features: width of the frozen model's hidden states, and of the block. mlp_width: of its gated feed-forward. hidden:
    layers of the MLP. top_k: probabilities beside the block's output. shortlist: number of most confident positions
    to draw from, 0 for all.
    """

    features: int
    heads: int = 4
    mlp_width: int = 256
    hidden: int = 3
    top_k: int = 8
    shortlist: int = 0

    def __post_init__(self) -> None:
        if self.features < 1 or self.features % (2 * self.heads):
            raise SettingsError(
                f"hidden states of width {self.features} with {self.heads} heads leave rotary positions no even width "
                f"per head. Use heads of which twice the number divides the width."
            )
        if self.hidden < 1 or self.top_k < 1 or self.shortlist < 0:
            raise SettingsError(
                f"feature policy with hidden={self.hidden}, top_k={self.top_k} and shortlist={self.shortlist}. "
                f"Use at least 1, 1 and 0."
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The statistics that are read, by the names of the confidence policy's inputs."""
        return ("top",)


class GatedBlock(nn.Module):
    """A block of the frozen model's kind: RMSNorm, attention, RMSNorm, SwiGLU; no bias. LLaDA's own, at its width."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width, 1e-5), nn.RMSNorm(width, 1e-5)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, mlp_width, bias=False), nn.Linear(width, mlp_width, bias=False)
        self.down = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x_BTD: Tensor, attend_B1TT: Tensor) -> Tensor:
        h = self.norm_1(x_BTD)
        split = (*h.shape[:2], self.heads, -1)
        q, k, v = (f(h).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=attend_B1TT)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(h.shape))
        h = self.norm_2(x_BTD)
        return x_BTD + self.down(F.silu(self.gate(h)) * self.up(h))


class FeaturePolicy(nn.Module):
    """Utilities (B, L) from an Observation; -inf outside the shortlist, if there is one.

    temperature: inside the likelihood, in training too. scale, speed: of the confidence policy, without effect here.
    denoiser: fingerprint of the dLLM whose hidden states it reads.
    """

    def __init__(self, shape: FeatureShape, temperature: float = 1.0) -> None:
        super().__init__()
        self.shape, self.temperature, self.scale, self.speed = shape, temperature, 1.0, 1.0
        self.denoiser = ""
        width = shape.features + shape.top_k + FLAGS
        self.block = GatedBlock(shape.features, shape.heads, shape.mlp_width)
        self.norm = nn.RMSNorm(shape.features, 1e-5)
        layers = [(nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.SiLU()) for _ in range(shape.hidden)]
        self.layers = nn.Sequential(*(part for layer in layers for part in layer))
        self.head = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    @property
    def needs(self) -> Needs:
        # A shortlist is ranked by the log-odds.
        return Needs("masked", self.shape.top_k, "sequence", statistics=("log_odds",) if self.shape.shortlist else ())

    def score(self, obs: Observation) -> Tensor:
        if obs.features_BTD is None or obs.attend_BT is None or obs.top_BLK is None:
            raise ValueError(
                "The observation has no features of the whole sequence, or no top-k probabilities. Ask for both in "
                "Needs."
            )
        weight = self.head.weight
        x_BTD = obs.features_BTD.to(weight.dtype)
        closed_B11T = ~obs.attend_BT[:, None, None, :]
        attend_B1TT = torch.zeros_like(closed_B11T, dtype=weight.dtype).masked_fill(closed_B11T, -torch.inf)
        x_BTD = self.norm(self.block(x_BTD, attend_B1TT.expand(-1, -1, x_BTD.shape[1], -1)))
        top_BLK = obs.top_BLK[..., : self.shape.top_k].masked_fill(~obs.masked_BL.unsqueeze(-1), 0.0)
        flags_BL2 = torch.stack([obs.masked_BL, obs.eligible_BL], -1)
        x_BLF = torch.cat([x_BTD[:, obs.canvas_start :], top_BLK.to(weight.dtype), flags_BL2.to(weight.dtype)], -1)
        utilities_BL = self.head(self.layers(x_BLF)).squeeze(-1)
        if self.shape.shortlist:
            utilities_BL = utilities_BL.masked_fill(~shortlist(obs, self.shape.shortlist), -torch.inf)
        return utilities_BL

    forward = score

    def distribution(self, obs: Observation) -> ActionDistribution:
        return Categorical(self.score(obs), obs.eligible_BL, self.temperature)

    def describe(self) -> dict[str, Any]:
        return {"kind": "feature", "shape": asdict(self.shape)}
