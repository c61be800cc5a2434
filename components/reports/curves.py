"""A policy's curve of accuracy against forwards beside the front of all swept rules. numpy alone.

A policy is decoded at several settings of one number (its offset); the upper hull of these points is its curve, which
it attains by mixing two settings, as the rules' front is attained by mixing two rules (``maths.pareto``). Left of its
fastest point a policy has no curve: nothing is claimed there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..evaluation.gate import resample, scores
from ..evaluation.results import EvalResult
from ..maths.pareto import front_at, upper_hull

SHARPNESS = 3.0  # alpha in AUP
TOLERATED = 0.05  # accuracy below that of the slowest point at which AUP stops counting


def curve_at(nfe: ArrayLike, accuracy: ArrayLike, at: float) -> float:
    """The curve's accuracy at ``at`` forwards; NaN left of its fastest point."""
    return front_at(nfe, accuracy, at) if at >= np.min(nfe) else float("nan")


def nfe_for(nfe: ArrayLike, accuracy: ArrayLike, level: float) -> float:
    """The fewest forwards at which the curve has accuracy ``level``; infinite where it never does."""
    x, y = upper_hull(nfe, accuracy)
    if level > y[-1]:
        return float("inf")
    return float(x[0]) if level <= y[0] else float(np.interp(level, y, x))


def error_cut(policy: float, front: float) -> float:
    """The share of the front's errors that the policy does not make; NaN where the front makes none."""
    return (policy - front) / (1 - front) if front < 1 else float("nan")


def difference(policies: Sequence[EvalResult], rules: Sequence[EvalResult], resamples: int) -> tuple[float, ...]:
    """(middle, low, high) of accuracy minus the rules' front at the policy's own NFE, the mean over training seeds.

    95 % percentile bootstrap: prompts are drawn, the same for the policies and the rules, and training seeds.
    """
    prompts, seeds = policies[0].correct_P.size, len(policies)
    middle = scores(policies, rules, np.full((1, prompts), 1 / prompts)).mean()
    drawn_SR = scores(policies, rules, resample(prompts, resamples, 0))
    weight_RS = resample(seeds, resamples, 1)
    low, high = np.quantile((weight_RS.T * drawn_SR).sum(0), (0.025, 0.975))
    return float(middle), float(low), float(high)


def mean_interval(value_SP: NDArray[np.float64], resamples: int) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over training seeds S and prompts P, both drawn."""
    seeds, prompts = value_SP.shape
    drawn_SR = value_SP @ resample(prompts, resamples, 0).T
    low, high = np.quantile((resample(seeds, resamples, 1).T * drawn_SR).sum(0), (0.025, 0.975))
    return float(low), float(high)


def aup(tokens_per_forward: ArrayLike, accuracy: ArrayLike, best: float) -> float:
    """Accuracy under parallelism (Hao AI Lab, arXiv 2601.07568), in percent times tokens per forward.

    The points (rho_i, y_i) are sorted by rho; those with y_i below y_1 minus 5 points are left out. AUP = rho_1 y_1 +
    sum_i (rho_i - rho_(i-1)) (y_i W(y_i) + y_(i-1) W(y_(i-1))) / 2 with W(y) = min(exp(-3 (1 - y / best)), 1). best:
    the highest accuracy of any method on the task.
    """
    order = np.argsort(tokens_per_forward)
    rho, y = np.asarray(tokens_per_forward, float)[order], np.asarray(accuracy, float)[order]
    kept = y >= y[0] - TOLERATED
    rho, y = rho[kept], y[kept]
    weighted = 100 * y * np.minimum(np.exp(-SHARPNESS * (1 - y / best)), 1)
    return float(100 * rho[0] * y[0] + (np.diff(rho) * (weighted[1:] + weighted[:-1]) / 2).sum())
