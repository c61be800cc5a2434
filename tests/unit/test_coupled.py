"""Distributions with pair shifts against literal loops and enumeration of every outcome, mostly in float64."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from components.core.rng import Noise, row_keys
from components.core.types import Action
from components.export import actions
from components.export.onnx_file import OUTPUT
from components.maths import accept_or_skip, coupled, coupling
from components.maths.accept_or_skip import AcceptOrSkip
from components.maths.coupled import CoupledPlackettLuce
from components.maths.distributions import Bernoulli, Deterministic, commit, cross_entropy, take
from components.maths.plackett_luce import DPLS
from components.maths.walks import CoupledScores, ordered
from tests.doubles import every_order, every_set, expectation

torch.set_num_threads(1)

L = 4
ELIGIBLE = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
KINDS: dict[str, Any] = {"ordered": CoupledPlackettLuce, "accept": AcceptOrSkip}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_seed = pytest.mark.parametrize("seed", range(4))


def scores(seed: int, eligible: Tensor = ELIGIBLE, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Random fields, one kappa, tau and cost per row for odd seeds, and garbage wherever nothing may be drawn."""
    source = torch.Generator().manual_seed(seed)
    rows, size = eligible.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

    pair = eligible[:, :, None] & eligible[:, None, :]
    number = (rows,) if seed % 2 else ()
    return {
        "log_odds_BL": (1.5 * normal(rows, size)).masked_fill(~eligible, -torch.inf),
        "bias_BL": (0.5 * normal(rows, size)).masked_fill(~eligible, torch.nan),
        "shift_BLL": (1.5 * normal(rows, size, size)).masked_fill(~pair, torch.nan),
        "mix_BL": torch.sigmoid(normal(rows, size)).masked_fill(~eligible, torch.nan),
        "eligible_BL": eligible,
        "kappa": 0.5 + normal(*number).abs(),
        "tau": 0.5 * normal(*number),
        "cost": normal(*number).abs(),
        "temperature": 0.7 if seed > 1 else 1.0,
    }


def noise(rows: int, step: int = 0) -> Noise:
    index = torch.arange(rows)
    return Noise(row_keys(step, index, index), torch.full((rows,), step))


def outcomes(kind: str, size: int = L) -> Action:
    """Every set, eligible or not; for an ordered draw every ordered selection."""
    return every_set(size) if kind == "accept" else every_order(size)


def enumerated(kind: str, distribution: Any, row: int) -> Tensor:
    every = outcomes(kind)
    return take(distribution, torch.full((len(every.drawn_BL),), row)).log_prob(every)


class Literal:
    """One row, by Python's floats and the formulas of the module's text, one position after the other."""

    def __init__(self, given: dict[str, Any], row: int) -> None:
        numbers: dict[str, Any] = {
            name: v[row].tolist() if isinstance(v, Tensor) and v.ndim else float(v) for name, v in given.items()
        }
        self.l, self.b, self.w = numbers["log_odds_BL"], numbers["bias_BL"], numbers["shift_BLL"]
        self.m, self.numbers = numbers["mix_BL"], numbers
        self.left: set[int] = set(np.flatnonzero(numbers["eligible_BL"]).tolist())
        self.taken: list[int] = []
        self.risk = 0.0

    def cond(self, j: int) -> float:
        return self.l[j] + sum(self.w[i][j] for i in self.taken)

    def u(self, j: int) -> float:
        n = self.numbers
        return n["kappa"] * (self.cond(j) + self.b[j] + n["tau"] - n["cost"] * self.risk) / n["temperature"]

    def take(self, j: int) -> None:
        if self.taken:
            now, start = (math.log1p(math.exp(-x)) for x in (self.cond(j), self.l[j]))
            self.risk += self.m[j] * now + (1 - self.m[j]) * (now - start)
        self.taken.append(j)
        self.left.discard(j)

    def ordered(self, order: list[int]) -> float:
        total = 0.0
        for number, j in enumerate(order):
            weights = {k: math.exp(self.u(k)) for k in self.left}
            total += math.log(weights[j] / (sum(weights.values()) + (number > 0)))
            self.take(j)
        return total - math.log(1 + sum(math.exp(self.u(k)) for k in self.left)) if order else total

    def accepted(self, wanted: set[int]) -> float:
        total = 0.0
        while self.left:
            best = max(sorted(self.left), key=self.u)
            total -= math.log1p(math.exp(-self.u(best) if best in wanted else self.u(best)))
            if best in wanted:
                self.take(best)
            self.left.discard(best)
        return total


