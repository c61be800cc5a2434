"""The part of the coupled policy that reads pairs of positions: their shifts, learned by probing the frozen model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import Observation
from .reader import Reader, scaled_odds

if TYPE_CHECKING:
    from .coupled import CoupledShape

_FLOOR = 1e-4  # of attention, before its logarithm


class Shifts(nn.Module):
    """A reader of its own and a head over every two positions.

    Only ``trainers.influence`` trains it: its parameters need no gradient elsewhere. What distillation and
    reinforcement learn is what to do with the shifts, which stay those of the frozen model.
    """

    def __init__(self, shape: CoupledShape) -> None:
        super().__init__()
        self.reader = Reader(shape)
        self.pairs = Pairs(shape.width, shape.heads, shape.pair_width, shape.top_k, shape.attention, shape.offsets)
        self.requires_grad_(False)

    def forward(self, obs: Observation) -> Tensor:
        """(B, L, L), zero on the diagonal and where either is not masked. Row i: what a commit at i adds."""
        return self.pairs(self.reader(obs), obs, scaled_odds(obs, self.reader.stem.weight.dtype))


class Pairs(nn.Module):
    """The shift of every pair (i, j), from both positions and from statistics of the two together.

    width, heads: of the positions that are compared. pair_width: of the comparison. The others: see ``CoupledShape``.
    """

    def __init__(
        self, width: int, heads: int, pair_width: int, top_k: int, attention: tuple[int, ...] = (), offsets: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.top_k, self.attention, self.reach = heads, top_k, attention, offsets
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.left, self.right = nn.Linear(width, pair_width), nn.Linear(width, pair_width, bias=False)
        # Per head q.k; both log-odds; overlap, same token, either's probability of the other's token; attention.
        self.known = nn.Linear(heads + 6 + 2 * len(attention), pair_width, bias=False)
        if offsets:
            self.offset = nn.Embedding(2 * offsets + 1, pair_width)
            nn.init.normal_(self.offset.weight, std=0.1)
        self.out = nn.Linear(pair_width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_BLW: Tensor, obs: Observation, odds_BL: Tensor) -> Tensor:
        """(B, L, L), zero on the diagonal and where either is not masked. Row i: what a commit at i adds."""
        length = x_BLW.shape[1]
        split = (*x_BLW.shape[:2], self.heads, -1)
        q, k = (f(x_BLW).view(split).transpose(1, 2) for f in (self.query, self.key))
        alike_BHLL = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        odds_BLL = odds_BL.unsqueeze(2).expand(-1, -1, length)
        parts = [alike_BHLL.permute(0, 2, 3, 1), odds_BLL.unsqueeze(-1), odds_BLL.transpose(1, 2).unsqueeze(-1)]
        parts.append(shared(obs, self.top_k).to(x_BLW.dtype))
        if self.attention:
            log_BLLA = (_attention(obs, self.attention).to(x_BLW.dtype) + _FLOOR).log() / 4
            parts += [log_BLLA, log_BLLA.transpose(1, 2)]
        h_BLLP = self.left(x_BLW).unsqueeze(2) + self.right(x_BLW).unsqueeze(1) + self.known(torch.cat(parts, -1))
        place_L = torch.arange(length, device=x_BLW.device)
        if self.reach:
            h_BLLP = h_BLLP + self.offset((place_L - place_L.unsqueeze(1)).clamp(-self.reach, self.reach) + self.reach)
        open_BLL = obs.masked_BL.unsqueeze(2) & obs.masked_BL.unsqueeze(1) & (place_L != place_L.unsqueeze(1))
        return self.out(F.gelu(h_BLLP)).squeeze(-1).masked_fill(~open_BLL, 0.0)


def shared(obs: Observation, top_k: int) -> Tensor:
    """(B, L, L, 4) statistics of the largest probabilities at i and j: sum_v p_i(v) p_j(v); whether both predict one
    token; p_j(t_i); p_i(t_j). A token that is not among the ``top_k`` of a position has probability 0 there."""
    assert obs.top_BLK is not None and obs.top_ids_BLK is not None
    # Beside a policy that needs more of the largest probabilities there are more than ours.
    top_BLK, ids_BLK = obs.top_BLK[..., :top_k], obs.top_ids_BLK[..., :top_k]
    # A row has at most L K tokens, whatever the vocabulary: numbered within the row, products of probabilities are one
    # matrix product, eight times as fast as comparing every two ids.
    ids_BN, place_BN = ids_BLK.flatten(1).sort(-1)
    number_BN = F.pad((ids_BN[:, 1:] != ids_BN[:, :-1]).long(), (1, 0)).cumsum(-1)
    number_BLK = torch.zeros_like(number_BN).scatter(1, place_BN, number_BN).view_as(ids_BLK)
    p_BLN = torch.zeros_like(number_BN, dtype=top_BLK.dtype).unsqueeze(1).repeat(1, ids_BLK.shape[1], 1)
    p_BLN = p_BLN.scatter(-1, number_BLK, top_BLK)
    token_BL = number_BLK[..., 0]
    # [b, j, i]: p_j(t_i)
    theirs_BLL = p_BLN.gather(2, token_BL.unsqueeze(1).expand(-1, ids_BLK.shape[1], -1))
    same_BLL = (token_BL.unsqueeze(2) == token_BL.unsqueeze(1)).to(top_BLK.dtype)
    return torch.stack([p_BLN @ p_BLN.transpose(1, 2), same_BLL, theirs_BLL.transpose(1, 2), theirs_BLL], -1)


def _attention(obs: Observation, layers: tuple[int, ...]) -> Tensor:
    """(B, L, L, A) of these layers; beside a policy that needs others there are more."""
    if obs.attention_BLLA is None:
        raise ValueError("The observation has no attention_BLLA. Ask for it in Needs.")
    return torch.stack([obs.attention_BLLA[..., obs.attention_layers.index(layer)] for layer in layers], -1)
