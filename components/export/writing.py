"""A learned policy to one ONNX file: ``policy.score`` as a graph, everything else about it as metadata.

Of a coupled draw the graph also gives ``policy.forward``: bias, shifts and the risk's mixture.

Opset 23, whose ``Attention`` is a single operator, for which the policy expands its attention mask: ONNX Runtime takes
no broadcast one. One file, no external data; the same policy and metadata give the same bytes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.errors import SettingsError
from ..core.files import beside
from ..core.types import Observation
from ..policies.confidence import ACTIONS
from ..policies.coupled import SETS, CoupledPolicy
from ..policies.store import LearnedPolicy, describe
from .onnx_file import FIELDS, OUTPUTS, PREFIX, VERSION
from .states import random_observation

OPSET = 23
_DISTRIBUTIONS: dict[str, type] = {**ACTIONS, **SETS}
_AXES = {"B": "batch", "L": "length", "T": "sequence"}  # the dynamic ones, by their letter


def export_policy(policy: LearnedPolicy, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes ``policy`` as it stands, with its temperature, scale, speed and offset, as float32, beside and then
    renamed.

    metadata: what the caller knows (commit, hashes, training settings), stored beside ours; SettingsError if a name
    begins with "unmask.", or if the policy's distribution cannot be described.
    """
    taken = [name for name in metadata if name.startswith(PREFIX)]
    if taken:
        raise SettingsError(f"metadata {taken}: names that begin with {PREFIX!r} are the file's own. Choose others.")
    still = copy.deepcopy(policy).to("cpu", torch.float32).eval().requires_grad_(False)
    example = random_observation(still, 2, 6, "export")
    action = _action(still, example)
    described = _described(still, action)
    model = _graph(still, example, action["kind"])
    for key, value in sorted({**metadata, **described}.items()):
        model.metadata_props.add(key=key, value=value)
    with beside(path) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))


def _described(policy: LearnedPolicy, action: dict[str, Any]) -> dict[str, str]:
    exporter = {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
    ours = {
        "version": VERSION,
        "policy": {**describe(policy), "speed": policy.speed},
        "needs": asdict(policy.needs),
        "action": action,
        "exporter": {**exporter, "opset": OPSET},
    }
    return {PREFIX + name: json.dumps(value, sort_keys=True) for name, value in ours.items()}


def _action(policy: LearnedPolicy, example: Observation) -> dict[str, Any]:
    """The kind of the policy's distribution and its knobs: its fields that are numbers."""
    all_BL = torch.ones_like(example.masked_BL)
    distribution: Any = policy.distribution(replace(example, masked_BL=all_BL, eligible_BL=all_BL))
    kind = {_DISTRIBUTIONS[name]: name for name in OUTPUTS}.get(type(distribution))
    if kind is None or not torch.equal(distribution.eligible_BL, all_BL):
        raise SettingsError(
            f"{type(distribution).__name__} over other positions than the eligible ones, or of another "
            f"kind than {tuple(OUTPUTS)}, cannot be rebuilt from utilities alone. Give the policy one of "
            f"these, or narrow the eligible positions outside it."
        )
    values = {f.name: getattr(distribution, f.name) for f in fields(distribution)}
    values |= {name: v.item() for name, v in values.items() if isinstance(v, Tensor) and not v.ndim}
    return {"kind": kind} | {name: v for name, v in values.items() if isinstance(v, float | int)}


class _Score(nn.Module):
    """What the file gives (``onnx_file.OUTPUTS``) as a function of the tensors in ``names``."""

    def __init__(self, policy: LearnedPolicy, names: list[str], kind: str) -> None:
        super().__init__()
        self.policy, self.names, self.kind = policy, names, kind

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, tensors, strict=True))
        # The canvas is the end of the sequence. Not an Observation: it compares sizes, and the trace would fix them.
        whole = self.policy.needs.features == "sequence"
        start = given["features_BTD"].shape[1] - given["masked_BL"].shape[1] if whole else 0
        more = {"canvas_start": start, "attention_layers": self.policy.needs.attention}
        return _scores(self.policy, cast(Observation, SimpleNamespace(**given, **more)), self.kind)


def _scores(policy: LearnedPolicy, obs: Observation, kind: str) -> tuple[Tensor, ...]:
    if kind not in SETS:
        return (policy.score(obs),)
    assert isinstance(policy, CoupledPolicy)
    bias_BL, shift_BLL, mix_BL = policy(obs)
    return policy.utilities(obs, bias_BL), bias_BL, shift_BLL, mix_BL


class _Recorder:
    """An observation that notes which of its tensors are read."""

    def __init__(self, obs: Observation) -> None:
        self._obs, self.read = obs, set[str]()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._obs, name)
        if isinstance(value, Tensor):
            self.read.add(name)
        return value


def _graph(policy: LearnedPolicy, example: Observation, kind: str) -> Any:
    """The bare ONNX model (a protobuf) of what a file of this kind gives; its inputs are the fields that are read."""
    from onnx_ir.serde import serialize_model

    recorder = _Recorder(example)
    _scores(policy, cast(Observation, recorder), kind)
    # masked_BL is always an input: it is what says how large a canvas is.
    names = [name for name in FIELDS if name in recorder.read | {"masked_BL"}]
    whole = policy.needs.features == "sequence"
    dims = {letter: torch.export.Dim(name) for letter, name in _AXES.items()}
    dims["T"] = dims["T" if whole else "L"]
    shapes = tuple(
        {i: dims[letter] for i, letter in enumerate(name.rsplit("_", 1)[1]) if letter in dims} for name in names
    )
    with _quiet():
        program = torch.onnx.export(
            _Score(policy, names, kind).eval(),
            tuple(getattr(example, name) for name in names),
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=list(OUTPUTS[kind]),
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        )
    assert program is not None
    model = serialize_model(program.model)
    _strip(model)
    return model


def _stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """aten.sort.stable, which the exporter does not know: TopK of all, where equal values stay in their order too."""
    from onnx_ir import DataType
    from onnxscript import opset23

    op: Any = opset23
    size = op.Shape(values, start=dim, end=None if dim == -1 else dim + 1)
    if values.dtype == DataType.UINT8:  # TopK does not take it
        found, index = op.TopK(op.Cast(values, to=DataType.INT32), size, axis=dim, largest=int(descending), sorted=1)
        return op.Cast(found, to=DataType.UINT8), index
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


def _strip(message: Any) -> None:
    """Clears descriptions at every depth: the exporter writes stack traces, with this machine's paths, into nodes."""
    from google.protobuf.message import Message

    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                _strip(part)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own noise: torchvision's absence, its deprecated calls, axes of one name."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    registration.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            warnings.filterwarnings("ignore", r"# The axis name: .* will not be used", UserWarning)
            yield
    finally:
        registration.removeFilter(keep)
