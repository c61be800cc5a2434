"""Atomic checkpoints without pickle: one safetensors file that holds policy, optimiser and what a resume must know.

Randomness needs no state: every draw is addressed by (seed, round, row, step), see ``rng``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from components.core.errors import CheckpointError
from components.core.files import beside

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # what AdamW, the one optimiser here, remembers of a parameter


def save(path: Path, policy: nn.Module, optimiser: torch.optim.Optimizer, facts: dict[str, Any]) -> None:
    """facts: JSON values (round, best score, MLflow run id), and tensors under ``best_weights``.

    The file appears whole or not at all.
    """
    tensors = {f"policy/{name}": value for name, value in policy.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in facts.get("best_weights", {}).items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    metadata = {"facts": json.dumps({k: v for k, v in facts.items() if k != "best_weights"})}
    with beside(path) as part:
        save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, part, metadata=metadata)


def facts_of(path: Path) -> dict[str, Any]:
    """The JSON facts of a checkpoint, without its tensors. CheckpointError if the file is not whole."""
    try:
        with safe_open(path, framework="pt") as stored:
            facts: dict[str, Any] = dict(json.loads(stored.metadata()["facts"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint ({error}). Delete it.") from error
    return facts


def load(path: Path, policy: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts policy and optimiser back in place; the facts, with the best policy's weights under ``best_weights``.

    CheckpointError if the file is not whole; policy and optimiser are then as they were.
    """
    facts = facts_of(path)
    with safe_open(path, framework="pt") as stored:
        tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    if bad := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise CheckpointError(f"{path}: {bad[0]} holds NaN or infinite numbers. Delete it.")
    weights, best = (
        {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("policy/", "best/")
    )
    wanted = {name: tensor.shape for name, tensor in policy.state_dict().items()}
    shapes = [{name: tensor.shape for name, tensor in kept.items()} for kept in (weights, best)]
    if shapes[0] != wanted or shapes[1] not in ({}, wanted):
        raise CheckpointError(f"{path} holds the weights of another policy. Delete it.")
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser/"):
            _, index, key = name.split("/", 2)
            state.setdefault(int(index), {})[key] = tensor
    sizes = {index: p.shape for index, p in enumerate(p for g in optimiser.param_groups for p in g["params"])}
    for index, moments in state.items():
        fits = all(tensor.shape in ((), sizes.get(index)) for tensor in moments.values())
        if not fits or set(moments) != MOMENTS:
            raise CheckpointError(f"{path} holds the state of another optimiser. Delete it.")
    policy.load_state_dict(weights)
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    facts["best_weights"] = best
    return facts
