"""Proof that an exported policy is the policy it came from: utilities, choices on random states, whole decoded texts.

Of a coupled draw everything that its utilities are made of is compared as if it were one: bias, shifts, the risk's
mixture, kappa, tau and cost.

Float noise. Both compute in float32, in another order: they differ by 1e-7 for a small policy as it is initialised, by
1.5e-5 for one whose weights are large and random, and each is then as far from float64 as from the other.
``TOLERANCE`` leaves room for larger utilities and longer canvases and lies as far below what matters: 1e-4 moves no
probability by more than 2.5e-5, where a wrong mask, a missing input or half precision move utilities by 1e-2 and more.
Shifts count by the largest of their batch, where that is above 1: products of positions of a long canvas leave up to
1e-5 of it.

A decision whose margin is smaller than the difference may flip. On random states a flip is a *near tie* if the
policy's own distribution, given the exported utilities, makes the exported choice: then the utilities explain it, and
they are within the tolerance. It is counted, not refused; any other difference is. Decoded texts must be equal without
exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..core.errors import ParityError
from ..core.rng import Noise, row_keys
from ..core.types import Observation, Rollout
from ..decode.engine import rollout
from ..decode.job import DecodeOptions
from ..decode.prompts import Prompts
from ..denoisers.protocol import Denoiser
from ..maths.accept_or_skip import AcceptOrSkip
from ..maths.coupled import CoupledPlackettLuce
from ..maths.distributions import ActionDistribution, commit
from ..policies.protocol import Policy
from .states import Watched

TOLERANCE = 1e-4
CHOICES = ("mode", "sample")
SETS = (AcceptOrSkip, CoupledPlackettLuce)  # draws that an exported graph gives pair shifts for


@dataclass(frozen=True)
class Decoding:
    """What both policies decode: every prompt once by the mode and once by a sample. block_length None: full
    diffusion. frontier None: all masks of the block. progress is called with the number of rows that have just
    finished, of four per prompt."""

    denoiser: Denoiser
    prompts: Prompts
    block_length: int | None
    frontier: int | None = None
    progress: Callable[[int], None] | None = None
    seed: int = 0
    rows: int = 256


@dataclass(frozen=True)
class ParityReport:
    """states, choices: rows compared, and decisions on them (mode and sample). largest: of the absolute differences
    of utilities, and of what they are made of, on them. near_ties: choices that float noise flipped. prompts, texts:
    decoded, once by the mode and once by a sample. equal_texts, equal_orders: of them the same, and committed in the
    same steps throughout. largest_decoding: difference on the states that the policy visited. unequal: the prompts at
    fault."""

    states: int = 0
    choices: int = 0
    largest: float = 0.0
    near_ties: int = 0
    prompts: int = 0
    texts: int = 0
    equal_texts: int = 0
    equal_orders: int = 0
    largest_decoding: float = 0.0
    unequal: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        """The figures, as a stage stores them."""
        return {name: float(value) for name, value in asdict(self).items() if name != "unequal"}


def check_parity(
    policy: Policy, exported: Policy, states: Sequence[Observation], decoding: Decoding | None = None
) -> ParityReport:
    """Compares them on random states (``random_states``) and on whole decodes; ParityError, with the figures, where
    they are not the same by the rules above."""
    with torch.no_grad():
        report = _compare_states(policy, exported, states)
        if decoding is not None:
            report = _compare_decodes(report, policy, exported, decoding)
    largest = max(report.largest, report.largest_decoding)
    if not largest <= TOLERANCE:
        raise ParityError(
            f"utilities differ by up to {largest:.2e}, more than {TOLERANCE:.0e}. "
            f"Export the file again from the policy it is compared with."
        )
    if report.equal_texts < report.texts:
        raise ParityError(
            f"{report.texts - report.equal_texts} of {report.texts} decoded texts differ (prompts "
            f"{', '.join(report.unequal[:5])}), at utilities that differ by up to {report.largest_decoding:.2e}. "
            f"If that is float noise, these prompts hold a near tie: export a policy of another iteration."
        )
    return report


def _compare_states(policy: Policy, exported: Policy, states: Sequence[Observation]) -> ParityReport:
    largest, near_ties = 0.0, 0
    for number, obs in enumerate(states):
        ours, theirs = policy.distribution(obs), exported.distribution(obs)
        if type(ours) is not type(theirs):
            raise ParityError(
                f"The policy draws by {type(ours).__name__}, the file by {type(theirs).__name__}. Export it again."
            )
        largest = max(largest, _difference(ours, theirs, obs))
        rows_B = torch.arange(len(obs.step_B), device=obs.step_B.device)
        noise = Noise(row_keys(0, rows_B, torch.full_like(rows_B, number)), obs.step_B)
        for choose in CHOICES:
            chosen_BL = _choice(theirs, obs, noise, choose)
            flipped_B = (_choice(ours, obs, noise, choose) != chosen_BL).any(-1)
            explained = replace(cast(Any, ours), **_given(theirs))
            wrong_B = (_choice(explained, obs, noise, choose) != chosen_BL).any(-1)
            if bool(wrong_B.any()):
                row = int(wrong_B.nonzero()[0])
                raise ParityError(
                    f"{int(wrong_B.sum())} of {len(wrong_B)} rows of state {number} (L = {chosen_BL.shape[1]}) choose "
                    f"other positions by {choose} from the same utilities, row {row}: "
                    f"{chosen_BL[row].nonzero().flatten().tolist()} "
                    f"({type(theirs).__name__} against {type(ours).__name__}). Export the policy again."
                )
            near_ties += int(flipped_B.sum())
    rows = sum(len(obs.step_B) for obs in states)
    return ParityReport(states=rows, choices=rows * len(CHOICES), largest=largest, near_ties=near_ties)


def _given(distribution: ActionDistribution) -> dict[str, Tensor]:
    """The fields that an exported graph gives."""
    names = ("bias_BL", "shift_BLL", "mix_BL") if isinstance(distribution, SETS) else ("logits_BL",)
    return {name: getattr(distribution, name) for name in names}


def _choice(distribution: ActionDistribution, obs: Observation, noise: Noise, choose: str) -> Tensor:
    action = distribution.mode() if choose == "mode" else distribution.sample(noise)
    committed_BL = commit(distribution, action, obs.eligible_BL, force=True).committed_BL
    assert committed_BL is not None
    return committed_BL


def _difference(ours: ActionDistribution, theirs: ActionDistribution, obs: Observation) -> float:
    """The largest absolute difference on the canvas, of utilities and what they are made of."""
    names = ["logits_BL"]
    if isinstance(ours, SETS):
        names += ["bias_BL", "shift_BLL", "mix_BL", "kappa", "tau", "cost"]
    return max(_apart(torch.as_tensor(getattr(ours, n)), torch.as_tensor(getattr(theirs, n)), obs) for n in names)


def _apart(ours: Tensor, theirs: Tensor, obs: Observation) -> float:
    """0 where both are -inf (off a shortlist), +inf where one is NaN; of the canvas alone, along each of its axes."""
    same = ours == theirs.to(ours.device)
    for axis in range(1, ours.ndim):
        padding_BL = torch.arange(ours.shape[axis], device=ours.device) >= obs.length_B.unsqueeze(1)
        same = same | (padding_BL if ours.ndim == 2 else padding_BL.unsqueeze(3 - axis))
    difference = (ours - theirs.to(ours.device)).abs().nan_to_num(nan=torch.inf)
    largest = ours.abs().max().clamp(min=1) if ours.ndim == 3 else 1.0
    return float((difference.masked_fill(same, 0.0) / largest).max())


class _Apart:
    """How far the exported policy is from the policy, over the states that a decode visits."""

    def __init__(self, exported: Policy) -> None:
        self._exported, self.largest = exported, 0.0

    def __call__(self, obs: Observation, ours: ActionDistribution) -> None:
        self.largest = max(self.largest, _difference(ours, self._exported.distribution(obs), obs))


def _texts(prompts: Prompts, decoded: Rollout) -> list[str]:
    return [prompts.encoder.text(ids[:n]) for ids, n in zip(decoded.canvas_RL, prompts.lengths, strict=True)]


def _compare_decodes(report: ParityReport, policy: Policy, exported: Policy, decoding: Decoding) -> ParityReport:
    prompts, apart = decoding.prompts, _Apart(exported)
    watched = Watched(policy, apart)
    job = prompts.job(decoding.block_length, decoding.frontier)
    equal_texts = equal_orders = 0
    unequal: list[str] = []
    for choose in CHOICES:
        options = DecodeOptions(seed=decoding.seed, choose=choose, rows=decoding.rows)
        ours, theirs = (
            rollout(decoding.denoiser, p, job, options, progress=decoding.progress) for p in (watched, exported)
        )
        one, other = (_texts(prompts, r) for r in (ours, theirs))
        wrong = [prompts.examples[i].uid for i in range(len(prompts)) if one[i] != other[i]]
        equal_texts += len(prompts) - len(wrong)
        equal_orders += int((ours.order_RL == theirs.order_RL).all(-1).sum())
        unequal += [f"{uid} ({choose})" for uid in wrong]
    return replace(
        report,
        prompts=len(prompts),
        texts=len(CHOICES) * len(prompts),
        equal_texts=equal_texts,
        equal_orders=equal_orders,
        largest_decoding=apart.largest,
        unequal=tuple(unequal),
    )
