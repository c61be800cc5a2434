"""docs/costs.md is what the arithmetic prints; the paper profiles are the GPU profile with the papers' sections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from components.core.timer import Timer
from components.core.types import Needs
from components.decode import readout
from components.export import random_observation
from components.policies.confidence import PAPER, ConfidencePolicy
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.settings import read
from components.stages.influence import fresh_policy
from components.trainers.plan import Objective, Plan
from components.trainers.reinforce import Method, collect
from docs import costs as arithmetic
from docs.costs import SHAPES, activations, costs, document, memory, recorded
from tests.toy_domain import KeyFirst

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


LARGE = [path for path in PROFILES if path.stem.startswith(("gpu", "paper-"))]


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_a_profile_over_a_large_dllm_fits_one_card(path: Path) -> None:
    """Of 80 GB; and a profile that takes ten times the pairs at a time needs ten times the activations."""
    settings = read(path)
    found = memory(settings)
    assert found.weights == pytest.approx(2 * 8.02) and found.weights < found.peak < 80
    chunks = {
        name: getattr(settings, name).model_copy(update={"micro_batch": 10 * getattr(settings, name).micro_batch})
        for name in ("train", "distill")
    }
    assert memory(settings.model_copy(update=chunks)).activations == pytest.approx(10 * found.activations)


def test_paper_b_s_memory_is_counted_by_hand() -> None:
    """268.7e6 parameters, six times in float32; 24 x 6 rows of 256 steps, a tenth of them kept, each of 456 hidden
    states of width 4096 in bfloat16; .24 GB a pair."""
    settings = read(ROOT / "profiles" / "paper-b-topk.yaml")
    found = memory(settings)
    assert found.training == pytest.approx(6 * 4 * 268.7e6 / 1e9, rel=0.01)
    assert found.recorded == pytest.approx(24 * 6 * 256 * 0.1 * 456 * 4096 * 2 / 1e9, rel=0.01)
    assert found.activations == pytest.approx(64 * 0.241, rel=0.01)
    whole = settings.model_copy(update={"train": settings.train.model_copy(update={"micro_batch": 1024})})
    assert memory(whole).activations == pytest.approx(247, rel=0.01) and memory(whole).peak > 240


@contextmanager
def saved(parameters: list[torch.Tensor]) -> Iterator[dict[int, torch.Tensor]]:
    """The tensors that torch saves for the gradient inside the block, one of each storage, without the parameters."""
    found: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage()._cdata for p in parameters}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            found.setdefault(storage, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize("name", ["gpu", "gpu-coupled", "paper-a-bl32", "paper-b-topk"])
def test_a_pair_s_activations_are_those_that_torch_saves(name: str) -> None:
    """On no device, within a tenth; with a pair head, which saves what it works on where it is trained, a fifth."""
    settings = read(ROOT / "profiles" / f"{name}.yaml").policy
    with torch.device("meta"):
        policy = fresh_policy(settings, 4096, 0)
    for parameter in policy.parameters():
        parameter.requires_grad_(True)
    small = fresh_policy(settings, 64 if name == "paper-b-topk" else 4096, 0)
    obs = random_observation(small, 1, 256, "costs")
    fields = {field: value.to("meta") for field, value in obs.tensors().items()}
    if policy.needs.features == "sequence":
        whole = PROMPT + 256
        fields["features_BTD"] = torch.empty(1, whole, 4096, dtype=torch.bfloat16, device="meta")
        fields["attend_BT"] = torch.empty(1, whole, dtype=torch.bool, device="meta")
        obs = replace(obs, canvas_start=PROMPT)
    with saved(list(policy.parameters())) as found:
        distribution = policy.distribution(replace(obs, **fields))
    total = sum(tensor.untyped_storage().nbytes() for tensor in found.values())
    assert distribution is not None  # its graph holds what was saved
    assert activations(settings, 4096, 256) == pytest.approx(total, rel=0.2 if name == "gpu-coupled" else 0.1)


@pytest.mark.parametrize("name", ["gpu", "gpu-coupled", "paper-b-topk"])
def test_a_recorded_step_s_bytes_are_those_of_a_rollout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states here are of width 16 in float32, two of which are one of bfloat16; a step's own numbers, some 50
    bytes, are left out of the count."""
    toy, settings = KeyFirst(canvas_length=8), read(ROOT / "profiles" / f"{name}.yaml").policy
    monkeypatch.setattr(arithmetic, "PROMPT", 2)
    if name == "paper-b-topk":
        settings = settings.model_copy(update={"heads": 2, "mlp_width": 8})
    policy = fresh_policy(settings, 16, 0)
    plan = Plan(iterations=1, prompts=3, group=2, learning_rate=0.001, seed=0, block_length=None)
    steps = collect(policy, toy.denoiser(), toy.prompts(1), Method(plan, Objective()), 0, Timer()).steps
    action = (steps.action.drawn_BL, steps.action.rank_BL, steps.action.committed_BL)
    tensors = [steps.row_N, steps.step_N, steps.log_prob_N, *action, *steps.observation.tensors().values()]
    held = sum(tensor.nbytes for tensor in tensors if tensor is not None) / len(steps.row_N)
    assert recorded(policy.needs, 2 * 16, 8) == pytest.approx(held, abs=80)


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
