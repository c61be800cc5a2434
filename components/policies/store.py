"""A learned policy as a folder: policy.safetensors (weights) and policy.json (what fixes its shape)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from components.errors import CheckpointError
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.feature import FeaturePolicy, FeatureShape

LearnedPolicy = ConfidencePolicy | FeaturePolicy


def build(described: dict[str, Any]) -> LearnedPolicy:
    """A freshly initialised policy from ``policy.describe()``."""
    if described.get("kind") not in KINDS:
        raise CheckpointError(f"policy kind {described.get('kind')!r} is not known; its weights cannot be placed; "
                              f"known are {sorted(KINDS)}")  # fmt: skip
    return KINDS[described["kind"]](described["shape"])


def _confidence(shape: dict[str, Any]) -> LearnedPolicy:
    given: dict[str, Any] = shape | {name: tuple(shape[name]) for name in ("inputs", "alphas")}
    return ConfidencePolicy(Shape(**given))


KINDS: dict[str, Callable[[dict[str, Any]], LearnedPolicy]] = {
    "confidence": _confidence,
    "feature": lambda shape: FeaturePolicy(FeatureShape(**shape)),
}


def save(policy: LearnedPolicy, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in policy.state_dict().items()}
    for name, write in (
        ("policy.safetensors", lambda path: save_file(weights, path)),
        ("policy.json", lambda path: path.write_text(json.dumps(policy.describe(), indent=2, sort_keys=True) + "\n")),
    ):
        beside = folder / f".{name}.new"
        write(beside)
        beside.replace(folder / name)


def load(folder: Path) -> LearnedPolicy:
    """CheckpointError if the folder is not whole."""
    try:
        policy = build(json.loads((folder / "policy.json").read_text()))
        policy.load_state_dict(load_file(folder / "policy.safetensors"))
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder}: no whole policy ({error}); it cannot be decoded with; train one with "
                              f"`dvc repro train`") from error  # fmt: skip
    return policy.eval()
