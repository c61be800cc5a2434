"""What a promotion is founded on: results of the policy and of the swept heuristics per prompt, checked when made.

No files, no registry, numpy alone. What follows from them is in `gate.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.core.errors import DataError
from components.evaluation.results import EvalResult

AGAIN = "Run `dvc repro gate`, with all rules on the same prompts."
Rule = tuple[str, str, int]
"""Family, setting and block length of a rule; the whole canvas is a block, too."""


@dataclass(frozen=True)
class Cell:
    """One decoding rule on the prompts of a split. correct_P in [0, 1], nfe_P >= 1: per prompt, means over seeds.

    seeds_2SP: correct and NFE by decode seed, where there are several: a utility is not linear in the NFE. masks_P:
    positions that were decoded, where prompts bring canvases that are partly filled; None: all of the canvas. DataError
    where a value is outside its range.
    """

    family: str
    setting: str
    block_length: int
    choose: str
    correct_P: np.ndarray
    nfe_P: np.ndarray
    seeds_2SP: np.ndarray | None = None
    masks_P: np.ndarray | None = None

    def __post_init__(self) -> None:
        correct, nfe = self.correct_P, self.nfe_P
        if correct.shape != nfe.shape or correct.ndim != 1 or not correct.size:
            raise DataError(
                f"{self}: {correct.shape} results and {nfe.shape} NFE; the comparison pairs them by prompt. {AGAIN}"
            )
        seeds = self.seeds_2SP
        if seeds is not None and (seeds.ndim != 3 or seeds.shape[::2] != (2, correct.size) or not seeds.size):
            raise DataError(f"{self}: results by seed of shape {seeds.shape} for {correct.size} prompts. {AGAIN}")
        for correct_SP, nfe_SP in self._tables():
            self._refuse("correct", correct_SP, (correct_SP >= 0) & (correct_SP <= 1), "is not in [0, 1]")
            self._refuse("NFE", nfe_SP, (nfe_SP >= 1) & (nfe_SP < np.inf), "is not a number of at least 1")
        if seeds is not None and not (np.allclose(seeds[0].mean(0), correct) and np.allclose(seeds[1].mean(0), nfe)):
            raise DataError(f"{self}: the means are not those of its results by seed. {AGAIN}")

    def __str__(self) -> str:
        return f"{self.family} {self.setting!r} in blocks of {self.block_length}"

    def _tables(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Correct and NFE, (seeds, prompts): the means and, where there are several seeds, each one's."""
        means = (self.correct_P[None], self.nfe_P[None])
        return [means] if self.seeds_2SP is None else [means, (self.seeds_2SP[0], self.seeds_2SP[1])]

    def _refuse(self, name: str, value_SP: np.ndarray, right_SP: np.ndarray, why: str) -> None:
        """DataError unless all are right, which a NaN is under no condition."""
        if not right_SP.all():
            seed, prompt = np.argwhere(~right_SP)[0]
            raise DataError(f"{self}: {name}={value_SP[seed, prompt]:g} of prompt {prompt} {why}. {AGAIN}")

    def refuse_slower_than(self, canvas: int) -> None:
        """DataError where a prompt took more forward passes than its canvas has positions to decode."""
        most, why = canvas, f"is more than the canvas of {canvas} has positions"
        if self.masks_P is not None:
            most, why = self.masks_P, "is more than its canvas has masks"
        for _, nfe_SP in self._tables():
            self._refuse("NFE", nfe_SP, nfe_SP <= most, why)

    def utility_P(self, canvas: int, alpha: float) -> np.ndarray:
        """correct x speed^alpha per prompt, mean over seeds; speed is that of the training's reward."""
        correct_SP, nfe_SP = self._tables()[-1]
        most = canvas if self.masks_P is None else self.masks_P
        return (correct_SP * ((most - np.minimum(nfe_SP, most) + 1) / most) ** alpha).mean(0)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Cell:
        """What `row` made; DataError where it did not."""
        try:
            correct, nfe = np.asarray(row["correct"], float), np.asarray(row["nfe"], float)
            seeds, masks = (np.asarray(row[name], float) if row.get(name) else None for name in ("seeds", "masks"))
            head = row["family"], str(row["setting"]), int(row["block_length"]), row["choose"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"a line of results cannot be read ({error!r}). {AGAIN}") from error
        return cls(*head, correct, nfe, seeds, masks)

    @classmethod
    def of_result(cls, result: EvalResult) -> Cell:
        head = (result.family, result.setting, result.block_length, result.choose)
        seeds, masks = (a if a.size else None for a in (result.seeds_2SP, result.masks_P))
        return cls(*head, result.correct_P, result.nfe_P, seeds, masks)

    @property
    def key(self) -> tuple[str, str, int, str]:
        return (self.family, self.setting, self.block_length, self.choose)

    @property
    def rule(self) -> Rule:
        return self.key[:3]

    def row(self) -> dict[str, Any]:
        head = dict(zip(("family", "setting", "block_length", "choose"), self.key, strict=True))
        more = {"seeds": self.seeds_2SP, "masks": self.masks_P}
        head |= {"correct": self.correct_P.tolist(), "nfe": self.nfe_P.tolist()}
        return head | {name: value.tolist() for name, value in more.items() if value is not None}


