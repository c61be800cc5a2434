"""The protocol of a policy: a heuristic, a learned policy and an exported file are the same kind of object."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..core.types import Needs, Observation
from ..maths.distributions import ActionDistribution


class Policy(Protocol):
    @property
    def needs(self) -> Needs:
        """The fields of the Observation that it reads."""
        ...

    def score(self, obs: Observation) -> Tensor:
        """(B, L) utilities; for a learned policy exactly the graph that is exported. Higher is sooner."""
        ...

    def distribution(self, obs: Observation) -> ActionDistribution:
        """The distribution of its draws over the observation's eligible positions."""
        ...


def field_of(obs: Observation, name: str) -> Tensor:
    """An optional field of the observation. ValueError where it is missing."""
    value = getattr(obs, name)
    if value is None:
        raise ValueError(f"The observation has no {name}, which the policy reads. Ask for it in Needs.")
    return value
