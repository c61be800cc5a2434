"""The oracle against trajectories written out one by one, and the learning gradients against the oracle.

Everything in float64 on canvases of two to four positions over a denoiser whose tokens depend on the order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from components.core.errors import SettingsError
from components.core.timer import Timer
from components.core.types import STATISTICS, Action, Canvas, Needs, Observation, Rollout, Steps
from components.decode.batch import DecodeBatch, admit, advance
from components.decode.dependence import exact_shifts, total_correlation
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.decode.oracle import Lattice, enumerate_decoding, follow
from components.decode.refresh import Facts, refresh
from components.denoisers.formula import FormulaDenoiser
from components.maths.coupled import CoupledPlackettLuce
from components.maths.distributions import take
from components.maths.divergence import Draw, divergence, entropy
from components.maths.objectives import group_advantages, mixture_log_prob, multiplicative, pair_weights
from components.maths.plackett_luce import DPLS, PlackettLuce
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.heuristics import (
    MaxConfidence,
    Quota,
    SoftmaxConfidence,
    Threshold,
    TopKRandom,
    shortlist,
)
from components.policies.protocol import Policy
from components.policies.rules import heuristic
from components.trainers.plan import Objective, Plan
from components.trainers.reinforce import Method, Pairs, surrogate
from tests.doubles import Accepting
from tests.lattice import best, data_divergence, state_mass, text_distribution

torch.set_num_threads(1)

PROMPT = torch.tensor([2, 1])
VOCABULARY = 4


def scrambled(length: int, seed: int = 0) -> FormulaDenoiser:
    """Logits that depend on every token of the sequence, so that what is committed depends on the order."""
    source = torch.Generator().manual_seed(seed)
    first = 2 * torch.randn((1 + length) * VOCABULARY, 16, generator=source, dtype=torch.float64)
    second = 0.7 * torch.randn(16, length * VOCABULARY, generator=source, dtype=torch.float64)

    def formula(canvas: Canvas) -> Tensor:
        hot = torch.nn.functional.one_hot(canvas.ids_BT, VOCABULARY).double() * canvas.attend_BT[..., None]
        seen = torch.cat([hot[:, : canvas.start].sum(1), hot[:, canvas.start :].flatten(1)], 1)
        return (torch.tanh(seen @ first) @ second).unflatten(1, (length, VOCABULARY))

    return FormulaDenoiser(formula, VOCABULARY)


def learner(action: str = "bernoulli", seed: int = 0, **knobs: Any) -> ConfidencePolicy:
    """A small policy in float64, far from its zero initialisation."""
    torch.manual_seed(seed)
    policy = ConfidencePolicy(Shape(width=8, heads=1, mlp_width=8, bias=-0.3, action=action), **knobs).double()
    for weight in policy.parameters():
        weight.data += 0.4 * torch.randn_like(weight)
    return policy


@dataclass(frozen=True)
class TopK:
    """A categorical policy over the most confident positions."""

    policy: ConfidencePolicy
    k: int

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def score(self, obs: Observation) -> Tensor:
        return self.policy.score(obs)

    def distribution(self, obs: Observation):
        return self.policy.distribution(replace(obs, eligible_BL=shortlist(obs, self.k)))

    def parameters(self):
        return self.policy.parameters()


def coupled_learner(seed: int = 0, **knobs: Any) -> CoupledPolicy:
    """The same of the coupled policy: shifts, mixture and bias all count."""
    torch.manual_seed(seed)
    policy = CoupledPolicy(
        CoupledShape(top_k=3, width=4, heads=1, mlp_width=4, pair_width=4, kappa=0.6, cost=0.8), **knobs
    )
    for weight in policy.double().parameters():
        weight.data += 0.4 * torch.randn_like(weight)
    return policy.requires_grad_(True)  # the gradient through the shifts is exact too, though no trainer asks for it


LEARNED = ConfidencePolicy | TopK | CoupledPolicy | Accepting


def reward_of(ends: Rollout, alpha: float = 1.0) -> Tensor:
    """A score in [0, 9] for every final canvas, times speed; nothing where masks are left."""
    length = ends.canvas_RL.shape[1]
    score = torch.frac(ends.canvas_RL.double() @ torch.linspace(0.37, 1.91, length, dtype=torch.float64))
    return multiplicative(9 * score * ends.finished_R, ends.nfe_R.double(), torch.full_like(ends.nfe_R, length), alpha)


NEEDS = Needs(where="masked", top_k=3, statistics=STATISTICS, top_ids=True)
POLICIES = {
    "bernoulli": learner(),
    "bernoulli, scaled": learner(temperature=0.7, scale=1.3),
    "dpls": learner("dpls"),
    "categorical": learner("categorical"),
    "top-k": TopK(learner("categorical"), 2),
    "coupled": coupled_learner(),
    "coupled, tempered": coupled_learner(temperature=0.7, offset=-0.4),
    "accept": Accepting(coupled_learner()),
    "threshold": Threshold(0.6),
    "random": Quota("random", 2),
    "softmax": SoftmaxConfidence(0.2),
}
every_policy = pytest.mark.parametrize("name", POLICIES)


# --- Every trajectory, one by one -------------------------------------------------------------------------------------


def outcomes(distribution: object, positions: list[int], length: int) -> Action:
    """Every drawn set, the empty one too; for an ordered draw every order."""
    ordered = isinstance(distribution, DPLS | PlackettLuce | CoupledPlackettLuce)
    choose = itertools.permutations if ordered else itertools.combinations
    draws = [d for size in range(len(positions) + 1) for d in choose(positions, size)]
    rank = torch.full((len(draws), length), -1)
    for row, draw in enumerate(draws):
        for place, position in enumerate(draw):
            rank[row, position] = place
    return Action(rank >= 0, rank if ordered else None)


@dataclass(frozen=True)
class Path:
    """One trajectory: per step the level, the state in it, and the drawn action; its probability and its ending."""

    steps: list[tuple[int, int, Action]]
    p: float
    end: int


def paths(lattice: Lattice, policy: Policy) -> list[Path]:
    """All trajectories of positive probability, by recursion over drawn actions (not over committed sets)."""
    distributions = [policy.distribution(level.observation) for level in lattice.levels]

    def walk(depth: int, state: int, steps: list[Any], p: float) -> Iterator[Path]:
        level, one = lattice.levels[depth], take(distributions[depth], torch.tensor([state]))
        eligible = level.observation.eligible_BL[state]
        edges = {
            tuple(c.tolist()): e
            for e, (s, c) in enumerate(zip(level.state_E.tolist(), level.commit_EL, strict=True))
            if s == state
        }
        drawn = outcomes(one, eligible.nonzero().flatten().tolist(), len(eligible))
        log_p = take(one, torch.zeros(len(drawn.drawn_BL), dtype=torch.int64)).log_prob(drawn)
        for row, chance in enumerate(log_p.detach().exp().tolist()):
            if chance == 0:
                continue
            committed = drawn.drawn_BL[row].clone()
            if not committed.any() and lattice.force_commit:
                committed[int(one.fallback_B[0])] = True
            edge = edges[tuple(committed.tolist())]
            now = [*steps, (depth, state, drawn.rows(torch.tensor([row])))]
            if level.ends_E[edge]:
                yield Path(now, p * chance, int(level.child_E[edge]))
            else:
                yield from walk(depth + 1, int(level.child_E[edge]), now, p * chance)

    return list(walk(0, 0, [], 1.0))


@pytest.mark.parametrize(
    ("force_commit", "step_limit", "block"), [(True, "canvas", 3), (False, "canvas", 3), (False, "block", 3)]
)
@every_policy
def test_expected_values_and_endings_equal_the_sum_over_trajectories(
    name: str, force_commit: bool, step_limit: str, block: int
):
    lattice = enumerate_decoding(
        scrambled(3), Job.of([PROMPT], 3, block), NEEDS, DecodeOptions(force_commit=force_commit, step_limit=step_limit)
    )
    exact, every = follow(lattice, POLICIES[name]), paths(lattice, POLICIES[name])
    near = 1e-12 if isinstance(POLICIES[name], LEARNED) else 1e-6  # the rules score in float32
    assert sum(p.p for p in every) == pytest.approx(1, abs=near)
    ends = torch.zeros(len(exact.mass_N), dtype=torch.float64)
    for path in every:
        ends[path.end] += path.p
    assert torch.allclose(exact.mass_N, ends, atol=near)
    reward = reward_of(lattice.ends)
    wanted = sum(p.p * float(reward[p.end]) for p in every)
    assert exact.expected(reward).item() == pytest.approx(wanted, abs=near)


@pytest.mark.parametrize(("length", "block"), [(4, 4), (4, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize(("force_commit", "step_limit"), [(True, "canvas"), (False, "canvas"), (False, "block")])
@every_policy
def test_mass_is_conserved(name: str, length: int, block: int, force_commit: bool, step_limit: str):
    lattice = enumerate_decoding(
        scrambled(length),
        Job.of([PROMPT], length, block),
        NEEDS,
        DecodeOptions(force_commit=force_commit, step_limit=step_limit),
    )
    exact = follow(lattice, POLICIES[name])
    near = 1e-12 if isinstance(POLICIES[name], LEARNED) else 1e-6  # the rules score in float32
    assert exact.mass_N.sum().item() == pytest.approx(1, abs=near)
    for before, after in itertools.pairwise(state_mass(lattice, POLICIES[name])):
        assert after.sum().item() <= before.sum().item() + near  # what ended does not come back
    assert sum(p.item() for p in text_distribution(lattice, exact).values()) == pytest.approx(1, abs=near)
    if force_commit:
        assert bool(lattice.ends.finished_R.all())
    assert int(lattice.ends.nfe_R.max()) <= length


def test_the_same_masks_hold_different_tokens():
    """The lattice must not merge states by their mask set alone: the order decides what is written."""
    lattice = enumerate_decoding(scrambled(4), Job.of([PROMPT], 4, 4), NEEDS)
    whole = {tuple(row) for row in lattice.ends.canvas_RL.tolist()}
    assert len(whole) > 4
    sets = [{tuple(row) for row in level.observation.masked_BL.tolist()} for level in lattice.levels[:3]]
    states = [len(level.observation.masked_BL) for level in lattice.levels[:3]]
    assert states[1] == len(sets[1])  # after one step the set still says it all
    assert states[2] > len(sets[2])


@pytest.mark.parametrize(
    ("force_commit", "step_limit", "block"), [(True, "canvas", 4), (False, "canvas", 2), (False, "block", 2)]
)
@pytest.mark.parametrize("name", ["bernoulli", "dpls", "categorical", "coupled", "accept", "random"])
def test_rollouts_follow_the_oracle(name: str, force_commit: bool, step_limit: str, block: int):
    """Sampled rollouts end where the oracle says, as often as it says, and their mean reward is the exact one."""
    rows, denoiser, policy = 1500, scrambled(4), POLICIES[name]
    lattice = enumerate_decoding(
        denoiser, Job.of([PROMPT], 4, block), NEEDS, DecodeOptions(force_commit=force_commit, step_limit=step_limit)
    )
    exact = follow(lattice, policy)
    done = rollout(
        denoiser,
        policy,
        Job.of([PROMPT], 4, block, group=rows),
        DecodeOptions(seed=5, force_commit=force_commit, step_limit=step_limit),
    )
    known = {
        (tuple(c), n): i
        for i, (c, n) in enumerate(zip(lattice.ends.canvas_RL.tolist(), lattice.ends.nfe_R.tolist(), strict=True))
    }
    seen = [known[tuple(c), n] for c, n in zip(done.canvas_RL.tolist(), done.nfe_R.tolist(), strict=True)]
    frequency = torch.bincount(torch.tensor(seen), minlength=len(known)) / rows
    p = exact.mass_N.detach()
    # Rare endings: their number is not normal but Poisson.
    assert bool(((frequency - p).abs() <= 5 * (p * (1 - p) / rows).sqrt() + 2 / rows).all())
    sampled, mean = reward_of(done), exact.expected(reward_of(lattice.ends)).item()
    assert abs(sampled.mean().item() - mean) < 5 * sampled.std().item() / math.sqrt(rows) + 1e-9


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "random"])  # its mode is a tie
def test_greedy_decoding_is_one_path(name: str):
    denoiser, policy = scrambled(4), POLICIES[name]
    lattice = enumerate_decoding(denoiser, Job.of([PROMPT], 4, 4), NEEDS)
    exact = follow(lattice, policy, choose="mode")
    done = rollout(denoiser, policy, Job.of([PROMPT], 4, 4), DecodeOptions(choose="mode"))
    assert exact.mass_N.max().item() == 1
    end = int(exact.mass_N.argmax())
    assert lattice.ends.canvas_RL[end].tolist() == done.canvas_RL[0].tolist()
    assert lattice.ends.nfe_R[end] == done.nfe_R[0]


@pytest.mark.parametrize(
    "name",
    ["bernoulli", "bernoulli, scaled", "dpls", "categorical", "top-k", "coupled", "coupled, tempered", "accept"],
)
@pytest.mark.parametrize("force_commit", [True, False])
def test_recorded_log_probs_are_those_of_the_recorded_observations(name: str, force_commit: bool):
    denoiser, policy = scrambled(4), POLICIES[name]
    job = Job.of([PROMPT, PROMPT[:1]], 4, 2, group=20)
    steps = rollout(denoiser, policy, job, DecodeOptions(record=True, force_commit=force_commit, rows=7)).steps
    assert steps is not None
    again = policy.distribution(steps.observation).log_prob(steps.action)
    assert torch.allclose(again, steps.log_prob_N, atol=1e-12)


def test_the_best_order_is_the_best_of_all_paths():
    """Backward induction equals the maximum over written-out paths, and its path leads to its value."""
    for seed in range(3):
        lattice = enumerate_decoding(scrambled(3, seed), Job.of([PROMPT], 3, 3), NEEDS)
        reward = reward_of(lattice.ends)
        value, path = best(lattice, reward)
        everywhere = paths(lattice, POLICIES["bernoulli"])
        assert value == pytest.approx(max(float(reward[p.end]) for p in everywhere))
        state, ended = 0, False
        for level, chosen in zip(lattice.levels, path, strict=False):
            wanted = torch.zeros(3, dtype=torch.bool)
            wanted[chosen] = True
            edge = int(((level.state_E == state) & (level.commit_EL == wanted).all(-1)).nonzero()[0])
            state, ended = int(level.child_E[edge]), bool(level.ends_E[edge])
        assert ended and float(reward[state]) == pytest.approx(value)
        assert value >= follow(lattice, POLICIES["bernoulli"]).expected(reward).item()


def test_single_commits_are_enough_for_categorical_policies():
    """Fewer edges, the same numbers; a policy that may draw more is refused."""
    everything = enumerate_decoding(scrambled(4), Job.of([PROMPT], 4, 4), NEEDS)
    single = enumerate_decoding(scrambled(4), Job.of([PROMPT], 4, 4), NEEDS, single=True)
    assert len(single.levels[0].state_E) == 4 < len(everything.levels[0].state_E) == 15
    for name in ("categorical", "top-k", "softmax"):
        a, b = (follow(x, POLICIES[name]).expected(reward_of(x.ends, 0.0)) for x in (everything, single))
        assert a.item() == pytest.approx(b.item(), abs=1e-12)
    with pytest.raises(SettingsError, match="in the lattice"):
        follow(single, POLICIES["bernoulli"])
    assert best(single, reward_of(single.ends, 0.0))[0] <= best(everything, reward_of(everything.ends, 0.0))[0]


def test_what_cannot_be_enumerated_is_refused():
    with pytest.raises(SettingsError, match="drift"):
        enumerate_decoding(scrambled(3), Job.of([PROMPT], 3, 3), heuristic("klass", 0.9).needs)
    with pytest.raises(SettingsError, match="outcomes"):
        enumerate_decoding(scrambled(12), Job.of([PROMPT], 12, 12), NEEDS)


def test_divergence_from_data_by_hand():
    lattice = enumerate_decoding(scrambled(3), Job.of([PROMPT], 3, 3), NEEDS)
    exact = follow(lattice, POLICIES["bernoulli"])
    made = text_distribution(lattice, exact)
    assert data_divergence({c: p.item() for c, p in made.items()}, lattice, exact).item() == pytest.approx(0, abs=1e-9)
    one = next(iter(made))
    assert data_divergence({one: 1.0}, lattice, exact).item() == pytest.approx(-math.log(made[one].item()))
    assert data_divergence({(9, 9, 9): 1.0}, lattice, exact).item() == math.inf


# --- The learning gradient, all groups enumerated ---------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """Every group of G trajectories as rows of one big batch, and the probability of each group."""

    part: Steps
    steps_R: Tensor
    end_R: Tensor
    group_R: Tensor
    chance_P: Tensor
    steered_R: Tensor


def all_groups(lattice: Lattice, policy: Policy, size: int, expert: Path | None = None) -> Groups:
    every = paths(lattice, policy)
    rows: list[Path] = []
    chances, group_of, steered = [], [], []
    for number, chosen in enumerate(itertools.product(every, repeat=size)):
        members = [*chosen, expert] if expert is not None else list(chosen)
        rows += members
        group_of += [number] * len(members)
        steered += [False] * size + [True] * (len(members) - size)
        chances.append(math.prod(p.p for p in chosen))
    pairs = [(row, step) for row, path in enumerate(rows) for step in range(len(path.steps))]
    flat = [rows[row].steps[step] for row, step in pairs]
    start = [0, *itertools.accumulate(len(level.observation.masked_BL) for level in lattice.levels)]
    states = Observation.concatenate([level.observation for level in lattice.levels])
    observation = states.rows(torch.tensor([start[depth] + state for depth, state, _ in flat]))
    ranked = flat[0][2].rank_BL is not None
    rank = torch.cat([a.rank_BL for *_, a in flat if a.rank_BL is not None]) if ranked else None
    action = Action(torch.cat([a.drawn_BL for *_, a in flat]), rank)
    row_N, step_N = (torch.tensor(x) for x in zip(*pairs, strict=True))
    with torch.no_grad():
        log_prob_N = policy.distribution(observation).log_prob(action)
    return Groups(
        Steps(row_N, step_N, observation, action, log_prob_N),
        torch.tensor([len(p.steps) for p in rows]),
        torch.tensor([p.end for p in rows]),
        torch.tensor(group_of),
        torch.tensor(chances, dtype=torch.float64),
        torch.tensor(steered),
    )


def mean_gradient(
    policy: LEARNED, reference: Policy | None, groups: Groups, lattice: Lattice, objective: Objective, experts: int = 0
) -> Tensor:
    """The exact mean over all groups of minus the gradient of ``surrogate`` on one group."""
    length = lattice.ends.canvas_RL.shape[1]
    members = int((groups.group_R == 0).sum()) - experts
    reward_R = reward_of(lattice.ends)[groups.end_R]
    advantage_R = group_advantages(reward_R, groups.group_R, objective.normalize_advantage)
    row = groups.part.row_N
    # Weights of one group alone, then each group by its probability.
    steps_R = groups.steps_R.double()
    weight_N = pair_weights(row, steps_R, torch.full_like(steps_R, length), objective.weighting)
    weight_N = weight_N * len(groups.chance_P) * groups.chance_P[groups.group_R[row]]
    old_N = mixture_log_prob(groups.part.log_prob_N, groups.steered_R[row], members, experts)
    plan = Plan(1, 1, members, 0.1, 0, None, experts=experts)
    pairs = Pairs(groups.part, old_N, advantage_R[row], weight_N, groups.steered_R[row])
    loss, _ = surrogate(cast(Any, policy), pairs, Method(plan, objective, reference))
    return -flat_gradient(loss, policy)


def flat_gradient(value: Tensor, policy: LEARNED) -> Tensor:
    grads = torch.autograd.grad(value, list(policy.parameters()), allow_unused=True)
    found = cast(tuple[Tensor | None, ...], grads)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(policy.parameters(), found, strict=True)]
    )


CONSTANT = Objective(weighting="constant")


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert wanted.abs().max() > 1e-3
    assert (found - wanted).abs().max() < 1e-8


@pytest.mark.parametrize(
    ("name", "length", "block", "force_commit", "step_limit"),
    [
        ("bernoulli", 4, 2, True, "canvas"),
        ("dpls", 4, 2, True, "canvas"),
        ("coupled", 4, 2, True, "canvas"),
        ("accept", 4, 2, True, "canvas"),
        ("categorical", 4, 2, True, "canvas"),
        ("bernoulli", 2, 1, False, "block"),  # as in paper A's release: a block may be left unfinished
    ],
)
def test_the_mean_gradient_in_blocks_is_that_of_the_expected_reward(
    name: str, length: int, block: int, force_commit: bool, step_limit: str
):
    policy = POLICIES[name]
    lattice = enumerate_decoding(
        scrambled(length, seed=4),
        Job.of([PROMPT], length, block),
        NEEDS,
        DecodeOptions(force_commit=force_commit, step_limit=step_limit),
    )
    assert bool(lattice.ends.finished_R.all()) is (step_limit == "canvas")
    exact = follow(lattice, policy).expected(reward_of(lattice.ends))
    wanted = (1 - 1 / 2) / length * flat_gradient(exact, policy)
    assert_same(mean_gradient(policy, None, all_groups(lattice, policy, 2), lattice, CONSTANT), wanted)


@pytest.mark.parametrize("force_commit", [True, False])
@pytest.mark.parametrize(("size", "length"), [(2, 3), (3, 2)])
@pytest.mark.parametrize(
    "name", ["bernoulli", "dpls", "categorical", "top-k", "coupled", "coupled, tempered", "accept"]
)
def test_the_mean_gradient_is_that_of_the_expected_reward(name: str, size: int, length: int, force_commit: bool):
    """With ratio 1 and constant weighting: (1 - 1/G) / L times autograd of the exact expected reward."""
    if name in ("bernoulli", "accept") and not force_commit and length == 3:
        length = 2  # trajectories with empty steps are many
    policy = POLICIES[name]
    lattice = enumerate_decoding(
        scrambled(length), Job.of([PROMPT], length, length), NEEDS, DecodeOptions(force_commit=force_commit)
    )
    exact = follow(lattice, policy).expected(reward_of(lattice.ends))
    wanted = (1 - 1 / size) / length * flat_gradient(exact, policy)
    assert_same(mean_gradient(policy, None, all_groups(lattice, policy, size), lattice, CONSTANT), wanted)


def by_hand(
    groups: Groups,
    new_N: Tensor,
    old_N: Tensor,
    reward_R: Tensor,
    per_row: list[int],
    clip: float,
    normalize_advantage: bool = False,
) -> Tensor:
    """sum over groups of P(group) (1/G) sum_g (1/per_row_g) sum_t min(rho A, clip(rho) A), one term after the other."""
    ratio = (new_N - old_N).exp()
    total = torch.zeros((), dtype=torch.float64)
    for number, chance in enumerate(groups.chance_P.tolist()):
        members = (groups.group_R == number).nonzero().flatten().tolist()
        mean = sum(float(reward_R[m]) for m in members) / len(members)
        spread = math.sqrt(sum((float(reward_R[m]) - mean) ** 2 for m in members) / len(members)) + 1e-4
        for m in members:
            advantage = (float(reward_R[m]) - mean) / (spread if normalize_advantage else 1)
            for n in (groups.part.row_N == m).nonzero().flatten().tolist():
                cut = min(max(float(ratio[n].detach()), 1 - clip), 1 + clip)
                kept = ratio[n] if float(ratio[n].detach()) * advantage <= cut * advantage else torch.tensor(cut)
                total = total + chance / len(members) / per_row[m] * kept * advantage
    return total


def likelihood(policy: LEARNED, groups: Groups) -> Tensor:
    return policy.distribution(groups.part.observation).log_prob(groups.part.action)


def test_weighting_by_row_is_another_objective():
    """1/T_g weighting: (1 - 1/G) (grad E[R/T] - E[R] grad E[1/T]), short trajectories counting more per step."""
    policy, size = POLICIES["bernoulli"], 2
    lattice = enumerate_decoding(scrambled(3), Job.of([PROMPT], 3, 3), NEEDS)
    exact, reward, steps = follow(lattice, policy), reward_of(lattice.ends), lattice.ends.nfe_R.double()
    favoured = flat_gradient(exact.expected(reward / steps), policy)
    exact = follow(lattice, policy)
    shift = exact.expected(reward).detach() * flat_gradient(exact.expected(1 / steps), policy)
    wanted = (1 - 1 / size) * (favoured - shift)
    found = mean_gradient(policy, None, all_groups(lattice, policy, size), lattice, Objective(weighting="row"))
    assert_same(found, wanted)


@pytest.mark.parametrize(
    ("weighting", "normalize_advantage"), [("row", False), ("constant", False), ("constant", True)]
)
@pytest.mark.parametrize("name", ["bernoulli", "dpls", "categorical", "coupled"])
def test_the_clipped_surrogate_off_policy(name: str, weighting: str, normalize_advantage: bool):
    """Groups drawn by an older policy: the ratio per step, cut where the gain is large enough."""
    policy, clip = POLICIES[name], 0.1
    older = coupled_learner(seed=1) if name == "coupled" else learner(name, seed=1)
    length = 3 if name == "categorical" else 2  # of two positions, each the other's rest, all ratios would be cut
    lattice = enumerate_decoding(scrambled(length), Job.of([PROMPT], length, length), NEEDS)
    groups = all_groups(lattice, older, 2)
    per_row = groups.steps_R.tolist() if weighting == "row" else [length] * len(groups.end_R)
    new_N = likelihood(policy, groups)
    assert bool(((new_N - groups.part.log_prob_N).exp().sub(1).abs() > clip).any())
    reward_R = reward_of(lattice.ends)[groups.end_R]
    wanted = flat_gradient(
        by_hand(groups, new_N, groups.part.log_prob_N, reward_R, per_row, clip, normalize_advantage), policy
    )
    objective = Objective(weighting=weighting, clip_eps=clip, normalize_advantage=normalize_advantage)
    found = mean_gradient(policy, None, groups, lattice, objective)
    assert_same(found, wanted)


def best_first(path: Path, lattice: Lattice) -> Path:
    """A rule's trajectory as an ordered policy is steered to it: each step's commits by falling confidence."""
    steps = []
    for depth, state, action in path.steps:
        confidence_BL, rank_BL = lattice.levels[depth].observation.confidence_BL, torch.full((1, 3), -1)
        assert confidence_BL is not None
        falling = confidence_BL[state].argsort(descending=True).tolist()
        for place, position in enumerate(k for k in falling if action.drawn_BL[0, k]):
            rank_BL[0, position] = place
        steps.append((depth, state, Action(action.drawn_BL, rank_BL)))
    return Path(steps, path.p, path.end)


@pytest.mark.parametrize("name", ["bernoulli", "dpls", "categorical", "coupled", "accept"])
def test_steering_by_a_mixture_likelihood(name: str):
    """The expert's row has the likelihood G/(G+E) pi + 1/(G+E): its gradient is the policy's, times pi's share of it.
    A categorical policy cannot draw what the expert draws; the row then only shifts the group's mean."""
    policy = POLICIES[name]
    lattice = enumerate_decoding(scrambled(3), Job.of([PROMPT], 3, 3), NEEDS)
    (expert,) = paths(lattice, Threshold(0.4))
    assert any(int(a.drawn_BL.sum()) > 1 for *_, a in expert.steps)
    groups = all_groups(lattice, policy, 2, best_first(expert, lattice) if name in ("dpls", "coupled") else expert)
    steered_N = groups.steered_R[groups.part.row_N]
    own_N = likelihood(policy, groups)
    assert bool((own_N[steered_N] == -torch.inf).any()) is (name == "categorical")
    new_N = torch.where(steered_N, torch.log(2 / 3 * own_N.exp() + 1 / 3), own_N)
    reward_R = reward_of(lattice.ends)[groups.end_R]
    wanted = flat_gradient(by_hand(groups, new_N, new_N.detach(), reward_R, [3] * len(groups.end_R), 0.5), policy)
    assert_same(mean_gradient(policy, None, groups, lattice, CONSTANT, experts=1), wanted)


