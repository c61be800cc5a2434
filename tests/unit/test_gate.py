"""The promotion gate: the hull of the heuristics, the bootstrap, and the decision as a table."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import DataError
from components.evaluation import gate
from components.evaluation.evidence import Evidence, check_result, result_json, result_of
from components.evaluation.gate import decide, measure, resample, scores
from components.evaluation.results import EvalResult
from components.maths.objectives import multiplicative
from components.reports.fronts import envelope
from tests.messages import has_remedy

HEURISTICS = {"0.7": (4.0, 0.40), "0.8": (5.0, 0.65), "0.9": (6.5, 0.90), "1.0": (9.0, 0.97)}
PROMPTS = 400
CANVAS, ALPHA = 16, 1.0

sweeps = st.lists(st.tuples(st.floats(1, 20), st.floats(0, 1)), min_size=1, max_size=8)


def table(points: Iterable[tuple[float, float]]) -> list[EvalResult]:
    return [result("threshold", "", np.array([accuracy]), np.array([nfe])) for nfe, accuracy in points]


def chain(points: list[tuple[float, float]], at: float):
    """The hull by the textbook's monotone chain, an independent second opinion."""
    hull = []
    for point in sorted(points):
        while (hull and hull[-1][0] == point[0]) or (len(hull) > 1 and _turns_up(hull[-2], hull[-1], point)):
            hull.pop()
        hull.append(point)
    rising = [hull[0]]
    for point in hull[1:]:
        if point[1] <= rising[-1][1]:
            break
        rising.append(point)
    return float(np.interp(at, [n for n, _ in rising], [a for _, a in rising]))


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]):
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def result(family: str, setting: str, correct_P: np.ndarray, nfe_P: np.ndarray, seeds_2SP: Any = ()):
    head = dict(task="sudoku", family=family, setting=setting, block_length=16, choose="mode")
    return EvalResult.of_prompts(head, correct_P, nfe_P, seeds_2SP)


def cell(family: str, setting: str, nfe: float, accuracy: float, rng: np.random.Generator, prompts: int = PROMPTS):
    """A rule that is right on each prompt with this chance and takes about this many passes."""
    spread = rng.integers(-1, 2, prompts)
    return result(family, setting, (rng.random(prompts) < accuracy).astype(float), nfe + spread)


def exact(family: str, setting: str, nfe: float, accuracy: float, at: float = 0.0, prompts: int = PROMPTS):
    """A rule that is right on exactly this share of prompts, the ones from `at` on."""
    correct = np.roll(np.arange(prompts) < round(accuracy * prompts), round(at * prompts)).astype(float)
    return result(family, setting, correct, np.full(prompts, float(nfe)))


def evidence(
    accuracy: float,
    nfe: float = 5.75,
    identity: str = "new",
    prompts: str = "p1",
    at: float = 0.0,
    alpha: float = ALPHA,
):
    """On these heuristics the envelope at 5.75 passes is (.65 + .90) / 2 = .775."""
    sweep = tuple(exact("threshold", name, *point) for name, point in HEURISTICS.items())
    return Evidence(identity, "sudoku", prompts, exact("learned", "", nfe, accuracy, at), sweep, CANVAS, alpha)


@given(sweeps, st.floats(0.5, 25))
def test_the_envelope_is_the_upper_concave_hull_of_the_textbook(points: list[tuple[float, float]], at: float):
    assert envelope(table(points), at) == pytest.approx(chain(points, at), abs=1e-6)


@given(sweeps, st.lists(st.floats(0.5, 25), min_size=3, max_size=3))
def test_the_envelope_rises_is_concave_and_lies_above_every_cell(points: list[tuple[float, float]], at: list[float]):
    rows, fastest = table(points), min(nfe for nfe, _ in points)
    low, middle, high = sorted(at)
    assert envelope(rows, low) <= envelope(rows, middle) + 1e-9 <= envelope(rows, high) + 2e-9
    assert all(envelope(rows, nfe) >= accuracy for nfe, accuracy in points)
    low, high = max(low, fastest), max(high, fastest)
    assert envelope(rows, (low + high) / 2) >= (envelope(rows, low) + envelope(rows, high)) / 2 - 1e-9


