"""Our policy: what the frozen model predicts at each position, and by how much a commit at one moves the log-odds at
another. A set is chosen with both (``maths.coupled``).

A small block reads the positions. A pair head then reads every two of them and gives their *shift* w_ij: what a commit
at i adds to the log-odds of j. The shifts are learned by probing the frozen model (``trainers.influence``). The last
layers of the shifts, of the bias b_j and of what hidden states say start at zero, so that an untrained policy decides
on the frozen model's log-odds alone.

Nothing depends on where a position is, unless absolute positions or relative offsets are asked for.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.core.errors import SettingsError
from components.core.types import Needs, Observation
from components.maths.accept_or_skip import AcceptOrSkip
from components.maths.coupled import CoupledPlackettLuce
from components.maths.distributions import ActionDistribution, Categorical
from components.policies.pairs import Mixer, Pairs

SETS = {"coupled": CoupledPlackettLuce, "accept": AcceptOrSkip}
ACTIONS = (*SETS, "categorical")
_ODDS = 1 / 8  # brings log-odds of +-30 to a few units


@dataclass(frozen=True)
class CoupledShape:
    """What fixes the policy's parameters; stored beside its weights.

    top_k: probabilities per position, and ids that two positions are compared by. width, heads, mlp_width, blocks: of
    the block over positions. pair_width: of the pair head. pair_shifts: False leaves the shifts out.

    attention: layers of the frozen model whose attention is read, negative ones from the last. offsets: relative
    offsets are told apart up to so many positions, 0 for not at all. positions: so many first positions have an
    embedding each, 0 for none. features: width of the frozen model's hidden states, 0 to leave them out.

    action: what is drawn. "accept": a set, each candidate along the greedy path taken or skipped. "coupled": a set in
    the order of its picks, with STOP. "categorical": one position. alphas: the speed exponents that one policy is
    trained for, and conditioned on. kappa, tau, cost, mix: where these start, see ``maths.coupled``.
    """

    top_k: int = 8
    width: int = 32
    heads: int = 4
    mlp_width: int = 64
    blocks: int = 1
    pair_width: int = 32
    pair_shifts: bool = True
    attention: tuple[int, ...] = ()
    offsets: int = 0
    positions: int = 0
    features: int = 0
    action: str = "coupled"
    alphas: tuple[float, ...] = ()
    kappa: float = 1.0
    tau: float = 0.0
    cost: float = 5.0
    mix: float = 0.9

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise SettingsError(f"policy action {self.action!r} is unknown. Choose from {ACTIONS}.")
        if self.width % self.heads:
            raise SettingsError(f"policy width {self.width} does not split into {self.heads} heads. Use a multiple.")
        if min(self.top_k, self.blocks, self.pair_width) < 1:
            raise SettingsError(
                f"coupled policy with top_k={self.top_k}, blocks={self.blocks} and pair_width={self.pair_width}. "
                f"Use at least 1 of each."
            )
        if not 0 < self.mix < 1 or self.kappa <= 0:
            raise SettingsError(
                f"coupled policy with mix={self.mix} and kappa={self.kappa}. Use a mix between 0 and 1 "
                f"and a positive kappa."
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The statistics that are read, by the names of the confidence policy's inputs."""
        return ("log_odds", "entropy", "top")