def per_state_divergence(lattice: Lattice, policy: Policy, reference: Policy, kind: str) -> list[Tensor]:
    """By enumeration of every state's outcomes: KL(policy || reference), or -E_reference log policy."""
    found = []
    for level in lattice.levels:
        one, other = policy.distribution(level.observation), reference.distribution(level.observation)
        values = []
        for state in range(len(level.observation.masked_BL)):
            eligible = level.observation.eligible_BL[state]
            drawn = outcomes(one, eligible.nonzero().flatten().tolist(), len(eligible))
            index = torch.full((len(drawn.drawn_BL),), state)
            log_p, log_q = take(one, index).log_prob(drawn), take(other, index).log_prob(drawn).double()
            possible = (log_p if kind == "kl" else log_q) > -torch.inf
            log_p, log_q = log_p[possible], log_q[possible]
            values.append((log_p.exp() * (log_p - log_q)).sum() if kind == "kl" else -(log_q.exp() * log_p).sum())
        found.append(torch.stack(values))
    return found


PULLS = [
    ("bernoulli", learner(seed=2), "kl"),
    ("dpls", learner("dpls", seed=2), "kl"),
    ("categorical", SoftmaxConfidence(0.2), "kl"),
    ("top-k", TopKRandom(2), "kl"),
    ("coupled", coupled_learner(seed=2), "kl"),
    ("accept", Accepting(coupled_learner(seed=2)), "kl"),
    ("coupled", coupled_learner(seed=2), "ce"),
    ("accept", Threshold(0.4), "ce"),
    ("bernoulli", Threshold(0.4), "ce"),
    ("bernoulli", Threshold(0.4), "kl"),  # to a rule the cross-entropy is the divergence
    ("categorical", MaxConfidence(), "ce"),
    ("categorical", Quota("confidence", 1), "ce"),
]