@given(sweeps, st.floats(0, 1), st.floats(0.5, 25))
def test_a_mixture_of_two_cells_adds_nothing(points: list[tuple[float, float]], share: float, at: float):
    (n1, a1), (n2, a2) = points[0], points[-1]
    mixture = (share * n1 + (1 - share) * n2, share * a1 + (1 - share) * a2)
    assert envelope(table([*points, mixture]), at) == pytest.approx(envelope(table(points), at), abs=1e-6)


def test_learned_rows_are_no_heuristics_and_a_fast_policy_is_measured_against_the_fastest_rule():
    rows = table(HEURISTICS.values())
    above = [result(family, "", np.ones(1), np.ones(1)) for family in ("learned", "distilled")]
    assert envelope(rows + above, 5.75) == envelope(rows, 5.75) == pytest.approx(0.775)
    assert envelope(rows, 1.0) == 0.40
    assert envelope(rows, 99.0) == 0.97
    assert np.isnan(envelope(above, 5.0))


def test_all_resamples_at_once_are_each_of_them_alone():
    rng = np.random.default_rng(3)
    sweep = [cell("threshold", name, *point, rng, prompts=40) for name, point in HEURISTICS.items()]
    policy = cell("learned", "", 5.5, 0.8, rng, prompts=40)
    weights = resample(40, 600, seed=1)
    assert weights.sum(1) == pytest.approx(1)
    alone = [
        w @ policy.correct_P - chain([(w @ c.nfe_P, w @ c.correct_P) for c in sweep], w @ policy.nfe_P) for w in weights
    ]
    assert scores([policy], sweep, weights)[0] == pytest.approx(alone, abs=1e-9)


def test_a_heuristic_never_beats_the_envelope_it_is_part_of():
    rng = np.random.default_rng(0)
    sweep = tuple(cell("threshold", name, *point, rng) for name, point in HEURISTICS.items())
    drawn = scores(sweep, sweep, resample(PROMPTS, 300, seed=2))
    assert (drawn <= 1e-12).all()


def test_the_interval_covers_the_true_score_as_often_as_it_says():
    truth = 0.83 - envelope(table(HEURISTICS.values()), 5.75)
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sweep = tuple(cell("threshold", name, *point, rng, 200) for name, point in HEURISTICS.items())
        policy = cell("learned", "", 5.75, 0.83, rng, 200)
        found = measure(Evidence("a", "t", "p", policy, sweep, CANVAS, ALPHA), resamples=300)
        inside += found["score_low"] <= truth <= found["score_high"]
    assert 0.90 <= inside / 200 <= 0.99


def test_pairing_is_what_makes_a_small_gain_visible():
    champion, challenger = evidence(0.85, identity="old"), evidence(0.88)
    assert measure(challenger, champion)["gain_low"] > 0  # right wherever the champion is, and on 3 % more
    moved = evidence(0.88, at=0.4)  # as accurate, but right on other prompts
    assert measure(moved, champion)["gain_low"] < 0
    assert measure(moved, champion)["gain"] == pytest.approx(measure(challenger, champion)["gain"])


def test_against_the_champion_counts_what_the_reward_counts_and_not_the_distance_to_the_envelope():
    """At 5.0 passes rules are bad (.65). A policy there is 15 points above them and still of less use at alpha 0."""
    champion, challenger = evidence(0.85, nfe=5.75, identity="old"), evidence(0.80, nfe=5.0, alpha=0.0)
    figures = measure(challenger, champion)
    assert figures["score"] == pytest.approx(0.15) and measure(champion)["score"] == pytest.approx(0.075)
    assert figures["gain"] == pytest.approx(-0.05)
    assert not decide(challenger, champion).promote
    assert decide(replace(champion, alpha=0.0), challenger).promote


@pytest.mark.parametrize(("alpha", "promote"), [(0.0, True), (1.0, False), (3.0, False)])
def test_a_slower_and_more_accurate_policy_wins_where_speed_counts_little(alpha: float, promote: bool):
    fast, slow = evidence(0.85, nfe=5.75, identity="old", alpha=9.0), evidence(0.98, nfe=8.5, alpha=alpha)
    assert decide(slow, fast).promote is promote  # at the challenger's exponent, whatever the champion was judged at


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, CANVAS)), min_size=1, max_size=9), st.floats(0, 5))
def test_the_utility_is_the_reward_that_training_maximizes(rows: list[tuple[float, int]], alpha: float):
    correct, nfe = (np.array(column, float) for column in zip(*rows, strict=True))
    reward = multiplicative(torch.tensor(correct), torch.tensor(nfe), torch.full((len(nfe),), CANVAS), alpha)
    assert result("learned", "", correct, nfe).utility_P(CANVAS, alpha) == pytest.approx(reward.numpy())


