"""What a task is accepted by, on domains whose best order is known, and on fronts drawn by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from components.core.types import Canvas
from components.decode.prompts import Prompts
from components.denoisers.encoder import Encoder
from components.denoisers.formula import FormulaDenoiser
from components.evaluation.evaluate import Candidate, evaluate
from components.evaluation.headroom import ORDER_HEADROOM, dependence, fit_order, order, speed
from components.evaluation.results import EvalResult
from components.policies.rules import heuristic
from components.tasks.example import Example, Score
from tests.toy_domain import WORDS, KeyFirst, Letters

SWEPT = (("threshold", 0.4), ("confidence", 1))


def test_the_luckiest_of_many_orders_is_no_reason_to_learn_one(key_first: KeyFirst):
    """The key must come first, and nothing tells where it is: of 64 random orders one surely has it there."""
    told = key_first.denoiser().formula
    blind = FormulaDenoiser(lambda canvas: torch.where(told(canvas) == 9, 9.0, 4.5 * (told(canvas) > 0)), WORDS)
    found, learned = order(blind, key_first.prompts(), 64, seed=0)
    assert found["random"] == pytest.approx(1 / 4, abs=0.06) and found["best_of_random"] == 1.0
    assert found["headroom"] > 0.5, "luck is wide"
    assert learned["gain"] < ORDER_HEADROOM and found["critical"] == 0.0


def test_an_order_that_holds_for_other_prompts_is_learned(key_first: KeyFirst):
    """The key is always at position 0, and unsure without harm. Surest first never takes it first."""
    prompts = key_first.prompts(shades=12).take(range(0, 48, 4))
    found, learned = order(key_first.denoiser(), prompts, 32, seed=0)
    assert found["surest_first"] == 0.0 and found["critical"] == 1.0
    assert learned == {"accuracy": 1.0, "gain": 1.0, "gain_low": 1.0, "gain_high": 1.0}


def test_where_every_order_is_right_there_is_nothing_to_gain(key_first: KeyFirst):
    """One key only, and it is found: everything is certain whatever comes first."""
    lone = replace(key_first, canvas_length=1)
    found, learned = order(lone.denoiser(), lone.prompts(), 4, seed=0)
    assert found == {"random": 1.0, "best_of_random": 1.0, "surest_first": 1.0, "headroom": 0.0, "critical": 0.0}
    assert (learned["accuracy"], learned["gain"]) == (1.0, 0.0)


def test_an_order_is_fitted_to_what_uncertainty_costs_at_each_position():
    """Failures follow position 0 alone; position 1 is unsure by nature, without harm."""
    unsure_PKL = torch.rand(20, 16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unsure_PKL[..., 1] += 3.0
    policy = fit_order(unsure_PKL, (unsure_PKL[..., 0] < 0.5).float())
    assert policy.weight_L[0] > 4 * policy.weight_L[1] and 3.0 < policy.floor_L[1] < 3.5


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


def pairs_apart(canvas: Canvas) -> Tensor:
    """Positions 0 and 1 never hold the same of two tokens, nor do 2 and 3; the pairs are independent."""
    ids_BL = canvas.ids_BT[:, canvas.start :]
    partner_BL = ids_BL[:, [1, 0, 3, 2]].unsqueeze(-1)
    free_V = torch.tensor([0.0, 0.55, 0.45, 0.0]).clamp(min=1e-9).log()
    tied_BLV = torch.nn.functional.one_hot((3 - partner_BL.squeeze(-1)).clamp(0, 2), 4) * 20.0
    return torch.where(partner_BL > 0, tied_BLV, free_V)


@dataclass(frozen=True)
class Apart:
    """The task that goes with ``pairs_apart``."""

    canvas_length: int = 4
    name: str = "apart"

    def score(self, text: str, example: Example) -> Score:
        right = float(text[0] != text[1] and text[2] != text[3])
        return Score(right, right)


def test_exact_shifts_win_back_what_dependence_costs():
    """Taken at once all four are wrong. The oracle takes one of each pair, then the others: two forwards for four."""
    examples = [Example("apart", letter, "abab") for letter in "ab"]
    prompts = Prompts.of(cast(Any, Apart()), examples, cast(Encoder, Letters()))
    denoiser = FormulaDenoiser(pairs_apart, 4)
    candidates = [Candidate(name, f"{x:g}", heuristic(name, x), None) for name, x in SWEPT]
    swept = [(candidate, evaluate(denoiser, candidate, prompts, [0])) for candidate in candidates]
    assert [(result.nfe, result.accuracy) for _, result in swept] == [(1.0, 0.0), (4.0, 1.0)]
    front = speed([result for _, result in swept])
    found = dependence(denoiser, prompts, swept, front, seed=0)
    assert (found["rule"], found["rule_nfe"], found["at_nfe"]) == ("threshold:0.4", 1.0, 2.0)
    assert (found["oracle_at_half"], found["oracle_best"], found["share_of_loss"]) == (1.0, 1.0, pytest.approx(1.0))
    entropy = -0.55 * math.log(0.55) - 0.45 * math.log(0.45)
    assert found["tc_per_step"] == found["tc_per_decode"] == pytest.approx(2 * entropy, abs=1e-5)
