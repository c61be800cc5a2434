"""docs/costs.md is what the arithmetic prints; the paper profiles are the GPU profile with the papers' sections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from components.commands.throughput import (
    PARALLEL,
    PASSES,
    PROMPT,
    confidence_operations,
    coupled_operations,
    on_paper,
)
from components.core.types import Needs
from components.decode import readout
from components.export import random_observation
from components.policies.confidence import PAPER, ConfidencePolicy
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.settings import read
from components.stages.influence import fresh_policy
from docs.costs import SHAPES, costs, document

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))


def test_the_document_is_what_the_arithmetic_prints() -> None:
    written = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    assert written == document(PROFILES), "Run `python -m docs.costs > docs/costs.md`."
    for name in ("gpu", "gpu-coupled", "gpu-smoke", "paper-a-bl32", "paper-a-full-steered", "paper-b-topk"):
        assert f"\n## {name}\n" in written


def test_the_readme_states_what_the_gpu_profile_costs() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    (stated,) = re.findall(r"(\S+) forwards of one row, (\S+) hours of one H100 and at least (\S+) GB", text)
    document = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    section = document.partition("\n## gpu\n")[2].partition("\n## ")[0]
    (total,) = re.findall(r"\| \*\*all\*\* \| (\S+) \| \*\*(\S+)\*\* \|", section)
    (memory,) = re.findall(r"At least (\S+) GB", section)
    assert stated == (*total, memory)


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


@pytest.mark.parametrize("length", [48, 256])
def test_a_policy_s_operations_are_those_that_torch_counts(length: int) -> None:
    paper, coupled = ConfidencePolicy(PAPER), fresh_policy(read(ROOT / "profiles" / "gpu-coupled.yaml").policy, 4096, 0)
    assert isinstance(coupled, CoupledPolicy) and coupled.shape == CoupledShape(offsets=31, action="accept")
    for policy, wanted in (
        (paper, confidence_operations(PAPER, length)),
        (coupled, coupled_operations(coupled.shape, length)),
    ):
        obs = random_observation(policy, 1, length, "costs")
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
            policy(obs) if isinstance(policy, CoupledPolicy) else policy.score(obs)
        assert counted.get_total_flops() == wanted


def test_a_step_on_paper_is_counted_by_hand() -> None:
    """Seconds of a forward as above; float32 passes over 126,464 logits: 10 of 16 positions, 10 of 256 and 15 of 128,
    at 40 % of 3.35 TB/s; the policy at 40 % of 67 TFLOP/s; 5 us for each kernel; four candidates of a walk."""
    forward = 1000 * SHAPES["GSAI-ML/LLaDA-8B-Instruct"].seconds(456)
    logits, pairs = 4 * 126_464, 10 * 4 * 256**2 * 32
    rule, paper, coupled = on_paper()[:3]
    assert 1000 * rule.seconds == pytest.approx(forward + 1000 * 16 * 10 * logits / 1.34e12 + 0.470)
    assert 1000 * paper.seconds == pytest.approx(
        forward + 1000 * (256 * 10 * logits / 1.34e12 + paper.policy_operations / 26.8e12) + 0.890
    )
    beside = 212 * 0.005 + 0.020 + 1000 * 4 * 256**2 / 25e9 + 4 * 0.0328
    assert 1000 * coupled.seconds == pytest.approx(
        forward + 1000 * ((128 * 15 * logits + pairs) / 1.34e12 + coupled.policy_operations / 26.8e12) + beside
    )
    assert rule.tokens_per_second == pytest.approx(256 / (81.92 * rule.seconds))
    assert rule.saved == 0 and coupled.saved == pytest.approx(1 - rule.seconds / coupled.seconds)
    assert all(step.share < 0.1 for step in on_paper())
    # A full batch shares launches and walk, of a whole block there: arithmetic bounds the forward already at one row.
    alone, full = on_paper()[2], on_paper()[5]
    whole = 212 * 5e-6 + 20e-6 + 64 * 4 * 256**2 / 25e9 + 32 * (32e-6 + 64 * 0.8e-6)
    assert full.rows == 64 and full.seconds == pytest.approx(64 * (alone.seconds - beside / 1000) + whole)


class _Passes(TorchDispatchMode):
    """Float32 words that operators read and write for each of so many logits."""

    def __init__(self, logits: int) -> None:
        super().__init__()
        self.logits, self.words = logits, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        # A view moves nothing, these touch few places of a row, and what is written in place is named twice.
        moves = not (func.is_view or func.__name__.startswith(("scatter", "index_fill", "gather", "empty")))
        into = {"out": None} if "out" in (kwargs or {}) else {}
        named = [*tree_leaves((args, {**(kwargs or {}), **into})), *tree_leaves(made)]
        large = [x for x in named if isinstance(x, torch.Tensor) and x.numel() >= self.logits]
        self.words += sum(x.numel() * x.element_size() for x in large) / 4 / self.logits if moves else 0
        return made


def test_the_passes_over_the_logits_are_those_that_are_made() -> None:
    """On no device: a CPU's way around subnormal numbers costs it passes of its own."""
    coupled = fresh_policy(read(ROOT / "profiles" / "gpu-coupled.yaml").policy, 4096, 0)
    for name, needs in (
        ("threshold:0.9", Needs()),
        ("paper A", ConfidencePolicy(PAPER).needs),
        ("coupled", coupled.needs),
    ):
        raw_NV = torch.empty(2, 126_464, dtype=torch.bfloat16, device="meta")
        with _Passes(raw_NV.numel()) as seen:
            readout.statistics(readout.predict(raw_NV, torch.empty(1, dtype=torch.int64, device="meta")), needs)
        assert PASSES[name] - 1 < seen.words <= PASSES[name]
