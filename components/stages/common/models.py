"""What the stages that decode share: the frozen dLLM, opened, and prompts encoded for it."""

from __future__ import annotations

import json
import os

from components.decode.prompts import Prompts
from components.denoisers import Denoiser, Encoder, TransformerDenoiser, load, with_cache
from components.policies.store import LearnedPolicy
from components.settings import Data, Decode, Domain, Models
from components.stages.common.workspace import Workspace, task_of


def open_cached(workspace: Workspace, models: Models, which: str, decode: Decode) -> tuple[Denoiser, Encoder]:
    """What a policy decodes with: ``open_denoiser``'s, with the cache that ``decode.cache`` names."""
    denoiser, encoder = open_denoiser(workspace, models, which)
    return with_cache(denoiser, decode.cache), encoder


def open_denoiser(workspace: Workspace, models: Models, which: str) -> tuple[TransformerDenoiser, Encoder]:
    """Denoiser and encoder of models.<which>, on the device that UNMASK_DEVICE names (cpu by default)."""
    folder = workspace.outputs / "pretrain" / which
    pinned = folder / "source.json"
    source, revision = str(folder), None
    if pinned.exists():
        found = json.loads(pinned.read_text())
        source, revision = found["source"], found["revision"]
    dtype = getattr(models, which).dtype
    if dtype == "auto":
        dtype = json.loads((folder / "dtype.json").read_text())["dtype"]
    return load(source, os.environ.get("UNMASK_DEVICE", "cpu"), dtype, revision)


def reference_of(name: str, value: float | None):
    """A reference policy as the settings name it: a heuristic with its one number, or the teacher."""
    from components.policies.rules import heuristic

    return heuristic(name, value)


def with_decode_settings(policy: LearnedPolicy, decode: Decode) -> LearnedPolicy:
    """The policy with the test-time knobs of the settings."""
    policy.temperature, policy.scale = decode.temperature, decode.scale
    if decode.alpha is not None:
        policy.speed = decode.alpha
    return policy


def prompts_of(workspace: Workspace, data: Data, domain: Domain, encoder: Encoder, split: str, count: int) -> Prompts:
    """``count`` prompts of a split, the domain's tasks by their weights."""
    total = sum(domain.tasks.values())
    return _joined(
        Prompts.of(task_of(data, name), workspace.examples(name, split, count * weight // total), encoder)
        for name, weight in domain.tasks.items()
    )


def evaluation_prompts(workspace: Workspace, data: Data, domain: Domain, encoder: Encoder) -> Prompts:
    """Every test and gate prompt of the domain's tasks."""
    splits = {"test": data.counts.test, "gate": data.counts.gate}
    return _joined(
        Prompts.of(task_of(data, name), workspace.examples(name, split, count), encoder)
        for name in domain.tasks
        for split, count in splits.items()
    )


def _joined(parts) -> Prompts:
    joined, *rest = parts
    for part in rest:
        joined = joined + part
    return joined
