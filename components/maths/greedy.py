"""The greedy set: positions chosen one after the other by log-odds that move with each choice."""

from __future__ import annotations

import torch
from torch import Tensor

from .coupling import Coupled, Path, added_risk, log_odds, over
from .masked import masked_argmax, one_hot


@torch.no_grad()
def greedy_set(
    log_odds_BL: Tensor, shift_BLL: Tensor, eligible_BL: Tensor, gamma: float, share: float | Tensor
) -> Tensor:
    """bool (B, L): the most certain position, then the next ones while the risk stays within ``gamma``.

    Row i of ``shift_BLL`` is what taking i adds to the log-odds of the others. The next position is the one of the
    largest log-odds by now, the lowest index among equals. It is taken while the risk so far plus its own is at most
    gamma (``components.maths.coupling``); the first position that does not fit ends the set. The first one is free.

    share: of the joint probability in the risk, a number or (B, L). 1: -log sigma of the log-odds when it is taken.
    0: its rise since the step began.
    """
    mix_BL = torch.zeros_like(log_odds_BL) + share
    coupled = Coupled(log_odds_BL, torch.zeros_like(log_odds_BL), shift_BLL, mix_BL, eligible_BL)
    path, before_BL, left_BL = Path.start(coupled), log_odds(coupled), eligible_BL
    going_B = eligible_BL.any(-1)
    for pick in range(eligible_BL.shape[-1]):
        if over(going_B, pick):
            break
        best_B = masked_argmax(path.cond_BL, left_BL)
        mix_B1, cond_B1, before_B1 = (v.gather(1, best_B.unsqueeze(1)) for v in (mix_BL, path.cond_BL, before_BL))
        risk_B1 = path.risk_B1 + added_risk(mix_B1, cond_B1, before_B1)
        fits_B = (path.count_B == 0) | (risk_B1 <= gamma).squeeze(1)
        going_B = going_B & left_BL.any(-1) & fits_B
        path.take(best_B, going_B)
        left_BL = left_BL & ~one_hot(best_B, going_B.unsqueeze(1) & left_BL)
    return path.rank_BL >= 0
