"""A learned policy as a folder: policy.safetensors (weights) and policy.json (its shape)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..core.errors import CheckpointError
from ..core.files import beside, read_json, unpacking, write_json
from .binding import bound_to
from .confidence import ConfidencePolicy, Shape
from .coupled import CoupledPolicy, CoupledShape
from .feature import FeaturePolicy, FeatureShape

LearnedPolicy = ConfidencePolicy | FeaturePolicy | CoupledPolicy
FILES = ("policy.json", "policy.safetensors")
FORMER = {"inner": "mlp_width", "pair": "pair_width", "pairs": "pair_shifts"}  # fields of shapes in older files


def build(described: dict[str, Any]) -> LearnedPolicy:
    """A freshly initialized policy from ``describe``."""
    if described.get("kind") not in KINDS:
        raise CheckpointError(
            f"policy kind {described.get('kind')!r} is unknown. Use a policy of one of {sorted(KINDS)}."
        )
    try:
        stored: dict[str, Any] = described["shape"]
        shape: dict[str, Any] = {FORMER.get(name, name): value for name, value in stored.items()}
        policy = KINDS[described["kind"]](shape)
    except (TypeError, KeyError, AttributeError) as error:  # a field that this version has not, or one that it lacks
        raise CheckpointError(
            f"a {described['kind']} policy with the shape {described['shape']} is not of this version ({error}). "
            "Use the version that wrote it, or train one with `dvc repro train`."
        ) from error
    policy.denoiser = str(described.get("denoiser", ""))
    return policy


def describe(policy: LearnedPolicy) -> dict[str, Any]:
    """The input of ``build``: kind, shape, and the dLLM whose hidden states the policy reads."""
    bound = bound_to(policy)
    return policy.describe() | ({"denoiser": bound} if bound else {})


def _confidence(shape: dict[str, Any]) -> LearnedPolicy:
    given: dict[str, Any] = shape | {name: tuple(shape[name]) for name in ("inputs", "alphas")}
    return ConfidencePolicy(Shape(**given))


def _coupled(shape: dict[str, Any]) -> LearnedPolicy:
    given: dict[str, Any] = shape | {name: tuple(shape[name]) for name in ("attention", "alphas")}
    return CoupledPolicy(CoupledShape(**given))


KINDS: dict[str, Callable[[dict[str, Any]], LearnedPolicy]] = {
    "confidence": _confidence,
    "coupled": _coupled,
    "feature": lambda shape: FeaturePolicy(FeatureShape(**shape)),
}


def save(policy: LearnedPolicy, folder: Path) -> None:
    """Write policy.safetensors and policy.json into the folder, each whole or not at all."""
    with beside(folder / "policy.safetensors") as part:
        save_file({name: value.contiguous() for name, value in policy.state_dict().items()}, part)
    write_json(folder / "policy.json", describe(policy))


def content_hash(folder: Path) -> str:
    """SHA-256 (hex) of the folder's two files, by which the stages name their policy."""
    try:
        parts = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]
    except OSError as error:
        raise CheckpointError(f"{folder}: no whole policy ({error}). Run `dvc repro train`.") from error
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def load(folder: Path) -> LearnedPolicy:
    """The policy of a folder. CheckpointError if it is not whole, has other fields, or a weight that is not finite."""
    try:
        described = read_json(folder / "policy.json", needs=("kind", "shape"))
        with unpacking(folder / "policy.json"):
            policy = build(described)
        weights = load_file(folder / "policy.safetensors")
        policy.load_state_dict(weights)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"{folder}: no whole policy ({why}). Train one with `dvc repro train`.") from error
    for name, value in weights.items():
        if not (value.is_floating_point() and bool(value.isfinite().all())):
            raise CheckpointError(
                f"{folder / 'policy.safetensors'}: {name} ({value.dtype}) holds NaN, infinite or whole numbers for "
                f"weights. Train the policy again with `dvc repro train`."
            )
    return policy.eval()
