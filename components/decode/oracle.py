"""The decoding of one prompt, enumerated: every reachable canvas, and every set that can be committed there.

For a deterministic, stateless denoiser and a tiny canvas. A state is (canvas, step) and, under ``step_limit="block"``,
the block and the steps spent in it. Tokens depend on the order, so that the set of masks is not enough. States are made
by the decode loop's own functions (``admit``, ``refresh``, ``observation``, ``advance``, ``is_done``).

The lattice does not depend on a policy. A policy puts probabilities on its edges, differentiably. The exact expected
reward, its gradient and the exact distribution of final texts follow.

It leaves out what depends on more of the past than the canvas (KLASS's drift, a denoiser with a state).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import SettingsError
from ..core.timer import Timer
from ..core.types import Action, Needs, Observation, Rollout
from ..denoisers.protocol import Denoiser
from ..maths.coupled import CoupledPlackettLuce
from ..maths.distributions import ActionDistribution, commit, one_hot, take
from ..maths.plackett_luce import DPLS, PlackettLuce
from ..policies.protocol import Policy
from .batch import DecodeBatch, admit, advance, is_done
from .job import DecodeOptions, Job
from .refresh import Facts, refresh

LIMIT = 10


@dataclass(frozen=True)
class Level:
    """The n distinct unfinished states after some number of steps, and E edges out of them.

    Edge e commits ``commit_EL[e]`` in state ``state_E[e]``; it leads to state ``child_E[e]`` of the next level, or,
    where ``ends_E[e]``, to the lattice's ending of that number.
    """

    observation: Observation
    state_E: Tensor
    commit_EL: Tensor
    child_E: Tensor
    ends_E: Tensor


@dataclass(frozen=True)
class Lattice:
    """levels[s] are the states after s steps. ends: every distinct (canvas, steps taken) as the rows of a Rollout, so
    that it is scored like any other (its order_RL is one of the orders that lead there). force_commit: an empty draw is
    replaced by the distribution's best position."""

    levels: list[Level]
    ends: Rollout
    force_commit: bool


def enumerate_decoding(
    denoiser: Denoiser,
    job: Job,
    needs: Needs,
    options: DecodeOptions = DecodeOptions(),  # noqa: B008 (frozen)
    single: bool = False,
) -> Lattice:
    """The lattice of a job of one row. needs: of every policy that will follow it. options: only force_commit and
    step_limit are read. single: one position per step only (enough for categorical policies, and far smaller).

    SettingsError where enumeration is impossible.
    """
    if needs.drift or not denoiser.stateless:
        raise SettingsError(
            "The oracle was given a policy that reads drift, or a denoiser with a state. Use others: decisions "
            "must depend on the canvas alone."
        )
    if (most := int(job.block_R.max())) > LIMIT:
        raise SettingsError(
            f"{most} positions are eligible at once, so that a step has 2^{most} outcomes. Use at most {LIMIT}."
        )
    batch, timer = admit(job, torch.tensor([0]), denoiser, 0), Timer()
    levels: list[Level] = []
    retired: list[DecodeBatch] = []
    with torch.no_grad():
        while len(batch):
            batch, _ = refresh(batch, denoiser, needs, timer, Facts.of(batch, needs, every=True))
            observation = batch.observation(needs)
            state_E, commit_EL = _choices(observation.eligible_BL, empty=not options.force_commit, single=single)
            children = advance(batch.keep(state_E), Action(commit_EL, None, commit_EL), needs, options)
            ends_E = is_done(children, options)
            distinct, place_E = _distinct(children, options.step_limit)
            over = ends_E[distinct]
            # Endings are numbered through all levels, the next level's states from 0.
            number = torch.where(over, over.cumsum(0) - 1 + sum(map(len, retired)), (~over).cumsum(0) - 1)
            levels.append(Level(observation, state_E, commit_EL, number[place_E], ends_E))
            retired.append(children.keep(distinct[over]))
            batch = children.keep(distinct[~over])
    return Lattice(levels, _endings(retired), options.force_commit)


def _choices(eligible_BL: Tensor, empty: bool, single: bool) -> tuple[Tensor, Tensor]:
    """Every set of eligible positions of every state: (state_E, commit_EL)."""
    states, length = eligible_BL.shape
    per_state = []
    for state in range(states):
        positions = eligible_BL[state].nonzero().squeeze(1)
        sizes = range(0 if empty else 1, (1 if single else len(positions)) + 1)
        sets = [list(s) for size in sizes for s in itertools.combinations(range(len(positions)), size)]
        commit_EL = torch.zeros(len(sets), length, dtype=torch.bool)
        for row, chosen in enumerate(sets):
            commit_EL[row, positions[chosen]] = True
        per_state.append(commit_EL)
    state_E = torch.arange(states).repeat_interleave(torch.tensor([len(c) for c in per_state]))
    return state_E, torch.cat(per_state)