@pytest.mark.parametrize(
    ("name", "reference", "divergence"), PULLS, ids=lambda x: x if isinstance(x, str) else type(x).__name__
)
def test_the_pull_is_the_divergence_of_each_visited_state(name: str, reference: Policy, divergence: str):
    """sum over states of P(state) divergence / L; its gradient leaves out how the weights move P(state)."""
    policy, kl_coef, length = POLICIES[name], 0.3, 3
    lattice = enumerate_decoding(scrambled(length), Job.of([PROMPT], length, length), NEEDS)
    exact = follow(lattice, policy)
    rule = isinstance(reference, Threshold)
    values = per_state_divergence(lattice, policy, reference, "ce" if rule else divergence)
    visited = sum((m.detach() * v).sum() for m, v in zip(state_mass(lattice, policy), values, strict=True))
    gain = flat_gradient(exact.expected(reward_of(lattice.ends)), policy)
    wanted = (1 - 1 / 2) / length * gain - kl_coef / length * flat_gradient(torch.as_tensor(visited), policy)
    objective = Objective(weighting="constant", kl_coef=kl_coef, divergence=divergence)
    assert_same(mean_gradient(policy, reference, all_groups(lattice, policy, 2), lattice, objective), wanted)


@pytest.mark.parametrize("name", ["coupled", "accept"])
def test_an_estimated_pull_is_that_of_the_states_visited_by_an_older_policy(name: str):
    """Later epochs: rows of the policy as it was, its ratio in the estimate; what an expert drew counts for nothing."""
    policy, older, reference = POLICIES[name], coupled_learner(seed=1), coupled_learner(seed=2)
    lattice = enumerate_decoding(scrambled(3), Job.of([PROMPT], 3, 3), NEEDS)
    if name == "accept":
        older, reference = Accepting(older), Accepting(reference)
    visited = [m.detach() for m in state_mass(lattice, older)]
    values = per_state_divergence(lattice, policy, reference, "kl")
    wanted = flat_gradient(torch.stack([(m * v).sum() for m, v in zip(visited, values, strict=True)]).sum(), policy)
    (expert,) = paths(lattice, Threshold(0.4))
    for experts in (0, 1):
        steered = best_first(expert, lattice) if experts else None
        groups = all_groups(lattice, older, 2, steered)
        one, none = (
            mean_gradient(policy, reference, groups, lattice, replace(CONSTANT, kl_coef=kl_coef), experts)
            for kl_coef in (1.0, 0.0)
        )
        assert_same(none - one, wanted / 3 * 2 / (2 + experts))