@every_kind
@every_seed
def test_log_prob_equals_a_literal_loop_and_sums_to_one(kind: str, seed: int) -> None:
    given, every = scores(seed), outcomes(kind)
    for row in range(len(ELIGIBLE)):
        log_p = enumerated(kind, KINDS[kind](**given), row)
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
        allowed = ~(every.drawn_BL & ~ELIGIBLE[row]).any(-1)
        if kind == "ordered":
            allowed &= every.drawn_BL.any(-1) | ~ELIGIBLE[row].any()  # STOP is never the first
        assert torch.equal(log_p > -torch.inf, allowed)
        for index in allowed.nonzero().flatten().tolist():
            drawn = every.drawn_BL[index].nonzero().flatten().tolist()
            if every.rank_BL is None:
                wanted = Literal(given, row).accepted(set(drawn))
            else:
                wanted = Literal(given, row).ordered(sorted(drawn, key=every.rank_BL[index].tolist().__getitem__))
            assert float(log_p[index]) == pytest.approx(wanted, abs=1e-9)


@every_kind
def test_entropy_and_kl_equal_enumeration(kind: str) -> None:
    one, other = KINDS[kind](**scores(0)), KINDS[kind](**scores(1))
    entropy, kl = one.entropy(), one.kl(other)
    for row in range(len(ELIGIBLE)):
        log_p, log_q = enumerated(kind, one, row), enumerated(kind, other, row)
        assert float(entropy[row]) == pytest.approx(expectation(log_p, -log_p), abs=1e-9)
        assert float(kl[row]) == pytest.approx(expectation(log_p, log_p - log_q), abs=1e-9)
    narrower = KINDS[kind](**scores(1, ELIGIBLE & torch.tensor([True, True, False, True])))
    assert one.kl(narrower).isinf().tolist() == [True, True, True, True, False]
    # Where nothing may be drawn, an ordered draw of the other, which is never empty, is impossible.
    assert narrower.kl(one).isfinite().tolist() == [True, True, True, kind == "accept", True]


@every_kind
@every_seed
def test_samples_follow_log_prob(kind: str, seed: int) -> None:
    size, every = 4000, outcomes(kind)
    place = torch.tensor([(L + 1) ** i for i in range(L)])
    wanted = (every.drawn_BL if every.rank_BL is None else every.rank_BL + 1).long() @ place
    for row in range(len(ELIGIBLE)):
        one = KINDS[kind](**scores(seed))
        drawn = take(one, torch.full((size,), row)).sample(Noise(torch.arange(size), torch.full((size,), row)))
        assert not (drawn.drawn_BL & ~ELIGIBLE[row]).any()
        code = (drawn.drawn_BL if drawn.rank_BL is None else drawn.rank_BL + 1).long() @ place
        seen = (code[:, None] == wanted[None]).double()
        assert bool((seen.sum(1) == 1).all())
        frequency, p = seen.mean(0), enumerated(kind, one, row).exp()
        # Five standard deviations for each outcome, and one draw for those that hardly ever come.
        assert bool(((frequency - p).abs() <= 5 * (p * (1 - p) / size).sqrt() + 1 / size).all())


def mode_of(given: dict[str, Any], row: int, kind: str) -> list[int]:
    literal = Literal(given, row)
    while literal.left:
        best = max(sorted(literal.left), key=literal.u)
        if literal.u(best) <= 0 and (literal.taken or kind == "accept"):
            break
        literal.take(best)
    return literal.taken


@every_kind
def test_mode_is_the_greedy_path(kind: str) -> None:
    lengths = set()
    for seed in range(30):
        given = scores(seed)
        mode = KINDS[kind](**given).mode()
        for row in range(len(ELIGIBLE)):
            wanted = mode_of(given, row, kind)
            lengths.add(len(wanted))
            assert mode.drawn_BL[row].nonzero().flatten().tolist() == sorted(wanted)
            assert kind == "accept" or [int(mode.rank_BL[row, j]) for j in wanted] == list(range(len(wanted)))
    assert lengths == {0, 1, 2, 3, 4}


