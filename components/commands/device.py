"""The device that UNMASK_DEVICE names, looked at before a command or a stage begins."""

from __future__ import annotations

import os

from ..core.errors import SettingsError


def check_device() -> None:
    """SettingsError where UNMASK_DEVICE names no device of this machine. Empty, it is as good as not set."""
    if not os.environ.get("UNMASK_DEVICE"):
        os.environ.pop("UNMASK_DEVICE", None)
    if fault := device_fault():
        raise SettingsError(fault)


def device_fault() -> str:
    """Why the device of UNMASK_DEVICE cannot be used, empty if it can. No memory of a GPU is taken."""
    name = os.environ.get("UNMASK_DEVICE") or "cpu"
    if name == "cpu":
        return ""
    import torch

    from ..denoisers.split import AUTO

    if name == AUTO:
        return ""
    gpus = torch.cuda.device_count()
    try:
        asked = torch.device(name)
        if asked.type != "cuda":
            torch.zeros(1, device=asked).tolist()
            return ""
    except (RuntimeError, AssertionError, NotImplementedError):
        return f"UNMASK_DEVICE={name} is no device of torch {torch.__version__}. Unset it, or write cuda or cuda:N."
    if (asked.index or 0) >= gpus:
        return (
            f"UNMASK_DEVICE={name}, and torch {torch.__version__} sees {gpus or 'no'} GPU. Unset it, or name another."
        )
    return ""
