"""The evidence of a promotion: results per prompt of the policy and of the swept heuristics, checked when it is made.

No files, no registry, numpy alone. `gate.py` decides on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.errors import DataError
from .results import EvalResult, Rule

AGAIN = "Run `dvc repro gate`, with all rules on the same prompts."
HEAD = ("family", "setting", "block_length", "choose")


def check_result(result: EvalResult, canvas: int) -> None:
    """Raise DataError where a value per prompt is missing, correct not in [0, 1], or NFE not in [1, masks].

    masks: those that the canvas began with, at most all of it.
    """
    correct, nfe, seeds = result.correct_P, result.nfe_P, result.seeds_2SP
    name = f"{result.family} {result.setting!r} in blocks of {result.block_length}"
    if correct.shape != nfe.shape or correct.ndim != 1 or not correct.size:
        raise DataError(f"{name}: {correct.shape} results and {nfe.shape} NFE, not one of each per prompt. {AGAIN}")
    if seeds.shape != (0,) and (seeds.ndim != 3 or seeds.shape[::2] != (2, correct.size) or not seeds.size):
        raise DataError(f"{name}: results by seed of shape {seeds.shape} for {correct.size} prompts. {AGAIN}")
    masks = result.masks_P if result.masks_P.size else np.full(correct.shape, canvas, dtype=np.float64)
    if masks.shape != correct.shape or not ((masks >= 1) & (masks <= canvas)).all():
        raise DataError(f"{name}: masks of shape {masks.shape} are not one in [1, {canvas}] for each prompt. {AGAIN}")
    for correct_SP, nfe_SP in ((correct[None], nfe[None]), result.by_seed):
        for what, value_SP, right_SP, why in (
            ("correct", correct_SP, (correct_SP >= 0) & (correct_SP <= 1), "is not in [0, 1]"),
            ("NFE", nfe_SP, (nfe_SP >= 1) & (nfe_SP < np.inf), "is not a number of at least 1"),
            ("NFE", nfe_SP, nfe_SP <= masks, f"is more than the canvas of {canvas} has positions"),
        ):
            if not right_SP.all():  # a NaN is right under no condition
                seed, prompt = np.argwhere(~right_SP)[0]
                raise DataError(f"{name}: {what}={value_SP[seed, prompt]:g} of prompt {prompt} {why}. {AGAIN}")
    if not all(np.allclose(by_SP.mean(0), mean) for by_SP, mean in zip(result.by_seed, (correct, nfe), strict=True)):
        raise DataError(f"{name}: the means are not those of its results by seed. {AGAIN}")


def result_json(result: EvalResult) -> dict[str, Any]:
    """The rule and its values per prompt."""
    head = dict(zip(HEAD, result.key, strict=True))
    more = {"seeds": result.seeds_2SP, "masks": result.masks_P}
    head |= {"correct": result.correct_P.tolist(), "nfe": result.nfe_P.tolist()}
    return head | {name: values.tolist() for name, values in more.items() if values.size}


def result_of(row: Mapping[str, Any], task: str) -> EvalResult:
    """The result of a row of ``result_json``. DataError for another row."""
    try:
        head = {"task": task, "family": row["family"], "setting": str(row["setting"]), "choose": row["choose"]}
        head |= {"block_length": int(row["block_length"])}
        result = EvalResult.of_prompts(head, row["correct"], row["nfe"], row.get("seeds") or ())
        return replace(result, masks_P=np.asarray(row.get("masks") or (), dtype=np.float64))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a line of results cannot be read ({error!r}). {AGAIN}") from error


@dataclass(frozen=True)
class Evidence:
    """The basis of a verdict.

    identity: of the exported policy. prompts: hash of the gate prompts, in order. policy: its results.
    heuristics: the sweep on the same prompts by the same frozen model. canvas: positions of the task's canvas.
    alpha: the exponent of speed that the profile serves. DataError where the parts do not fit together.
    """

    identity: str
    task: str
    prompts: str
    policy: EvalResult
    heuristics: tuple[EvalResult, ...]
    canvas: int
    alpha: float

    def __post_init__(self) -> None:
        results = (self.policy, *self.heuristics)
        counts = sorted({result.correct_P.size for result in results})
        if not self.heuristics or len(counts) > 1:
            raise DataError(
                f"gate on {self.task!r}: {len(self.heuristics)} heuristics, prompts per result {counts}, "
                f"not a sweep on the same prompts. {AGAIN}"
            )
        for result in results:
            check_result(result, self.canvas)
        twice = sorted(key for key, count in Counter(rule.key for rule in self.heuristics).items() if count > 1)
        if twice:
            raise DataError(f"gate on {self.task!r}: the rule {twice[0]} is there twice. {AGAIN}")
        if not 0 <= self.alpha < np.inf:
            raise DataError(f"alpha={self.alpha} is no exponent of speed. Use a number of at least 0.")

    def refuse_gaps(self, rules: Collection[Rule]) -> None:
        """Raise DataError where a rule of ``rules`` was not evaluated."""
        have = {result.rule for result in self.heuristics}
        if missing := sorted(rule for rule in rules if rule not in have):
            family, setting, block = missing[0]
            raise DataError(
                f"gate on {self.task!r}: {len(missing)} of {len(rules)} rules of the sweep are missing, first {family} "
                f"{setting} in blocks of {block}. {AGAIN}"
            )

    def to_json(self) -> dict[str, Any]:
        head = {"identity": self.identity, "task": self.task, "prompts": self.prompts}
        head |= {"canvas": self.canvas, "alpha": self.alpha}
        return head | {"policy": result_json(self.policy), "heuristics": [result_json(r) for r in self.heuristics]}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Evidence:
        """The evidence of a `to_json`. DataError for anything else."""
        try:
            head = {name: stored[name] for name in ("identity", "task", "prompts", "canvas", "alpha")}
            policy, rows = stored["policy"], list(stored["heuristics"])
        except (KeyError, TypeError) as error:
            raise DataError(f"stored evidence lacks {error}. {AGAIN}") from error
        task = str(head["task"])
        return cls(**head, policy=result_of(policy, task), heuristics=tuple(result_of(row, task) for row in rows))
