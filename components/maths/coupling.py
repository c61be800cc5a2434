"""The common part of distributions with pair shifts: utilities that move with each commit, and the risk of a set.

With S the positions taken so far in this step, each position j has

    cond_j(S) = l_j + sum over i in S of w_ij
    u_j(S)    = kappa (cond_j(S) + b_j + tau - c risk(S)) / temperature

risk(S) sums, over the positions taken after the first, each at the time when it was taken,

    m_i softplus(-cond_i) + (1 - m_i) (softplus(-cond_i) - softplus(-l_i)),

softplus(-x) being -log sigma(x). The first term is the joint probability's share, the second its rise since the step
began. A rise is negative where the earlier ones support i, so that a risk may fall below zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..core.devices import reads_wait
from ..core.types import Action
from .distributions import ActionDistribution, p_log, same_kind, take
from .masked import masked_argmax, sort_eligible
from .walks import CoupledScores


@dataclass(frozen=True)
class Coupled:
    """The fields of a distribution with pair shifts.

    log_odds_BL  l, of the present prediction at each position.
    bias_BL      b, what the policy adds to each position.
    shift_BLL    w[b, i, j], what taking i adds to the log-odds of j; row i is the cause.
    mix_BL       m in [0, 1], the share of the joint probability in a position's risk.
    eligible_BL  what may be drawn. Elsewhere the other fields may hold anything.
    kappa        above 0; tau: larger draws more; cost: c, of the risk. Each is a number, a tensor of no axes or one
                 number per row (B,).
    temperature  divides the utilities.
    """

    log_odds_BL: Tensor
    bias_BL: Tensor
    shift_BLL: Tensor
    mix_BL: Tensor
    eligible_BL: Tensor
    kappa: Tensor | float = 1.0
    tau: Tensor | float = 0.0
    cost: Tensor | float = 0.0
    temperature: float = 1.0

    @property
    def logits_BL(self) -> Tensor:
        """The utilities of an empty set, before the temperature."""
        log_odds_BL = log_odds(self)
        return utility(replace(self, temperature=1.0), log_odds_BL, torch.zeros_like(log_odds_BL[:, :1]))

    @property
    def fallback_B(self) -> Tensor:
        return masked_argmax(self.logits_BL, self.eligible_BL)


def utility(coupled: Coupled, cond: Tensor, risk: Tensor) -> Tensor:
    """u of every position, where ``cond`` (B, ..., L) are the log-odds and ``risk`` (B, ..., 1) the risk so far."""
    bias = _among(coupled.bias_BL, coupled.eligible_BL)  # 0 where nothing may be drawn
    bias = bias if cond.ndim == 2 else bias.unsqueeze(1)
    kappa, tau, cost = (_per_row(value, cond.ndim) for value in (coupled.kappa, coupled.tau, coupled.cost))
    scaled = kappa * (cond + bias + tau - cost * risk)
    return scaled if coupled.temperature == 1 else scaled / coupled.temperature


def _per_row(value: Tensor | float, ndim: int) -> Tensor | float:
    """A number for all rows as it is, one number per row (B,) with axes to broadcast."""
    return value.reshape(-1, *[1] * (ndim - 1)) if isinstance(value, Tensor) and value.ndim else value


def _among(values_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """The values where the mask is set, 0 elsewhere. Values outside the mask reach neither result nor gradient."""
    return values_BL.masked_fill(~mask_BL, 0.0)


def log_odds(coupled: Coupled) -> Tensor:
    """(B, L) log-odds before anything is taken, 0 where nothing may be."""
    return _among(coupled.log_odds_BL, coupled.eligible_BL)


def surprise(log_odds: Tensor) -> Tensor:
    """-log sigma(log_odds), rounded once from float64, so that the walk in numpy has the same bits."""
    return -F.logsigmoid(log_odds.double()).to(log_odds.dtype)


def added_risk(mix: Tensor, cond: Tensor, before: Tensor) -> Tensor:
    """The risk of taking a position at log-odds ``cond``. before: its log-odds when the step began."""
    now, start = surprise(cond), surprise(before)
    return mix * now + (1 - mix) * (now - start)


def utilities_along(coupled: Coupled, order_BK: Tensor, taken_BK: Tensor) -> Tensor:
    """(B, K + 1, L) the utilities before each of K given decisions, and after the last one.

    order_BK: the position that each decision is about. taken_BK: whether it was taken, and so moves what follows.
    """
    log_odds_BL, length = log_odds(coupled), coupled.eligible_BL.shape[-1]
    rows_BKL = coupled.shift_BLL.gather(1, order_BK.unsqueeze(-1).expand(-1, -1, length))
    taken_BK = taken_BK & coupled.eligible_BL.gather(1, order_BK)
    moves_BKL = _among(rows_BKL, taken_BK.unsqueeze(-1) & coupled.eligible_BL.unsqueeze(1))
    cond_BkL = torch.cat([log_odds_BL.unsqueeze(1), moves_BKL], 1).cumsum(1)
    cond_BK = cond_BkL[:, :-1].gather(-1, order_BK.unsqueeze(-1)).squeeze(-1)
    mix_BL = _among(coupled.mix_BL, coupled.eligible_BL)
    added_BK = added_risk(mix_BL.gather(1, order_BK), cond_BK, log_odds_BL.gather(1, order_BK))
    charged_BK = taken_BK & (taken_BK.cumsum(1) > 1)  # the first one is free
    risk_Bk = F.pad(_among(added_BK, charged_BK), (1, 0)).cumsum(1)
    return utility(coupled, cond_BkL, risk_Bk.unsqueeze(-1))


def on_host(coupled: Coupled) -> CoupledScores:
    """The fields as arrays for ``walks``. An accelerator is read once, all fields in one tensor."""
    values: dict[str, Any] = {f.name: getattr(coupled, f.name) for f in fields(coupled)}
    tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
    if reads_wait(coupled.eligible_BL.device):
        values |= _read_at_once(tensors)
    else:  # numpy has no bfloat16
        values |= {n: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for n, v in tensors.items()}
    return CoupledScores(**values)


def _read_at_once(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """In the widest type of any of them. A tensor of no axes comes back as one number per row."""
    eligible_BL = tensors["eligible_BL"]
    rows, dtype = len(eligible_BL), torch.float32
    for value in tensors.values():
        dtype = torch.promote_types(dtype, value.dtype)
    whole = {name: value.expand(rows) if value.ndim < 2 else value for name, value in tensors.items()}
    flat = [value.reshape(rows, math.prod(value.shape[1:])).to(eligible_BL.device, dtype) for value in whole.values()]
    array, begin = torch.cat(flat, 1).cpu().numpy(), 0
    found: dict[str, Any] = {}
    for name, value in whole.items():
        end = begin + math.prod(value.shape[1:])
        found[name], begin = array[:, begin:end].reshape(value.shape), end
    return found | {"eligible_BL": found["eligible_BL"].astype(bool)}


def from_host(array: NDArray[Any], device: torch.device) -> Tensor:
    """What a walk gives, on the device."""
    return torch.from_numpy(array).to(device)


Kind = TypeVar("Kind", bound=Coupled)
Draws = Callable[[int], Action]
"""Every draw of so many positions, a row each, possible or not."""


def exact_entropy(one: Any, limit: int, draws: Draws) -> Tensor:
    """(B,) entropy, over all draws of at most ``limit`` eligible positions."""
    narrow, _ = _few(one, one, limit, "-log_prob of a draw")
    log_BO = _outcomes(narrow, draws)
    return -p_log(log_BO, log_BO).sum(-1)


def exact_kl(one: Any, other: ActionDistribution, limit: int, draws: Draws) -> Tensor:
    """(B,) KL(one || other), over all draws of at most ``limit`` eligible positions.

    +inf where ``other`` gives a draw of ``one`` no probability.
    """
    same_kind(one, other)
    narrow, beside = _few(one, other, limit, "log_prob(draw) - other.log_prob(draw)")
    log_BO = _outcomes(narrow, draws)
    return p_log(log_BO, log_BO - _outcomes(beside, draws)).sum(-1)


def _outcomes(one: Any, draws: Draws) -> Tensor:
    """(B, O) log-probability of every draw."""
    rows, length = one.eligible_BL.shape
    every = draws(length)
    device, count = one.eligible_BL.device, len(every.drawn_BL)
    rank_NL = None if every.rank_BL is None else every.rank_BL.to(device).repeat(rows, 1)
    index_N = torch.arange(rows, device=device).repeat_interleave(count)
    return take(one, index_N).log_prob(Action(every.drawn_BL.to(device).repeat(rows, 1), rank_NL)).view(rows, count)


def _few(one: Kind, other: Kind, limit: int, estimate: str) -> tuple[Kind, Kind]:
    """Both without the positions that neither may draw; ValueError where they are too many to enumerate draws."""
    either_BL = one.eligible_BL | other.eligible_BL
    most = max(1, int(either_BL.sum(-1).max()) if len(either_BL) else 0)
    if most > limit:
        raise ValueError(
            f"{most} eligible positions have too many draws to enumerate (at most {limit}). "
            f"Use the mean of {estimate} as an estimate."
        )
    order_Bn = sort_eligible(torch.zeros_like(either_BL, dtype=one.log_odds_BL.dtype), either_BL)[0][:, :most]
    return _gathered(one, order_Bn), _gathered(other, order_Bn)


def _gathered(coupled: Kind, order_Bn: Tensor) -> Kind:
    """The positions ``order_Bn`` of each row, as a canvas of their own."""
    names = ("log_odds_BL", "bias_BL", "mix_BL", "eligible_BL")
    values = {name: getattr(coupled, name).gather(1, order_Bn) for name in names}
    rows_BnL = coupled.shift_BLL.gather(1, order_Bn.unsqueeze(-1).expand(-1, -1, coupled.shift_BLL.shape[-1]))
    values["shift_BLL"] = rows_BnL.gather(2, order_Bn.unsqueeze(1).expand(-1, order_Bn.shape[1], -1))
    return replace(coupled, **values)
