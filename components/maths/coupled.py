"""Coupled Plackett-Luce with STOP: ordered picks whose utilities move with the earlier picks.

Each pick comes from a softmax over the utilities u_j(S) of what is left (``components.maths.coupling``) and STOP, an
item of utility 0 that competes from the second pick on. At least one position is drawn wherever one is eligible.
With w = 0 and c = 0 this is DPLS with the utilities ``kappa (l + b + tau)``, bit for bit: the likelihood adds the same
numbers in the same order.

The likelihood is that of the *order*. Entropy and KL are exact for at most ``EXACT_LIMIT`` eligible positions. The
risk depends on the order, so a sum over subsets, as DPLS has it, is not enough. Beyond, ``-log_prob`` of a draw is an
unbiased estimate of the entropy, and the difference of two distributions' ``log_prob`` of a draw one of KL.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..core.rng import Noise
from ..core.types import Action
from .coupling import Coupled, exact_entropy, exact_kl, from_host, on_host, utilities_along
from .distributions import ActionDistribution
from .masked import masked_logsumexp
from .walks import ordered

EXACT_LIMIT = 6


@dataclass(frozen=True)
class CoupledPlackettLuce(Coupled):
    """The ordered distribution that this module describes; without shifts a DPLS of ``logits_BL``.

    The temperature leaves STOP's utility at 0.
    """

    def sample(self, noise: Noise) -> Action:
        here = Noise(noise.key_B.cpu(), noise.step_B.cpu())  # noise is made where the picks are
        return self._as_action(ordered(on_host(self), lambda stream, length: here.gumbel(stream, length).numpy()))

    def mode(self) -> Action:
        """The greedy draw: the best position, then the best of what is left while its utility is above STOP's 0."""
        return self._as_action(ordered(on_host(self)))

    def ordered(self, selected_BL: Tensor) -> Action:
        """A set as a draw: all of its eligible members, greedily by utility, without STOP."""
        among_BL = (selected_BL & self.eligible_BL).cpu().numpy()
        return self._as_action(ordered(on_host(self), among_BL=among_BL, stops=False))

    def _as_action(self, rank_BL: NDArray[Any]) -> Action:
        rank = from_host(rank_BL, self.eligible_BL.device)
        return Action(rank >= 0, rank)

    def log_prob_of_set(self, selected_BL: Tensor) -> Tensor:
        """(B,) log-probability of a set's greedy order. A set has many orders, of which this is one: minus it is an
        upper bound of -log P(set), and the cross-entropy to a rule that selects sets."""
        found_B = self.log_prob(self.ordered(selected_BL))
        return found_B.masked_fill((selected_BL & ~self.eligible_BL).any(-1), -torch.inf)

    def log_prob(self, action: Action) -> Tensor:
        if action.rank_BL is None:
            raise ValueError("This ordered draw has no action.rank_BL. Give the order, or use log_prob_of_set.")
        eligible_BL, length = self.eligible_BL, self.eligible_BL.shape[-1]
        count_B = action.drawn_BL.sum(-1)
        most = int(count_B.max()) if len(count_B) else 0
        # Positions in drawing order; what was never drawn goes behind.
        order_BL = torch.where(action.drawn_BL, action.rank_BL, length).argsort(dim=-1, stable=True)
        drawn_BK = torch.arange(most, device=order_BL.device) < count_B.unsqueeze(-1)
        z_BkL = utilities_along(self, order_BL[:, :most], drawn_BK)
        log_B = _picks(z_BkL[:, :-1], order_BL, eligible_BL, drawn_BK)
        end_BL = z_BkL.gather(1, count_B[:, None, None].expand(-1, -1, length)).squeeze(1)
        rest_B = masked_logsumexp(end_BL, eligible_BL & ~action.drawn_BL)
        log_B = log_B - torch.where(count_B > 0, torch.logaddexp(rest_B, torch.zeros_like(rest_B)), 0.0)
        outside_B = (action.drawn_BL & ~eligible_BL).any(-1) | (eligible_BL.any(-1) & (count_B == 0))
        return log_B.masked_fill(outside_B, -torch.inf)

    def entropy(self) -> Tensor:
        return exact_entropy(self, EXACT_LIMIT, _draws)

    def kl(self, other: ActionDistribution) -> Tensor:
        """KL(self || other), +inf where the other one gives a draw of this one no probability."""
        return exact_kl(self, other, EXACT_LIMIT, _draws)


def _picks(z_BKL: Tensor, order_BL: Tensor, eligible_BL: Tensor, drawn_BK: Tensor) -> Tensor:
    """(B,) log-probability of the picks, each against what is left and, after the first, STOP.

    A scan from the back gives what is left, as DPLS does it: the same sums in the same order give the same bits.
    """
    row_N, pick_N = drawn_BK.nonzero(as_tuple=True)
    z_NL = z_BKL[drawn_BK].masked_fill(~eligible_BL[row_N], -torch.inf).gather(-1, order_BL[row_N])
    left_N = z_NL.flip(-1).logcumsumexp(-1).flip(-1).gather(-1, pick_N.unsqueeze(-1)).squeeze(-1)
    left_N = torch.where(pick_N > 0, torch.logaddexp(left_N, torch.zeros_like(left_N)), left_N)
    log_N = z_NL.gather(-1, pick_N.unsqueeze(-1)).squeeze(-1) - left_N
    # Summed over all L places, most of them 0, so that the sum does not depend on how much the neighbors draw.
    drawn_BL = F.pad(drawn_BK, (0, eligible_BL.shape[-1] - drawn_BK.shape[1]))
    return torch.zeros_like(drawn_BL, dtype=log_N.dtype).masked_scatter(drawn_BL, log_N).sum(-1)


def _draws(length: int) -> Action:
    """Every ordered selection of so many positions, the empty one included."""
    picks = [order for count in range(length + 1) for order in itertools.permutations(range(length), count)]
    rank_OL = torch.full((len(picks), length), -1)
    for row, order in enumerate(picks):
        rank_OL[row, list(order)] = torch.arange(len(order))
    return Action(rank_OL >= 0, rank_OL)
