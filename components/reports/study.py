"""The cells of a study as docs/results.md sees them: policies by case and setting, and a row of figures for each.

A line of the document is one policy on one case, over all cells that differ in the training seed alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.files import read_json, read_yaml
from ..evaluation.results import EvalResult, read_results
from . import fronts
from .curves import aup, difference, error_cut, mean_interval, nfe_for
from .table import MINUS, NONE, interval

RESAMPLES = 1000
HEADINGS = (
    *("policy", "seeds", "accuracy, %", "NFE", "TPF", "rules' front there, %", "difference", "errors cut, %"),
    *("forwards saved, %", "AUP", "AR-ness@1", "tau"),
)


NAMES = {
    "evaluate-worded_position": "worded_position: sudoku, any completion, spellings by position (trained on)",
    "evaluate-sudoku_many": "sudoku_many: any completion (trained on)",
    "evaluate-sudoku_unique": "sudoku_unique: one solution (trained on)",
    "evaluate-worded_content": "worded_content: spellings by content (trained on in this table)",
    "transfer-other_dllm": "other dLLM (mini-dream): sudoku_many",
    "transfer-longer": "other dLLM, canvas 32: two puzzles in one",
    "ood-wording": "worded_content: spellings by content (never seen)",
    "ood-related": "latin squares (never seen)",
    "ood-unrelated": "sorting (never seen)",
    "ood-queens": "other dLLM: queens (never seen)",
    "evaluate-position": "profiles/wordings.yaml, spellings by position (trained on)",
    "ood-content": "profiles/wordings.yaml, spellings by content (never seen)",
    "ood-style": "profiles/wordings.yaml, spellings by a style mark (never seen)",
    "ood-unique": "profiles/wordings.yaml, spellings of puzzles with one solution (never seen)",
    "ood-sorting": "profiles/wordings.yaml, spellings of sorted numbers (never seen)",
}
"""The cases in the order of the document."""


@dataclass(frozen=True)
class Kept:
    """A finished cell: what cell.json, run.json and params.yaml say of it, and its results by case."""

    name: str
    about: dict[str, Any]
    run: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    results: dict[str, list[EvalResult]]

    @property
    def dllm_seed(self) -> int:
        return self.settings["pretrain"]["seed"]

    @property
    def parameters(self) -> int:
        return int(self.metrics["distill"]["parameters"])


def read_kept(folder: Path) -> Kept:
    """What the study kept of one cell."""
    remedy = "Run `python -m flows.study` to make it."
    return Kept(
        folder.name,
        read_json(folder / "cell.json", remedy),
        read_json(folder / "run.json", remedy),
        read_yaml(folder / "params.yaml", remedy),
        {path.stem: read_json(path) for path in sorted((folder / "metrics").glob("*.json"))},
        {path.stem: read_results(path) for path in sorted((folder / "results").glob("*.jsonl"))},
    )


@dataclass(frozen=True)
class Runs:
    """One policy on one case in several training seeds: a list of results for each setting, and the rules there."""

    label: str
    by_setting: dict[str, list[EvalResult]]
    rules: list[EvalResult]

    @property
    def canvas(self) -> int:
        return max(rule.block_length for rule in self.rules)

    def curve(self, seed: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """NFE and accuracy of each full-diffusion setting decoded by its mode; of one seed, or their means."""
        chosen = [
            results if seed is None else [results[seed]]
            for results in self.by_setting.values()
            if results[0].choose == "mode" and results[0].block_length == self.canvas
        ]
        nfe = np.asarray([np.mean([r.nfe for r in results]) for results in chosen], dtype=np.float64)
        accuracy = np.asarray([np.mean([r.accuracy for r in results]) for results in chosen], dtype=np.float64)
        return nfe, accuracy

    @property
    def front(self) -> tuple[list[float], list[float]]:
        """NFE and accuracy of the swept rules."""
        return [rule.nfe for rule in self.rules], [rule.accuracy for rule in self.rules]


def runs(cells: Sequence[Kept], case: str, family: str, label: str) -> Runs | None:
    """The policy of ``family`` on the case, over the cells that judged it; None where none of them did.

    A setting that only some of them were asked for has no mean over all, and is left out.
    """
    having = [
        (results, own)
        for cell in cells
        if (results := cell.results.get(case)) and (own := [r for r in results if r.family == family])
    ]
    found: dict[str, list[EvalResult]] = {}
    for _, own in having:
        for result in own:
            found.setdefault(result.setting, []).append(result)
    if not having:
        return None
    whole = {setting: results for setting, results in found.items() if len(results) == len(having)}
    return Runs(label, whole, [r for r in having[0][0] if not r.is_policy])


def in_blocks(results: Sequence[EvalResult]) -> dict[int, tuple[list[EvalResult], list[EvalResult]]]:
    """By block length, those shorter than the canvas: the trained policy's modes, as served first, and the rules."""
    rules = [r for r in results if not r.is_policy]
    modes = [r for r in results if r.family == "learned" and r.choose == "mode"]
    canvas = max((r.block_length for r in rules), default=0)
    found = {}
    for block in sorted({r.block_length for r in modes if r.block_length < canvas}):
        own, same = ([r for r in group if r.block_length == block] for group in (modes, rules))
        if same:
            found[block] = own, same
    return found


