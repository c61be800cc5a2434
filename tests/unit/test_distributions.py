"""Laws of the action distributions against enumeration of every outcome, in float64 on canvases of four positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from components.core.rng import Noise
from components.core.types import Action
from components.maths.distributions import Bernoulli, Categorical, Deterministic, commit, cross_entropy, take
from components.maths.masked import masked_log_softmax, masked_logsumexp, one_hot, sort_eligible
from components.maths.plackett_luce import DPLS, EXACT_LIMIT, PlackettLuce
from tests.doubles import every_order, every_set, expectation

torch.set_num_threads(1)

L = 4
Make = Callable[[Tensor, Tensor], Any]


def counted(count: int) -> Make:
    return lambda z, e: PlackettLuce(z, e, torch.full((len(z),), count))


def selected(z: Tensor, e: Tensor) -> Deterministic:
    return Deterministic(z > 0, e, z)


UNORDERED: dict[str, Make] = {
    "bernoulli": Bernoulli,
    "bernoulli, cold": lambda z, e: Bernoulli(z, e, temperature=0.5),
    "bernoulli, scaled up": lambda z, e: Bernoulli(z, e, scale=1.7),
    "bernoulli, scaled down and hot": lambda z, e: Bernoulli(z, e, temperature=2.0, scale=0.6),
    "categorical": Categorical,
    "categorical, cold": lambda z, e: Categorical(z, e, temperature=0.8),
    "categorical, top-k": lambda z, e: Categorical(z, e & (torch.arange(L) < 3)),
    "deterministic": selected,
}
ORDERED: dict[str, Make] = {
    "plackett-luce, 1": counted(1),
    "plackett-luce, 2": counted(2),
    "plackett-luce, 3": counted(3),
    "dpls": DPLS,
    "dpls, cold": lambda z, e: DPLS(z, e, temperature=0.5),
}
ALL = UNORDERED | ORDERED
every_kind = pytest.mark.parametrize("kind", ALL)

ELIGIBLE = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)


def utilities(seed: int, rows: int = len(ELIGIBLE), size: int = L) -> Tensor:
    return 1.5 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outcomes(kind: str, size: int = L) -> Action:
    """Every set, eligible or not; for an ordered draw every ordered selection."""
    return every_set(size) if kind in UNORDERED else every_order(size)


def enumerated(kind: str, row: int, seed: int = 0) -> Tensor:
    """log-probability of every outcome in one row."""
    every = outcomes(kind)
    one = take(ALL[kind](utilities(seed), ELIGIBLE), torch.full((len(every.drawn_BL),), row))
    return one.log_prob(every)


@every_kind
def test_probabilities_of_all_outcomes_sum_to_one(kind: str):
    for row in range(len(ELIGIBLE)):
        assert enumerated(kind, row).exp().sum().item() == pytest.approx(1, abs=1e-12)


@every_kind
def test_only_eligible_positions_can_be_drawn(kind: str):
    every = outcomes(kind)
    for row in range(len(ELIGIBLE)):
        possible = enumerated(kind, row) > -torch.inf
        assert not (every.drawn_BL[possible] & ~ELIGIBLE[row]).any()


@every_kind
def test_entropy_equals_enumeration(kind: str):
    entropy = ALL[kind](utilities(0), ELIGIBLE).entropy()
    for row in range(len(ELIGIBLE)):
        log_p = enumerated(kind, row)
        assert float(entropy[row]) == pytest.approx(expectation(log_p, -log_p), abs=1e-9)


@every_kind
def test_kl_equals_enumeration(kind: str):
    found = ALL[kind](utilities(0), ELIGIBLE).kl(ALL[kind](utilities(1), ELIGIBLE))
    for row in range(len(ELIGIBLE)):
        log_p, log_q = enumerated(kind, row), enumerated(kind, row, seed=1)
        assert float(found[row]) == pytest.approx(expectation(log_p, log_p - log_q), abs=1e-9)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_kl_counts_a_support_that_differs(kind: str):
    """Narrower candidates against wider ones are finite and exact; the other way round there is no finite value."""
    wide, narrow = torch.ones(1, L, dtype=torch.bool), torch.tensor([[True, False, True, True]])
    p, q = ALL[kind](utilities(0, 1), narrow), ALL[kind](utilities(1, 1), wide)
    every = outcomes(kind)
    index = torch.zeros(len(every.drawn_BL), dtype=torch.int64)
    log_p, log_q = take(p, index).log_prob(every), take(q, index).log_prob(every)
    assert float(p.kl(q)) == pytest.approx(expectation(log_p, log_p - log_q), abs=1e-9)
    assert float(q.kl(p)) == math.inf


@every_kind
def test_kl_to_itself_is_zero_and_to_others_positive(kind: str):
    one, other = ALL[kind](utilities(0), ELIGIBLE), ALL[kind](utilities(1), ELIGIBLE)
    assert torch.allclose(one.kl(one).double(), torch.zeros(len(ELIGIBLE), dtype=torch.float64), atol=1e-12)
    assert bool((one.kl(other) >= -1e-12).all())


@every_kind
def test_samples_follow_log_prob(kind: str):
    size = 6000
    every = outcomes(kind)
    for row in range(len(ELIGIBLE)):
        many = take(ALL[kind](utilities(0), ELIGIBLE), torch.full((size,), row))
        drawn = many.sample(Noise(torch.arange(size), torch.full((size,), row)))
        code = (drawn.drawn_BL if drawn.rank_BL is None else drawn.rank_BL + 1).long()
        wanted = (every.drawn_BL if every.rank_BL is None else every.rank_BL + 1).long()
        place = torch.tensor([(L + 1) ** i for i in range(L)])
        seen = ((code @ place)[:, None] == (wanted @ place)[None]).double()
        assert bool((seen.sum(1) == 1).all())  # every draw is one of the outcomes
        frequency, p = seen.mean(0), enumerated(kind, row).exp()
        # Five standard deviations for each outcome.
        assert bool(((frequency - p).abs() <= 5 * (p * (1 - p) / size).sqrt() + 1e-12).all())


@every_kind
def test_a_draw_has_a_likelihood(kind: str):
    distribution = ALL[kind](utilities(0), ELIGIBLE)
    action = distribution.sample(Noise(torch.arange(len(ELIGIBLE)), torch.zeros(len(ELIGIBLE), dtype=torch.int64)))
    assert bool((distribution.log_prob(action) > -torch.inf).all())
    assert bool((distribution.log_prob(distribution.mode()) > -torch.inf).all())


@pytest.mark.parametrize("kind", [k for k in ALL if not k.startswith("dpls")])
def test_mode_is_the_likeliest_outcome(kind: str):
    mode = ALL[kind](utilities(0), ELIGIBLE)
    log_mode = mode.log_prob(mode.mode())
    for row in range(len(ELIGIBLE)):
        assert float(log_mode[row]) == pytest.approx(float(enumerated(kind, row).max()), abs=1e-12)


def test_mode_of_dpls_is_the_greedy_draw():
    """The best position, then whatever beats STOP's utility of 0, in order."""
    z = torch.tensor([[-1.0, 2.0, 0.5, -0.1], [-3.0, -1.0, -2.0, -4.0]])
    mode = DPLS(z, torch.ones_like(z, dtype=torch.bool)).mode()
    assert mode.rank_BL is not None
    assert mode.rank_BL.tolist() == [[-1, 0, 1, -1], [-1, 0, -1, -1]]