def test_what_is_logged_of_a_coupled_draw_estimates_divergence_and_entropy():
    policy, reference = POLICIES["coupled"], coupled_learner(seed=2)
    lattice = enumerate_decoding(scrambled(3), Job.of([PROMPT], 3, 3), NEEDS)
    groups = all_groups(lattice, policy, 1)
    part, chance_N = groups.part, groups.chance_P[groups.group_R[groups.part.row_N]]
    distribution, target = (p.distribution(part.observation) for p in (policy, reference))
    own_n = distribution.log_prob(part.action)
    draw = Draw(part.action, own_n, part.log_prob_N, torch.zeros_like(own_n, dtype=torch.bool))
    for learns in (True, False):
        found = (chance_N * divergence(distribution, target, draw, "kl", learns)).sum().item()
        assert found == pytest.approx((chance_N * distribution.kl(target)).sum().item(), abs=1e-9)
    surprise = (chance_N * entropy(distribution, own_n)).sum().item()
    assert surprise == pytest.approx((chance_N * distribution.entropy()).sum().item(), abs=1e-9)
    with pytest.raises(TypeError, match="one kind"):
        divergence(distribution, POLICIES["bernoulli"].distribution(part.observation), draw, "kl", True)


def test_divergences_of_the_visited_states_add_up_to_that_of_the_trajectories():
    """The chain rule: sum over states of P(state) KL(state) = KL between the two laws of trajectories. (Where an empty
    draw is legal: the two may replace it by different positions.)"""
    policy, reference = POLICIES["bernoulli"], learner(seed=2)
    lattice = enumerate_decoding(scrambled(2), Job.of([PROMPT], 2, 2), NEEDS, DecodeOptions(force_commit=False))
    theirs = {str([(d, s, a.drawn_BL.tolist()) for d, s, a in p.steps]): p.p for p in paths(lattice, reference)}
    between = sum(
        p.p * math.log(p.p / theirs[str([(d, s, a.drawn_BL.tolist()) for d, s, a in p.steps])])
        for p in paths(lattice, policy)
    )
    per_state = [policy.distribution(x.observation).kl(reference.distribution(x.observation)) for x in lattice.levels]
    summed = sum(float((m * v).sum().detach()) for m, v in zip(state_mass(lattice, policy), per_state, strict=True))
    assert summed == pytest.approx(between, abs=1e-9)