def test_the_first_pick_is_free_and_a_rise_may_be_negative() -> None:
    """Three positions by hand: the first adds no risk; the second adds its share of what it rose by."""
    e = torch.ones(1, 3, dtype=torch.bool)
    w = torch.zeros(1, 3, 3, dtype=torch.float64)
    w[0, 0, 1] = 2.0
    start = torch.tensor([[1.0, -1.0, 0.5]], dtype=torch.float64)
    draw = Action(torch.tensor([[True, True, False]]), torch.tensor([[0, 1, -1]]))

    def surprise(x: float) -> float:
        return math.log1p(math.exp(-x))

    for m, risk in ((1.0, surprise(1.0)), (0.0, surprise(1.0) - surprise(-1.0))):
        found = CoupledPlackettLuce(start, 0 * start, w, torch.full_like(start, m), e, cost=3.0).log_prob(draw)
        first = 1.0 - math.log(math.exp(1.0) + math.exp(-1.0) + math.exp(0.5))
        second = 1.0 - math.log(1 + math.exp(1.0) + math.exp(0.5))
        assert float(found) == pytest.approx(first + second - math.log1p(math.exp(0.5 - 3 * risk)), abs=1e-12)
    assert risk < 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_shifts_and_cost_it_is_dpls_or_bernoulli_bit_for_bit(dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(5)
    eligible = torch.rand(64, 21, generator=source) < 0.6
    for seed, temperature in itertools.product(range(2), (1.0, 0.7)):
        given: dict[str, Any] = scores(seed, eligible, dtype) | {"cost": 0.0, "temperature": temperature}
        given["shift_BLL"] = torch.zeros_like(given["shift_BLL"])
        ours, known = CoupledPlackettLuce(**given), DPLS(CoupledPlackettLuce(**given).logits_BL, eligible, temperature)
        for action in (ours.sample(noise(64)), known.sample(noise(64)), ours.mode()):
            assert torch.equal(ours.log_prob(action), known.log_prob(action))
        assert torch.equal(ours.mode().drawn_BL, known.mode().drawn_BL)
        assert torch.equal(ours.mode().rank_BL, known.mode().rank_BL)  # type: ignore[arg-type]
        assert torch.equal(ours.fallback_B, known.fallback_B)
        ours, known = AcceptOrSkip(**given), Bernoulli(ours.logits_BL, eligible, temperature)
        action = known.sample(noise(64))
        assert torch.equal(ours.sample(noise(64)).drawn_BL, action.drawn_BL)
        assert torch.equal(ours.log_prob(action), known.log_prob(action))
        assert torch.equal(ours.mode().drawn_BL, known.mode().drawn_BL)
        assert torch.equal(ours.fallback_B, known.fallback_B)


NAMES = ("log_odds_BL", "bias_BL", "shift_BLL", "mix_BL", "kappa", "tau", "cost")


@every_kind
@every_seed
def test_gradients_are_those_of_finite_differences(kind: str, seed: int) -> None:
    """Of every field, at outcomes that are possible; garbage at ineligible positions gets none."""
    given = scores(seed)
    action = KINDS[kind](**scores(seed + 7)).sample(noise(len(ELIGIBLE)))
    clean = {name: given[name].nan_to_num(0.0, neginf=0.0) for name in NAMES}

    def values(*numbers: Tensor) -> tuple[Tensor, Tensor]:
        one = KINDS[kind](**given | dict(zip(NAMES, numbers, strict=True)))
        return one.log_prob(action), one.kl(KINDS[kind](**scores(seed + 7)))

    inputs = tuple(clean[name].requires_grad_(True) for name in NAMES)
    assert torch.autograd.gradcheck(values, inputs, eps=1e-6, atol=1e-6, fast_mode=True)
    dirty = tuple(given[name].clone().requires_grad_(True) for name in NAMES)
    sums = [torch.autograd.grad(sum(v.sum() for v in values(*numbers)), numbers) for numbers in (inputs, dirty)]  # type: ignore[union-attr]
    for ours, same in zip(*sums, strict=True):
        assert torch.equal(ours, same) and bool(ours.isfinite().all())


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_odds_and_shifts_stay_finite(kind: str, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(1)
    given = scores(1, torch.rand(200, 9, generator=source) < 0.7, dtype)
    sign = torch.randint(0, 2, (200, 9), generator=source) * 2 - 1
    given["log_odds_BL"] = torch.where(given["eligible_BL"], 30.0 * sign, given["log_odds_BL"]).to(dtype)
    given["shift_BLL"] = 20 * given["shift_BLL"]
    for name in NAMES:
        given[name] = given[name].clone().requires_grad_(True)
    one = KINDS[kind](**given)
    log_p = one.log_prob(one.sample(noise(200))) + one.log_prob(one.mode())
    assert bool(log_p.isfinite().all())
    log_p.sum().backward()
    assert all(bool(given[name].grad.isfinite().all()) for name in NAMES)


@every_kind
def test_neighbors_and_padding_change_nothing(kind: str) -> None:
    source = torch.Generator().manual_seed(3)
    eligible = torch.rand(40, 12, generator=source) < 0.5
    given = scores(1, eligible, torch.float32)
    together = KINDS[kind](**given)
    draws = together.sample(noise(40)), together.mode()
    log_p = [together.log_prob(draw) for draw in draws]

    def wider(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim < 2:
            return value
        fill = False if value.dtype == torch.bool else math.nan
        return torch.nn.functional.pad(value, (0, 5) if value.ndim == 2 else (0, 5, 0, 5), value=fill)

    padded = KINDS[kind](**{name: wider(value) for name, value in given.items()})
    for draw, same in zip((padded.sample(noise(40)), padded.mode()), draws, strict=True):
        assert torch.equal(draw.drawn_BL[:, :12], same.drawn_BL) and not draw.drawn_BL[:, 12:].any()
        assert torch.allclose(padded.log_prob(draw), together.log_prob(same), atol=1e-6)
    for row in range(40):
        index = torch.tensor([row])
        alone, own = take(together, index), Noise(noise(40).key_B[index], noise(40).step_B[index])
        for draw, same, value in zip((alone.sample(own), alone.mode()), draws, log_p, strict=True):
            assert torch.equal(draw.drawn_BL, same.drawn_BL[index])
            assert draw.rank_BL is None or torch.equal(draw.rank_BL, same.rank_BL[index])  # type: ignore[index]
            assert torch.allclose(alone.log_prob(draw), value[index], atol=1e-6)


@every_kind
def test_a_row_without_eligible_positions_draws_nothing_for_certain(kind: str) -> None:
    one = KINDS[kind](**scores(0, torch.zeros_like(ELIGIBLE)))
    for action in (one.mode(), one.sample(noise(5))):
        assert not action.drawn_BL.any() and not one.log_prob(action).any()
        forced = commit(one, action, one.eligible_BL, force=True).committed_BL
        assert forced is not None and not forced.any()
    assert not one.entropy().any() and not one.kl(one).any()
    nothing = take(one, torch.zeros(0, dtype=torch.int64))
    assert nothing.log_prob(nothing.sample(noise(0))).shape == nothing.entropy().shape == (0,)


def test_a_set_is_imitated_in_its_greedy_order() -> None:
    one, e = CoupledPlackettLuce(**scores(2)), ELIGIBLE
    selected = e & torch.tensor([True, False, True, True])
    literal_orders = []
    for row in range(len(e)):
        literal = Literal(scores(2), row)
        literal.left &= set(selected[row].nonzero().flatten().tolist())
        while literal.left:
            literal.take(max(sorted(literal.left), key=literal.u))
        literal_orders.append(literal.taken)
    action = one.ordered(selected)
    assert action.rank_BL is not None
    for row, order in enumerate(literal_orders):
        assert [int(action.rank_BL[row, j]) for j in order] == list(range(len(order)))
    assert torch.equal(action.drawn_BL, selected)
    bound = -one.log_prob_of_set(selected)
    assert torch.equal(bound, -one.log_prob(action))
    rule = Deterministic(selected, e, torch.randn(e.shape))
    assert torch.equal(cross_entropy(rule, one), bound)
    every = outcomes("ordered")
    for row in range(len(e)):
        same = (every.drawn_BL == selected[row]).all(-1)
        assert float(bound[row]) >= -float(enumerated("ordered", one, row)[same].logsumexp(0)) - 1e-12
    assert bool((one.log_prob_of_set(torch.ones_like(e)) == -torch.inf).tolist() == [False, True, True, True, True])


def gumbel_of(uniform: actions.Uniform, stream: int, length: int) -> Any:
    return -np.log(-np.log(uniform(stream, length)))


@every_kind
def test_what_serves_without_torch_draws_what_torch_draws(kind: str) -> None:
    sizes = []
    for seed in range(12):
        source = torch.Generator().manual_seed(seed)
        eligible = torch.rand(64, 5 + seed, generator=source) < 0.7
        given = scores(seed, eligible, torch.float32)
        numpy: dict[str, Any] = {n: np.asarray(v) for n, v in given.items()}
        fields_of = {n: numpy.pop(n) for n in tuple(numpy) if n.endswith(("_BL", "_BLL"))}
        one, keys = KINDS[kind](**given), noise(64, seed)
        same = actions.Noise(keys.key_B.numpy(), keys.step_B.numpy()).uniform
        action = {"kind": "accept" if kind == "accept" else "coupled", **numpy}
        served = {**fields_of, OUTPUT: np.zeros(eligible.shape)}
        for ours, uniform in ((one.mode(), None), (one.sample(keys), same)):
            drawn = actions.commit(action, served, uniform, force=False)
            assert np.array_equal(drawn, ours.drawn_BL.numpy())
            if kind == "ordered":
                gumbel = None if uniform is None else partial(gumbel_of, uniform)
                rank = ordered(CoupledScores(**fields_of, **numpy), gumbel)
                assert ours.rank_BL is not None and np.array_equal(rank, ours.rank_BL.numpy())
            sizes.append(drawn.sum(-1))
    assert np.concatenate(sizes).max() > 8 and len(np.concatenate(sizes)) > 1000
    assert {field.name for field in fields(CoupledScores)} == {field.name for field in fields(KINDS[kind])}


@pytest.mark.parametrize("rows", [0, 1, 5])
@every_seed
def test_what_is_read_from_an_accelerator_is_what_is_there(
    seed: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one tensor of the widest type; a number for all rows comes back as one per row."""
    given = scores(seed, ELIGIBLE[:rows]) | {"bias_BL": torch.ones(rows, L), "cost": 0.25}
    one = AcceptOrSkip(**given)
    plain = coupling.on_host(one)
    monkeypatch.setattr(coupling, "reads_wait", lambda device: True)
    read = coupling.on_host(one)
    for field in fields(read):
        known, found = getattr(plain, field.name), getattr(read, field.name)
        np.testing.assert_array_equal(found, np.broadcast_to(known, np.shape(found)))
    assert read.log_odds_BL.dtype == np.float64 and read.cost == 0.25 and read.eligible_BL.dtype == bool


@every_kind
def test_fields_in_bfloat16_are_drawn_from(kind: str) -> None:
    given = scores(0, dtype=torch.bfloat16)
    wide = {n: v.float() for n, v in given.items() if isinstance(v, Tensor) and v.is_floating_point()}
    known = KINDS[kind](**given | wide)
    assert torch.equal(KINDS[kind](**given).mode().drawn_BL, known.mode().drawn_BL)


@every_seed
def test_a_forced_commit_is_the_fallback_also_where_the_draw_names_it(seed: int) -> None:
    one = AcceptOrSkip(**scores(seed))
    for action in (one.mode(), one.sample(noise(len(ELIGIBLE), seed))):
        assert action.best_B is not None
        assert torch.equal(action.best_B[ELIGIBLE.any(-1)], one.fallback_B[ELIGIBLE.any(-1)])


def two(first: float, second: float) -> dict[str, Any]:
    """One row of two positions without bias, shifts or risk."""
    flat = torch.tensor([[first, second]])
    return {
        "log_odds_BL": flat,
        "bias_BL": torch.zeros(1, 2),
        "shift_BLL": torch.zeros(1, 2, 2),
        "mix_BL": torch.ones(1, 2),
        "eligible_BL": torch.ones(1, 2, dtype=torch.bool),
    }


def test_a_tie_takes_nothing() -> None:
    """With STOP the second pick needs more than 0; a candidate of probability 1/2 is skipped; the first of equals."""
    assert CoupledPlackettLuce(**two(1.0, 0.0)).mode().drawn_BL.tolist() == [[True, False]]
    assert AcceptOrSkip(**two(1.0, 0.0)).mode().drawn_BL.tolist() == [[True, False]]
    ranks = CoupledPlackettLuce(**two(1.0, 1.0)).mode().rank_BL
    assert ranks is not None and ranks.tolist() == [[0, 1]]


def test_what_is_no_number_is_the_smallest() -> None:
    ranks = CoupledPlackettLuce(**two(float("nan"), -5.0)).mode().rank_BL
    assert ranks is not None and ranks.tolist() == [[-1, 0]]
    assert AcceptOrSkip(**two(float("nan"), 5.0)).mode().drawn_BL.tolist() == [[False, True]]


def test_numpy_draws_without_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; import components.export.actions"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_what_cannot_be_computed_is_refused() -> None:
    for kind, module in (("ordered", coupled), ("accept", accept_or_skip)):
        wide = torch.ones(1, module.EXACT_LIMIT + 1, dtype=torch.bool)
        with pytest.raises(ValueError, match="log_prob of a draw"):
            KINDS[kind](**scores(0, wide)).entropy()
        with pytest.raises(TypeError, match="they have other outcomes"):
            KINDS[kind](**scores(0)).kl(Bernoulli(torch.zeros(5, L), ELIGIBLE))
    one = CoupledPlackettLuce(**scores(0))
    with pytest.raises(ValueError, match="log_prob_of_set"):
        one.log_prob(Action(ELIGIBLE))
    assert torch.equal(replace(one, temperature=3.0).logits_BL, one.logits_BL)
