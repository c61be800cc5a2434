"""The exported policy as MLflow keeps it: its identity, and the model with signature and example of a run.

The registry (versions, the alias) is in `registry.py`; writing and wrapping the file is `components/export`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import CheckpointError, DataError, SettingsError
from ..core.files import read_json, unpacking
from . import store

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

DECIDING = ("unmask.policy", "unmask.needs", "unmask.action")  # entries of the metadata that change what is decoded
FILE = "model.onnx"  # in the folder that MLflow keeps
READY = "READY"
STATE = "state.json"  # beside the exported file


def identity(path: Path) -> str:
    """SHA-256 (hex) of an ONNX file's graph, weights and knobs of decoding, without what merely describes them.

    Two trainings that end in the same policy have the same identity, whatever commit, time or library version
    their files name. Weights in external files are included. DataError if the file is not there or is no ONNX file.
    """
    return identities(path)[0]


def identities(path: Path) -> tuple[str, ...]:
    """What the file may be registered as: its identity and, of older registries, that of graph and weights alone."""
    graph = _load(path)
    knobs = {entry.key: entry.value for entry in graph.metadata_props if entry.key in DECIDING}
    bare = _bare(graph).SerializeToString(deterministic=True)
    said = json.dumps(knobs, sort_keys=True).encode() if knobs else b""
    return tuple(hashlib.sha256(content).hexdigest() for content in (bare + said, bare))


def _load(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if not path.exists():
        raise DataError(f"{path} is not there. Run `dvc repro export`.")
    try:
        return onnx.load(path)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise DataError(f"{path} is no ONNX file ({error}). Run `dvc repro export`.") from error


def _bare(model: Any) -> Any:
    """Clears descriptions at every depth: torch's exporter writes stack traces into the metadata of each node."""
    from google.protobuf.message import Message

    for name in ("producer_name", "producer_version", "model_version", "domain"):
        model.ClearField(name)
    pending = [model]
    while pending:
        message = pending.pop()
        for name in ("doc_string", "metadata_props", "data_location"):  # loaded: where it was does not matter
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending += [value] if isinstance(value, Message) else list(value)
    return model


def find_logged(client: MlflowClient, experiment_id: str, run_id: str, policy: str) -> LoggedModel | None:
    """The model with this identity that the run has logged, ready or not."""
    found = client.search_logged_models([experiment_id], filter_string=f"tags.identity = '{policy}'")
    own = [model for model in found if model.source_run_id == run_id]
    return min(own, key=lambda model: (str(model.status) != READY, model.model_id), default=None)


def log_policy(client: MlflowClient, run_id: str, path: Path) -> str:
    """Make the ONNX file a model of the run; returns its id (`models:/<id>`).

    Repeated, it changes nothing. What a kill left undone, or what was lost since, is done.
    """
    from mlflow.entities import LoggedModelOutput

    policy = identity(path)
    run = client.get_run(run_id)
    model = find_logged(client, run.info.experiment_id, run_id, policy) or client.create_logged_model(
        run.info.experiment_id,
        name="policy",
        source_run_id=run_id,
        tags={"identity": policy},
        model_type="unmasking policy",
    )
    if str(model.status) != READY or defect_at(client, model.artifact_location, policy):
        with tempfile.TemporaryDirectory() as folder:
            client.log_model_artifacts(
                model.model_id, str(_folder(path, Path(folder) / "policy", run_id, model.model_id))
            )
        client.finalize_logged_model(model.model_id, READY)
    if model.model_id not in {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model.model_id


def _folder(path: Path, place: Path, run_id: str, model_id: str) -> Path:
    """The folder that MLflow loads a model from. Nothing in it names where it lies."""
    from mlflow import onnx as flavor
    from mlflow.models import Model

    graph = _load(path)
    flavor.save_model(
        graph,
        place,
        mlflow_model=Model(artifact_path="policy", run_id=run_id, model_id=model_id),
        signature=signature(graph),
        input_example=example(path, graph),
        save_as_external_data=False,
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1},
        pip_requirements=[f"{name}=={version(name)}" for name in ("onnx", "onnxruntime", "numpy")],
        metadata={entry.key: entry.value for entry in graph.metadata_props} or None,
    )
    return place


def fetch(client: MlflowClient, place: str) -> Path:
    """The local folder of artifacts at ``place``: itself where it is local. DataError where it is not there."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = client.tracking_uri
    try:
        return Path(download_artifacts(artifact_uri=place, tracking_uri=uri, registry_uri=uri))
    except (MlflowException, OSError) as error:
        why = " ".join(str(error).split())[:200]
        status = getattr(getattr(error, "response", None), "status_code", None)
        if store.database(uri) is None and status != 404:  # a server that does not answer has lost nothing
            raise SettingsError(f"{place} cannot be fetched now ({why}). Wait for the server, then repeat.") from error
        raise DataError(f"{place} cannot be fetched ({why}). Check that the artifacts are there.") from error


def defect_at(client: MlflowClient, place: str, policy: str) -> str | None:
    """Why the model at ``place`` is not the policy of this identity, ready to decide; None where it is."""
    from ..export.smoke import check_decides

    try:
        folder = fetch(client, place)
        if not (folder / "MLmodel").exists():
            return f"{place} holds no MLmodel"
        path = folder / FILE
        if policy not in identities(path):
            return f"{path} is another policy than {policy[:12]}"
        check_decides(path)
    except (DataError, CheckpointError) as error:
        return str(error).partition(" Run ")[0].partition(" Check ")[0].rstrip(".")
    return None


def signature(graph: Any) -> ModelSignature:
    """Names, types and shapes of the file's inputs and outputs; dynamic axes are -1."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(values: Sequence[Any]) -> Schema:
        return Schema([TensorSpec(_dtype(v), _sizes(v), v.name) for v in values])

    return ModelSignature(inputs=schema(graph.graph.input), outputs=schema(graph.graph.output))


def example(path: Path, graph: Any) -> dict[str, np.ndarray]:
    """What the file read in a real decode, as stage export kept it in state.json beside the file."""
    import numpy as np

    types = {value.name: _dtype(value) for value in graph.graph.input}
    stored = read_json(path.with_name(STATE), "Run `dvc repro export`.", needs=types)
    with unpacking(path.with_name(STATE)):
        return {name: np.asarray(stored[name], dtype) for name, dtype in types.items()}


def _dtype(value: Any) -> np.dtype:
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in value.type.tensor_type.shape.dim)
