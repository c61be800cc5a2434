"""What a coupled policy saw at the first step of a decode, as stage evaluate wrote it (``evaluation.view``): which
positions it took together, which pairs it kept apart, and by how much every position moves every other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import DataError
from .boards import mixed

APART, TOGETHER = "#B2182B", "#2166AC"
FULL = 5.0
"""Nats of log-odds at which the colour of a shift is full."""


@dataclass(frozen=True)
class View:
    """alone: utilities before anything is taken, None where nothing may be. taken: the first step's commits.
    shift: ``shift[i][j]``, what taking i adds to the log-odds of j."""

    alone: Sequence[float | None]
    taken: Sequence[int]
    shift: Sequence[Sequence[float]]

    @property
    def apart(self) -> list[tuple[int, int]]:
        """(taken, left): each position that the policy would have taken alone and did not take, with the one among the
        taken that speaks most against it. None where no taken one speaks against it: the risk of the set was enough."""
        pairs = []
        for j, utility in enumerate(self.alone):
            if utility is not None and utility > 0 and j not in self.taken and self.taken:
                i = min(self.taken, key=lambda i: self.shift[i][j])
                if self.shift[i][j] < 0:
                    pairs.append((i, j))
        return pairs


def view_of(decode: Mapping[str, Any]) -> View | None:
    """The view that is kept with a decode; None of a policy without pair shifts.

    Errors:
        DataError: it is not one number, and one row of shifts, for each position.
    """
    kept = decode.get("view")
    if kept is None:
        return None
    length = len(decode["order"])
    try:
        view = View(kept["alone"], kept["taken"], kept["shift"])
        fits = {len(view.alone), len(view.shift), *map(len, view.shift)} == {length} and max(view.taken) < length
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"The first step of a decode cannot be read ({error!r}). Run stage evaluate again.") from error
    if not fits:
        raise DataError(f"The first step of a decode is not one of {length} positions. Run stage evaluate again.")
    return view


def shift_colour(shift: float) -> str:
    """``#rrggbb``: white where nothing moves, red where a pair is better kept apart, blue where one supports the other.
    Colour rises with the root, so that small shifts are seen."""
    share = min(1.0, abs(shift) / FULL) ** 0.5
    return mixed("#ffffff", TOGETHER if shift > 0 else APART, share)