@every_kind
def test_a_row_without_eligible_positions_draws_nothing_for_certain(kind: str):
    distribution = ALL[kind](utilities(0), torch.zeros_like(ELIGIBLE))
    noise = Noise(torch.arange(len(ELIGIBLE)), torch.zeros(len(ELIGIBLE), dtype=torch.int64))
    for action in (distribution.mode(), distribution.sample(noise)):
        assert not action.drawn_BL.any()
        assert torch.equal(distribution.log_prob(action).double(), torch.zeros(len(ELIGIBLE), dtype=torch.float64))
        forced = commit(distribution, action, distribution.eligible_BL, force=True)
        assert forced.committed_BL is not None and not forced.committed_BL.any()
    assert not distribution.entropy().any()
    assert not distribution.kl(distribution).any()


@every_kind
def test_padding_and_neighbours_change_nothing(kind: str):
    """Ineligible positions behind, with any utilities, and any other rows in the batch."""
    alone = ALL[kind](utilities(0), ELIGIBLE)
    other = ALL[kind](utilities(1), ELIGIBLE)
    if kind == "categorical, top-k":  # its candidates are cut to four positions by the test itself
        kind = "categorical"
        alone, other = Categorical(alone.logits_BL, alone.eligible_BL), Categorical(other.logits_BL, alone.eligible_BL)
    garbage, closed = torch.full((5, 3), 9.0, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.bool)

    def padded(z: Tensor) -> Any:
        return ALL[kind](torch.cat([z, garbage], 1), torch.cat([alone.eligible_BL, closed], 1))

    long, other_long = padded(utilities(0)), padded(utilities(1))
    action = alone.sample(Noise(torch.arange(5), torch.arange(5)))
    rank = None if action.rank_BL is None else torch.nn.functional.pad(action.rank_BL, (0, 3), value=-1)
    wide = Action(torch.nn.functional.pad(action.drawn_BL, (0, 3)), rank)
    redrawn = long.sample(Noise(torch.arange(5), torch.arange(5)))
    assert torch.equal(redrawn.drawn_BL, wide.drawn_BL)
    assert torch.equal(long.mode().drawn_BL[:, :L], alone.mode().drawn_BL)
    for value, same in (
        (alone.log_prob(action), long.log_prob(wide)),
        (alone.entropy(), long.entropy()),
        (alone.kl(other), long.kl(other_long)),
    ):
        assert torch.allclose(value, same, atol=1e-12)
    for row in range(5):
        index = torch.tensor([row])
        assert torch.allclose(take(alone, index).log_prob(action.rows(index)), alone.log_prob(action)[index])
        assert torch.allclose(take(alone, index).entropy(), alone.entropy()[index])


