"""Who chooses the positions: a heuristic, a learned policy, or an exported file; all the same kind of object."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from components.core.types import Needs, Observation
from components.maths.distributions import ActionDistribution


class Policy(Protocol):
    @property
    def needs(self) -> Needs:
        """Which fields of the Observation it reads."""
        ...

    def score(self, obs: Observation) -> Tensor:
        """(B, L) utilities; for a learned policy exactly the graph that is exported. Higher is sooner."""
        ...

    def distribution(self, obs: Observation) -> ActionDistribution:
        """What it may draw, over the observation's eligible positions."""
        ...
