"""The view of a coupled policy at the first step of a decode, for pages: its utilities and pair shifts."""

from __future__ import annotations

from typing import Any

import torch

from ..core.types import Rollout
from ..policies.coupled import draws_by_shifts
from ..policies.protocol import Policy

LONGEST = 81
"""Canvas positions: a map of every pair of a longer canvas is too fine to read."""


@torch.no_grad()
def first_views(policy: Policy, done: Rollout, lengths: list[int]) -> list[dict[str, Any] | None]:
    """Per row of a recorded rollout, the policy's view of its first step. None of a policy without pair shifts, and of
    a canvas longer than ``LONGEST``.

    alone: utility of each position before anything is taken, above 0 where it would be taken alone; None where it may
    not be taken. taken: the positions that the step committed. shift: ``shift[i][j]``, what taking i adds to the
    log-odds of j. Two digits behind the point, enough for a picture.
    """
    views: list[dict[str, Any] | None] = [None] * len(lengths)
    if not draws_by_shifts(policy) or done.steps is None:
        return views
    first = done.steps.pairs((done.steps.step_N == 0).nonzero().squeeze(1))
    coupled: Any = policy.distribution(first.observation)
    alone_NL, taken_NL = coupled.logits_BL, first.action.committed_BL
    assert taken_NL is not None
    for n, row in enumerate(first.row_N.tolist()):
        length = lengths[row]
        if length > LONGEST:
            continue
        known = coupled.eligible_BL[n, :length].tolist()
        views[row] = {
            "alone": [round(u, 2) if k else None for u, k in zip(alone_NL[n, :length].tolist(), known, strict=True)],
            "taken": taken_NL[n].nonzero().squeeze(1).tolist(),
            "shift": [[round(w, 2) for w in line] for line in coupled.shift_BLL[n, :length, :length].tolist()],
        }
    return views
