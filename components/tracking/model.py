"""The exported policy as MLflow keeps it: its identity, and the model with signature and example of a run.

The registry (versions, the alias) is in `registry.py`; writing and wrapping the file is `components/export`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

EXAMPLE_ROWS, EXAMPLE_LENGTH = 1, 8  # of the input example, along the first and the other dynamic axes


def identity(path: Path) -> str:
    """SHA-256 (hex) of an ONNX file's graph and weights, without what merely describes them.

    Two trainings that end in the same policy have the same identity, whatever commit, time or library version
    their files name. Weights in external files are included. DataError if the file is not there.
    """
    return hashlib.sha256(_bare(_load(path)).SerializeToString(deterministic=True)).hexdigest()


def _load(path: Path) -> Any:
    import onnx

    if not path.exists():
        raise DataError(f"{path} is not there; without an exported policy nothing can be registered; run `dvc repro`")
    return onnx.load(path)


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


def find_logged(client: MlflowClient, experiment_id: str, run_id: str, policy: str) -> str | None:
    """The id of the model with this identity that the run has logged, if it has."""
    found = client.search_logged_models([experiment_id], filter_string=f"tags.identity = '{policy}'")
    return next((model.model_id for model in found if model.source_run_id == run_id), None)


def log_policy(client: MlflowClient, run_id: str, path: Path) -> str:
    """Makes the ONNX file a model of the run, once; returns its id (`models:/<id>`)."""
    from mlflow import onnx as flavor
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    policy = identity(path)
    experiment_id = client.get_run(run_id).info.experiment_id
    known = find_logged(client, experiment_id, run_id, policy)
    if known is not None:
        return known
    graph = _load(path)
    model = client.create_logged_model(
        experiment_id, name="policy", source_run_id=run_id, tags={"identity": policy}, model_type="unmasking policy"
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "policy"
        flavor.save_model(
            graph,
            place,
            mlflow_model=Model(artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id),
            signature=signature(graph),
            input_example=example(graph),
            save_as_external_data=False,
            onnx_execution_providers=["CPUExecutionProvider"],
            onnx_session_options={"intra_op_num_threads": 1},
            pip_requirements=[f"{name}=={version(name)}" for name in ("onnx", "onnxruntime", "numpy")],
            metadata={entry.key: entry.value for entry in graph.metadata_props} or None,
        )
        client.log_model_artifacts(model.model_id, str(place))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model.model_id


def signature(graph: Any) -> ModelSignature:
    """Names, types and shapes of the file's inputs and outputs; dynamic axes are -1."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(values: Sequence[Any]) -> Schema:
        return Schema([TensorSpec(_dtype(v), tuple(_sizes(v, dynamic=-1)), v.name) for v in values])

    return ModelSignature(inputs=schema(graph.graph.input), outputs=schema(graph.graph.output))


def example(graph: Any) -> dict[str, np.ndarray]:
    """One row that the file accepts: true, the canvas length, or zero, by type."""
    import numpy as np

    fill = {"b": True, "i": EXAMPLE_LENGTH}
    inputs = {}
    for value in graph.graph.input:
        dtype = _dtype(value)
        rows, *rest = _sizes(value, dynamic=EXAMPLE_LENGTH)
        rows = EXAMPLE_ROWS if value.type.tensor_type.shape.dim[0].dim_param else rows
        inputs[value.name] = np.full((rows, *rest), fill.get(dtype.kind, 0), dtype)
    return inputs


def _dtype(value: Any) -> np.dtype:
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def _sizes(value: Any, dynamic: int) -> list[int]:
    return [axis.dim_value if axis.HasField("dim_value") else dynamic for axis in value.type.tensor_type.shape.dim]
