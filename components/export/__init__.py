"""A learned policy as one self-describing ONNX file: written, run, proved equal; with and without torch.

``export_policy`` writes the file, ``OnnxPolicy`` decodes with it, ``check_parity`` compares it with the policy it came
from. ``NumpyPolicy`` scores and chooses where torch is not installed, so importing this package must not import it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actions import NumpyPolicy
    from .onnx_policy import OnnxPolicy
    from .parity import Decoding, ParityReport, check_parity
    from .states import random_observation, random_states, visited_state
    from .writing import export_policy

__all__ = [
    "Decoding",
    "NumpyPolicy",
    "OnnxPolicy",
    "ParityReport",
    "check_parity",
    "export_policy",
    "random_observation",
    "random_states",
    "visited_state",
]

_HOMES = {
    "NumpyPolicy": "actions",
    "OnnxPolicy": "onnx_policy",
    "Decoding": "parity",
    "ParityReport": "parity",
    "check_parity": "parity",
    "random_observation": "states",
    "random_states": "states",
    "visited_state": "states",
    "export_policy": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
