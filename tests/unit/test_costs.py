"""docs/costs.md is what the arithmetic prints; the paper profiles are the GPU profile with the papers' sections."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.settings import read
from docs.costs import PARALLEL, PROMPT, SHAPES, costs, document

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))


def test_the_document_is_what_the_arithmetic_prints() -> None:
    written = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    assert written == document(PROFILES), "Run `python -m docs.costs > docs/costs.md`."
    for name in ("gpu", "gpu-coupled", "gpu-smoke", "paper-a-bl32", "paper-a-full-steered", "paper-b-topk"):
        assert f"\n## {name}\n" in written


def test_one_row_of_a_forward_is_counted_by_hand() -> None:
    """8.02e9 parameters, 456 tokens: 7.31e12 operations for the weights, .11e12 for attention, at 396e12 a second."""
    seconds = SHAPES["GSAI-ML/LLaDA-8B-Instruct"].seconds(456)
    assert seconds == pytest.approx((2 * 8.02e9 * 456 + 4 * 32 * 4096 * 456**2) / 395.6e12)


def test_a_training_is_counted_by_hand() -> None:
    """Paper A: 936 iterations of 16 prompts x 8 rows, 20 validations of 256 prompts, 81.92 forwards a row."""
    settings = read(ROOT / "profiles" / "paper-a-bl32.yaml")
    (train,) = [cost for cost in costs(settings) if cost.stage == "train"]
    assert train.forwards == pytest.approx((936 * 16 * 8 + 20 * 256) * 256 * PARALLEL)
    assert train.hours == pytest.approx(train.forwards * SHAPES[train.model].seconds(PROMPT + 256) / 3600)


def test_an_evaluation_is_counted_by_hand() -> None:
    """Of 8 prompts and a canvas of 32: rules in blocks of 16 and whole (a random one by one seed, 4 a step), the start
    by its mode, the learned policy by its mode and by one seed."""
    settings = read(ROOT / "profiles" / "gpu-smoke.yaml")
    (found,) = [cost for cost in costs(settings) if cost.stage == "rules and evaluate sums"]
    several = 2 * 3 + 1  # threshold at 2 numbers and the entropy bound, each in 2 windows; overlap_rise whole
    fixed = {"random": 8, "confidence": 8}
    own = 2 + len(settings.sweep.seeds)
    assert found.forwards == pytest.approx(8 * (sum(fixed.values()) + (several + own) * 32 * PARALLEL))


def test_every_seed_and_every_frontier_is_paid_for() -> None:
    settings = read(ROOT / "profiles" / "gpu.yaml")
    sweep = settings.sweep

    def forwards(stage: str, **changes: object) -> float:
        changed = settings.model_copy(update={"sweep": sweep.model_copy(update=changes)})
        return sum(cost.forwards for cost in costs(changed) if cost.stage == stage)

    one, two = (forwards("rules and gate gsm8k", seeds=seeds, rules={"threshold": (0.9,)}) for seeds in ((0,), (0, 1)))
    assert two - one == pytest.approx(500 * 256 * PARALLEL)
    narrow, wide = (
        forwards("rules and evaluate gsm8k", block_lengths=(None,), frontiers=frontiers, rules={"threshold": (0.9,)})
        for frontiers in ((None,), (None, 64))
    )
    assert wide - narrow == pytest.approx(500 * 256 * PARALLEL)


def test_paper_profiles_differ_from_the_gpu_profile_in_the_papers_sections_alone() -> None:
    gpu = read(ROOT / "profiles" / "gpu.yaml").model_dump()
    for path in PROFILES:
        if path.stem.startswith("paper-"):
            own = read(path).model_dump()
            differing = {name for name in gpu if own[name] != gpu[name]}
            assert differing <= {"profile", "policy", "decode", "distill", "train"}, path.stem
