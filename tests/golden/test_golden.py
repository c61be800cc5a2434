"""A small pipeline gives the figures that it gave when they were recorded. If they are meant to change:

python -m tests.golden.record "why the figures changed"
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.golden import compare, pipeline, record

SHOWN = 40  # lines of a long list


@pytest.mark.e2e
def test_the_pipeline_gives_the_recorded_figures(tmp_path: Path) -> None:
    """Every digit on the recording machine type, within the tolerances of ``compare`` elsewhere."""
    stored, here = record.stored(), record.environment()
    changed = {
        name: (stored["environment"].get(name), here[name])
        for name in here
        if stored["environment"].get(name) != here[name]
    }
    lines = compare.differences(stored["figures"], pipeline.figures(tmp_path), exact=not changed)
    shown, where = "\n".join(lines[:SHOWN]), changed or "the same machine type"
    assert not lines, f"{len(lines)} of {len(stored['figures'])} figures differ ({where}):\n{shown}"


def test_the_record_is_a_lively_run() -> None:
    """The recorded figures would notice a change: policies learned, rules disagreed, some answers were right."""
    figures = record.stored()["figures"]
    for variant in pipeline.VARIANTS:
        rounds = [figures[f"{variant}/rounds/{number}/policy/gradient_norm"] for number in range(10)]
        assert len(set(rounds)) == 10 and min(rounds) > 0
        assert figures[f"{variant}/distill/weights/digest"] != figures[f"{variant}/train/weights/digest"]
        assert any(name.startswith(f"{variant}/scores/") for name in figures)
        right = [value for name, value in figures.items() if name.startswith(variant) and name.endswith("/accuracy")]
        assert len(set(right)) > 1
    assert len({value for name, value in figures.items() if name.startswith("bernoulli") and name.endswith("/nfe")}) > 5


def test_a_last_digit_counts_on_the_same_machine_type_and_not_elsewhere() -> None:
    wanted = {"bernoulli/nfe": 5.5, "pretrain-llada/loss": 1.0, "weights/llada/digest": "12"}
    other = {"bernoulli/nfe": math.nextafter(5.5, 6), "pretrain-llada/loss": 1.1, "weights/llada/digest": "34"}
    assert len(compare.differences(wanted, other, exact=True)) == 3
    assert not compare.differences(wanted, other, exact=False)
    assert not compare.differences(wanted, dict(wanted), exact=True)


def test_a_name_that_went_counts() -> None:
    assert compare.differences({"a": 1.0}, {}, exact=False) == ["a: is missing, was 1.0"]


WANTED: dict[str, object] = {
    "data/rows": "ab",
    "prepare/answers_seen": 0.5,
    "pretrain-llada/loss": 1.0,
    "bernoulli/export/equal_texts": 56.0,
    "bernoulli/evaluate/test/0/accuracy": 0.25,
    "bernoulli/evaluate/test/0/setting": "mode",
    "bernoulli/nfe": 5.5,
}


@pytest.mark.parametrize(
    "change",
    [
        {"data/rows": "ac"},
        {"prepare/answers_seen": 0.51},
        {"pretrain-llada/loss": 1.5},
        {"new": 1.0},
        {"bernoulli/export/equal_texts": 55.0},
        {"bernoulli/evaluate/test/0/accuracy": 0.76},
        {"bernoulli/evaluate/test/0/setting": "sample"},
        {"bernoulli/nfe": math.nan},
        {"bernoulli/nfe": "5.5"},
    ],
)
def test_elsewhere_too_a_figure_may_not_go_or_leave_its_bounds(change: dict[str, object]) -> None:
    assert len(compare.differences(WANTED, WANTED | change, exact=False)) == 1


def test_recording_asks_for_a_sentence_and_keeps_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    for reason in ("", "new figures"):
        with pytest.raises(ValueError, match="Write why"):
            record.record(reason, {}, path)
    assert not path.exists()
    record.record("The rules draw ties by position.", {"a": 1 / 3}, path)
    record.record("The dLLM is trained for longer.", {"a": 2 / 3}, path)
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert [entry["reason"][:9] for entry in whole["history"]] == ["The rules", "The dLLM "]
    assert whole["figures"] == {"a": 2 / 3} and whole["environment"] == record.environment()
    assert all(entry["date"] and entry["commit"] for entry in whole["history"])
