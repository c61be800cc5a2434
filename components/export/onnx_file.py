"""The exported file as ONNX Runtime sees it: what it reads, what it is, what it gives for arrays. No torch in here.

The inputs are named like the Observation's fields. What the graph cannot say stands in the file's metadata, each entry
text: ``unmask.version`` of this layout, ``unmask.policy`` (kind, shape, and the speed exponent that holds where
``alpha_B`` is not given), ``unmask.needs``, ``unmask.action`` (the distribution and its knobs), ``unmask.exporter``
(opset and versions), and whatever the exporting stage adds.

A coupled policy's file gives, beside the utilities of the first pick, what moves them: ``bias_BL``, ``shift_BLL`` and
``mix_BL``. Its action holds kappa, tau, cost and temperature (``components.maths.coupled``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CheckpointError, DataError, SettingsError
from ..core.files import parse_json

VERSION = 2
PREFIX = "unmask."
OUTPUT = "utilities_BL"
PAIRED = ("bias_BL", "shift_BLL", "mix_BL")
OUTPUTS = {
    "bernoulli": (OUTPUT,),
    "categorical": (OUTPUT,),
    "dpls": (OUTPUT,),
    "coupled": (OUTPUT, *PAIRED),
    "accept": (OUTPUT, *PAIRED),
}
"""What a file gives, by the kind of its action."""
KNOBS = {
    "bernoulli": {"temperature", "scale"},
    "categorical": {"temperature"},
    "dpls": {"temperature"},
    "coupled": {"kappa", "tau", "cost", "temperature"},
    "accept": {"kappa", "tau", "cost", "temperature"},
}
"""The numbers that an action comes with, by its kind."""
LONGEST_EXAMPLE = 512  # positions on which a file is tried

FIELDS = {
    "masked_BL": np.bool_,
    "eligible_BL": np.bool_,
    "step_B": np.int64,
    "length_B": np.int64,
    "token_BL": np.int64,
    "confidence_BL": np.float32,
    "log_odds_BL": np.float32,
    "margin_BL": np.float32,
    "entropy_BL": np.float32,
    "top_BLK": np.float32,
    "top_ids_BLK": np.int64,
    "attention_BLLA": np.float32,
    "drift_BLH": np.float32,
    "answer_BL": np.int64,
    "alpha_B": np.float32,
    "features_BTD": np.float32,
    "attend_BT": np.bool_,
}
"""The tensors of an Observation, as ``components.core.types`` documents them; a test holds the two together."""

_TYPES = {"tensor(bool)": np.bool_, "tensor(int64)": np.int64, "tensor(float)": np.float32}


class OnnxFile:
    """An exported policy, opened on the CPU with ``threads`` threads.

    metadata: all of it. policy, needs, action: ours, parsed. inputs: name -> axes, a dynamic axis by its name.
    offset: asks a coupled policy for more (above 0) or less per step than it was exported with. It is added to tau.
    CheckpointError if the file does not open, is not one of ours, has another layout version, or computes no numbers.
    """

    def __init__(self, path: Path, threads: int = 1, offset: float = 0.0) -> None:
        self.path, self.offset = path, offset
        self._session = _open(path, threads)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        _check_version(path, self.metadata)
        self.policy, self.needs, self.action = (self._parsed(name) for name in ("policy", "needs", "action"))
        self.inputs: dict[str, tuple[int | str, ...]] = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        unknown = [i.name for i in self._session.get_inputs() if FIELDS.get(i.name) != _TYPES.get(i.type, object)]
        outputs = [o.name for o in self._session.get_outputs()]
        kind = str(self.action.get("kind"))
        knobs = {name for name, value in self.action.items() if type(value) in (int, float)}
        if unknown or tuple(outputs) != OUTPUTS.get(kind) or knobs != KNOBS[kind] or len(self.action) > len(knobs) + 1:
            raise CheckpointError(
                f"{path}: inputs {unknown or 'fine'}, outputs {outputs}, action {self.action}. An exported policy "
                f"reads fields of the Observation, draws by one of {sorted(OUTPUTS)} and gives what that needs. Export "
                f"it again."
            )
        if offset and PAIRED[0] not in OUTPUTS[kind]:
            raise SettingsError(
                f"offset={offset} is for coupled policies, {path.name} draws by {kind}. Leave it out, or serve a "
                f"coupled policy."
            )
        if offset:
            self.action["tau"] += offset
        self._require_finite()

    def _require_finite(self) -> None:
        """A weight that is NaN or infinite reaches the utilities of an observation that is as long as the policy's
        tables of positions and distances: every other layer is dense. Longer tables are read from the file."""
        shape = self.policy.get("shape")
        read = [shape.get(name) for name in ("positions", "offsets")] if isinstance(shape, dict) else []
        longest = max([6, *(size + 2 for size in read if type(size) is int)])
        length = min(LONGEST_EXAMPLE, longest)
        if longest > length:
            _require_finite_tables(self.path)
        dynamic = {"batch": 1}
        feed = {
            name: _example(name, tuple(a if isinstance(a, int) else dynamic.get(a, length) for a in axes), length)
            for name, axes in self.inputs.items()
        }
        for name, value in zip(
            [o.name for o in self._session.get_outputs()], self._session.run(None, feed), strict=True
        ):
            # Outside a shortlist a utility is -inf, but not everywhere.
            if np.isnan(value).any() or (value == np.inf).any() or not np.isfinite(value).any():
                raise CheckpointError(
                    f"{self.path}: {name} of a small example is NaN or infinite, so a weight is. Train and export the "
                    f"policy again."
                )

    def _parsed(self, name: str) -> dict[str, Any]:
        try:
            return dict(**parse_json(self.metadata[PREFIX + name]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path}: {PREFIX}{name} is missing or no JSON object of finite numbers. Export the policy again."
            ) from error

    def utilities(self, fields: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 (B, L), see ``outputs``."""
        return self.outputs(fields)[OUTPUT]

    def outputs(self, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All that the file gives, float32, by ``OUTPUTS``. Fields that it does not read are ignored; ``alpha_B`` may
        be left out, for the speed that the file was exported with. DataError if another one is missing or does not fit
        the file's layout."""
        sizes: dict[str, int] = {}
        fields = self.completed(fields)
        feed = {name: self._fitting(name, axes, fields, sizes) for name, axes in self.inputs.items()}
        names = OUTPUTS[self.action["kind"]]
        found = dict(zip(names, self._session.run(list(names), feed), strict=True))
        if self.offset:
            found[OUTPUT] = found[OUTPUT] + np.float32(self.action["kappa"] * self.offset)
        return found

    def completed(self, fields: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The fields with ``alpha_B``, if the file reads it."""
        if "alpha_B" not in self.inputs or "alpha_B" in fields:
            return fields
        return {**fields, "alpha_B": np.full(len(fields.get("masked_BL", ())), self.policy["speed"], np.float32)}

    def _fitting(
        self, name: str, axes: tuple[int | str, ...], fields: Mapping[str, np.ndarray], sizes: dict[str, int]
    ) -> np.ndarray:
        """The field as the session wants it; ``sizes`` holds the dynamic axes that were seen so far."""
        if name not in fields:
            raise DataError(
                f"the observation has no {name}, only {sorted(fields)}, and {self.path.name} reads it. "
                f"Make the observation with its needs: {self.needs}"
            )
        value, wanted = fields[name], np.dtype(FIELDS[name])
        floats = value.dtype.kind == wanted.kind == "f"
        if value.dtype != wanted and not floats:
            raise DataError(f"{name} is {value.dtype}, {self.path.name} reads {wanted}. Give it as {wanted}.")
        if floats and bool(np.isnan(value).any()):
            raise DataError(
                f"{name} is NaN in row {int(np.argwhere(np.isnan(value))[0, 0])}. Check the dLLM's logits of that row, "
                f"or leave the row out."
            )
        # A policy beside this one may have asked for more of the largest probabilities.
        if name in ("top_BLK", "top_ids_BLK") and value.ndim == 3 and isinstance(axes[2], int):
            value = value[..., : axes[2]]
        fits = len(value.shape) == len(axes) and all(
            size == (axis if isinstance(axis, int) else sizes.setdefault(axis, size))
            for size, axis in zip(value.shape, axes, strict=True)
        )
        if not fits:
            raise DataError(
                f"{name} has the shape {value.shape}, {self.path.name} reads {axes} with {sizes}. "
                f"Pass fields of one observation."
            )
        return value.astype(wanted, copy=False)


def _require_finite_tables(path: Path) -> None:
    """CheckpointError if a stored matrix holds NaN or infinite numbers."""
    import onnx

    for weight in onnx.load(path).graph.initializer:
        if len(weight.dims) > 1 and not np.isfinite(onnx.numpy_helper.to_array(weight)).all():
            raise CheckpointError(f"{path}: {weight.name} is NaN or infinite. Train and export the policy again.")


def _example(name: str, shape: tuple[int, ...], length: int) -> np.ndarray:
    """An input of moderate values: four of five positions masked, rows at their first step."""
    kind, place = np.dtype(FIELDS[name]), np.indices(shape).sum(0) if shape else np.zeros(shape)
    if name == "length_B":
        return np.full(shape, length, kind)
    if name in ("masked_BL", "eligible_BL"):
        return place % 5 != 4
    return np.ones(shape, kind) if kind == np.bool_ else (place % 3 / 4).astype(kind)


def _open(path: Path, threads: int) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported; else every session looks up a host
    import onnxruntime as ort

    if not path.is_file():
        raise CheckpointError(f"{path} is not there. Run `dvc repro export`.")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        # Measured with 1.32: the fused SkipLayerNormalization takes 1.4 ms where Add and LayerNormalization take .4.
        return ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
        )
    except Exception as error:  # its errors have no common class below Exception
        if not type(error).__module__.startswith("onnxruntime."):
            raise
        raise CheckpointError(
            f"{path} does not open in ONNX Runtime {ort.__version__} ({error}). Export it again, "
            f"or install the version that its metadata names."
        ) from error


def _check_version(path: Path, metadata: Mapping[str, str]) -> None:
    said = metadata.get(PREFIX + "version", "")
    if not said.isdigit():
        raise CheckpointError(
            f"{path} has no {PREFIX}version in its metadata ({sorted(metadata)}). Write it with export_policy."
        )
    if int(said) != VERSION:
        raise CheckpointError(
            f"{path} has layout version {said}, this library reads version {VERSION} alone. Export the policy again "
            f"with this library, or read it with the one that wrote it."
        )
