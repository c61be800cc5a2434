"""What counts as the same figures: every digit on the recording machine type, less than that on another.

Another machine rounds otherwise, and training amplifies a last digit: with other vector instructions the dLLM's loss
moved by a tenth, and the policy's number of forward passes trebled. So elsewhere only this is asked for:

- the same names, the same words in tables, the same data to the byte, and no number that is not finite;
- losses of the dLLMs within ``LOSS``, shares of right answers within ``SHARE``;
- the exported file decodes as many equal texts as before, and its scores are as near to torch's, within ``EXPORT``.
"""

from __future__ import annotations

import math
from typing import Any

LOSS = 0.3  # of the larger
SHARE = 0.5
EXPORT = 1e-4
SHARES = ("accuracy", "dense", "correct")
CHANCES = ("digest", "decodes")  # parts of names: one bit or one choice changes these as a whole


def differences(wanted: dict[str, Any], found: dict[str, Any], exact: bool) -> list[str]:
    """A line for every figure that is missing, new or another."""
    lines = [f"{name}: is missing, was {wanted[name]!r}" for name in wanted.keys() - found.keys()]
    lines += [f"{name}: is new, {found[name]!r}" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        before, after = wanted[name], found[name]
        if repr(before) != repr(after) and (exact or not _near(name.split("/"), before, after)):
            lines.append(f"{name}: {before!r} before, {after!r} now")
    return sorted(lines)


def _near(parts: list[str], before: Any, after: Any) -> bool:
    if any(part in CHANCES for part in parts):
        return True
    if not isinstance(before, int | float) or not isinstance(after, int | float) or parts[0] == "prepare":
        return False
    if parts[0].startswith("pretrain"):
        return math.isclose(before, after, rel_tol=LOSS)
    if "export" in parts:
        return math.isclose(before, after, abs_tol=EXPORT)
    return abs(before - after) <= SHARE if parts[-1] in SHARES else math.isfinite(after)
