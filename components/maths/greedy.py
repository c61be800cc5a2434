"""The greedy set: positions chosen one after the other by log-odds that move with each choice."""

from __future__ import annotations

import torch
from torch import Tensor

from .coupling import Coupled, from_host, on_host
from .walks import within


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
    return from_host(within(on_host(coupled), gamma), eligible_BL.device)