def test_several_seeds_are_averaged_after_the_utility_and_not_before():
    seeds = np.array([[[1.0], [0.0]], [[1.0], [16.0]]])  # right at once, or wrong after 16 passes
    policy = result("learned", "", np.array([0.5]), np.array([8.5]), seeds)
    assert policy.seeds == 2 and policy.utility_P(CANVAS, 1.0) == pytest.approx([0.5])
    again = result_of(json.loads(json.dumps(result_json(policy))), "sudoku")
    assert again.utility_P(CANVAS, 1.0) == pytest.approx([0.5]) and result_json(again) == result_json(policy)
    check_result(policy, CANVAS)
    with pytest.raises(DataError, match="by seed"):
        check_result(replace(policy, seeds_2SP=seeds[:, :, :0]), CANVAS)
    with pytest.raises(DataError, match="the means are not"):
        check_result(replace(policy, correct_P=np.array([0.9])), CANVAS)


@pytest.mark.parametrize(
    ("challenger", "champion", "promote", "live", "reason"),
    [
        (evidence(0.88), None, True, True, "no champion yet"),
        (evidence(0.70), None, False, False, "not level with the heuristics"),
        (evidence(0.88), evidence(0.80, identity="old"), True, True, "better than the champion"),
        (evidence(0.88), evidence(0.88, identity="old"), False, False, "not surely better"),  # a tie
        (evidence(0.80), evidence(0.88, identity="old"), False, False, "not surely better"),
        (evidence(0.60), evidence(0.50, identity="old"), False, False, "not level with the heuristics"),
        (evidence(0.88), evidence(0.88, identity="new"), False, True, "this policy is the champion"),
        (evidence(0.88), evidence(0.50, identity="old", prompts="p2"), False, False, "other prompts.*re-evaluate"),
    ],
)
def test_decisions(challenger: Evidence, champion: Evidence | None, promote: bool, live: bool, reason: str):
    verdict = decide(challenger, champion)
    assert (verdict.promote, verdict.live) == (promote, live)
    assert re.search(reason, verdict.reason)
    assert verdict == decide(challenger, champion), "the same evidence, the same verdict"
    assert f"{100 * verdict.figures['score']:+.1f} points" in str(verdict)


@pytest.mark.parametrize(("low", "promote"), [(-0.011, False), (-0.009, True)])
def test_up_to_one_point_below_the_envelope_is_forgiven(low: float, promote: bool):
    """A policy and a rule that are right on the same prompts: every resample has the same score."""
    rule = result("threshold", "0.9", np.full(1000, 0.8), np.full(1000, 5.0))
    policy = replace(rule, family="learned", correct_P=np.full(1000, 0.8 + low))
    verdict = decide(Evidence("new", "t", "p", policy, (rule,), CANVAS, ALPHA), None)
    assert verdict.figures["score_low"] == pytest.approx(low)
    assert verdict.promote is promote


def test_another_frozen_model_is_noticed_by_the_heuristics_it_changes():
    champion = evidence(0.80, identity="old")
    other = replace(champion, heuristics=(exact("threshold", "0.7", 4.2, 0.4), *champion.heuristics[1:]))
    assert "other results" in decide(evidence(0.88), other).reason
    wider = replace(champion, heuristics=champion.heuristics[1:])  # a sweep that grew since is no obstacle
    assert decide(evidence(0.88), wider).promote


