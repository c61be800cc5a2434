"""Small policies, draws and files that tests of several kinds make."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from components.core.types import Action, Needs, Observation
from components.maths.accept_or_skip import AcceptOrSkip
from components.maths.distributions import ActionDistribution
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.coupled import CoupledPolicy
from components.policies.protocol import Policy
from components.tracking.tracker import JsonlTracker

# --- policies -------------------------------------------------------------------------------------------------------


def learner(seed: int = 0, **shape: Any) -> ConfidencePolicy:
    """An untrained policy that training moves quickly."""
    torch.manual_seed(seed)
    return ConfidencePolicy(Shape(width=16, heads=1, mlp_width=16, bias=-0.5, **shape))


def snapshot(policy: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights."""
    return {name: value.detach().clone() for name, value in policy.state_dict().items()}


@dataclass(frozen=True)
class Accepting:
    """A coupled policy whose sets are accepted or skipped along the greedy path; they may be empty."""

    policy: CoupledPolicy

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def score(self, obs: Observation) -> Tensor:
        return self.policy.score(obs)

    def distribution(self, obs: Observation) -> ActionDistribution:
        return AcceptOrSkip(**vars(self.policy.distribution(obs)))

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.policy.parameters()


# --- draws ----------------------------------------------------------------------------------------------------------


def every_set(size: int) -> Action:
    """Every bit pattern over so many positions."""
    return Action(torch.tensor(list(itertools.product([False, True], repeat=size))))


def every_order(size: int) -> Action:
    """Every ordered selection of so many positions, the empty one too."""
    orders = [order for count in range(size + 1) for order in itertools.permutations(range(size), count)]
    rank = torch.full((len(orders), size), -1)
    for row, order in enumerate(orders):
        for place, position in enumerate(order):
            rank[row, position] = place
    return Action(rank >= 0, rank)


def expectation(log_p: Tensor, value: Tensor) -> float:
    """E[value], what is impossible counting nothing."""
    return float(torch.where(log_p == -torch.inf, 0.0, log_p.exp() * value).sum())


def picks(policy: Policy, obs: Observation) -> set[int]:
    """The positions that a policy's mode commits in the first row."""
    return set(policy.distribution(obs).mode().drawn_BL[0].nonzero().flatten().tolist())


def arrays(obs: Observation) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in obs.tensors().items()}


# --- files ----------------------------------------------------------------------------------------------------------


def json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Writes a file of rows; its name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class Unwatched(JsonlTracker):
    """A training's tracker without MLflow."""

    run_id = "none"
