"""Paper A's policy (arXiv 2512.09106, section 4 and appendix): one AdaLN transformer block over per-position
statistics of the frozen model, conditioned per position on the mask bit and the time.

``PAPER`` is the published configuration, 331,265 parameters. The defaults differ where measurement said so: log-odds
instead of the probability (which is useless near 1 on a linear scale), entropy and margin beside it, and optionally the
frozen model's hidden states, which enter through a projection that starts at zero.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import SettingsError
from ..core.types import STATISTICS, Needs, Observation
from ..maths.distributions import ActionDistribution, Bernoulli, Categorical
from ..maths.plackett_luce import DPLS
from .protocol import field_of

INPUTS = ("confidence", "log_odds", "entropy", "margin", "bound", "top")
ACTIONS = {"bernoulli": Bernoulli, "dpls": DPLS, "categorical": Categorical}
_SCALE = {"log_odds": 1 / 8}  # brings +-30 to a few units; the others are of order one as they are


@dataclass(frozen=True)
class Shape:
    """The shape of the policy's parameters; stored beside its weights.

    features: width of the frozen model's hidden states, 0 to leave them out. period: of the sinusoidal time embedding
    (paper: 1, which makes all frequencies equal). bias: the output's first bias (paper: -2, an initial unmasking
    probability of .12). where: see Needs ("all" re-predicts committed positions, as in the paper). alphas: the speed
    exponents that one policy is trained for, and conditioned on; none: trained for one, and blind to it. rounded: as in
    the paper's release, probabilities and time embedding pass through bfloat16 (what is above .998 is 1).
    """

    inputs: tuple[str, ...] = ("log_odds", "entropy", "margin")
    top_k: int = 0
    features: int = 0
    width: int = 64
    heads: int = 2
    mlp_width: int = 256
    period: float = 1.0
    bias: float = -2.0
    where: str = "masked"
    action: str = "bernoulli"
    alphas: tuple[float, ...] = ()
    rounded: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.inputs if name not in INPUTS]
        if unknown or not self.inputs:
            raise SettingsError(f"policy inputs {self.inputs}: {unknown or 'none'} to decide on. Choose from {INPUTS}.")
        if self.action not in ACTIONS:
            raise SettingsError(f"policy action {self.action!r} is unknown. Choose from {sorted(ACTIONS)}.")
        if self.width % (2 * self.heads):
            raise SettingsError(
                f"policy width {self.width} with {self.heads} heads leaves rotary positions no even width per head. "
                f"Use a width divisible by {2 * self.heads}."
            )
        if ("top" in self.inputs) != (self.top_k > 0):
            raise SettingsError(
                f"policy inputs {self.inputs} do not agree with top_k={self.top_k}. Name the input top and give "
                f"top_k of at least 1, or neither."
            )


PAPER = Shape(inputs=("confidence",), width=128, heads=2, mlp_width=512, where="all", rounded=True)


def sinusoid(value_B: Tensor, width: int, period: float) -> Tensor:
    """(B, width): cosines, then sines, at frequencies period^(-i/half)."""
    half = width // 2
    frequency = torch.exp(-math.log(period) * torch.arange(half, device=value_B.device) / half)
    angle = value_B.unsqueeze(-1) * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


def rotate(x_BHLd: Tensor) -> Tensor:
    """Rotary positions, base 10000, on interleaved pairs; the halves are written back one after the other."""
    length, size = x_BHLd.shape[-2:]
    frequency = 10000.0 ** (-torch.arange(0, size, 2, device=x_BHLd.device) / size)
    angle = torch.arange(length, device=x_BHLd.device).unsqueeze(-1) * frequency
    cos, sin = angle.cos().to(x_BHLd.dtype), angle.sin().to(x_BHLd.dtype)
    even, odd = x_BHLd[..., 0::2], x_BHLd[..., 1::2]
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)


def entropy_before(entropy_BL: Tensor, eligible_BL: Tensor) -> Tensor:
    """(B, L) summed entropy of the eligible positions that are more certain than this one (ties: the earlier ones).

    EB-Sampler (arXiv 2505.24857) compares it with gamma: a threshold on this one input is that heuristic.
    """
    place_L = torch.arange(entropy_BL.shape[1], device=entropy_BL.device)
    mine_BL1, theirs_B1L = entropy_BL.unsqueeze(2), entropy_BL.unsqueeze(1)
    earlier_LL = place_L.unsqueeze(0) < place_L.unsqueeze(1)
    before_BLL = (theirs_B1L < mine_BL1) | ((theirs_B1L == mine_BL1) & earlier_LL)
    return (before_BLL & eligible_BL.unsqueeze(1)).to(entropy_BL.dtype).matmul(entropy_BL.unsqueeze(2)).squeeze(2)


class Block(nn.Module):
    """LayerNorm, AdaLN, attention, gate; LayerNorm, AdaLN, feed-forward, gate. The gate is 1 + alpha, so that the
    zero-initialised modulation leaves an ordinary pre-norm block."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def modulate(self, condition_B2W: Tensor, bit_BL1: Tensor) -> list[Tensor]:
        """Scale, shift, gate of either half, per position. They depend on (row, mask bit) alone: two vectors per row,
        which positions take by a product with their one-hot bit. Exact, and cheaper than to select out of (B, L, 6W):
        by a fifth of the policy's update, by a tenth of its exported step."""
        g1, b1, a1, g2, b2, a2 = self.modulation(condition_B2W).chunk(6, -1)
        bit_BL2 = torch.cat([~bit_BL1, bit_BL1], -1).to(condition_B2W.dtype)
        return [bit_BL2 @ part_B2W for part_B2W in (1 + g1, b1, 1 + a1, 1 + g2, b2, 1 + a2)]

    def forward(self, x_BLW: Tensor, condition_B2W: Tensor, bit_BL1: Tensor, attend_B1LL: Tensor) -> Tensor:
        g1, b1, a1, g2, b2, a2 = self.modulate(condition_B2W, bit_BL1)
        h = self.norm_1(x_BLW) * g1 + b1
        split = (*h.shape[:2], self.heads, -1)
        q, k, v = (f(h).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=attend_B1LL)
        x_BLW = x_BLW + self.out(mixed.transpose(1, 2).reshape(h.shape)) * a1
        h = self.norm_2(x_BLW) * g2 + b2
        return x_BLW + self.down(F.gelu(self.up(h))) * a2