def test_evidence_survives_json_and_refuses_cells_of_unequal_length():
    found = evidence(0.8)
    again = Evidence.of(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()
    assert measure(again) == measure(found)
    with pytest.raises(DataError, match="prompts per result"):
        replace(found, heuristics=(exact("threshold", "0.7", 4.0, 0.4, prompts=399),))
    with pytest.raises(DataError, match="one of each per prompt"):
        replace(found, policy=result_of(result_json(found.policy) | {"nfe": [1.0]}, "sudoku"))


# what is no evidence

NAN = float("nan")


def spoiled(name: str, value: float):
    found = evidence(0.88).policy
    values = getattr(found, name).copy()
    values[7] = value
    return replace(found, **{name: values})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("correct_P", NAN, "correct=nan of prompt 7"),
        ("correct_P", 5.0, "correct=5 of prompt 7"),
        ("correct_P", -0.1, "correct=-0.1 of prompt 7"),
        ("correct_P", float("inf"), "correct=inf of prompt 7"),
        ("nfe_P", NAN, "NFE=nan of prompt 7"),
        ("nfe_P", 0.0, "NFE=0 of prompt 7"),
        ("nfe_P", -3.0, "NFE=-3 of prompt 7"),
        ("nfe_P", float("inf"), "NFE=inf of prompt 7"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(name: str, value: float, said: str):
    with pytest.raises(DataError, match=re.escape(said)) as refused:
        replace(evidence(0.88), policy=spoiled(name, value))
    assert has_remedy(str(refused.value))


def test_more_passes_than_positions_are_refused_in_the_policy_and_in_every_rule():
    slow = spoiled("nfe_P", CANVAS + 1.0)
    found = evidence(0.88)
    with pytest.raises(DataError, match=r"learned .* NFE=17 of prompt 7 is more than the canvas of 16"):
        replace(found, policy=slow)
    with pytest.raises(DataError, match=r"random .* NFE=17"):
        replace(found, heuristics=(*found.heuristics, replace(slow, family="random")))


@pytest.mark.parametrize("masks", [[0.0], [NAN], [CANVAS + 1.0], [float("inf")], [[4.0]]])
def test_masks_that_no_canvas_begins_with_are_refused(masks: list[Any]):
    """With 0 the speed is no number: a champion of that kind could never be beaten."""
    found = evidence(0.88).policy
    whole = replace(found, masks_P=np.full(found.nfe_P.shape, CANVAS, dtype=float))
    assert replace(evidence(0.88), policy=whole).policy is whole
    for spoilt in (np.asarray(masks * found.nfe_P.size), np.full(3, CANVAS)):
        with pytest.raises(DataError, match=r"learned .*masks of shape .*Run") as refused:
            replace(evidence(0.88), policy=replace(found, masks_P=spoilt))
        assert has_remedy(str(refused.value))


@pytest.mark.parametrize("alpha", [NAN, -1.0, float("inf")])
def test_an_exponent_that_is_none_is_refused(alpha: float):
    with pytest.raises(DataError, match="no exponent of speed"):
        evidence(0.88, alpha=alpha)


def test_a_bound_that_is_nan_passes_no_condition(monkeypatch: pytest.MonkeyPatch):
    """Whatever makes it NaN: the gate does not ask where it comes from."""
    champion, challenger = evidence(0.5, identity="old"), evidence(0.88)
    for name in ("score_low", "gain_low"):
        good = measure(challenger, champion)
        assert decide(challenger, champion).promote
        monkeypatch.setattr(gate, "measure", lambda *_, name=name, good=good: good | {name: NAN})
        assert not decide(challenger, champion).promote
        monkeypatch.undo()
    assert not decide(challenger, None, slack=NAN).promote


def test_half_a_sweep_and_a_rule_that_is_there_twice_are_refused():
    found = evidence(0.88)
    asked = {rule.rule for rule in found.heuristics}
    found.refuse_gaps(asked)
    with pytest.raises(DataError, match=r"2 of 6 rules of the sweep are missing, first factor 0.5 in blocks of 16"):
        found.refuse_gaps({*asked, ("factor", "0.5", 16), ("threshold", "0.7", 4)})
    with pytest.raises(DataError, match="is there twice"):
        replace(found, heuristics=(*found.heuristics, found.heuristics[0]))


@pytest.mark.parametrize("name", ["identity", "canvas", "alpha", "policy", "heuristics"])
def test_stored_evidence_that_lacks_a_part_is_none(name: str):
    stored = evidence(0.8).to_json()
    del stored[name]
    with pytest.raises(DataError, match=name):
        Evidence.of(stored)


def test_another_canvas_is_another_question():
    champion = replace(evidence(0.5, identity="old"), canvas=32)
    assert "canvas of 32" in decide(evidence(0.88), champion).reason
