"""Fit of pair shifts to the labels of ``trainers.probing``.

The loss is the cross-entropy of sigma(l_j + w_ij) against the soft label sigma(l_j given i), over the probed pairs.
Figure of merit: the *unexplained* share of the shifts' divergence,

    (cross-entropy - the labels' entropy) / (cross-entropy without shifts - the labels' entropy),

1 for a policy without shifts, 0 for the frozen model itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.files import put_aside
from ..core.rng import generator
from ..decode.prompts import Prompts
from ..denoisers.protocol import Denoiser
from ..policies.coupled import CoupledPolicy
from ..policies.protocol import Policy
from . import checkpoints
from .clipping import clip_finite
from .probing import Labels, Probing, collect, stored

Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Fit:
    """num_epochs over the labels in batches of ``batch`` states. learning_rate falls by a cosine to zero."""

    num_epochs: int
    batch: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Source:
    """The source of labels: the frozen model, probed at states of these prompts that the reference visits."""

    reference: Policy
    denoiser: Denoiser
    prompts: Prompts


@dataclass(frozen=True)
class Kept:
    """The folder of labels and checkpoints, from which a killed training resumes. key: identifies the source."""

    folder: Path
    key: str


@dataclass(frozen=True)
class Callbacks:
    """Callbacks: ``chunk(states)`` after each probed chunk, ``epoch(number, metrics)`` after each epoch."""

    chunk: Callable[[int], None]
    epoch: Report


def influence(
    policy: CoupledPolicy, source: Source, plans: tuple[Probing, Fit], callbacks: Callbacks, kept: Kept
) -> None:
    """Collect labels and train the policy's shifts in place.

    With ``on_policy_from`` there are two fits: the policy of the first one visits the later chunks, and is then trained
    on all. A killed run that starts again ends at the same bits, and reports the finished epochs once more. Labels of
    another key are collected anew.
    """
    probing, plan = plans
    visits = json.dumps([kept.key, asdict(probing), asdict(policy.needs)], sort_keys=True)
    key = json.dumps([visits, asdict(plan), policy.describe()], sort_keys=True)
    own = probing.chunks if probing.on_policy_from is None else min(probing.on_policy_from, probing.chunks)
    labels: list[Labels] = []
    for number, (first, last) in enumerate([(0, own), (own, probing.chunks)]):
        if first == last:
            continue
        for chunk in range(first, last):
            make = partial(collect, policy, source.reference, source.denoiser, source.prompts, probing, chunk)
            # States that the reference alone visits do not depend on the training.
            path = kept.folder / f"labels-{chunk:04d}.safetensors"
            labels.append(stored(path, key if number else visits, make))
            callbacks.chunk(len(labels[-1]))

        def report(epoch: int, metrics: dict[str, float], done: int = number * plan.num_epochs) -> None:
            callbacks.epoch(done + epoch, metrics)

        fit(policy, labels, plan, report, kept.folder / f"fit-{number}.safetensors", key)


def losses(policy: CoupledPolicy, labels: Labels) -> tuple[Tensor, Tensor, Tensor, int]:
    """Sums over the pairs: cross-entropy, cross-entropy without shifts, entropy of the labels; and the count."""
    obs = labels.observation
    assert obs.log_odds_BL is not None
    shift_SLL = policy.shifts(obs)
    state_M, probe_M, j_M = labels.pairs_SNL.nonzero(as_tuple=True)
    after_M = labels.after_SNL[state_M, probe_M, j_M].to(shift_SLL.dtype)
    now_M = obs.log_odds_BL[state_M, j_M].to(shift_SLL.dtype)
    shift_M = shift_SLL[state_M, labels.position_SN[state_M, probe_M], j_M]
    target_M = torch.sigmoid(after_M)
    fitted, without, least = (
        F.binary_cross_entropy_with_logits(x, target_M, reduction="sum") for x in (now_M + shift_M, now_M, after_M)
    )
    return fitted, without, least, len(j_M)


def share(fitted: float, without: float, least: float) -> float:
    """The figure of merit from the sums; 1 where no commit moved a prediction."""
    return (fitted - least) / (without - least) if without > least else 1.0


@torch.no_grad()
def unexplained(policy: CoupledPolicy, labels: list[Labels], batch: int) -> float:
    """The figure of merit over the held-out states; NaN without any."""
    total, count, device = torch.zeros(3, dtype=torch.float64), 0, policy.tau.device
    for chunk in labels:
        for index in _batches(chunk.held_S, batch):
            *sums, pairs = losses(policy, chunk.rows(index).to(device))
            total, count = total + torch.stack(sums).double().cpu(), count + pairs
    fitted, without, least = total.tolist()
    return share(fitted, without, least) if count else math.nan


def _batches(chosen_S: Tensor, batch: int, source: torch.Generator | None = None) -> list[Tensor]:
    """The chosen states in batches, shuffled by ``source``; none where nothing is chosen."""
    index = chosen_S.nonzero().squeeze(1)
    if source is not None:
        index = index[torch.randperm(len(index), generator=source)]
    return list(index.split(batch)) if len(index) else []


def fit(
    policy: CoupledPolicy,
    labels: list[Labels],
    plan: Fit,
    report: Report,
    checkpoint: Path | None = None,
    key: str = "",
) -> None:
    """Train the policy's shifts in place; resume from ``checkpoint`` where it has the same ``key``."""
    policy.shifts.requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.shifts.parameters(), lr=plan.learning_rate, weight_decay=0.0)
    history: list[dict[str, float]] = []
    if checkpoint is not None and checkpoint.exists():
        try:
            facts = checkpoints.facts_of(checkpoint)
            if facts.get("key") == key:
                checkpoints.load(checkpoint, policy, optimizer)
                history = list(facts["history"])
        except (CheckpointError, LookupError, TypeError) as error:
            put_aside("influence", checkpoint, error)
    for epoch, metrics in enumerate(history):
        report(epoch, metrics)
    for epoch in range(len(history), plan.num_epochs):
        metrics = _epoch(policy, optimizer, labels, plan, epoch)
        history.append(metrics)
        if checkpoint is not None:
            checkpoints.save(checkpoint, policy, optimizer, {"key": key, "history": history})
        report(epoch, metrics)
    policy.shifts.requires_grad_(False)
    policy.start_from_shifts()


def _epoch(
    policy: CoupledPolicy, optimizer: torch.optim.Optimizer, labels: list[Labels], plan: Fit, epoch: int
) -> dict[str, float]:
    """One pass over the states trained on, in batches of one chunk each."""
    source, device = generator(plan.seed, "influence", "order", epoch), policy.tau.device
    batches: list[tuple[Labels, Tensor]] = []
    for chunk in labels:
        batches += [(chunk, part) for part in _batches(~chunk.held_S, plan.batch, source)]
    total, pairs = torch.zeros(3, dtype=torch.float64), 0
    for number, b in enumerate(torch.randperm(len(batches), generator=source).tolist()):
        progress = (epoch + number / len(batches)) / plan.num_epochs
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        chunk, part = batches[b]
        *sums, count = losses(policy, chunk.rows(part).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss = sums[0] / max(count, 1)
        loss.backward()
        clip_finite(policy, 1.0, float(loss.detach()), f"epoch {epoch} of the influence fit")
        optimizer.step()
        total, pairs = total + torch.stack([x.detach() for x in sums]).double().cpu(), pairs + count
    fitted, without, least = total.tolist()
    return {
        "influence/loss": fitted / max(pairs, 1),
        "influence/unexplained": share(fitted, without, least),
        "influence/held_unexplained": unexplained(policy, labels, plan.batch),
        "influence/pairs": float(pairs),
    }
