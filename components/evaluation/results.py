"""EvalResult: one policy or rule at one setting over the prompts of one task, on screen, in tables and at the gate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from ..core.files import read_lines, write_csv, write_lines
from ..policies.rules import POLICIES

PER_PROMPT = ("correct_P", "nfe_P", "seeds_2SP", "masks_P", "order_2P")
OPTIONAL = ("end_of_text",)
Rule = tuple[str, str, int]
"""Family, setting and block length of a rule; the whole canvas is a block, too."""


def _empty() -> NDArray[np.float64]:
    return np.zeros(0)


@dataclass(frozen=True)
class EvalResult:
    """A row of the evaluation tables.

    block_length is the canvas length for full diffusion. choose: "mode" or "sample". Accuracies are in [0, 1] with
    95 % bootstrap intervals, NFE in forwards per prompt. dense: the mean partial score. unfinished: canvases with masks
    left. workers, rows_in_flight (of each), tokens_per_forward: how the canvases were batched, which in bfloat16 may
    change a text. end_of_text: 1 where rows stopped at the end of their text, so that NFE counts no more than that.
    correct_P, nfe_P: per prompt, means over decode seeds; empty where the row was read from a CSV table. seeds_2SP:
    correct and NFE by seed; empty where there is one seed. masks_P: positions that were decoded; empty where that is
    all of the canvas.
    order_2P: AR-ness@1 and Kendall's tau of the order of commits, see ``evaluation.order``.
    """

    task: str
    denoiser: str
    split: str
    family: str
    setting: str
    block_length: int
    choose: str
    prompts: int
    seeds: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    dense: float
    nfe: float
    nfe_low: float
    nfe_high: float
    tokens_per_second: float
    unfinished: float
    workers: int = field(default=0, compare=False)
    rows_in_flight: int = field(default=0, compare=False)
    tokens_per_forward: int = field(default=0, compare=False)
    end_of_text: int = 0
    correct_P: NDArray[np.float64] = field(default_factory=_empty, repr=False, compare=False)
    nfe_P: NDArray[np.float64] = field(default_factory=_empty, repr=False, compare=False)
    seeds_2SP: NDArray[np.float64] = field(default_factory=_empty, repr=False, compare=False)
    masks_P: NDArray[np.float64] = field(default_factory=_empty, repr=False, compare=False)
    order_2P: NDArray[np.float64] = field(default_factory=_empty, repr=False, compare=False)

    @property
    def is_policy(self) -> bool:
        return self.family in POLICIES

    @property
    def key(self) -> tuple[str, str, int, str]:
        return (self.family, self.setting, self.block_length, self.choose)

    @property
    def rule(self) -> Rule:
        return self.key[:3]

    @property
    def by_seed(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Correct and NFE, (seeds, prompts)."""
        if self.seeds_2SP.size:
            return self.seeds_2SP[0], self.seeds_2SP[1]
        return self.correct_P[None], self.nfe_P[None]

    def utility_P(self, canvas: int, alpha: float) -> NDArray[np.float64]:
        """correct x speed^alpha per prompt, mean over seeds; speed is that of the training's reward."""
        correct_SP, nfe_SP = self.by_seed
        most = self.masks_P if self.masks_P.size else canvas
        return (correct_SP * ((most - np.minimum(nfe_SP, most) + 1) / most) ** alpha).mean(0)

    @classmethod
    def of_prompts(cls, head: Mapping[str, Any], correct_P: Any, nfe_P: Any, seeds_2SP: Any = ()) -> EvalResult:
        """A result from its figures per prompt. What needs more than them is NaN.

        head: task, family, setting, block_length, choose; denoiser and split where they are known.
        """
        correct, nfe, seeds = (np.asarray(values, dtype=np.float64) for values in (correct_P, nfe_P, seeds_2SP))
        unknown = ("accuracy_low", "accuracy_high", "dense", "nfe_low", "nfe_high", "tokens_per_second", "unfinished")
        known: dict[str, Any] = {"denoiser": "", "split": "", **head, **dict.fromkeys(unknown, math.nan)}
        return cls(
            **known,
            prompts=correct.size,
            seeds=seeds.shape[1] if seeds.ndim == 3 else 1,
            accuracy=float(correct.mean()) if correct.size else math.nan,
            nfe=float(nfe.mean()) if nfe.size else math.nan,
            correct_P=correct,
            nfe_P=nfe,
            seeds_2SP=seeds,
        )

    def row(self) -> dict[str, Any]:
        """The columns of a table: everything but the per-prompt arrays, and ``OPTIONAL`` ones where they are 0."""
        return {n: v for n, v in vars(self).items() if n not in PER_PROMPT and (v or n not in OPTIONAL)}


_KINDS: dict[str, Any] = {"str": str, "int": int, "float": float | int | None}  # NaN is null in JSON
KINDS = {f.name: _KINDS[str(f.type)] for f in fields(EvalResult) if f.name not in PER_PROMPT + OPTIONAL}


def write_results(path: Path, results: Iterable[EvalResult]) -> None:
    """One JSON object per result, per-prompt arrays included."""
    arrays = [asdict(result) | {name: getattr(result, name).tolist() for name in PER_PROMPT} for result in results]
    write_lines(path, arrays)


def read_results(path: Path) -> list[EvalResult]:
    """The results of ``write_results``. DataError for a missing file, or a line that is no result."""
    results = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row: dict[str, Any] = {"seeds_2SP": [], "masks_P": [], "order_2P": [], **line}
            arrays: dict[str, Any] = {name: np.asarray(row[name], dtype=float) for name in PER_PROMPT}
            if strange := [name for name, kind in KINDS.items() if not _fits(row[name], kind)]:
                raise TypeError(f"{strange[0]}={row[strange[0]]!r}")
            head = {name: math.nan if row[name] is None else row[name] for name in KINDS}
            optional: dict[str, Any] = {name: int(row.get(name, 0)) for name in OPTIONAL}
            results.append(EvalResult(**head, **optional, **arrays))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number} is no result ({error}). Run `dvc repro` to make it.") from error
    return results


def _fits(value: Any, kind: Any) -> bool:
    """No number of a result is negative."""
    return isinstance(value, kind) and not (isinstance(value, int | float) and value < 0)


def write_table(path: Path, results: Sequence[EvalResult]) -> None:
    """CSV, a row per result."""
    write_csv(path, [result.row() for result in results])