class Study:
    """The cells by kind, and every policy of them on a case."""

    def __init__(self, cells: Sequence[Kept]) -> None:
        self.cells = _with_all_rules(cells)
        self.default: dict[int, list[Kept]] = {}
        for cell in self.cells:
            if cell.about["kind"] == "default":
                self.default.setdefault(cell.dllm_seed, []).append(cell)

    def kind(self, kind: str) -> list[Kept]:
        return [cell for cell in self.cells if cell.about["kind"] == kind]

    @property
    def first(self) -> list[Kept]:
        """The default policy over the first dLLM."""
        return self.default[min(self.default)]

    def decoding_in_blocks(self) -> list[tuple[str, Kept]]:
        """The default policy and those trained in blocks: a name and a cell each."""
        return [("default", self.first[0]), *((cell.about["about"], cell) for cell in self.kind("blocks"))]

    def cases(self) -> list[str]:
        """Every case: those that have a name in their order, then the others."""
        found = list(dict.fromkeys(case for cell in self.cells for case in cell.results))
        return [case for case in NAMES if case in found] + [case for case in found if case not in NAMES]

    def learned(self, case: str) -> Runs | None:
        return runs(self.first, case, "learned", "coupled, reinforced")

    def on(self, case: str, elsewhere: bool = True) -> list[Runs]:
        """Each policy on the case: the default ones of each dLLM with their starts, and the papers'. elsewhere: those
        that were trained on other tasks too."""
        found: list[Runs | None] = []
        for seed, cells in self.default.items():
            where = "" if len(self.default) == 1 else f", dLLM seed {seed}"
            found += [
                runs(cells, case, "learned", f"coupled, reinforced{where}"),
                runs(cells, case, "distilled", f"its distilled start{where}"),
                runs(cells, case, "influence", f"influence alone{where}"),
            ]
        found += [runs([cell], case, "learned", cell.about["about"]) for cell in self.kind("paper")]
        for cells in [*self.domains(), *([cell] for cell in self.kind("profile"))] if elsewhere else []:
            about = cells[0].about["about"]
            found.append(runs(cells, case, "learned", about))
            found.append(runs(cells, case, "influence", f"{about}: influence alone"))
        return [one for one in found if one is not None]

    def domains(self) -> list[list[Kept]]:
        """The cells that were trained on other tasks. Those whose settings differ in the training seeds alone stand
        together."""
        found: dict[str, list[Kept]] = {}
        for cell in self.kind("domain"):
            found.setdefault(json.dumps(_unseeded(cell.settings), sort_keys=True), []).append(cell)
        return list(found.values())


def _with_all_rules(cells: Sequence[Kept]) -> list[Kept]:
    """Every cell with the rules that a control swept over the same dLLM besides: their results are the dLLM's alone."""
    found = []
    for cell in cells:
        more = {case: list(results) for case, results in cell.results.items()}
        for other in cells:
            if other.about["kind"] != "control" or _dllm(other) != _dllm(cell):
                continue
            for case, results in more.items():
                known = {r.key for r in results}
                results += [r for r in other.results.get(case, []) if not r.is_policy and r.key not in known]
        found.append(replace(cell, results=more))
    return found


def _dllm(cell: Kept) -> tuple[Any, ...]:
    """What a rule's result on a case depends on."""
    return tuple(cell.settings.get(name) for name in ("pretrain", "models", "data"))


def _unseeded(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the seeds of the stages that train a policy."""
    trains = {name: section for name, section in settings.items() if name in ("influence", "distill", "train")}
    return settings | {name: {k: v for k, v in one.items() if k != "seed"} for name, one in trains.items()}


def best_accuracy(many: Iterable[Runs]) -> float:
    """The highest accuracy of any policy or rule on the case."""
    return max(max([*one.front[1], *one.curve()[1]]) for one in many)


def row(one: Runs, setting: str, best: float) -> list[str]:
    """The figures of the policy at one setting, under HEADINGS."""
    results = one.by_setting[setting]
    accuracy, nfe = (float(np.mean([getattr(r, name) for r in results])) for name in ("accuracy", "nfe"))
    low, high = mean_interval(np.stack([r.correct_P for r in results]), RESAMPLES)
    middle, *ends = difference(results, one.rules, RESAMPLES)
    needed = nfe_for(*one.front, accuracy)
    order_2 = np.mean([r.order_2P.mean(1) for r in results], axis=0)
    curve_nfe, curve_accuracy = one.curve()
    served = setting == "mode"
    return [
        one.label,
        str(len(results)),
        f"{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{nfe:.2f}",
        f"{one.canvas / nfe:.2f}",
        f"{100 * (accuracy - middle):.1f}",
        interval(middle, *ends),
        percent(error_cut(accuracy, accuracy - middle)),
        "not reached" if math.isinf(needed) else percent(1 - nfe / needed),
        f"{aup(one.canvas / curve_nfe, curve_accuracy, best):.0f}" if served and len(curve_nfe) else NONE,
        f"{order_2[0]:.2f}",
        f"{order_2[1]:+.2f}".replace("-", MINUS),
    ]


def front_row(one: Runs, best: float) -> list[str]:
    """The rules' front itself: its best accuracy, and its AUP by its corners of full diffusion."""
    corners = fronts.corners(one.rules)
    last = corners[-1]
    figures = aup([one.canvas / c.nfe for c in corners], [c.accuracy for c in corners], best)
    name = f"best rule ({fronts.name_of(last, one.canvas)})"
    order_2 = last.order_2P.mean(1)
    tau = f"{order_2[1]:+.2f}".replace("-", MINUS)
    accuracy = f"{100 * last.accuracy:.1f} [{100 * last.accuracy_low:.1f}, {100 * last.accuracy_high:.1f}]"
    speed = f"{last.nfe:.2f}", f"{one.canvas / last.nfe:.2f}"
    return [name, NONE, accuracy, *speed, *[NONE] * 4, f"{figures:.0f}", f"{order_2[0]:.2f}", tau]


def percent(share: float) -> str:
    """``+34``: a share in whole percent with its sign; a dash for NaN."""
    return NONE if math.isnan(share) else f"{100 * share:+.0f}".replace("-", MINUS)