def _distinct(children: DecodeBatch, step_limit: str) -> tuple[Tensor, Tensor]:
    """One batch row per distinct state, and the state of every row."""
    key_EX = torch.cat([children.ids_BT, children.block_B[:, None]], 1)
    if step_limit == "block":
        key_EX = torch.cat([key_EX, children.in_block_B[:, None]], 1)
    states, place_E = key_EX.unique(dim=0, return_inverse=True)
    rows = torch.arange(len(place_E))
    return torch.full((len(states),), len(rows)).scatter_reduce(0, place_E, rows, "amin"), place_E


def _endings(retired: list[DecodeBatch]) -> Rollout:
    canvas, order, masked = (
        torch.cat(parts)
        for parts in zip(*((f.ids_BT[:, f.start :], f.order_BL, f.masked_BL) for f in retired), strict=True)
    )
    nfe = torch.cat([f.step_B for f in retired])
    return Rollout(canvas, order, nfe, ~masked.any(-1), torch.zeros_like(nfe), 0, 0)


def edge_probability(distribution: ActionDistribution, level: Level, force_commit: bool) -> Tensor:
    """(E,) probability that each edge's set is committed: of an ordered draw over all of its orders, and with
    ``force_commit`` including the empty draw that the best position replaces."""
    repeated = take(distribution, level.state_E)
    if isinstance(distribution, DPLS | PlackettLuce | CoupledPlackettLuce):
        p_E = _any_order(repeated, level.commit_EL)
        nothing = torch.full_like(distribution.eligible_BL, -1, dtype=torch.int64)
    else:
        p_E = repeated.log_prob(Action(level.commit_EL)).exp()
        nothing = None
    if not force_commit:
        return p_E
    eligible_BL = level.observation.eligible_BL
    empty_B = distribution.log_prob(Action(torch.zeros_like(eligible_BL), nothing)).exp()
    forced_BL = one_hot(distribution.fallback_B, eligible_BL)
    forced_E = (level.commit_EL == forced_BL[level.state_E]).all(-1)
    return p_E + forced_E * empty_B[level.state_E]


def _any_order(distribution: ActionDistribution, commit_EL: Tensor) -> Tensor:
    """(E,) probability that a set is drawn, in any order."""
    parts, rows = [], []
    size_E = commit_EL.sum(-1)
    for size in size_E.unique().tolist():
        row_e = (size_E == size).nonzero().squeeze(1)
        drawn_eL = commit_EL[row_e]
        nth_eL = (drawn_eL.cumsum(-1) - 1).clamp(min=0)
        orders = torch.tensor(list(itertools.permutations(range(size)))).reshape(-1, max(size, 1))
        log_p = [
            take(distribution, row_e).log_prob(Action(drawn_eL, order[nth_eL].masked_fill(~drawn_eL, -1)))
            for order in (orders if size else torch.zeros(1, 1, dtype=torch.int64))
        ]
        parts.append(torch.stack(log_p).exp().sum(0))
        rows.append(row_e)
    return torch.cat(parts)[torch.cat(rows).argsort()]


@dataclass(frozen=True)
class Exact:
    """The endings of one policy on a lattice. mass_N: probability of each. Differentiable in the policy's weights."""

    mass_N: Tensor

    def expected(self, value_N: Tensor) -> Tensor:
        """The exact mean of a value of the endings: of a reward, or of a number of steps."""
        return (self.mass_N * value_N).sum()


def follow(lattice: Lattice, policy: Policy, choose: str = "sample") -> Exact:
    """Pushes mass 1 from the first state to the endings. choose: "sample" or "mode", as in decoding. SettingsError if
    the policy does what the lattice leaves out."""
    mass = torch.ones(1, dtype=torch.float64)
    ends = torch.zeros(len(lattice.ends.nfe_R), dtype=torch.float64)
    for level in lattice.levels:
        distribution = policy.distribution(level.observation)
        if choose == "mode":
            committed_BL = commit(
                distribution, distribution.mode(), level.observation.eligible_BL, lattice.force_commit
            )
            assert committed_BL.committed_BL is not None
            p_E = (level.commit_EL == committed_BL.committed_BL[level.state_E]).all(-1).double()
        else:
            p_E = edge_probability(distribution, level, lattice.force_commit).double()
        total_B = torch.zeros_like(mass).index_add(0, level.state_E, p_E)
        if not torch.allclose(total_B, torch.ones_like(total_B), atol=1e-4):
            raise SettingsError(
                f"Only {total_B.min().item():.4f} of the policy's draws are in the lattice. Enumerate with "
                f"single=False, and with the needs and force_commit of its decoding."
            )
        flow_E = mass[level.state_E] * p_E
        inner = ~level.ends_E
        following = int(level.child_E[inner].max()) + 1 if bool(inner.any()) else 0
        mass = mass.new_zeros(following).index_add(0, level.child_E[inner], flow_E[inner])
        ends = ends.index_add(0, level.child_E[level.ends_E], flow_E[level.ends_E])
    return Exact(ends)
