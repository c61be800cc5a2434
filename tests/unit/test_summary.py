"""The few figures that Git keeps, the differences with their intervals, and the card's lists."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.core.errors import DataError
from components.evaluation.gate import level
from components.evaluation.results import EvalResult
from components.reports import card, summary, table
from tests.outputs import result, results

FACTS = card.Facts("policy", ("sudoku",), "mini-llada", "M1..4", 16, ("log_odds_BL",), 9)


def test_a_file_per_task_and_one_for_the_gate_and_nothing_of_an_earlier_run(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    summary.write(folder, {"removed": results()}, results())
    found = summary.write(folder, {"sudoku": results()}, results())
    assert {path.name: json.loads(path.read_text()) for path in folder.iterdir()} == {
        "sudoku.json": {"accuracy": 0.88, "nfe": 5.75, "above_front": 0.105},
        "gate.json": found["gate"],
    }
    figures = level(results()[2], results()[:2])
    assert found["gate"] == {
        "score": 0.105,
        "low": round(figures["score_low"], 3),
        "high": round(figures["score_high"], 3),
        "gate_nfe": 5.75,
    }
    assert found["gate"]["low"] < 0.105 < found["gate"]["high"]
    page = summary.write_page(tmp_path / "result.md", found).read_text()
    assert "| sudoku | 88.0 | 5.75 | +10.5 |" in page and "above the heuristics: +10.5 [+" in page


def test_the_policy_is_the_one_that_is_served(tmp_path: Path) -> None:
    assert summary.write(tmp_path, {"sudoku": results()}, results(), "sample")["sudoku"]["accuracy"] == 0.1
    with pytest.raises(DataError, match=r"0 results of the learned policy by mode, not one\. Run `dvc repro`"):
        summary.write(tmp_path, {"sudoku": results()[:2]}, results())


def test_what_is_level_is_not_a_loss_of_nothing(tmp_path: Path) -> None:
    level_with = replace(result("learned", "mode", 0.9, 6.5), accuracy=0.9 - 1e-9)
    found = summary.write(tmp_path, {"sudoku": [result("threshold", "0.9", 0.9, 6.5), level_with]}, results())
    assert str(found["sudoku"]["above_front"]) == "0.0"
    assert table.points(-1e-9) == table.points(0.0) == "0.0"
    assert (table.points(-0.001), table.points(0.001)) == ("\N{MINUS SIGN}0.1", "+0.1")


def test_a_difference_carries_the_gates_interval() -> None:
    (policy, *_) = table.results(results())
    figures = level(policy.cell, results()[:2])
    bounds = figures["score_low"], figures["score_high"]
    assert policy.interval == bounds
    low, high = map(table.points, bounds)
    assert f"| +10.5 [{low}, {high}] |" in table.markdown(table.results(results()))
    read_from_csv = table.results([_without_prompts(r) for r in results()])
    assert read_from_csv[0].interval is None and "| +10.5 |" in table.markdown(read_from_csv)


def _without_prompts(found: EvalResult) -> EvalResult:
    return replace(found, correct_P=np.zeros(0), nfe_P=np.zeros(0))


def test_the_card_folds_its_settings_and_lists_where_the_policy_is_below() -> None:
    run = {"profile": "tiny", "settings": {"train": {"seed": 0}}, "commit": "c", "versions": {}}
    below = [*results()[:2], result("learned", "mode", 0.5, 5.75), replace(results()[3], choose="sample")]
    text = card.markdown(FACTS, run, table.results(below))
    head, _, folded = text.partition("<details><summary>")
    assert "seed: 0" in folded and "seed: 0" not in head and folded.rstrip().endswith("</details>")
    assert all(f"]({name})" in head for name in ("pareto.png", "learning.png", "order.html"))
    lines = text.splitlines()
    start = lines.index("- Below the envelope of the heuristics, in points. Use the heuristic there.")
    assert lines[start + 1].startswith("  - sudoku on mini-llada (learned policy): \N{MINUS SIGN}27.5 [")
    assert lines[start + 2].startswith("  - sudoku on mini-llada (learned policy, sampled): ")
