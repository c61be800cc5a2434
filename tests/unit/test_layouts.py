"""Every layout of a checkpoint from a folder of shards in bfloat16: three kinds of policy decode, learn two rounds and
are evaluated over it, and one of them is exported with equal texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.decode.prompts import Prompts
from components.denoisers import LoadedDenoiser, load
from components.evaluation.evaluate import Candidate, evaluate
from components.export import Decoding, OnnxPolicy, check_parity, export_policy, random_states
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.feature import FeaturePolicy, FeatureShape
from components.policies.store import LearnedPolicy
from components.trainers.plan import Objective, Plan
from components.trainers.reinforce import Method, optimizer_for, reinforce
from tests.unit.test_checkpoints import shard, write_a2d
from tests.unit.test_denoisers import WRITERS
from tests.unit.test_masked_models import MASKED, FreeText, write_masked

torch.set_num_threads(1)
pytestmark = pytest.mark.e2e


def write_diffucoder(folder: Path) -> None:
    """Dream's layout, but for a padding token of its own that config.json does not name."""
    WRITERS["dream"](folder)
    path = folder / "tokenizer_config.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    pad = words["added_tokens_decoder"]["30"] | {"content": "<|dlm_pad|>"}
    words["added_tokens_decoder"]["31"], words["pad_token"] = pad, "<|dlm_pad|>"
    path.write_text(json.dumps(words), encoding="utf-8")


LAYOUTS: dict[str, Callable[[Path], Any]] = {
    "LLaDA": WRITERS["llada"],
    "Dream": WRITERS["dream"],
    "DiffuCoder": write_diffucoder,
    **{
        f"A2D {native}": lambda folder, native=native: write_a2d(folder, native)
        for native in ("Llama", "Qwen2", "Qwen3")
    },
    **{name: lambda folder, name=name: write_masked(folder, name) for name in MASKED},
}


def policies(denoiser: LoadedDenoiser) -> dict[str, LearnedPolicy]:
    torch.manual_seed(0)
    coupled = CoupledShape(top_k=3, width=8, heads=1, mlp_width=8, pair_width=4, offsets=3, action="accept")
    return {
        "confidence": ConfidencePolicy(Shape(width=8, heads=1, mlp_width=8, bias=0.0)),
        "feature": FeaturePolicy(FeatureShape(denoiser.width, heads=1, mlp_width=8, hidden=1, top_k=3)),
        "coupled": CoupledPolicy(coupled),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_carries_every_kind_of_policy(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    LAYOUTS[layout](folder)
    shard(folder, "model-00002-of-00002.safetensors")
    denoiser, encoder = load(folder, dtype="bfloat16")
    assert next(denoiser.model.parameters()).dtype == torch.bfloat16
    task: Any = FreeText()
    prompts = Prompts.of(task, [task.sample(i, 0) for i in range(4)], encoder)
    plan = Plan(iterations=2, prompts=4, group=4, learning_rate=1e-2, seed=0, block_length=None, warmup=0)
    for kind, policy in policies(denoiser).items():
        policy.denoiser = denoiser.fingerprint
        before = torch.cat([weight.detach().flatten().clone() for weight in policy.parameters()])
        method = Method(plan, Objective(signal="dense", alpha=0.0 if kind == "feature" else 1.0))
        seen = [m for _, m in reinforce(policy, optimizer_for(policy, plan), denoiser, prompts, method)]
        assert len(seen) == 2 and max(m["reward/mixed_groups"] for m in seen) > 0, kind
        after = torch.cat([weight.detach().flatten() for weight in policy.parameters()])
        assert bool(after.isfinite().all()) and not torch.equal(before, after), kind
        result = evaluate(denoiser, Candidate("learned", "mode", policy.eval(), None), prompts, [0])
        assert result.unfinished == 0 and 1 <= result.nfe <= task.canvas_length, kind
        if kind == list(policies(denoiser))[list(LAYOUTS).index(layout) % 3]:
            export_policy(policy, tmp_path / "policy.onnx", {})
            exported = OnnxPolicy(tmp_path / "policy.onnx")
            report = check_parity(policy, exported, random_states(policy), Decoding(denoiser, prompts, None))
            assert report.texts == report.equal_texts == 8, kind
