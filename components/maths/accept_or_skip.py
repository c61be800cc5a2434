"""Accept or skip along the greedy path: each best remaining position is taken, or skipped for this step.

The candidate is always the position of the largest utility u_j(S) (``components.maths.coupling``) among those that are
neither taken nor skipped. It is taken with probability sigma(u), else skipped, until every eligible position had its
turn. A set thus has one path, and its likelihood is exact, without noise from the order in which it is picked. A draw
may be empty, as a Bernoulli draw may; the loop then commits ``fallback_B``.

With w = 0 and c = 0 this is ``Bernoulli`` with the utilities ``kappa (l + b + tau)``: the same likelihood bit for bit
and, under the same noise, the same draws. Entropy and KL are exact sums over the sets of at most ``EXACT_LIMIT``
eligible positions. The path changes where two utilities cross, so the likelihood of a set may jump there; over all sets
it sums to one on either side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..core.rng import Noise
from ..core.types import Action
from .coupling import Coupled, exact_entropy, exact_kl, from_host, on_host, utilities_along
from .distributions import ActionDistribution
from .walks import accepted

EXACT_LIMIT = 10


@dataclass(frozen=True)
class AcceptOrSkip(Coupled):
    """The set distribution that this module describes; without shifts a Bernoulli of ``logits_BL``."""

    def sample(self, noise: Noise) -> Action:
        below_BL = noise.uniform(0, self.eligible_BL.shape[-1])
        return self._action(below_BL.cpu().numpy(), stops=False)

    def mode(self) -> Action:
        """The more probable decision of each candidate on the path; at p = 1/2 it is skipped."""
        return self._action(np.full(self.eligible_BL.shape, 0.5), stops=True)

    def _action(self, below_BL: NDArray[Any], stops: bool) -> Action:
        """The positions that the walk takes. Its first candidate is the fallback."""
        taken_BL, order_BK = accepted(on_host(self), below_BL, stops, _sigma)
        there = self.eligible_BL.device
        best_B = from_host(order_BK[:, 0], there) if order_BK.shape[1] else None
        return Action(from_host(taken_BL, there), best_B=best_B)

    def log_prob(self, action: Action) -> Tensor:
        drawn_BL = action.drawn_BL & self.eligible_BL
        # A candidate of any probability is taken where it was, and nowhere else.
        below_BL = torch.where(drawn_BL, -1.0, 2.0).cpu().numpy()
        order_BK = from_host(accepted(on_host(self), below_BL, False, _sigma)[1], drawn_BL.device)
        decided_BK = torch.arange(order_BK.shape[1], device=order_BK.device) < self.eligible_BL.sum(-1, keepdim=True)
        taken_BK = drawn_BL.gather(1, order_BK) & decided_BK
        z_BkL = utilities_along(self, order_BK, taken_BK)
        z_BK = z_BkL[:, :-1].gather(-1, order_BK.unsqueeze(-1)).squeeze(-1).masked_fill(~decided_BK, 0.0)
        z_BL = torch.zeros_like(self.eligible_BL, dtype=z_BK.dtype).scatter_add(1, order_BK, z_BK)
        log_BL = torch.where(drawn_BL, F.logsigmoid(z_BL), F.logsigmoid(-z_BL)).masked_fill(~self.eligible_BL, 0.0)
        return log_BL.sum(-1).masked_fill((action.drawn_BL & ~self.eligible_BL).any(-1), -torch.inf)

    def entropy(self) -> Tensor:
        return exact_entropy(self, EXACT_LIMIT, _draws)

    def kl(self, other: ActionDistribution) -> Tensor:
        """KL(self || other), +inf where the other one gives a draw of this one no probability."""
        return exact_kl(self, other, EXACT_LIMIT, _draws)


def _sigma(utility_B: NDArray[Any]) -> NDArray[Any]:
    """As in ``log_prob`` and in ``Bernoulli``, to the bit."""
    return F.logsigmoid(torch.from_numpy(utility_B)).exp().numpy()


def _draws(length: int) -> Action:
    """Every set of so many positions."""
    return Action((torch.arange(2**length).unsqueeze(1) >> torch.arange(length) & 1).bool())
