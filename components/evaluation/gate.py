"""May this policy go live? Pure functions on per-prompt results: no files, no registry, numpy alone.

The score of a policy is its accuracy minus what the heuristics attain with as many forward passes (NFE):

    score = accuracy - envelope(nfe)

The envelope is the upper concave hull of all swept heuristics. A cell of the sweep is a point (NFE, accuracy); who
decodes each prompt with one of two cells, chosen at random, attains every point between them, so the hull is attainable
and a policy below it is of no use. This is stricter than the best single cell with no more NFE. Beyond the best cell
the envelope stays level (unused passes cost nothing), and so it does before the fastest cell: a policy faster than
every heuristic is measured against the fastest one.

Uncertainty is the prompts': a paired bootstrap draws prompts with replacement and computes everything again, the
policy's accuracy and NFE, each cell's, and the hull. A hull is a maximum, and resampling inflates it: the interval
leans against the policy (by 2 points with 60 independent cells on 512 prompts, by less where cells agree on what is
hard).

Against the champion, the score is compared on the same prompts in the same resamples under the same hull: a slower and
more accurate policy does not win by being slower. That means something only if both were evaluated on the same prompts
by the same frozen model; `incomparable` tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from components.core.errors import DataError
from components.evaluation.results import EvalResult
from components.maths.pareto import envelope_rows, front_at

LEARNED = ("learned", "distilled")  # every other family is a heuristic
SLACK = 0.01  # accuracy by which the lower bound may lie below the envelope
RESAMPLES = 2000


@dataclass(frozen=True)
class Cell:
    """One decoding rule on the prompts of a split. correct_P in [0, 1], nfe_P > 0: per prompt, means over seeds."""

    family: str
    setting: str
    block_length: int
    choose: str
    correct_P: np.ndarray
    nfe_P: np.ndarray

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Cell:
        """From a line of evaluate/prompts.jsonl."""
        correct, nfe = np.asarray(row["correct"], float), np.asarray(row["nfe"], float)
        if correct.shape != nfe.shape or correct.ndim != 1 or not correct.size:
            raise DataError(
                f"{row['family']} {row['setting']!r}: {correct.shape} results and {nfe.shape} NFE; the comparison "
                "pairs them by prompt; evaluate again"
            )
        return cls(row["family"], str(row["setting"]), int(row["block_length"]), row["choose"], correct, nfe)

    @classmethod
    def of_result(cls, result: EvalResult) -> Cell:
        head = (result.family, result.setting, result.block_length, result.choose)
        return cls(*head, result.correct_P, result.nfe_P)

    @property
    def key(self) -> tuple[str, str, int, str]:
        return (self.family, self.setting, self.block_length, self.choose)

    def row(self) -> dict[str, Any]:
        head = dict(zip(("family", "setting", "block_length", "choose"), self.key, strict=True))
        return head | {"correct": self.correct_P.tolist(), "nfe": self.nfe_P.tolist()}


@dataclass(frozen=True)
class Evidence:
    """What a verdict is founded on.

    identity: of the exported policy. prompts: hash of the gate prompts, in order. policy: its results.
    heuristics: the sweep on the same prompts by the same frozen model.
    """

    identity: str
    task: str
    prompts: str
    policy: Cell
    heuristics: tuple[Cell, ...]

    def __post_init__(self) -> None:
        counts = {cell.correct_P.size for cell in (self.policy, *self.heuristics)}
        if not self.heuristics or len(counts) > 1:
            raise DataError(
                f"gate on {self.task!r}: {len(self.heuristics)} heuristics, prompts per cell {sorted(counts)}; the "
                "policy is compared with a sweep on the same prompts; evaluate again, all rules on the same prompts"
            )

    def to_json(self) -> dict[str, Any]:
        cells = [cell.row() for cell in self.heuristics]
        head = {"identity": self.identity, "task": self.task, "prompts": self.prompts}
        return head | {"policy": self.policy.row(), "heuristics": cells}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Evidence:
        cells = tuple(Cell.of(row) for row in stored["heuristics"])
        return cls(stored["identity"], stored["task"], stored["prompts"], Cell.of(stored["policy"]), cells)


@dataclass(frozen=True)
class Verdict:
    """promote: the alias should move. live: the policy is the champion, now or already. figures: see `judge`."""

    promote: bool
    reason: str
    figures: dict[str, float] = field(default_factory=dict)
    live: bool = False
    version: str | None = None
    run_id: str | None = None

    def __str__(self) -> str:
        head = "promoted" if self.promote else "already live" if self.live else "refused"
        name = f" (version {self.version})" if self.version else ""
        lines = [f"{head}{name}: {self.reason}"]
        if f := self.figures:
            lines.append(
                f"  accuracy {f['accuracy']:.3f} at {f['nfe']:.2f} forward passes; heuristics {f['envelope']:.3f}"
            )
            lines.append(f"  score {points(f, 'score')}")
        if "gain" in self.figures:
            lines.append(f"  against the champion {points(self.figures, 'gain')}")
        return "\n".join(lines)


def points(figures: Mapping[str, float], name: str) -> str:
    """`+4.2 points [+2.1, +6.3]` of a figure with its interval."""
    middle, low, high = (100 * figures[name + end] for end in ("", "_low", "_high"))
    return f"{middle:+.1f} points [{low:+.1f}, {high:+.1f}]"


def envelope(rows: Iterable[Mapping[str, Any]], nfe: float) -> float:
    """Accuracy that the heuristics among `rows` (family, nfe, accuracy: a row of gate.csv) attain at `nfe`."""
    cells = [(float(r["nfe"]), float(r["accuracy"])) for r in rows if r["family"] not in LEARNED]
    if not cells:
        raise DataError("no heuristic among the rows; there is nothing to compare with; evaluate the sweep too")
    return front_at(*zip(*cells, strict=True), at=nfe)


def scores(policies: Sequence[Cell], heuristics: Sequence[Cell], weights_RP: np.ndarray) -> np.ndarray:
    """Accuracy minus envelope of each policy, (policies, R), when prompts count with `weights_RP` (rows sum to 1)."""
    correct_CP = np.stack([cell.correct_P for cell in heuristics])
    nfe_CP = np.stack([cell.nfe_P for cell in heuristics])
    nfe_RC, accuracy_RC = weights_RP @ nfe_CP.T, weights_RP @ correct_CP.T
    reached = [envelope_rows(nfe_RC, accuracy_RC, weights_RP @ policy.nfe_P) for policy in policies]
    return np.stack([weights_RP @ policy.correct_P - r for policy, r in zip(policies, reached, strict=True)])


def resample(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap weights (resamples, prompts): how often each prompt was drawn, as a share."""
    return np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), resamples) / prompts


