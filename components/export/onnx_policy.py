"""An exported policy as a ``Policy``: the decode loop runs it like any other; torch at the border only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from components.core.types import Needs, Observation
from components.export.onnx_file import OnnxFile
from components.maths.distributions import ActionDistribution
from components.policies.confidence import ACTIONS


class OnnxPolicy:
    """``path``: a file that ``export_policy`` wrote; it says itself what it reads and how its utilities become
    actions. Runs on the CPU with ``threads`` threads, whatever device the observation lives on.

    CheckpointError if the file is not one of ours; DataError if an observation does not have its layout.
    """

    def __init__(self, path: Path | str, threads: int = 1) -> None:
        self._file = OnnxFile(Path(path), threads)
        self.needs = Needs(**self._file.needs)
        self.denoiser = str(self._file.policy.get("denoiser", ""))

    @property
    def metadata(self) -> Mapping[str, str]:
        """All entries of the file's metadata, the exporter's and the caller's."""
        return self._file.metadata

    def score(self, obs: Observation) -> Tensor:
        """(B, L) utilities, float32 on the observation's device."""
        given = {name: getattr(obs, name) for name in self._file.inputs}
        fields = {name: _array(t) for name, t in given.items() if t is not None}
        # A policy beside this one may have asked for the features of the whole sequence.
        if self.needs.features == "canvas" and "features_BTD" in fields:
            fields["features_BTD"] = fields["features_BTD"][:, obs.canvas_start :]
        return torch.from_numpy(self._file.utilities(fields)).to(obs.masked_BL.device)

    def distribution(self, obs: Observation) -> ActionDistribution:
        knobs = dict(self._file.action)
        return ACTIONS[knobs.pop("kind")](self.score(obs), obs.eligible_BL, **knobs)


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
