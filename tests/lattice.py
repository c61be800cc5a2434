"""What tests read off an enumerated lattice: the best policy, the mass of its states, and its final texts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from components.decode.oracle import Exact, Lattice, edge_probability
from components.policies.protocol import Policy


def best(lattice: Lattice, value_N: Tensor) -> tuple[float, list[list[int]]]:
    """The largest value that any policy can reach on this prompt, and a sequence of commits that reaches it: backward
    induction over the edges."""
    value_N = value_N.double()
    after = torch.zeros(0, dtype=torch.float64)
    chosen: list[Tensor] = []
    for level in reversed(lattice.levels):
        value_E = torch.empty(len(level.child_E), dtype=torch.float64)
        value_E[level.ends_E] = value_N[level.child_E[level.ends_E]]
        value_E[~level.ends_E] = after[level.child_E[~level.ends_E]]
        states = len(level.observation.masked_BL)
        after = torch.full((states,), -torch.inf, dtype=torch.float64).scatter_reduce(0, level.state_E, value_E, "amax")
        winners = (value_E == after[level.state_E]).nonzero().squeeze(1)
        first = torch.full((states,), len(value_E)).scatter_reduce(0, level.state_E[winners], winners, "amin")
        chosen.append(first)
    path, state = [], 0
    for level, edge_B in zip(lattice.levels, reversed(chosen), strict=True):
        edge = int(edge_B[state])
        path.append(level.commit_EL[edge].nonzero().squeeze(1).tolist())
        state = int(level.child_E[edge])
        if bool(level.ends_E[edge]):
            break
    return float(after[0]), path


def state_mass(lattice: Lattice, policy: Policy) -> list[Tensor]:
    """Probability of each state of each level where the policy samples. Differentiable."""
    masses = [torch.ones(1, dtype=torch.float64)]
    for level in lattice.levels[:-1]:
        p_E = edge_probability(policy.distribution(level.observation), level, lattice.force_commit).double()
        inner = ~level.ends_E
        flow_E = masses[-1][level.state_E[inner]] * p_E[inner]
        masses.append(flow_E.new_zeros(int(level.child_E[inner].max()) + 1).index_add(0, level.child_E[inner], flow_E))
    return masses


def text_distribution(lattice: Lattice, exact: Exact) -> dict[tuple[int, ...], Tensor]:
    """Probability of each final canvas, however many steps it took. Differentiable."""
    found: dict[tuple[int, ...], Tensor] = {}
    for canvas, mass in zip(lattice.ends.canvas_RL.tolist(), exact.mass_N, strict=True):
        found[tuple(canvas)] = found.get(tuple(canvas), mass.new_zeros(())) + mass
    return found


def data_divergence(data: Mapping[tuple[int, ...], float], lattice: Lattice, exact: Exact) -> Tensor:
    """KL(data || policy) over final canvases; +inf where the policy never writes what the data holds."""
    made = text_distribution(lattice, exact)
    nothing = exact.mass_N.new_zeros(())
    terms = [
        p * (torch.log(torch.tensor(p, dtype=nothing.dtype)) - made.get(canvas, nothing).log())
        for canvas, p in data.items()
        if p > 0
    ]
    return torch.stack(terms).sum()
