"""An exported policy as a ``Policy``: the decode loop runs it like any other; torch at the border only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.types import Needs, Observation
from ..maths.distributions import ActionDistribution
from ..policies.confidence import ACTIONS
from ..policies.coupled import SETS
from .onnx_file import OUTPUT, OnnxFile


class OnnxPolicy:
    """``path``: a file that ``export_policy`` wrote; it says itself what it reads and how its utilities become
    actions. Runs on the CPU with ``threads`` threads, whatever device the observation lives on.

    offset: the one number for speed at serving time, of a coupled policy: above 0 more is committed per step, below 0
    less. It is added to the tau that the file was exported with; 0 is the exported policy itself.

    CheckpointError if the file is not one of ours; DataError if an observation does not have its layout; SettingsError
    for an offset where the policy is not coupled.
    """

    def __init__(self, path: Path | str, threads: int = 1, offset: float = 0.0) -> None:
        self._file = OnnxFile(Path(path), threads, offset)
        self.needs = Needs(**self._file.needs)
        self.denoiser = str(self._file.policy.get("denoiser", ""))

    @property
    def metadata(self) -> Mapping[str, str]:
        """All entries of the file's metadata, the exporter's and the caller's."""
        return self._file.metadata

    def fields(self, obs: Observation) -> Mapping[str, np.ndarray]:
        """What the file reads of an observation."""
        given = {name: getattr(obs, name) for name in self._file.inputs}
        fields = {name: _array(t) for name, t in given.items() if t is not None}
        # A policy beside this one may have asked for the features of the whole sequence, or for other layers.
        if self.needs.features == "canvas" and "features_BTD" in fields:
            fields["features_BTD"] = fields["features_BTD"][:, obs.canvas_start :]
        if "attention_BLLA" in fields and obs.attention_layers != self.needs.attention:
            own = [obs.attention_layers.index(layer) for layer in self.needs.attention]
            fields["attention_BLLA"] = fields["attention_BLLA"][..., own]
        return self._file.completed(fields)

    def _outputs(self, obs: Observation) -> dict[str, Tensor]:
        """What the file gives, float32 on the observation's device."""
        found = self._file.outputs(self.fields(obs))
        return {name: torch.from_numpy(value).to(obs.masked_BL.device) for name, value in found.items()}

    def score(self, obs: Observation) -> Tensor:
        """(B, L) utilities, float32 on the observation's device."""
        return self._outputs(obs)[OUTPUT]

    def distribution(self, obs: Observation) -> ActionDistribution:
        knobs, found = dict(self._file.action), self._outputs(obs)
        kind, utilities_BL = knobs.pop("kind"), found.pop(OUTPUT)
        if kind not in SETS:
            return ACTIONS[kind](utilities_BL, obs.eligible_BL, **knobs)
        assert obs.log_odds_BL is not None
        return SETS[kind](log_odds_BL=obs.log_odds_BL, eligible_BL=obs.eligible_BL, **found, **knobs)


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
