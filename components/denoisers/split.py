"""A model over several devices where one is too small, by accelerate's device map: ``load(..., device="auto")``.

Layers stay whole. What no GPU takes stays in memory, what memory does not take on the disk; both are sent to the first
GPU when they are needed, which is slow.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from ..core.errors import CheckpointError
from .fingerprint import fingerprint

AUTO = "auto"
SLOW = ("cpu", "disk")


def split(model: Any, limits: Mapping[int | str, int | str] | None = None) -> Any:
    """The model, its layers on the devices that have room for them; where it fits on one, it goes there.

    limits: bytes, or a text such as "20GiB", by GPU number, "cpu" and "disk"; None: what each device has free, GPUs
    filled evenly. CheckpointError where the devices together are too small.
    """
    try:
        accelerate: Any = import_module("accelerate")
        memory: Any = import_module("accelerate.utils")
    except ImportError as error:
        raise CheckpointError(f"device={AUTO!r} needs accelerate ({error}). Install the extra 'hub'.") from error
    whole: list[str] = list(model._no_split_modules or ())
    if limits is None:
        room: Any = memory.get_balanced_memory(model, dtype=model.dtype, no_split_module_classes=whole)
    else:
        room = memory.get_max_memory(dict(limits))
    try:
        placed: dict[str, Any] = accelerate.infer_auto_device_map(model, room, whole, dtype=model.dtype)
    except ValueError as error:
        raise CheckpointError(f"The devices {room} do not hold the model ({error}). Give more of them.") from error
    fast = [device for device in placed.values() if device not in SLOW]
    if set(placed.values()) == {"disk"}:
        raise CheckpointError(f"The devices {room} hold no layer of the model. Give one more memory.")
    first: Any = fast[0] if fast else "cpu"
    model.split_fingerprint = fingerprint(model)  # what lies on the disk cannot be read later
    folder = tempfile.mkdtemp(prefix="unmask-") if "disk" in placed.values() else None
    if folder is not None:
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    found: Any = accelerate.dispatch_model(model, placed, main_device=first, offload_dir=folder, force_hooks=True)
    found.split_device = torch.device("cuda", first) if isinstance(first, int) else torch.device(first)
    return found