@pytest.mark.parametrize("kind", [k for k in ALL if k != "deterministic"])
def test_gradients_of_log_prob_average_to_zero(kind: str):
    """E[d log p] = 0, in every row: the gradient is that of a normalised likelihood."""
    every = outcomes(kind)
    for row in range(len(ELIGIBLE)):
        z = utilities(0)[row : row + 1].requires_grad_(True)
        index = torch.zeros(len(every.drawn_BL), dtype=torch.int64)
        log_p = take(ALL[kind](z, ELIGIBLE[row : row + 1]), index).log_prob(every)
        possible = log_p > -torch.inf
        (gradient,) = torch.autograd.grad((log_p[possible].detach().exp() * log_p[possible]).sum(), z)
        assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-12)


@pytest.mark.parametrize("kind", [k for k in ALL if k != "deterministic"])
def test_gradients_of_log_prob_entropy_and_kl_are_finite_and_right(kind: str):
    def values(z: Tensor) -> tuple[Tensor, ...]:
        one, other = ALL[kind](z, ELIGIBLE), ALL[kind](utilities(1), ELIGIBLE)
        noise = Noise(torch.arange(len(ELIGIBLE)), torch.zeros(len(ELIGIBLE), dtype=torch.int64))
        action = ALL[kind](utilities(0), ELIGIBLE).sample(noise)
        return one.log_prob(action), one.entropy(), one.kl(other), other.kl(one)

    finite = [i for i, value in enumerate(values(utilities(0))) if bool(value.isfinite().all())]
    assert 0 in finite and 1 in finite
    z = utilities(0).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda z: tuple(values(z)[i] for i in finite), (z,), eps=1e-6, atol=1e-6, fast_mode=True
    )


@pytest.mark.parametrize("kind", ["bernoulli", "categorical", "dpls", "plackett-luce, 2"])
def test_nothing_saturates_in_float32(kind: str):
    """Utilities of +-90 keep finite log-probabilities and gradients: no clamp, no log of 0."""
    z = torch.tensor([[90.0, -90.0, 30.0, -60.0]], requires_grad=True)
    e = torch.ones(1, L, dtype=torch.bool)
    every = outcomes(kind)
    log_p = take(ALL[kind](z, e), torch.zeros(len(every.drawn_BL), dtype=torch.int64)).log_prob(every)
    possible = log_p > -torch.inf
    assert float(log_p[possible].detach().min()) < -85
    log_p[possible].sum().backward()
    assert z.grad is not None and bool(z.grad.isfinite().all())


def test_ordered_likelihood_is_the_product_of_softmaxes():
    """DPLS by hand: first from a softmax over the positions, then against STOP of weight 1."""
    w = torch.tensor([[2.0, 1.0, 0.5]], dtype=torch.float64)
    draw = Action(torch.tensor([[True, True, False]]), torch.tensor([[1, 0, -1]]))
    got = DPLS(w.log(), torch.ones(1, 3, dtype=torch.bool)).log_prob(draw)
    assert float(got.exp()) == pytest.approx((1 / 3.5) * (2 / (2 + 0.5 + 1)) * (1 / (0.5 + 1)))
    got = PlackettLuce(w.log(), torch.ones(1, 3, dtype=torch.bool), torch.tensor([2])).log_prob(draw)
    assert float(got.exp()) == pytest.approx((1 / 3.5) * (2 / 2.5))