class CoupledPolicy(nn.Module):
    """Bias, shifts and risk mixture from an Observation; see the module's docstring.

    temperature is inside the likelihood. speed is the alpha that a conditioned policy is asked for where the
    observation does not say (``alpha_B``). offset is added to tau: above 0 more is committed per step, below 0 less.
    scale is a knob of the confidence policy and changes nothing here.
    """

    def __init__(self, shape: CoupledShape, temperature: float = 1.0, speed: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.shape, self.temperature, self.scale, self.speed, self.offset = shape, temperature, 1.0, speed, offset
        self.denoiser = ""  # fingerprint of the dLLM whose hidden states it reads
        width = shape.width
        self.stem = nn.Linear(2 + shape.top_k, width)
        self.bit = nn.Embedding(2, width)
        if shape.positions:
            self.place = nn.Embedding(shape.positions, width)
        if shape.features:
            self.features = nn.Linear(shape.features, width, bias=False)
            nn.init.zeros_(self.features.weight)
        self.blocks = nn.ModuleList(Mixer(width, shape.heads, shape.mlp_width) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(width)
        if shape.pair_shifts:
            self.pairs = Pairs(width, shape.heads, shape.pair_width, shape.top_k, shape.attention, shape.offsets)
        self.bias, self.mix = nn.Linear(width, 1), nn.Linear(width, 1)
        for layer, start in ((self.bias, 0.0), (self.mix, math.log(shape.mix / (1 - shape.mix)))):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, start)
        self.log_kappa = nn.Parameter(torch.tensor(math.log(shape.kappa)))
        self.tau, self.cost = nn.Parameter(torch.tensor(shape.tau)), nn.Parameter(torch.tensor(shape.cost))
        if shape.alphas:
            self.add_alpha_input(shape.alphas)

    def add_alpha_input(self, alphas: tuple[float, ...]) -> None:
        """From now on the speed exponent is an input; it enters through a projection that starts at zero, so that
        nothing changes until it is trained."""
        self.shape = replace(self.shape, alphas=tuple(alphas))
        self.alpha = nn.Linear(1, self.shape.width, device=self.tau.device, dtype=self.tau.dtype)
        nn.init.zeros_(self.alpha.weight)
        nn.init.zeros_(self.alpha.bias)

    def drop_features(self, width: int) -> None:
        """From now on hidden states, of this width, count for nothing: those of another dLLM mean something else."""
        self.shape, self.denoiser = replace(self.shape, features=width), ""
        self.features = nn.Linear(width, self.shape.width, bias=False, device=self.tau.device)
        nn.init.zeros_(self.features.weight)

    @property
    def needs(self) -> Needs:
        features = "canvas" if self.shape.features else "none"
        return Needs(
            "masked",
            self.shape.top_k,
            features,
            statistics=("log_odds", "entropy"),
            top_ids=True,
            attention=self.shape.attention if self.shape.pair_shifts else (),
        )

    def _positions(self, obs: Observation) -> tuple[Tensor, Tensor]:
        """(B, L, W) the positions after the block, and (B, L) their scaled log-odds."""
        if obs.log_odds_BL is None or obs.entropy_BL is None or obs.top_BLK is None:
            raise ValueError(
                "The observation has no log-odds, entropy or largest probabilities. Ask for them in Needs."
            )
        odds_BL = (obs.log_odds_BL * _ODDS).to(self.tau.dtype).masked_fill(~obs.masked_BL, 0.0)
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
        if self.shape.alphas:
            alpha_B = torch.full_like(odds_BL[:, 0], self.speed) if obs.alpha_B is None else obs.alpha_B.to(odds_BL)
            x_BLW = x_BLW + self.alpha(alpha_B.log1p().unsqueeze(-1)).unsqueeze(1)
        padding_B11L = (place_L >= obs.length_B.unsqueeze(1))[:, None, None, :]
        # Additive and expanded: ONNX Runtime wants every query's keys, and would make a bool mask into this one.
        attend_B1LL = torch.zeros_like(padding_B11L, dtype=odds_BL.dtype).masked_fill(padding_B11L, -torch.inf)
        attend_B1LL = attend_B1LL.expand(-1, -1, length, -1)
        for block in self.blocks:
            x_BLW = block(x_BLW, attend_B1LL)
        return self.norm(x_BLW), odds_BL

    def forward(self, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """What is exported: bias_BL, added to the frozen model's log-odds; shift_BLL, zero on the diagonal and where
        either position is not masked; mix_BL, the joint probability's share of the risk."""
        x_BLW, odds_BL = self._positions(obs)
        bias_BL, mix_BL = self.bias(x_BLW).squeeze(-1), torch.sigmoid(self.mix(x_BLW).squeeze(-1))
        if self.shape.pair_shifts:
            return bias_BL, self.pairs(x_BLW, obs, odds_BL), mix_BL
        return bias_BL, torch.zeros_like(odds_BL.unsqueeze(2) * odds_BL.unsqueeze(1)), mix_BL

    def score(self, obs: Observation) -> Tensor:
        """(B, L) utilities before anything is taken."""
        return self.utilities(obs, self.bias(self._positions(obs)[0]).squeeze(-1))

    def utilities(self, obs: Observation, bias_BL: Tensor) -> Tensor:
        """``score`` from the bias that ``forward`` gives."""
        assert obs.log_odds_BL is not None
        odds_BL = obs.log_odds_BL.to(bias_BL.dtype).masked_fill(~obs.masked_BL, 0.0)
        return self.log_kappa.exp() * (odds_BL + bias_BL + self.tau + self.offset)

    def distribution(self, obs: Observation) -> ActionDistribution:
        if self.shape.action == "categorical":
            return Categorical(self.score(obs), obs.eligible_BL, self.temperature)
        bias_BL, shift_BLL, mix_BL = self(obs)
        assert obs.log_odds_BL is not None
        return SETS[self.shape.action](
            obs.log_odds_BL,
            bias_BL,
            shift_BLL,
            mix_BL,
            obs.eligible_BL,
            kappa=self.log_kappa.exp(),
            tau=self.tau + self.offset,
            cost=self.cost,
            temperature=self.temperature,
        )

    def describe(self) -> dict[str, Any]:
        return {"kind": "coupled", "shape": asdict(self.shape)}