def test_each_switch_drops_exactly_its_term():
    """On the first epoch ratios are 1 and no clip is felt; a pull of 0, or to oneself, is none."""
    policy, reference = POLICIES["bernoulli"], learner(seed=2)
    lattice = enumerate_decoding(scrambled(2), Job.of([PROMPT], 2, 2), NEEDS)
    groups = all_groups(lattice, policy, 2)
    plain = mean_gradient(policy, None, groups, lattice, CONSTANT)
    assert torch.equal(mean_gradient(policy, None, groups, lattice, replace(CONSTANT, clip_eps=1e-3)), plain)
    assert torch.equal(mean_gradient(policy, reference, groups, lattice, CONSTANT), plain)
    pulled = replace(CONSTANT, kl_coef=0.5)
    twice = replace(CONSTANT, kl_coef=1.0)
    once = mean_gradient(policy, reference, groups, lattice, pulled) - plain
    assert torch.allclose(mean_gradient(policy, reference, groups, lattice, twice) - plain, 2 * once, atol=1e-12)
    itself = mean_gradient(policy, policy, groups, lattice, pulled)
    assert torch.allclose(itself, plain, atol=1e-12)  # no pull where policy and reference are one


def fresh_states(length: int, rows: int) -> tuple[FormulaDenoiser, DecodeBatch]:
    """Masked canvases behind prompts of two lengths, read at every mask; the first position of row 1 is committed."""
    denoiser = scrambled(length)
    job = Job.of([PROMPT, PROMPT[:1]], length, length, group=rows // 2)
    batch = admit(job, torch.arange(rows), denoiser, 0)
    first_BL = torch.zeros_like(batch.masked_BL)
    first_BL[1, 0] = True
    needs = Needs("masked", statistics=("log_odds",))
    batch, _ = refresh(batch, denoiser, needs, Timer(), Facts.of(batch, needs, every=True))
    batch = advance(batch, Action(first_BL, None, first_BL), needs, DecodeOptions())
    return denoiser, refresh(batch, denoiser, needs, Timer(), Facts.of(batch, needs, every=True))[0]


def log_probs(denoiser: FormulaDenoiser, batch: DecodeBatch, row: int, ids_T: Tensor) -> Tensor:
    """(L, V) by a softmax over all but the mask."""
    logits_LV = denoiser.formula(Canvas(ids_T[None], batch.attend_BT[row, None], batch.start))[0]
    return logits_LV.index_fill(-1, denoiser.forbidden_ids, -torch.inf).log_softmax(-1)


def test_total_correlation_is_what_enumeration_gives():
    """Of all texts of a set: sum p log p of the joint, against the product of the marginals of the first look."""
    denoiser, batch = fresh_states(3, 4)
    commit_BL = batch.masked_BL & torch.tensor(
        [[True, True, True], [True] * 3, [True, False, True], [False, True, False]]
    )
    wanted = []
    for row in range(4):
        members = commit_BL[row].nonzero().squeeze(1).tolist()
        alone_LV, total = log_probs(denoiser, batch, row, batch.ids_BT[row]), 0.0
        for text in itertools.product(range(1, VOCABULARY), repeat=len(members)):
            ids_T, joint, apart = batch.ids_BT[row].clone(), 0.0, 0.0
            for place, token in zip(members, text, strict=True):
                joint += float(log_probs(denoiser, batch, row, ids_T)[place, token])
                apart += float(alone_LV[place, token])
                ids_T[batch.start + place] = token
            total += math.exp(joint) * joint
        marginals = sum(float(torch.special.entr(alone_LV[place].exp()).sum()) for place in members)
        wanted.append(marginals + total)
    exact_B = total_correlation(denoiser, batch, commit_BL, None)
    assert torch.allclose(exact_B, torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0)
    assert exact_B[3] == 0 and exact_B[:3].abs().min() > 1e-3
    drawn_B = total_correlation(denoiser, batch, commit_BL, 4000)
    assert torch.allclose(drawn_B, exact_B, atol=0.03)
    alone = total_correlation(denoiser, batch.keep(torch.tensor([0])), commit_BL[:1], None)
    assert alone.item() == pytest.approx(exact_B[0].item(), abs=1e-12)


def test_exact_shifts_are_those_of_a_model_asked_again():
    denoiser, batch = fresh_states(3, 4)
    shift_BLL = exact_shifts(denoiser, batch)
    for row, i, j in itertools.product(range(4), range(3), range(3)):
        wanted = 0.0
        if i != j and batch.masked_BL[row, i] and batch.masked_BL[row, j]:
            token_L, ids_T = batch.fields["token_BL"][row], batch.ids_BT[row].clone()
            ids_T[batch.start + i] = token_L[i]
            now, after = (
                log_probs(denoiser, batch, row, ids)[j, token_L[j]].exp() for ids in (batch.ids_BT[row], ids_T)
            )
            wanted = float(torch.logit(after) - torch.logit(now))
        assert shift_BLL[row, i, j].item() == pytest.approx(wanted, abs=1e-9)
