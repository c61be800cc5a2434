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

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.rng import Noise
from ..core.types import Action
from .coupling import Coupled, Path, exact_entropy, exact_kl, over, utilities_along
from .distributions import ActionDistribution
from .masked import masked_argmax, one_hot

EXACT_LIMIT = 10


@dataclass(frozen=True)
class AcceptOrSkip(Coupled):
    """The set distribution that this module describes; without shifts a Bernoulli of ``logits_BL``."""

    @torch.no_grad()
    def _walk(self, below_BL: Tensor, stops: bool = False) -> tuple[Action, Tensor]:
        """The taken positions and the order (B, K) of the candidates, a row's own first.

        A candidate of probability p is taken if ``below_BL`` < p at its position. stops: whether a row's first skip
        ends it. Where all have one bound nothing behind it would be taken: a skip moves nothing.
        """
        path, left_BL = Path.start(self), self.eligible_BL
        going_B, candidates = left_BL.any(-1), []
        for turn in range(left_BL.shape[-1]):
            if over(going_B, turn):
                break
            utility_BL = path.utilities()
            best_B = masked_argmax(utility_BL, left_BL)
            best_B1 = best_B.unsqueeze(1)
            taken_B1 = below_BL.gather(1, best_B1) < F.logsigmoid(utility_BL.gather(1, best_B1)).exp()
            taken_B = going_B & taken_B1.squeeze(1)
            path.take(best_B, taken_B)
            left_BL = left_BL & ~one_hot(best_B, left_BL)
            going_B = (taken_B if stops else going_B) & left_BL.any(-1)
            candidates.append(best_B)
        order_BK = torch.stack(candidates, 1) if candidates else torch.zeros_like(left_BL[:, :0], dtype=torch.int64)
        return Action(path.rank_BL >= 0), order_BK

    def sample(self, noise: Noise) -> Action:
        return self._walk(noise.uniform(0, self.eligible_BL.shape[-1]))[0]

    def mode(self) -> Action:
        """The more probable decision of each candidate on the path; at p = 1/2 it is skipped."""
        return self._walk(torch.full_like(self.log_odds_BL, 0.5), stops=True)[0]

    def log_prob(self, action: Action) -> Tensor:
        drawn_BL = action.drawn_BL & self.eligible_BL
        # A candidate of any probability is taken where it was, and nowhere else.
        order_BK = self._walk(torch.where(drawn_BL, -1.0, 2.0))[1]
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


def _draws(length: int) -> Action:
    """Every set of so many positions."""
    return Action((torch.arange(2**length).unsqueeze(1) >> torch.arange(length) & 1).bool())
