"""The device of a dLLM, what reading a tensor's value costs on it, how it refuses memory, and what then helps."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import torch
from torch import Tensor


def device_name(checkpoint: bool, environment: Mapping[str, str] = os.environ) -> str:
    """The device of a dLLM: UNMASK_DEVICE where set, else the GPU for a checkpoint where there is one, else the CPU.

    checkpoint: whether it comes from a folder or the hub. An embedded dLLM stays on the CPU, which gives equal figures
    on every machine.
    """
    return environment.get("UNMASK_DEVICE") or ("cuda" if checkpoint and torch.cuda.is_available() else "cpu")


def device_to_load(checkpoint: bool) -> str:
    """``device_name``. A line on stderr says so where a checkpoint goes to the CPU and nobody asked for that."""
    name = device_name(checkpoint)
    if checkpoint and name == "cpu" and not os.environ.get("UNMASK_DEVICE"):
        print(
            f"unmask: torch {torch.__version__} sees no GPU, so the checkpoint runs on the CPU. Use a machine with a "
            "GPU and a torch built for it, or set UNMASK_DEVICE=cpu if that is meant.",
            file=sys.stderr,
            flush=True,
        )
    return name


def reads_wait(device: torch.device) -> bool:
    """Whether the host, reading a value, waits for the device and leaves it idle: anywhere but on a CPU."""
    return device.type != "cpu"


def over(going_B: Tensor, pick: int) -> bool:
    """Whether every row has stopped. An accelerator is asked at every fourth pick only, to save waits."""
    return (not reads_wait(going_B.device) or pick % 4 == 3) and not bool(going_B.any())


def ran_out(error: BaseException) -> bool:
    """Whether the error is a refused allocation, an accelerator's or the host's."""
    # Not every refusal is an OutOfMemoryError: that of a context, a kernel's stack or a library's handle is none.
    said = ("can't allocate memory", "not enough memory", "error: out of memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def give_back() -> None:
    """Return to the accelerator what torch keeps of its memory for later tensors."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
