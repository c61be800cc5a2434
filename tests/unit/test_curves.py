"""The study's figures: a policy's curve beside the rules' front, and the order of commits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from components.evaluation.evaluate import Candidate, evaluate
from components.evaluation.order import ar_ness, kendall_tau, order_2P
from components.evaluation.results import read_results, write_results
from components.policies.rules import heuristic
from components.reports.curves import aup, curve_at, difference, error_cut, mean_interval, nfe_for
from tests.outputs import result
from tests.toy_domain import KeyFirst

ORDERS = [
    ([0, 1, 2, 3], 1.0, 1.0),  # left to right
    ([3, 2, 1, 0], 0.0, -1.0),
    ([0, 0, 0, 0], 1.0, 0.0),  # one step: counted from left to right, and no relation at all
    ([0, 1, 0, 1], 0.0, 2 / math.sqrt(24)),  # 0, 2, 1, 3: none goes on; of four pairs three rise
    ([0, 0, 1, 1], 1.0, 4 / math.sqrt(24)),
    ([5], 1.0, 0.0),
]


@pytest.mark.parametrize(("steps", "ar", "tau"), ORDERS)
def test_the_order_by_hand(steps: list[int], ar: float, tau: float) -> None:
    row = np.asarray(steps)
    assert ar_ness(row) == pytest.approx(ar)
    assert kendall_tau(row) == pytest.approx(tau)
    padded = np.asarray([[*steps, -1, -1]])
    assert order_2P(padded)[:, 0] == pytest.approx([ar, kendall_tau(row)])


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_tau_is_the_one_of_statistics(steps: list[int]) -> None:
    theirs: float = cast(Any, kendalltau(np.arange(len(steps)), steps)).statistic
    assert kendall_tau(np.asarray(steps)) == pytest.approx(0.0 if math.isnan(theirs) else theirs)


def test_a_decode_from_left_to_right_is_wholly_so_and_the_file_keeps_it(key_first: KeyFirst, tmp_path: Path) -> None:
    denoiser, prompts = key_first.denoiser(), key_first.prompts()
    found = [
        evaluate(denoiser, Candidate(name, "1", heuristic(name, 1), None), prompts, [0, 1, 2])
        for name in ("left_to_right", "random")
    ]
    assert np.array_equal(found[0].order_2P, np.ones((2, len(prompts))))
    assert found[1].order_2P.mean() < 0.9
    write_results(tmp_path / "results.jsonl", found)
    for before, after in zip(found, read_results(tmp_path / "results.jsonl"), strict=True):
        assert np.array_equal(before.order_2P, after.order_2P)


def test_a_curve_is_the_hull_of_its_points_and_says_nothing_left_of_them() -> None:
    nfe, accuracy = [2.0, 4.0, 3.0, 8.0], [0.5, 0.9, 0.6, 0.9]
    assert math.isnan(curve_at(nfe, accuracy, 1.9))
    assert curve_at(nfe, accuracy, 3.0) == pytest.approx(0.7) and curve_at(nfe, accuracy, 9.0) == 0.9
    assert nfe_for(nfe, accuracy, 0.7) == pytest.approx(3.0) and nfe_for(nfe, accuracy, 0.1) == 2.0
    assert nfe_for(nfe, accuracy, 0.95) == math.inf
    assert error_cut(0.9, 0.5) == pytest.approx(0.8) and math.isnan(error_cut(1.0, 1.0))


def test_aup_by_hand() -> None:
    """Points (1, .8), (2, .9), (4, .76), (8, .5): the last is more than five points below the first."""
    weight = math.exp(-3 * (1 - 0.8 / 0.9))
    low = math.exp(-3 * (1 - 0.76 / 0.9))
    wanted = 80 + 1 * (90 + 80 * weight) / 2 + 2 * (90 + 76 * low) / 2
    assert aup([4, 1, 2, 8], [0.76, 0.8, 0.9, 0.5], 0.9) == pytest.approx(wanted)
    assert aup([1.0], [0.5], 0.5) == pytest.approx(50)


def test_the_difference_to_the_front_is_paired_and_its_interval_holds_prompts_and_seeds() -> None:
    rules = [result("threshold", "0.8", 0.6, 4), result("threshold", "0.9", 0.8, 6)]
    same, better, worse = (result("learned", "mode", a, 5) for a in (0.7, 0.9, 0.6))
    middle, low, high = difference([same], rules, 500)
    assert middle == pytest.approx(0.0) and low <= 0 <= high
    assert difference([better, better], rules, 500)[0] == pytest.approx(0.2)
    middle, low, high = difference([better, worse], rules, 500)
    alone = difference([better, better], rules, 500)
    assert middle == pytest.approx(0.05) and high - low > 2 * (alone[2] - alone[1])  # seeds that differ widen it


def test_an_interval_over_seeds_and_prompts_is_wider_than_over_prompts_alone() -> None:
    value_SP = np.stack([np.ones(100), np.zeros(100)])
    assert mean_interval(value_SP, 500) == pytest.approx((0.0, 1.0))
    assert mean_interval(np.full((2, 100), 0.5), 500) == pytest.approx((0.5, 0.5))