class ConfidencePolicy(nn.Module):
    """Utilities (B, L) from an Observation; see the module's docstring.

    temperature, scale: test-time factors of the Bernoulli action (paper: tau_pi and beta). speed: the alpha of a
    conditioned policy where the observation has none (``alpha_B``). denoiser: fingerprint of
    the dLLM whose hidden states it reads, "" if it reads none.
    """

    def __init__(self, shape: Shape, temperature: float = 1.0, scale: float = 1.0, speed: float = 1.0) -> None:
        super().__init__()
        self.shape, self.temperature, self.scale, self.speed = shape, temperature, scale, speed
        self.denoiser = ""
        width = shape.width
        self.stem = nn.Linear(len([i for i in shape.inputs if i != "top"]) + shape.top_k, width)
        self.bit = nn.Embedding(2, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.block = Block(width, shape.heads, shape.mlp_width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        nn.init.constant_(self.head.bias, shape.bias)
        if shape.features:
            self.features = nn.Linear(shape.features, width, bias=False)
            nn.init.zeros_(self.features.weight)
        if shape.alphas:
            self.add_alpha_input(shape.alphas)

    def add_alpha_input(self, alphas: tuple[float, ...]) -> None:
        """Make the speed exponent an input, through a projection that starts at zero and so changes no decision."""
        self.shape = replace(self.shape, alphas=tuple(alphas))
        self.alpha = nn.Linear(1, self.shape.width, device=self.head.weight.device, dtype=self.head.weight.dtype)
        nn.init.zeros_(self.alpha.weight)
        nn.init.zeros_(self.alpha.bias)

    def drop_features(self, width: int) -> None:
        """Ignore hidden states from now on; those of another dLLM, of this width, mean something else."""
        self.shape, self.denoiser = replace(self.shape, features=width), ""
        self.features = nn.Linear(width, self.shape.width, bias=False, device=self.head.weight.device)
        nn.init.zeros_(self.features.weight)

    @property
    def needs(self) -> Needs:
        read = {"entropy" if name == "bound" else name for name in self.shape.inputs}
        features = "canvas" if self.shape.features else "none"
        return Needs(self.shape.where, self.shape.top_k, features, statistics=read & set(STATISTICS))

    def _inputs(self, obs: Observation) -> Tensor:
        """(B, L, F) the inputs, zero outside the positions that this policy reads."""
        parts = []
        for name in self.shape.inputs:
            value = field_of(obs, {"top": "top_BLK", "bound": "entropy_BL"}.get(name, f"{name}_BL"))
            if name == "bound":
                value = torch.log(entropy_before(value, obs.eligible_BL) + 0.01)
            # Beside a policy that needs more of the largest probabilities there are more than ours.
            wide = value[..., : self.shape.top_k] if name == "top" else value.unsqueeze(-1) * _SCALE.get(name, 1.0)
            parts.append(self._rounded(wide) if name in ("confidence", "top") else wide)
        inputs_BLF = torch.cat(parts, -1).to(self.stem.weight.dtype)
        if self.shape.where == "all":
            return inputs_BLF
        # Beside a policy that reads more positions there are more than ours.
        ours_BL = obs.masked_BL if self.shape.where == "masked" else obs.eligible_BL
        return inputs_BLF.masked_fill(~ours_BL.unsqueeze(-1), 0.0)

    def _rounded(self, value: Tensor) -> Tensor:
        return value.to(torch.bfloat16).to(value.dtype) if self.shape.rounded else value

    def score(self, obs: Observation) -> Tensor:
        weight = self.stem.weight
        x_BLW = self.stem(self._inputs(obs))
        if self.shape.features:
            assert obs.features_BTD is not None
            states_BLD = obs.features_BTD[:, obs.canvas_start :].to(weight.dtype)
            x_BLW = x_BLW + self.features(F.layer_norm(states_BLD, states_BLD.shape[-1:]))
        time_B = obs.step_B.to(weight.dtype) / obs.length_B.to(weight.dtype)
        condition_BW = self.time(self._rounded(sinusoid(time_B, self.shape.width, self.shape.period)))
        if self.shape.alphas:
            alpha_B = torch.full_like(time_B, self.speed) if obs.alpha_B is None else obs.alpha_B.to(time_B)
            condition_BW = condition_BW + self.alpha(alpha_B.log1p().unsqueeze(-1))
        condition_B2W = condition_BW.unsqueeze(1) + self.bit.weight
        position_L = torch.arange(obs.masked_BL.shape[1], device=weight.device)
        padding_B11L = (position_L >= obs.length_B.unsqueeze(1))[:, None, None, :]
        # Additive and expanded: ONNX Runtime wants every query's keys, and would make a bool mask into this one.
        attend_B1LL = torch.zeros_like(padding_B11L, dtype=weight.dtype).masked_fill(padding_B11L, -torch.inf)
        attend_B1LL = attend_B1LL.expand(-1, -1, obs.masked_BL.shape[1], -1)
        x_BLW = self.block(x_BLW, condition_B2W, obs.masked_BL.unsqueeze(-1), attend_B1LL)
        return self.head(self.norm(x_BLW)).squeeze(-1)

    forward = score

    def distribution(self, obs: Observation) -> ActionDistribution:
        utilities_BL = self.score(obs)
        if self.shape.action == "bernoulli":
            return Bernoulli(utilities_BL, obs.eligible_BL, self.temperature, self.scale)
        return ACTIONS[self.shape.action](utilities_BL, obs.eligible_BL, self.temperature)

    def describe(self) -> dict[str, Any]:
        return {"kind": "confidence", "shape": asdict(self.shape)}