@dataclass(frozen=True)
class Evidence:
    """What a verdict is founded on.

    identity: of the exported policy. prompts: hash of the gate prompts, in order. policy: its results.
    heuristics: the sweep on the same prompts by the same frozen model. canvas: positions of the task's canvas.
    alpha: the exponent of speed that the profile serves. DataError where the parts do not fit together.
    """

    identity: str
    task: str
    prompts: str
    policy: Cell
    heuristics: tuple[Cell, ...]
    canvas: int
    alpha: float

    def __post_init__(self) -> None:
        cells = (self.policy, *self.heuristics)
        counts = sorted({cell.correct_P.size for cell in cells})
        if not self.heuristics or len(counts) > 1:
            raise DataError(
                f"gate on {self.task!r}: {len(self.heuristics)} heuristics, prompts per cell {counts}; the policy is "
                f"compared with a sweep on the same prompts. {AGAIN}"
            )
        for cell in cells:
            cell.refuse_slower_than(self.canvas)
        twice = sorted(key for key, count in Counter(cell.key for cell in self.heuristics).items() if count > 1)
        if twice:
            raise DataError(f"gate on {self.task!r}: the rule {twice[0]} is there twice. {AGAIN}")
        if not 0 <= self.alpha < np.inf:
            raise DataError(f"alpha={self.alpha} is no exponent of speed. Use a number of at least 0.")

    def refuse_gaps(self, rules: Collection[Rule]) -> None:
        """DataError where a rule of ``rules``, which the settings ask for, was not evaluated."""
        have = {cell.rule for cell in self.heuristics}
        if missing := sorted(rule for rule in rules if rule not in have):
            family, setting, block = missing[0]
            raise DataError(
                f"gate on {self.task!r}: {len(missing)} of {len(rules)} rules of the sweep are missing, first {family} "
                f"{setting} in blocks of {block}. {AGAIN}"
            )

    def to_json(self) -> dict[str, Any]:
        cells = [cell.row() for cell in self.heuristics]
        head = {"identity": self.identity, "task": self.task, "prompts": self.prompts}
        head |= {"canvas": self.canvas, "alpha": self.alpha}
        return head | {"policy": self.policy.row(), "heuristics": cells}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Evidence:
        """DataError where this is not what `to_json` made."""
        try:
            head = {name: stored[name] for name in ("identity", "task", "prompts", "canvas", "alpha")}
            policy, rows = stored["policy"], list(stored["heuristics"])
        except (KeyError, TypeError) as error:
            raise DataError(f"stored evidence lacks {error}. {AGAIN}") from error
        return cls(**head, policy=Cell.of(policy), heuristics=tuple(map(Cell.of, rows)))
