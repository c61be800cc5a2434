"""Our policy: it chooses a set by the predictions at each position and by pair shifts (``maths.coupled``).

Two small networks read the positions. The first gives every two of them a *shift* w_ij: what a commit at i adds to the
log-odds of j. It learns by probing the frozen model (``trainers.influence``) and is then left as it is: the shifts are
facts of the frozen model. The second starts as a copy of the first's reader and gives every position a bias b_j and its
risk mixture; distillation and reinforcement train it. The last layers of the shifts, of the bias and of what hidden
states add start at zero, so that an untrained policy decides on the frozen model's log-odds alone.

Nothing depends on a position's place, unless the shape has absolute positions or relative offsets.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ..core.errors import SettingsError
from ..core.types import Needs, Observation
from ..maths.accept_or_skip import AcceptOrSkip
from ..maths.coupled import CoupledPlackettLuce
from ..maths.distributions import ActionDistribution, Categorical
from .pairs import Shifts
from .reader import Reader

SETS = {"coupled": CoupledPlackettLuce, "accept": AcceptOrSkip}
ACTIONS = (*SETS, "categorical")


@dataclass(frozen=True)
class CoupledShape:
    """The shape of the policy's parameters; stored beside its weights.

    top_k: probabilities per position, and ids that two positions are compared by. width, heads, mlp_width, blocks: of
    the block over positions. pair_width: of the pair head. pair_shifts: False leaves the shifts out.

    attention: layers of the frozen model whose attention is read, negative ones from the last. offsets: relative
    offsets are told apart up to so many positions, 0 for not at all. positions: so many first positions have an
    embedding each, 0 for none. features: width of the frozen model's hidden states, 0 to leave them out.

    action: the draw. "accept": a set, each candidate along the greedy path taken or skipped. "coupled": a set in
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

    temperature: inside the likelihood. speed: the alpha of a conditioned policy where the observation has none
    (``alpha_B``). offset: added to tau; above 0 more is committed per step, below 0 less. scale: of the confidence
    policy, without effect here.
    """

    def __init__(self, shape: CoupledShape, temperature: float = 1.0, speed: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.shape, self.temperature, self.scale, self.speed, self.offset = shape, temperature, 1.0, speed, offset
        self.denoiser = ""  # fingerprint of the dLLM whose hidden states it reads
        width = shape.width
        self.reader = Reader(shape)
        if shape.pair_shifts:
            self.shifts = Shifts(shape)
        self.bias, self.mix = nn.Linear(width, 1), nn.Linear(width, 1)
        for layer, start in ((self.bias, 0.0), (self.mix, math.log(shape.mix / (1 - shape.mix)))):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, start)
        self.log_kappa = nn.Parameter(torch.tensor(math.log(shape.kappa)))
        self.tau, self.cost = nn.Parameter(torch.tensor(shape.tau)), nn.Parameter(torch.tensor(shape.cost))
        if shape.alphas:
            self.add_alpha_input(shape.alphas)

    def add_alpha_input(self, alphas: tuple[float, ...]) -> None:
        """Make the speed exponent an input, through a projection that starts at zero and so changes no decision."""
        self.shape = replace(self.shape, alphas=tuple(alphas))
        self.reader.add_alpha()

    def drop_features(self, width: int) -> None:
        """Ignore hidden states from now on; those of another dLLM, of this width, mean something else."""
        self.shape, self.denoiser = replace(self.shape, features=width), ""
        for reader in self._readers():
            reader.shape = self.shape
            reader.add_features(width)
            reader.features.requires_grad_(reader is self.reader)

    def start_from_shifts(self) -> None:
        """Read single positions as the shifts do: what probing learned is where the decisions start from."""
        if self.shape.pair_shifts:
            self.reader.load_state_dict(self.shifts.reader.state_dict())

    def _readers(self) -> list[Reader]:
        return [self.reader, self.shifts.reader] if self.shape.pair_shifts else [self.reader]

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

    def _positions(self, obs: Observation) -> Tensor:
        """(B, L, W) the positions that bias and mix are read from."""
        alpha_B = None
        if self.shape.alphas:
            assert obs.log_odds_BL is not None
            speed_B = torch.full_like(obs.log_odds_BL[:, 0], self.speed) if obs.alpha_B is None else obs.alpha_B
            alpha_B = speed_B.to(self.tau)
        return self.reader(obs, alpha_B)

    def forward(self, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """The exported graph: bias_BL, added to the frozen model's log-odds; shift_BLL, zero on the diagonal and where
        either position is not masked; mix_BL, the joint probability's share of the risk."""
        x_BLW = self._positions(obs)
        bias_BL, mix_BL = self.bias(x_BLW).squeeze(-1), torch.sigmoid(self.mix(x_BLW).squeeze(-1))
        if self.shape.pair_shifts:
            return bias_BL, self.shifts(obs), mix_BL
        return bias_BL, torch.zeros_like(bias_BL.unsqueeze(2) * bias_BL.unsqueeze(1)), mix_BL

    def score(self, obs: Observation) -> Tensor:
        """(B, L) utilities of the first pick."""
        return self.utilities(obs, self.bias(self._positions(obs)).squeeze(-1))

    def utilities(self, obs: Observation, bias_BL: Tensor) -> Tensor:
        """``score`` from the bias that ``forward`` gives."""
        assert obs.log_odds_BL is not None
        odds_BL = obs.log_odds_BL.to(bias_BL.dtype).masked_fill(~obs.masked_BL, 0.0)
        return self.log_kappa.exp() * (odds_BL + bias_BL + self.tau + self.offset)

    def distribution(self, obs: Observation) -> ActionDistribution:
        if self.shape.action == "categorical":
            return Categorical(self.score(obs), obs.eligible_BL, self.temperature)
        return self.over(obs, *self(obs))

    def over(self, obs: Observation, bias_BL: Tensor, shift_BLL: Tensor, mix_BL: Tensor) -> ActionDistribution:
        """The distribution of sets from what ``forward`` gives."""
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


def draws_by_shifts(policy: object) -> TypeGuard[CoupledPolicy]:
    """Whether the policy draws sets by pair shifts."""
    return isinstance(policy, CoupledPolicy) and policy.shape.pair_shifts and policy.shape.action != "categorical"
