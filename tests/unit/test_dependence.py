"""Rules over pairs: worked by hand, what must hold on any canvas, and the same alone, in a batch and with padding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.core.rng import Noise
from components.core.types import Observation
from components.maths.coupled import CoupledPlackettLuce
from components.maths.greedy import greedy_set
from components.policies.dependence import Adas, Dapd, MeanField, Overlap, Spread, likeness, overlap, pairs_of
from components.policies.heuristics import SuppressTokens
from components.policies.protocol import Policy
from tests.doubles import picks

torch.set_num_threads(1)
RULES: list[Policy] = [
    MeanField(0.7),
    MeanField(0.95),
    Overlap(0.5),
    Overlap(3.0, weight=16.0),
    Overlap(0.3, share=0.0),
    Overlap(2.0, share=0.4),
    Spread(1.0),
    Adas(0.4),
    Adas(0.0, weight=2.0),
    Dapd(0.1),
    Dapd(0.5, sure=0.5),
]


def surprise(log_odds: float) -> float:
    return math.log1p(math.exp(-log_odds))


def taken(selected_BL: Tensor, row: int = 0) -> set[int]:
    return set(selected_BL[row].nonzero().flatten().tolist())


def observed(probabilities: list[list[float]], ids: list[list[int]] | None = None, **more: Any) -> Observation:
    """One row whose positions keep these probabilities, by default of the tokens 0, 1, 2, ..."""
    top_BLK = torch.tensor([probabilities])
    count, kept = top_BLK.shape[1:]
    ids_BLK = torch.arange(kept).expand(1, count, kept) if ids is None else torch.tensor([ids])
    masked_BL = more.pop("masked_BL", torch.ones(1, count, dtype=torch.bool))
    return Observation(
        masked_BL,
        more.pop("eligible_BL", masked_BL),
        torch.zeros(1, dtype=torch.int64),
        torch.full((1,), count),
        token_BL=ids_BLK[..., 0],
        confidence_BL=top_BLK[..., 0],
        log_odds_BL=torch.logit(top_BLK[..., 0]),
        top_BLK=top_BLK,
        top_ids_BLK=ids_BLK,
        attention_layers=(-1,),
        **more,
    )


# --- the greedy set -------------------------------------------------------------------------------------------------

LOG_ODDS = torch.tensor([[2.0, 1.5, 1.0, -1.0]])
# Taking 0 pulls 1 down to 0 and lifts 2 to 1.5; taking 2 lifts 1 to .8.
SHIFT = torch.zeros(1, 4, 4)
SHIFT[0, 0, 1], SHIFT[0, 0, 2], SHIFT[0, 2, 1] = -1.5, 0.5, 0.8
ALL = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("gamma", "share", "wanted"),
    [
        (0.0, 1.0, {0}),  # the first is free, the next costs -log sigma(1.5) = .201
        (0.2, 1.0, {0}),
        (0.21, 1.0, {0, 2}),
        (0.57, 1.0, {0, 2}),  # then 1 at .8: .201 + .371 = .572
        (0.58, 1.0, {0, 2, 1}),
        (1.88, 1.0, {0, 2, 1}),  # then 3 at -1: .572 + 1.313 = 1.885
        (1.89, 1.0, {0, 1, 2, 3}),
        (-0.12, 0.0, {0}),  # the rise of 2 is .201 - .313 = -.112: a support lowers the risk
        (-0.11, 0.0, {0, 2}),
        (0.057, 0.0, {0, 2}),  # then that of 1: .371 - .201 = .170, together .058; 3 did not move
        (0.058, 0.0, {0, 2, 1, 3}),
        (0.044, 0.5, {0}),  # half of each: .101 - .056 = .0448
        (0.045, 0.5, {0, 2}),
        (0.315, 0.5, {0, 2}),  # then .186 + .085: together .3152
        (0.316, 0.5, {0, 2, 1}),
    ],
)
def test_the_greedy_set_worked_by_hand(gamma: float, share: float, wanted: set[int]) -> None:
    assert taken(greedy_set(LOG_ODDS, SHIFT, ALL, gamma, share)) == wanted


def test_without_shifts_and_by_the_rise_everything_is_free() -> None:
    assert taken(greedy_set(LOG_ODDS, torch.zeros(1, 4, 4), ALL, 0.0, 0.0)) == {0, 1, 2, 3}
    assert taken(greedy_set(LOG_ODDS, torch.zeros(1, 4, 4), ALL, 0.0, 1.0)) == {0}


def test_ties_go_to_the_lowest_index_and_a_row_without_eligible_positions_takes_none() -> None:
    equal = torch.ones(2, 3)
    eligible = torch.tensor([[False, True, True], [False, False, False]])
    found = greedy_set(equal, torch.zeros(2, 3, 3), eligible, 0.0, 1.0)
    assert taken(found) == {1} and taken(found, 1) == set()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.3, 1.0]), gamma=st.floats(0, 3))
def test_the_greedy_set_is_the_greedy_path_and_grows_with_the_budget(seed: int, share: float, gamma: float) -> None:
    """Against a plain loop in float64 over one row at a time."""
    source = torch.Generator().manual_seed(seed)
    odds_BL = torch.randn(4, 6, generator=source, dtype=torch.float64) * 2
    shift_BLL = torch.randn(4, 6, 6, generator=source, dtype=torch.float64)
    eligible_BL = torch.rand(4, 6, generator=source) < 0.8
    found, more = (greedy_set(odds_BL, shift_BLL, eligible_BL, g, share) for g in (gamma, gamma + 0.5))
    assert not (found & ~more).any() and not (found & ~eligible_BL).any()
    for row in range(4):
        cond, left, chosen, risk = odds_BL[row].clone(), taken(eligible_BL, row), [], 0.0
        while left:
            best = max(sorted(left), key=lambda j: float(cond[j]))
            own = surprise(float(cond[best])) - (1 - share) * surprise(float(odds_BL[row, best]))
            if chosen and risk + own > gamma:
                break
            risk += own if chosen else 0.0
            chosen.append(best)
            left.remove(best)
            cond = cond + shift_BLL[row, best]
        assert taken(found, row) == set(chosen)


def test_with_an_infinite_budget_it_takes_what_the_mode_without_stop_takes() -> None:
    source = torch.Generator().manual_seed(0)
    odds_BL, shift_BLL = torch.randn(5, 6, generator=source), torch.randn(5, 6, 6, generator=source)
    eligible_BL = torch.rand(5, 6, generator=source) < 0.7
    zero_BL = torch.zeros_like(odds_BL)
    mode = CoupledPlackettLuce(odds_BL, zero_BL, shift_BLL, zero_BL, eligible_BL, tau=1e6).mode()
    assert torch.equal(mode.drawn_BL, greedy_set(odds_BL, shift_BLL, eligible_BL, math.inf, 1.0))


# --- what pairs are made of -----------------------------------------------------------------------------------------


def test_overlap_and_likeness_worked_by_hand() -> None:
    """Position 2 keeps the tokens of position 0 in another order, position 3 shares none."""
    obs = observed(
        [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.7, 0.2, 0.1]],
        [[0, 1, 2], [0, 1, 2], [1, 0, 9], [6, 7, 8]],
    )
    shared = overlap(obs, 3)[0]
    assert shared[0, 1] == pytest.approx(0.36 + 0.09 + 0.01)
    assert shared[0, 2] == shared[2, 0] == pytest.approx(0.6 * 0.4 + 0.3 * 0.5)
    assert float(shared[0, 3]) == 0.0
    alike = likeness(obs, 3)[0]
    assert alike[0, 1] == pytest.approx(1.0) and float(alike[0, 3]) == 0.0 and float(alike[0, 0]) == 0.0
    p, q = torch.tensor([0.6, 0.3, 0.1, 0.0]).double(), torch.tensor([0.4, 0.5, 0.0, 0.1]).double()
    mean = (p + q) / 2
    divergence = (p.xlogy(p / mean).sum() + q.xlogy(q / mean).sum()) / 2
    assert float(alike[0, 2]) == pytest.approx(1 - float(divergence) / math.log(2), abs=1e-6)
    assert float(overlap(obs, 1)[0, 0, 2]) == 0.0  # of the largest alone, 0 and 1 share nothing


def test_a_token_that_is_not_there_counts_for_nothing() -> None:
    obs = observed([[1.0, 0.0], [0.9, 0.1]], [[3, -1], [3, -1]])
    assert float(overlap(obs, 2)[0, 0, 1]) == pytest.approx(0.9)


def test_mean_field_worked_by_hand() -> None:
    """Two positions alike, D = 1 after scaling: q of each lowers the other. The third is alone."""
    obs = observed([[0.8, 0.2], [0.8, 0.2], [0.7, 0.3]], [[0, 1], [0, 1], [4, 5]])
    lead, alone = math.log(4), math.log(7 / 3)
    q = 1 / (1 + math.exp(-lead))
    q = 1 / (1 + math.exp(-(lead - q)))
    value = lead - q
    assert MeanField(0.9).score(obs)[0].tolist() == pytest.approx([value, value, alone], abs=1e-5)
    passes, lonely = (1 / (1 + math.exp(-v)) for v in (value, alone))
    assert lonely > passes
    assert picks(MeanField(passes - 1e-4), obs) == {0, 1, 2}
    assert picks(MeanField(passes + 1e-4), obs) == {2}
    assert picks(MeanField(0.99), obs) == {2}  # nobody passes: the best


def test_overlap_keeps_apart_what_predicts_the_same() -> None:
    obs = observed([[0.8, 0.2], [0.79, 0.21], [0.7, 0.3]], [[0, 1], [0, 1], [4, 5]])
    # Once 0 is taken, 1 stands at logit(.79) - 4 x .674 = -1.371 and 2 at logit(.7) = .847.
    pulled = math.log(0.79 / 0.21) - 4 * (0.8 * 0.79 + 0.2 * 0.21)
    assert picks(Overlap(surprise(math.log(7 / 3)) + 1e-4), obs) == {0, 2}
    assert picks(Overlap(surprise(math.log(7 / 3)) - 1e-4), obs) == {0}
    both = surprise(math.log(7 / 3)) + surprise(pulled)
    assert picks(Overlap(both - 1e-3), obs) == {0, 2} and picks(Overlap(both + 1e-3), obs) == {0, 1, 2}
    rise = surprise(pulled) - surprise(math.log(0.79 / 0.21))
    assert picks(Overlap(0.0, share=0.0), obs) == {0, 2}  # what does not tie is free
    assert picks(Overlap(rise - 1e-3, share=0.0), obs) == {0, 2}
    assert picks(Overlap(rise + 1e-3, share=0.0), obs) == {0, 1, 2}


def test_spread_keeps_neighbours_apart() -> None:
    obs = observed([[0.9, 0.1]] * 5)
    odds = math.log(9)
    # After 0: the others stand at 9's logit minus 4, 2, 4/3, 1; the last is the best.
    assert picks(Spread(surprise(odds - 1) + 1e-4), obs) == {0, 4}
    assert picks(Spread(surprise(odds - 1) - 1e-4), obs) == {0}


def test_adas_worked_by_hand() -> None:
    """Position 1 attends to 0, which is taken first with a doubt of .1; position 2 attends to nothing."""
    attention = torch.zeros(1, 3, 3, 1)
    attention[0, 1, 0] = 0.05
    obs = observed([[0.9], [0.8], [0.7]], attention_BLLA=attention)
    lowered = 0.8 - 40 * 0.05 * (1 - 0.9)
    assert lowered == pytest.approx(0.6)
    assert picks(Adas(0.75), obs) == {0}  # after 0 the best of the others is 2, at .7
    assert picks(Adas(0.65), obs) == {0, 2}
    assert picks(Adas(0.55), obs) == {0, 1, 2}
    assert picks(Adas(0.95), obs) == {0}
    obs = replace(obs, attention_BLLA=attention.transpose(1, 2))
    assert picks(Adas(0.75), obs) == {0, 1}  # what 0 attends to is not held against 1


def test_dapd_worked_by_hand() -> None:
    """Edges 0-1 (.10, half of .2) and 1-2 (.06). Scores: .10 x .5, .16 x .6, .06 x .9."""
    attention = torch.zeros(1, 4, 4, 1)
    attention[0, 0, 1], attention[0, 1, 2], attention[0, 2, 1] = 0.2, 0.06, 0.06
    masked = torch.tensor([[True, True, True, True]])
    obs = observed([[0.5], [0.6], [0.9], [0.3]], attention_BLLA=attention, masked_BL=masked)
    assert picks(Dapd(0.25), obs) == {1, 3}  # all masked: an edge is more than .05; 1 first
    assert picks(Dapd(0.31), obs) == {1, 2, 3}  # more than .062
    assert picks(Dapd(0.6), obs) == {0, 1, 2, 3}
    half = replace(obs, length_B=torch.tensor([8]))  # half is masked: an edge is more than .6 x .25
    assert picks(Dapd(0.25), half) == {0, 1, 2, 3}
    late = replace(obs, length_B=torch.tensor([9]))
    assert picks(Dapd(0.25), late) == {2}
    assert picks(Dapd(0.25, sure=0.55), late) == {1, 2}
    assert picks(Dapd(0.25, sure=0.95), late) == {2}  # nobody passes: the best


# --- what must hold on any canvas -----------------------------------------------------------------------------------


def drawn(masked_BL: Tensor, eligible_BL: Tensor, seed: int, coarse: bool = False) -> Observation:
    """Random predictions over 12 tokens, ties among them if ``coarse``; zero where the loop would not read."""
    source = torch.Generator().manual_seed(seed)
    rows, length = masked_BL.shape
    logits = torch.randn(rows, length, 12, generator=source) * 2
    logits = logits.round() if coarse else logits
    top_BLK, ids_BLK = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    top_BLK = top_BLK[..., :8].masked_fill(~eligible_BL.unsqueeze(-1), 0.0)
    odds_BL = torch.logit(top_BLK[..., 0]).clamp(-30, 30)
    attention = torch.rand(rows, length, length, 1, generator=source) / length
    return Observation(
        masked_BL,
        eligible_BL,
        torch.zeros(rows, dtype=torch.int64),
        torch.full((rows,), length),
        token_BL=ids_BLK[..., 0],
        confidence_BL=top_BLK[..., 0],
        log_odds_BL=odds_BL.masked_fill(~eligible_BL, 0.0),
        top_BLK=top_BLK,
        top_ids_BLK=ids_BLK[..., :8].masked_fill(~eligible_BL.unsqueeze(-1), 0),
        attention_BLLA=attention,
        attention_layers=(-1,),
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 9), block=st.integers(1, 9), seed=st.integers(0, 999), coarse=st.booleans())
def test_every_rule_finishes_in_as_many_steps_as_there_are_positions(
    rule: Policy, length: int, block: int, seed: int, coarse: bool
) -> None:
    """Each step commits at least one position of every unfinished row and eligible ones alone; no forced commit."""
    masked = torch.rand(3, length, generator=torch.Generator().manual_seed(seed)) < 0.8
    position = torch.arange(length)
    for step in range(int(masked.sum(-1).max())):
        first = torch.where(masked, position, length).amin(-1, keepdim=True) // block
        eligible = masked & (position // block == first)
        obs = drawn(masked, eligible, seed * 10 + step, coarse)
        distribution = rule.distribution(obs)
        action = distribution.sample(Noise(torch.arange(3), obs.step_B))
        assert not (action.drawn_BL & ~eligible).any()
        assert torch.equal(action.drawn_BL.any(-1), eligible.any(-1))
        masked = masked & ~action.drawn_BL
    assert not masked.any()


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_neighbours_and_padding_change_nothing(rule: Policy, coarse: bool) -> None:
    for seed in range(20):
        masked = torch.rand(5, 6, generator=torch.Generator().manual_seed(seed)) < 0.8
        obs = drawn(masked, masked & (torch.arange(6) < 5), seed, coarse)
        together = rule.distribution(obs)
        for row in range(5):
            index = torch.tensor([row])
            assert torch.equal(rule.distribution(obs.rows(index)).mode().drawn_BL, together.mode().drawn_BL[index])
            assert torch.equal(rule.score(obs.rows(index)), rule.score(obs)[index])
        wide = {name: padded(t) for name, t in obs.tensors().items() if t.ndim > 1}
        assert torch.equal(rule.distribution(replace(obs, **wide)).mode().drawn_BL[:, :6], together.mode().drawn_BL)
        more = replace(
            obs,
            top_BLK=torch.cat([_read(obs.top_BLK), torch.zeros(5, 6, 2)], -1),
            top_ids_BLK=torch.cat([_read(obs.top_ids_BLK), torch.full((5, 6, 2), -1)], -1),
            attention_BLLA=torch.cat([torch.rand(5, 6, 6, 1), _read(obs.attention_BLLA)], -1),
            attention_layers=(-2, -1),
        )
        # Beside a policy that needs more, a rule reads its own part.
        assert torch.equal(rule.distribution(more).mode().drawn_BL, together.mode().drawn_BL)


def _read(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def padded(value: Tensor) -> Tensor:
    """Two more positions of padding."""
    wide = torch.cat([value, torch.zeros(len(value), 2, *value.shape[2:], dtype=value.dtype)], 1)
    if value.ndim < 4:
        return wide
    return torch.cat([wide, torch.zeros(len(value), 8, 2, value.shape[3], dtype=value.dtype)], 2)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_suppressed_position_comes_last(rule: Policy) -> None:
    """The ends of the text, whose log-odds and confidence are minus infinity, wait until nothing else is left."""
    for seed in range(20):
        masked = torch.ones(3, 5, dtype=torch.bool)
        obs = replace(drawn(masked, masked, seed), token_BL=torch.tensor([[0, 7, 1, 7, 2]] * 3))
        late = SuppressTokens(rule, (7,))
        for eligible, last in ((masked, False), (torch.tensor([[False, True, False, True, False]] * 3), True)):
            found = late.distribution(replace(obs, eligible_BL=eligible)).mode().drawn_BL
            assert found.any(-1).all() and bool(found[:, [1, 3]].any()) == last
            assert not (found & ~eligible).any()


def test_only_different_eligible_positions_are_pairs() -> None:
    found = pairs_of(torch.tensor([[True, False, True]]))[0]
    assert {tuple(pair) for pair in found.nonzero().tolist()} == {(0, 2), (2, 0)}


@pytest.mark.parametrize(
    ("rule", "missing"), [(Overlap(1.0), "top_BLK"), (MeanField(0.9), "top_BLK"), (Adas(0.5), "attention_BLLA")]
)
def test_what_an_observation_lacks_is_named(rule: Policy, missing: str) -> None:
    masked = torch.ones(1, 2, dtype=torch.bool)
    obs = replace(drawn(masked, masked, 0), top_BLK=None, attention_BLLA=None)
    with pytest.raises(ValueError, match=f"no {missing}.* Ask for it in Needs"):
        rule.distribution(obs)
