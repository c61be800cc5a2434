"""The front of the heuristics: the upper, concave, non-decreasing envelope of accuracy against NFE.

Two cells of a sweep can be mixed by tossing a coin per prompt: every point on the chord between them is attainable
(time-sharing), and a decoder that is allowed more forwards than it needs loses nothing. A policy that is better than
this envelope at its own NFE is therefore better than every mixture of the swept rules. numpy only: points come from a
table, and there are a few hundred at most. What a point is worth (intervals, bootstrap) is decided by the caller.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.errors import DataError

PAIRS_AT_ONCE = 2_000_000  # float64 temporaries of 16 MB, whatever the number of replicates


def upper_hull(nfe: ArrayLike, accuracy: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The envelope's corners ``(nfe, accuracy)``: both strictly increasing, slopes strictly decreasing.

    The first corner is the best accuracy at the smallest NFE, the last the best accuracy of all at the fewest
    forwards that reach it; outside of them the envelope is level. Andrew's monotone chain, by rising NFE.

    Errors:
        DataError: no point, unequal lengths, or a value that is not finite.
    """
    x, y = _points(nfe, accuracy)
    corners: list[tuple[float, float]] = []
    for point in sorted(zip(x.tolist(), y.tolist(), strict=True), key=lambda p: (p[0], -p[1])):
        if corners and point[1] <= corners[-1][1]:
            continue  # not better than what fewer forwards already reach
        while len(corners) > 1 and _not_above(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    hull = np.asarray(corners, dtype=np.float64)
    return hull[:, 0], hull[:, 1]


def front_at(nfe: ArrayLike, accuracy: ArrayLike, at: float) -> float:
    """The best accuracy that mixtures of the points reach with ``at`` forwards on average.

    Below the smallest NFE no mixture is that fast; there the envelope is level, the accuracy of the fastest point. This
    leans against the compared policy (no policy passes a gate by its speed alone) and keeps every bootstrap
    replicate finite.

    Errors:
        DataError: as ``upper_hull``.
    """
    x, y = _points(nfe, accuracy)
    return float(envelope_rows(x[None], y[None], np.asarray([at]))[0])


def envelope_rows(nfe_RC: ArrayLike, accuracy_RC: ArrayLike, at_R: ArrayLike) -> NDArray[np.float64]:
    """(R,) ``front_at`` for R sets of C points at once (bootstrap replicates), row by row the same value.

    The envelope at x is the largest chord over x between a point at or left of it and one right of it, or the best
    point at or left of it; all pairs are tried, in chunks of rows.

    Errors:
        DataError: the shapes are not (R, C), (R, C) and (R,), C is 0, or a point is not finite.
    """
    x_RC = np.asarray(nfe_RC, dtype=np.float64)
    y_RC = np.asarray(accuracy_RC, dtype=np.float64)
    at = np.asarray(at_R, dtype=np.float64)
    if x_RC.ndim != 2 or x_RC.shape != y_RC.shape or at.shape != x_RC.shape[:1] or x_RC.shape[1] == 0:
        raise DataError(
            f"the points have shapes {x_RC.shape} and {y_RC.shape}, the places {at.shape}, not (R, C), (R, C) and "
            "(R,) with C > 0. Give one row of cells per replicate."
        )
    _refuse_not_finite(x_RC, y_RC)
    rows = max(1, PAIRS_AT_ONCE // x_RC.shape[1] ** 2)
    parts = [_chunk(x_RC[i : i + rows], y_RC[i : i + rows], at[i : i + rows]) for i in range(0, len(at), rows)]
    return np.concatenate(parts) if parts else np.empty(0)


def _chunk(x_RC: NDArray[np.float64], y_RC: NDArray[np.float64], at_R: NDArray[np.float64]) -> NDArray[np.float64]:
    at_R = np.maximum(at_R, x_RC.min(1))  # level before the fastest point
    left_RC = x_RC <= at_R[:, None]
    right_RC = x_RC > at_R[:, None]
    flat_R = np.where(left_RC, y_RC, -np.inf).max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share_RCC = (at_R[:, None, None] - x_RC[:, :, None]) / (x_RC[:, None, :] - x_RC[:, :, None])
        chord_RCC = y_RC[:, :, None] + share_RCC * (y_RC[:, None, :] - y_RC[:, :, None])
    chord_RCC = np.where(left_RC[:, :, None] & right_RC[:, None, :], chord_RCC, -np.inf)
    return np.maximum(flat_R, chord_RCC.max((1, 2)))


def _not_above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """True where b lies on or below the chord from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def _points(nfe: ArrayLike, accuracy: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(nfe, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size == 0:
        raise DataError(
            f"the points have shapes {x.shape} and {y.shape}: an envelope needs at least one point. Give two lists of "
            "the same length, one entry per cell."
        )
    _refuse_not_finite(x, y)
    return x, y


def _refuse_not_finite(x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    bad = int((~np.isfinite(x) | ~np.isfinite(y)).sum())
    if bad:
        raise DataError(
            f"{bad} of {x.size} points have an NFE or an accuracy that is not finite. "
            "Drop the cells that were not measured."
        )
