"""What a task is accepted by, on domains whose best order is known, and on fronts drawn by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from components.evaluation.headroom import order, speed
from components.evaluation.results import EvalResult
from tests.toy_domain import KeyFirst


def test_random_orders_find_what_the_surest_first_order_never_does(key_first: KeyFirst):
    """The key must come first: one random order in four has it there, of 64 orders one surely does."""
    found = order(key_first.denoiser(), key_first.prompts(), 64, seed=0)
    assert found["random"] == pytest.approx(1 / 4, abs=0.06)
    assert (found["best_of_random"], found["surest_first"], found["headroom"]) == (1.0, 0.0, 1.0)
    assert found["critical"] == 0.0, "surest first is no better than random: such a dLLM is not calibrated, but wrong"


def test_where_every_order_is_right_there_is_nothing_to_gain(key_first: KeyFirst):
    """One key only, and it is found: everything is certain whatever comes first."""
    lone = replace(key_first, canvas_length=1)
    found = order(lone.denoiser(), lone.prompts(), 4, seed=0)
    assert found == {"random": 1.0, "best_of_random": 1.0, "surest_first": 1.0, "headroom": 0.0, "critical": 0.0}


def cell(nfe: float, accuracy: float) -> EvalResult:
    """100 prompts of which this share is right."""
    figures: dict[str, Any] = dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "dense"), accuracy)
    figures |= dict.fromkeys(("nfe", "nfe_low", "nfe_high"), nfe) | {"tokens_per_second": 1.0, "unfinished": 0.0}
    return EvalResult("task", "dllm", "tune", "threshold", "0.9", 16, "mode", prompts=100, seeds=1, **figures)


def test_speed_is_judged_at_half_of_where_the_front_saturates():
    steep = speed([cell(1, 0.1), cell(4, 0.5), cell(8, 0.95), cell(16, 0.955)])
    assert steep == pytest.approx({"best": 0.95, "saturates_at_nfe": 8, "at_half": 0.5, "critical": 1.0}, abs=0.011)
    flat = speed([cell(1, 0.8), cell(4, 0.93), cell(8, 0.95)])
    assert flat["at_half"] == pytest.approx(0.93) and flat["critical"] == 0.0
