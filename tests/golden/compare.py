"""What counts as the same figures: every digit on the recording machine type, less than that on another.

Another machine rounds otherwise. Where a decode takes the likeliest position, a last digit decides, and all that
follows from it differs. So the first part of a figure's name says how near it must come elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

# Share of the larger value, at least this much of 1. Data and file formats depend on no rounding.
NEAR = {"data": 0.0, "prepare": 0.0, "pretrain-llada": 0.02, "pretrain-dream": 0.02, "weights": 0.02}
FAR = 0.5  # of everything that follows from decodes
CHANCES = ("digest", "decodes")  # parts of names: one bit or one choice changes these as a whole


def differences(wanted: dict[str, Any], found: dict[str, Any], exact: bool) -> list[str]:
    """A line for every figure that is missing, new or another."""
    lines = [f"{name}: is missing, was {wanted[name]!r}" for name in wanted.keys() - found.keys()]
    lines += [f"{name}: is new, {found[name]!r}" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        before, after = wanted[name], found[name]
        if repr(before) != repr(after) and (exact or not _near(name, before, after)):
            lines.append(f"{name}: {before!r} before, {after!r} now")
    return sorted(lines)


def _near(name: str, before: Any, after: Any) -> bool:
    if any(part in CHANCES for part in name.split("/")):
        return True
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return False
    room = NEAR.get(name.split("/")[0], FAR)
    return math.isclose(before, after, rel_tol=room, abs_tol=room)
