"""What reading a tensor's value costs on a device."""

from __future__ import annotations

import torch


def reads_wait(device: torch.device) -> bool:
    """Whether the host, reading a value, waits for the device and leaves it idle: anywhere but on a CPU."""
    return device.type != "cpu"