def judge(
    challenger: Evidence, champion: Evidence | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """accuracy, nfe, envelope, score and, with a champion, gain: middle, `_low` and `_high` of a 95 % interval."""
    policies = [challenger.policy] + ([champion.policy] if champion else [])
    count = challenger.policy.correct_P.size
    middle = scores(policies, challenger.heuristics, np.full((1, count), 1 / count))[:, 0]
    drawn = scores(policies, challenger.heuristics, resample(count, resamples, seed))
    accuracy, nfe = float(challenger.policy.correct_P.mean()), float(challenger.policy.nfe_P.mean())
    figures = {"accuracy": accuracy, "nfe": nfe, "envelope": accuracy - float(middle[0]), "prompts": float(count)}
    figures |= _interval("score", middle[0], drawn[0])
    if champion:
        figures |= _interval("gain", middle[0] - middle[1], drawn[0] - drawn[1])
    return figures


def _interval(name: str, middle: float, drawn_R: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn_R, (0.025, 0.975))
    return {name: float(middle), f"{name}_low": float(low), f"{name}_high": float(high)}


def incomparable(challenger: Evidence, champion: Evidence) -> str | None:
    """Why these two cannot be paired, or None. Equal heuristics on equal prompts prove an equal frozen model."""
    if (challenger.task, challenger.prompts) != (champion.task, champion.prompts):
        return "the champion was evaluated on other prompts"
    if challenger.policy.correct_P.size != champion.policy.correct_P.size:
        return "the champion was evaluated on another number of prompts"
    theirs = {cell.key: cell for cell in champion.heuristics}
    shared = [(cell, theirs[cell.key]) for cell in challenger.heuristics if cell.key in theirs]
    if not shared:
        return "the champion was compared with a sweep that has no rule in common with this one"
    for ours, other in shared:
        if not (np.allclose(ours.correct_P, other.correct_P) and np.allclose(ours.nfe_P, other.nfe_P)):
            return f"the rule {ours.family} {ours.setting} gives other results than when the champion was evaluated"
    return None


def decide(
    challenger: Evidence, champion: Evidence | None, resamples: int = RESAMPLES, seed: int = 0, slack: float = SLACK
) -> Verdict:
    """Promote if the lower bound of the score is above -slack and that of the gain over the champion above 0.

    Without a champion the first condition is all. Deterministic: the same evidence gives the same verdict.
    """
    if champion is not None and challenger.identity == champion.identity:
        return Verdict(False, "this policy is the champion", judge(challenger, None, resamples, seed), live=True)
    why_not = incomparable(challenger, champion) if champion else None
    figures = judge(challenger, None if why_not else champion, resamples, seed)
    if figures["score_low"] <= -slack:
        bounds = f"lower bound {100 * figures['score_low']:+.1f} points, must be above {-100 * slack:+.1f}"
        return Verdict(False, f"not level with the heuristics at its own speed: {bounds}", figures)
    if why_not:
        return Verdict(False, f"{why_not}, so the scores cannot be paired; re-evaluate the champion", figures)
    if champion is None:
        return Verdict(True, "level with the heuristics at its own speed or above; no champion yet", figures, True)
    if figures["gain_low"] <= 0:
        bounds = f"lower bound {100 * figures['gain_low']:+.1f} points, must be above 0"
        return Verdict(False, f"not surely better than the champion: {bounds}", figures)
    return Verdict(True, "better than the champion, level with the heuristics or above", figures, True)
