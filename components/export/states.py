"""Random observations: what an export is traced with, and states for parity checks and benchmarks.

The statistics belong together (they are those of random distributions from flat to almost certain), the masks, blocks,
steps and lengths are arbitrary. They are not states that a decode would visit; ``visited_state`` gives one of those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..core.rng import generator
from ..core.types import Needs, Observation
from ..decode.engine import rollout
from ..decode.job import DecodeOptions, Job
from ..decode.readout import LOG_ODDS_LIMIT
from ..denoisers.protocol import Denoiser
from ..maths.distributions import ActionDistribution
from ..policies.protocol import Policy
from ..policies.store import LearnedPolicy

_WORDS = 8  # of the random distributions' vocabulary, unless more probabilities are kept


def random_observation(policy: LearnedPolicy, rows: int, length: int, *address: object) -> Observation:
    """An observation with all that ``policy`` may read, except drift, on its device; ``address`` seeds it. Row 0 fills
    the canvas."""
    draw, needs = generator("state", *address), policy.needs
    length_B = torch.randint(1, length + 1, (rows,), generator=draw)
    length_B[:1] = length
    valid_BL = torch.arange(length) < length_B.unsqueeze(1)
    masked_BL = (torch.rand(rows, length, generator=draw) < torch.rand(rows, 1, generator=draw)) & valid_BL
    eligible_BL = masked_BL & (torch.rand(rows, length, generator=draw) < 0.7)
    step_B = (torch.rand(rows, generator=draw) * length_B).long()
    fields = _statistics(rows, length, needs, draw)
    where_BL = {"eligible": eligible_BL, "masked": masked_BL, "all": valid_BL}[needs.where]
    fields = {name: v * (where_BL if v.ndim == 2 else where_BL.unsqueeze(-1)) for name, v in fields.items()}
    if needs.attention:
        fields["attention_BLLA"] = _attention(valid_BL, len(needs.attention), draw)
    prompt = 0
    if needs.features != "none":
        prompt = 5 if needs.features == "sequence" else 0
        width = int(policy.describe()["shape"]["features"])
        fields["features_BTD"] = torch.randn(rows, prompt + length, width, generator=draw)
    if needs.features == "sequence":
        pad_B = torch.randint(0, prompt, (rows,), generator=draw)
        fields["attend_BT"] = torch.cat([torch.arange(prompt) >= pad_B.unsqueeze(1), valid_BL], 1)
    if policy.describe()["shape"].get("alphas"):
        fields["alpha_B"] = 10 * torch.rand(rows, generator=draw)
    obs = Observation(
        masked_BL, eligible_BL, step_B, length_B, canvas_start=prompt, attention_layers=needs.attention, **fields
    )
    device = next(policy.parameters()).device
    return replace(obs, **{name: value.to(device) for name, value in obs.tensors().items()})


def _statistics(rows: int, length: int, needs: Needs, draw: torch.Generator) -> dict[str, Tensor]:
    words = max(_WORDS, needs.top_k)
    sharpness_BL1 = torch.rand(rows, length, 1, generator=draw) * 30
    logits_BLV = torch.randn(rows, length, words, generator=draw, dtype=torch.float64) * sharpness_BL1
    top_BLV = logits_BLV.softmax(-1).sort(-1, descending=True).values
    best_BL, rest_BL = top_BLV[..., 0], top_BLV[..., 1:].sum(-1)
    fields = {
        "token_BL": logits_BLV.argmax(-1),
        "confidence_BL": best_BL,
        "log_odds_BL": (best_BL.log() - rest_BL.log()).clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT),
        "margin_BL": best_BL - top_BLV[..., 1],
        "entropy_BL": -torch.special.xlogy(top_BLV, top_BLV).sum(-1),
    }
    if needs.top_k:
        fields["top_BLK"] = top_BLV[..., : needs.top_k]
    if needs.top_ids:
        fields["top_ids_BLK"] = logits_BLV.sort(-1, descending=True).indices[..., : needs.top_k]
    return {name: v.float() if v.is_floating_point() else v for name, v in fields.items()}


def _attention(valid_BL: Tensor, layers: int, draw: torch.Generator) -> Tensor:
    """Random attention of which a part, the prompt's, is left out."""
    rows, length = valid_BL.shape
    scores_BLLA = 3 * torch.randn(rows, length, length, layers, generator=draw)
    closed_BL11 = ~valid_BL[:, :, None, None]
    shares_BLLA = scores_BLLA.masked_fill(closed_BL11.transpose(1, 2), -torch.inf).softmax(2)
    return 0.5 * shares_BLLA.masked_fill(closed_BL11, 0.0)


def random_states(policy: LearnedPolicy, rows: int = 500, *address: object) -> list[Observation]:
    """At least ``rows`` rows in batches of different sizes and lengths, from single positions to long canvases."""
    shapes = [(1, 1), (2, 3), (1, 16), (7, 16), (3, 33), (32, 12), (5, 64), (1, 257), (16, 24)]
    states: list[Observation] = []
    while sum(len(s.step_B) for s in states) < rows:
        count, length = shapes[len(states) % len(shapes)]
        states.append(random_observation(policy, count, length, *address, len(states)))
    return states


def visited_state(policy: Policy, denoiser: Denoiser, job: Job, choose: str = "mode") -> Observation:
    """The observation half-way through the policy's own decode of the job, which has one row."""
    seen: list[Observation] = []
    rollout(denoiser, Watched(policy, lambda obs, _: seen.append(obs)), job, DecodeOptions(choose=choose))
    return seen[len(seen) // 2]


class Watched:
    """The policy; ``look(observation, distribution)`` is called at every state that it decides."""

    def __init__(self, policy: Policy, look: Callable[[Observation, ActionDistribution], None]) -> None:
        self._policy, self._look = policy, look

    @property
    def needs(self) -> Needs:
        return self._policy.needs

    def score(self, obs: Observation) -> Tensor:
        return self._policy.score(obs)

    def distribution(self, obs: Observation) -> ActionDistribution:
        distribution = self._policy.distribution(obs)
        self._look(obs, distribution)
        return distribution
