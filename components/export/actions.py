"""Scoring and choosing with numpy and ONNX Runtime alone: what a server needs that decodes with an exported policy.

The draws are those of ``components.maths`` on the same utilities: same noise, bit for bit; same rules, ties to the
lowest position. Probabilities are float32 on either side and may differ in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import SettingsError
from ..maths.walks import CoupledScores, accepted, ordered
from ..tasks.example import address
from .onnx_file import OUTPUT, OnnxFile

Uniform = Callable[[int, int], np.ndarray]
"""(stream, length) -> float64 (B, length) in (0, 1), independent between streams: ``Noise(...).uniform``, or any
generator's draws."""

_FIRST, _REST, _STOP = 0, 1, 2  # the streams of an ordered draw


class NumpyPolicy:
    """An exported policy where there is no torch. Fields are an Observation's, as arrays (``onnx_file.FIELDS``).

    offset: the one number for speed at serving time, of a coupled policy, see ``OnnxPolicy``."""

    def __init__(self, path: Path, threads: int = 1, offset: float = 0.0) -> None:
        self.file = OnnxFile(path, threads, offset)

    def score(self, fields: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 (B, L) utilities."""
        return self.file.utilities(fields)

    def choose(
        self, fields: Mapping[str, np.ndarray], choose: str = "mode", uniform: Uniform | None = None, force: bool = True
    ) -> np.ndarray:
        """bool (B, L): what to commit now, out of ``eligible_BL`` (all of ``masked_BL`` if it is not given).

        choose: "mode", or "sample" with ``uniform``. force: commit the best position of a row whose draw is empty.
        """
        if choose not in ("mode", "sample") or (choose == "sample") != (uniform is not None):
            given = "without uniform" if uniform is None else "with uniform"
            raise SettingsError(f"choose={choose!r} {given} do not agree. Use 'mode' alone or 'sample' with uniform.")
        fields = {"eligible_BL": fields["masked_BL"], **fields}
        given = {name: fields[name] for name in ("log_odds_BL", "eligible_BL") if name in fields}
        return commit(self.file.action, self.file.outputs(fields) | given, uniform, force)


def commit(
    action: Mapping[str, Any], scores: Mapping[str, np.ndarray], uniform: Uniform | None, force: bool
) -> np.ndarray:
    """bool (B, L): the draw of the distribution that ``action`` (the file's metadata) names; its mode if ``uniform``
    is None; where it is empty and ``force``, the best position.

    scores: what the file gives, and ``eligible_BL``; for a coupled draw ``log_odds_BL`` too."""
    utilities_BL, eligible_BL = scores[OUTPUT], scores["eligible_BL"]
    if action["kind"] in ("coupled", "accept"):
        drawn_BL = _coupled(scores, action, uniform)
    else:
        drawn_BL = _DRAWS[action["kind"]](utilities_BL, eligible_BL, action, uniform) & eligible_BL
    if force:
        drawn_BL = drawn_BL | (_best(utilities_BL, eligible_BL) & ~drawn_BL.any(-1, keepdims=True))
    return drawn_BL


def _coupled(scores: Mapping[str, np.ndarray], action: Mapping[str, Any], uniform: Uniform | None) -> np.ndarray:
    """A set drawn with pair shifts, along the greedy path or as an ordered draw with STOP."""
    fields = {name: value for name, value in scores.items() if name != OUTPUT}
    fields["log_odds_BL"] = fields["log_odds_BL"].astype(np.float32, copy=False)
    knobs = {name: value for name, value in action.items() if name != "kind"}
    given = CoupledScores(**fields, **knobs)
    if action["kind"] == "accept":
        mode = uniform is None
        below_BL = np.full_like(given.log_odds_BL, 0.5) if mode else uniform(0, given.eligible_BL.shape[1])
        return accepted(given, below_BL, mode, _sigma)[0]
    return ordered(given, None if uniform is None else partial(_gumbel, uniform)) >= 0


def _log_sigma(z: np.ndarray) -> np.ndarray:
    return np.minimum(z, 0) - np.log1p(np.exp(-np.abs(z)))


def _sigma(z: np.ndarray) -> np.ndarray:
    return np.exp(_log_sigma(z))


def _bernoulli(
    utilities_BL: np.ndarray, eligible_BL: np.ndarray, action: Mapping[str, Any], uniform: Uniform | None
) -> np.ndarray:
    z_BL = utilities_BL / action["temperature"]
    log_p_BL = _log_sigma(z_BL)
    if action["scale"] != 1.0:
        log_p_BL = np.minimum(log_p_BL + math.log(action["scale"]), 0)
    p_BL = np.exp(log_p_BL)
    return p_BL > 0.5 if uniform is None else uniform(0, p_BL.shape[1]) < p_BL


def _categorical(
    utilities_BL: np.ndarray, eligible_BL: np.ndarray, action: Mapping[str, Any], uniform: Uniform | None
) -> np.ndarray:
    if uniform is None:
        return _best(utilities_BL, eligible_BL)
    return _best(utilities_BL / action["temperature"] + _gumbel(uniform, 0, utilities_BL.shape[1]), eligible_BL)


def _dpls(
    utilities_BL: np.ndarray, eligible_BL: np.ndarray, action: Mapping[str, Any], uniform: Uniform | None
) -> np.ndarray:
    first_BL = rest_BL = z_BL = utilities_BL / action["temperature"]
    stop_B1: np.ndarray | float = 0.0
    if uniform is not None:
        length = z_BL.shape[1]
        first_BL, rest_BL = (z_BL + _gumbel(uniform, stream, length) for stream in (_FIRST, _REST))
        stop_B1 = _gumbel(uniform, _STOP, 1)
    return _best(first_BL, eligible_BL) | (rest_BL > stop_B1)


_DRAWS = {"bernoulli": _bernoulli, "categorical": _categorical, "dpls": _dpls}


def _best(values_BL: np.ndarray, eligible_BL: np.ndarray) -> np.ndarray:
    """bool (B, L): the eligible position of the largest value, the lowest among equals; none in an empty row. NaN
    counts as the smallest."""
    values_BL = np.where(eligible_BL & ~np.isnan(values_BL), values_BL, -np.inf)
    equal_BL = (values_BL == values_BL.max(-1, keepdims=True)) & eligible_BL
    return equal_BL & (equal_BL.cumsum(-1) == 1)


def _gumbel(uniform: Uniform, stream: int, length: int) -> np.ndarray:
    return -np.log(-np.log(uniform(stream, length)))


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (2**33 - 1))


def row_keys(seed: int, prompt_R: np.ndarray, member_R: np.ndarray) -> np.ndarray:
    """``components.core.rng.row_keys`` on int64 arrays."""
    start = np.full_like(prompt_R, _signed(address("noise", seed) << 1))
    return _mix(_mix(start ^ prompt_R) + member_R)


@dataclass(frozen=True)
class Noise:
    """``components.core.rng.Noise`` on int64 arrays, equal bit for bit: the uniforms of one step, by address."""

    key_B: np.ndarray
    step_B: np.ndarray

    def uniform(self, stream: int, length: int) -> np.ndarray:
        """float64 (B, length), strictly inside (0, 1)."""
        row_B1 = _mix(_mix(self.key_B + self.step_B * 64 + stream))[:, None]
        bits_BL = _mix(row_B1 ^ _mix(np.arange(length, dtype=np.int64))) >> 11 & (2**53 - 1)
        return (bits_BL.astype(np.float64) + 0.5) * 2.0**-53
