"""One decision of an exported file: what must work before it is offered to anybody. No torch in here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..core.errors import CheckpointError
from .actions import NumpyPolicy
from .onnx_file import FIELDS

LENGTH = 8  # positions of the canvas that it decides about


def check_decides(path: Path) -> None:
    """Open the file and let it choose once. CheckpointError where it does not open or does not decide."""
    policy = NumpyPolicy(path)
    fields = {name: _field(name, axes) for name, axes in policy.file.inputs.items()}
    fields.setdefault("masked_BL", np.ones((1, LENGTH), np.bool_))
    try:
        utilities_BL = policy.score(fields)
        chosen_BL = policy.choose(fields)
    except Exception as error:  # ONNX Runtime's errors have no common class below Exception
        raise CheckpointError(f"{path} makes no decision ({error}). Run `dvc repro export`.") from error
    if utilities_BL.shape != (1, LENGTH) or np.isnan(utilities_BL).any() or not chosen_BL.any():
        raise CheckpointError(
            f"{path} scores {LENGTH} masked positions as {utilities_BL.tolist()} and commits {int(chosen_BL.sum())}. "
            "Run `dvc repro export`."
        )


def _field(name: str, axes: tuple[int | str, ...]) -> np.ndarray:
    """An input that every file accepts: all masked, nothing certain, at the first step."""
    sizes = [1 if place == 0 else LENGTH if isinstance(axis, str) else axis for place, axis in enumerate(axes)]
    fill = {"length_B": LENGTH, "masked_BL": True, "eligible_BL": True, "attend_BT": True, "alpha_B": 1.0}
    return np.full(sizes, fill.get(name, 0), FIELDS[name])
