"""What reading a tensor's value costs on a device, and how it refuses memory."""

from __future__ import annotations

import torch
from torch import Tensor


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