def test_temperature_and_scale_are_the_papers():
    """s = min(1, beta sigmoid(b / tau))."""
    z, e = torch.tensor([[0.0, 2.0, -1.0]]), torch.ones(1, 3, dtype=torch.bool)
    wanted = (1.5 * torch.sigmoid(z / 0.5)).clamp(max=1)
    assert torch.allclose(Bernoulli(z, e, temperature=0.5, scale=1.5).probability_BL, wanted)
    assert torch.allclose(Categorical(z, e, temperature=0.5).log_probs_BL, torch.log_softmax(z / 0.5, -1))


def test_a_forced_commit_is_not_a_draw():
    z, e = torch.tensor([[-9.0, -1.0, -2.0], [5.0, 5.0, 5.0]]), torch.tensor([[True, True, True], [False, True, False]])
    distribution = Bernoulli(z, e)
    empty = Action(torch.zeros_like(e))
    forced = commit(distribution, empty, e, force=True)
    assert forced.committed_BL is not None and not forced.drawn_BL.any()
    assert forced.committed_BL.tolist() == [[False, True, False], [False, True, False]]
    assert torch.equal(distribution.log_prob(forced), distribution.log_prob(empty))
    legal = commit(distribution, empty, e, force=False)
    assert legal.committed_BL is not None and not legal.committed_BL.any()


def test_cross_entropy_is_kl_plus_entropy_and_splits_ties():
    tied = Categorical(torch.zeros(1, L), torch.tensor([[True, False, True, False]]))
    policy = Categorical(utilities(0, 1), torch.ones(1, L, dtype=torch.bool))
    log_g = policy.log_probs_BL[0]
    assert float(cross_entropy(tied, policy)) == pytest.approx(float(-(log_g[0] + log_g[2]) / 2))
    rule = Deterministic(
        torch.tensor([[False, False, True, False]]), torch.ones(1, L, dtype=torch.bool), torch.zeros(1, L)
    )
    assert float(cross_entropy(rule, policy)) == pytest.approx(float(-log_g[2]))


def test_a_rule_imitated_by_an_ordered_policy_counts_its_picks_by_score():
    e = torch.ones(1, 3, dtype=torch.bool)
    rule = Deterministic(torch.tensor([[True, False, True]]), e, torch.tensor([[0.2, 0.0, 0.9]]))
    policy = DPLS(utilities(0, 1, 3), e)
    order = Action(torch.tensor([[True, False, True]]), torch.tensor([[1, -1, 0]]))
    assert torch.equal(rule.kl(policy), -policy.log_prob(order))


def test_what_cannot_be_computed_is_refused():
    z, e = utilities(0), ELIGIBLE
    with pytest.raises(TypeError, match="they have other outcomes"):
        Bernoulli(z, e).kl(Categorical(z, e))
    with pytest.raises(ValueError, match="rank_BL"):
        DPLS(z, e).log_prob(Action(e))
    size = EXACT_LIMIT + 1
    with pytest.raises(ValueError, match="subsets"):
        DPLS(utilities(0, 1, size), torch.ones(1, size, dtype=torch.bool)).entropy()


def test_masked_softmax_of_nothing_is_nothing_and_has_no_gradient():
    z = utilities(0).requires_grad_(True)
    log_p, total = masked_log_softmax(z, ELIGIBLE), masked_logsumexp(z, ELIGIBLE)
    assert bool((log_p[-1] == -torch.inf).all()) and float(total[-1].detach()) == -torch.inf
    (log_p.exp().sum() + total[:-1].sum()).backward()
    assert z.grad is not None and bool(z.grad.isfinite().all()) and not z.grad[-1].any()


def test_ties_go_to_the_lowest_index():
    e = torch.tensor([[False, True, True, True]])
    for distribution in (
        Categorical(torch.zeros(1, 4), e),
        Bernoulli(torch.zeros(1, 4), e),
        DPLS(torch.zeros(1, 4), e),
    ):
        assert torch.equal(one_hot(distribution.fallback_B, e), torch.tensor([[False, True, False, False]]))


def test_an_eligible_value_of_minus_infinity_comes_before_what_is_not_eligible() -> None:
    low, mask = -torch.inf, torch.tensor([[0, 1, 0, 1, 1]]) > 0
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        order, count = sort_eligible(torch.tensor([[9.0, low, low, -1e30, low]], dtype=dtype), mask)
        assert order.tolist() == [[3, 1, 4, 0, 2]] and count.tolist() == [3]
