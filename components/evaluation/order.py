"""How far a decode goes from left to right: AR-ness@1 and Kendall's tau of the order of commits.

AR-ness@1 is local (arXiv 2506.20639): the share of commits at the position right after the one committed just before.
Positions of one step have no order; they are counted from left to right, so that a parallel commit of neighbors counts
as left to right. Kendall's tau-b is between positions and the steps of their commits: 1 from left to right, -1 from
right to left, 0 without any relation. Positions of one step are ties. Where all are one tie, tau is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def order_2P(order_PL: NDArray[np.int64]) -> NDArray[np.float64]:
    """(2, P): AR-ness@1 and tau of each row. order_PL: the step of each position's commit, -1 for none."""
    both = [(ar_ness(row[row >= 0]), kendall_tau(row[row >= 0])) for row in order_PL]
    return np.asarray(both, dtype=float).reshape(-1, 2).T


def ar_ness(step_L: NDArray[np.int64]) -> float:
    """Local AR-ness@1 of one decode; 1 where at most one position was committed."""
    if len(step_L) < 2:
        return 1.0
    sequence = np.argsort(step_L, kind="stable")  # by step, and within a step from left to right
    return float((np.diff(sequence) == 1).mean())


def kendall_tau(step_L: NDArray[np.int64]) -> float:
    """Tau-b of the steps against the positions, which have no ties."""
    sign_LL = np.sign(step_L[None, :] - step_L[:, None])[np.triu_indices(len(step_L), 1)]
    ordered = int((sign_LL != 0).sum())
    return 0.0 if ordered == 0 else float(sign_LL.sum() / np.sqrt(ordered * sign_LL.size))
