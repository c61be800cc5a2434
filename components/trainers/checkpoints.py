"""Atomic checkpoints without pickle: one safetensors file with the policy, its optimizer and the training's progress.

Randomness needs no state: every draw is addressed by (seed, iteration, row, step), see ``rng``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.errors import CheckpointError, DataError
from ..core.files import beside, put_aside, read_lines, unpacking

NO_WEIGHTS: Mapping[str, Tensor] = {}
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # AdamW's state of a parameter


def save(
    path: Path,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    best_weights: Mapping[str, Tensor] = NO_WEIGHTS,
) -> None:
    """Write a checkpoint, whole or not at all. facts: JSON values. best_weights: of the best policy so far."""
    tensors = {f"policy/{name}": value for name, value in policy.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best_weights.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    with beside(path) as part:
        whole = {name: t.detach().contiguous().clone() for name, t in tensors.items()}
        save_file(whole, part, metadata={"facts": json.dumps(dict(facts))})


def facts_of(path: Path) -> dict[str, Any]:
    """The JSON facts of a checkpoint, without its tensors. CheckpointError if the file is not whole."""
    try:
        with safe_open(path, framework="pt") as stored:
            facts: dict[str, Any] = dict(json.loads(stored.metadata()["facts"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint ({error}). Delete it.") from error
    return facts


def load(path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put policy and optimizer back in place; the best policy's weights.

    CheckpointError if the file is not whole; policy and optimizer are then as they were.
    """
    facts_of(path)
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
        if name.startswith("optimizer/"):
            _, index, key = name.split("/", 2)
            state.setdefault(int(index), {})[key] = tensor
    sizes = {index: p.shape for index, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    for index, moments in state.items():
        fits = all(tensor.shape in ((), sizes.get(index)) for tensor in moments.values())
        if not fits or set(moments) != MOMENTS:
            raise CheckpointError(f"{path} holds the state of another optimizer. Delete it.")
    policy.load_state_dict(weights)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return best


@dataclass(frozen=True)
class TrainState:
    """The progress of a training.

    iteration: the last one that counts, -1 before the first. before: "decode/temperature" and "decode/entropy" of that
    iteration. best_reward, best_weights: of the best validation. mlflow_run_id: the run that a resumed training uses.
    """

    iteration: int = -1
    before: tuple[float, float] | None = None
    best_reward: float | None = None
    mlflow_run_id: str | None = None
    best_weights: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        save(path, policy, optimizer, {name: getattr(self, name) for name in FACTS}, self.best_weights)

    @classmethod
    def read(cls, path: Path) -> TrainState:
        """The state without the weights. CheckpointError if the file is not whole or lacks a fact."""
        facts = facts_of(path)
        if lacking := [name for name in FACTS if name not in facts]:
            raise CheckpointError(f"{path} lacks {', '.join(lacking)}. Delete it.")
        if facts["before"] is not None:
            facts["before"] = tuple(facts["before"])
        return cls(**{name: facts[name] for name in FACTS})


FACTS = tuple(f.name for f in fields(TrainState) if f.name != "best_weights")


def resumed(kept: Path, policy: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """The state in ``kept``, with policy and optimizer put in place; else that of a fresh training.

    An unreadable checkpoint is put aside with a message; left in place it would end every later run.
    """
    saved, lines = kept / "state.safetensors", kept / "metrics.jsonl"
    if saved.exists():
        try:
            with unpacking(saved, "Delete it."):
                state = TrainState.read(saved)
                last = state.iteration
                logged = [record["step"] for record in read_lines(lines, needs=("step",), torn=True)]
                if logged[: last + 1] != list(range(last + 1)):
                    raise CheckpointError(f"{lines} lacks iterations before {last + 1}. Delete it.")
                return replace(state, best_weights=load(saved, policy, optimizer))
        except (CheckpointError, DataError) as error:
            put_aside("train", kept, error)
    return TrainState()
