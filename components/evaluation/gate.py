"""The gate: whether a policy may be promoted. Pure functions on results per prompt, numpy alone.

The score of a policy is its accuracy minus what the heuristics attain with as many forward passes (NFE):

    score = accuracy - envelope(nfe)

The envelope is the upper concave hull of all swept heuristics, points (NFE, accuracy). Decoding each prompt with one of
two heuristics, chosen at random, attains every point between them: the hull is attainable, and a policy below it is of
no use. This is stricter than the best single heuristic with no more NFE. Beyond the best heuristic the envelope stays
level, because unused passes cost nothing. It is also level before the fastest one, against which a policy faster than
every heuristic is measured.

Uncertainty comes from the prompts: a paired bootstrap draws prompts with replacement and recomputes accuracy and NFE of
the policy and of each heuristic, and the hull. A hull is a maximum, and resampling inflates it: the interval leans
against the policy, by 2 points with 60 independent heuristics on 512 prompts, by less where they agree on hard prompts.

Against the champion, the declared utility is compared, mean of correct x speed^alpha at the exponent that the profile
serves, paired by prompt in the same resamples. The envelope does not suit this comparison: a policy at a speed where
rules are bad would look better than a better policy. Both must be evaluated on the same prompts by the same frozen
model, which `incomparable` checks.

Evidence outside its range is refused with DataError. Every condition of a promotion is written so that a NaN fails it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..maths.pareto import envelope_rows
from .evidence import Evidence
from .results import EvalResult

SLACK = 0.01  # accuracy by which the lower bound may lie below the envelope
RESAMPLES = 2000


@dataclass(frozen=True)
class Verdict:
    """promote: the alias should move. live: the policy is the champion, now or already. figures: see `measure`."""

    promote: bool
    reason: str
    figures: dict[str, float] = field(default_factory=dict)
    live: bool = False
    version: str | None = None
    run_id: str | None = None

    @property
    def headline(self) -> str:
        head = "promoted" if self.promote else "already live" if self.live else "refused"
        name = f" (version {self.version})" if self.version else ""
        return f"{head}{name}: {self.reason}"

    def __str__(self) -> str:
        lines = [self.headline]
        if f := self.figures:
            lines.append(
                f"  accuracy {f['accuracy']:.3f} at {f['nfe']:.2f} forward passes; heuristics {f['envelope']:.3f}"
            )
            lines.append(f"  score {points(f, 'score')}")
        if "gain" in f:
            lines.append(f"  against the champion {points(f, 'gain')} of correct x speed^{f['alpha']:g}")
        return "\n".join(lines)


def points(figures: Mapping[str, float], name: str) -> str:
    """`+4.2 points [+2.1, +6.3]` of a figure with its interval."""
    middle, low, high = (f"{100 * figures[name + end]:+z.1f}" for end in ("", "_low", "_high"))
    return f"{middle} points [{low}, {high}]"


def scores(policies: Sequence[EvalResult], heuristics: Sequence[EvalResult], weights_RP: np.ndarray) -> np.ndarray:
    """Accuracy minus envelope of each policy, (policies, R), when prompts count with `weights_RP` (rows sum to 1)."""
    correct_HP = np.stack([rule.correct_P for rule in heuristics])
    nfe_HP = np.stack([rule.nfe_P for rule in heuristics])
    nfe_RH, accuracy_RH = weights_RP @ nfe_HP.T, weights_RP @ correct_HP.T
    reached = [envelope_rows(nfe_RH, accuracy_RH, weights_RP @ policy.nfe_P) for policy in policies]
    return np.stack([weights_RP @ policy.correct_P - r for policy, r in zip(policies, reached, strict=True)])


def resample(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap weights (resamples, prompts): the share of draws of each prompt."""
    return np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), resamples) / prompts


def level(
    policy: EvalResult, heuristics: Sequence[EvalResult], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """accuracy, nfe, envelope, prompts and score; of the score also ``_low`` and ``_high`` of a 95 % interval."""
    count = policy.correct_P.size
    middle = float(scores([policy], heuristics, np.full((1, count), 1 / count))[0, 0])
    accuracy, nfe = float(policy.correct_P.mean()), float(policy.nfe_P.mean())
    figures = {"accuracy": accuracy, "nfe": nfe, "envelope": accuracy - middle, "prompts": float(count)}
    return figures | _interval("score", middle, scores([policy], heuristics, resample(count, resamples, seed))[0])


def measure(
    challenger: Evidence, champion: Evidence | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """The figures of ``level`` and, with a champion, utility and gain with its interval.

    The champion's utility is taken at the challenger's canvas and exponent.
    """
    figures = level(challenger.policy, challenger.heuristics, resamples, seed)
    if champion:
        weights_RP = resample(challenger.policy.correct_P.size, resamples, seed)
        ours_P, theirs_P = (e.policy.utility_P(challenger.canvas, challenger.alpha) for e in (challenger, champion))
        figures |= {"alpha": challenger.alpha, "utility": float(ours_P.mean())}
        figures |= _interval("gain", float((ours_P - theirs_P).mean()), weights_RP @ (ours_P - theirs_P))
    return figures


def _interval(name: str, middle: float, drawn_R: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn_R, (0.025, 0.975))
    return {name: float(middle), f"{name}_low": float(low), f"{name}_high": float(high)}


def incomparable(challenger: Evidence, champion: Evidence) -> str | None:
    """The reason why these two cannot be paired, or None. Equal heuristics on equal prompts prove an equal model."""
    if (challenger.task, challenger.prompts) != (champion.task, champion.prompts):
        return "the champion was evaluated on other prompts"
    if challenger.canvas != champion.canvas:
        return f"the champion was evaluated on a canvas of {champion.canvas}, not {challenger.canvas}"
    if challenger.policy.correct_P.size != champion.policy.correct_P.size:
        return "the champion was evaluated on another number of prompts"
    theirs = {rule.key: rule for rule in champion.heuristics}
    shared = [(rule, theirs[rule.key]) for rule in challenger.heuristics if rule.key in theirs]
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

    Without a champion the first condition is all. Deterministic: the same evidence gives the same verdict. A bound that
    is NaN is above nothing.
    """
    if champion is not None and challenger.identity == champion.identity:
        return Verdict(False, "this policy is the champion", measure(challenger, None, resamples, seed), live=True)
    why_not = incomparable(challenger, champion) if champion else None
    figures = measure(challenger, None if why_not else champion, resamples, seed)
    if not figures["score_low"] > -slack:
        bounds = f"lower bound {100 * figures['score_low']:+.1f} points, must be above {-100 * slack:+.1f}"
        return Verdict(False, f"not level with the heuristics at its own speed: {bounds}", figures)
    if why_not:
        return Verdict(False, f"{why_not}, so the scores cannot be paired; re-evaluate the champion", figures)
    if champion is None:
        return Verdict(True, "level with the heuristics at its own speed or above; no champion yet", figures, True)
    if not figures["gain_low"] > 0:
        bounds = f"lower bound {100 * figures['gain_low']:+.1f} points, must be above 0"
        return Verdict(False, f"not surely better than the champion: {bounds}", figures)
    return Verdict(True, "better than the champion, level with the heuristics or above", figures, True)
