"""Brings a profile's outputs into MLflow: idempotent, and complete even where DVC skipped the stages.

Outputs are the truth, MLflow a view of them: what the store lacks is added from the files, what it has is left alone.
Nothing is deleted. The registry is not touched (`registry.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from ..core.errors import DataError
from ..core.files import NAME, read_curve, read_json, read_text, unpacking
from . import abandoned, pages, store
from . import mlflow_tracker as entries
from .model import log_policy

if TYPE_CHECKING:
    from mlflow import MlflowClient

PUBLISHED = (
    "*/run.json",
    "*/*/run.json",
    "train/metrics.jsonl",
    "metrics/*.json",
    "headroom/*.json",
    "result/*.json",
    "tables/*.csv",
    "evaluate/*/decodes.jsonl",
    "plots/**/*.csv",
    "report/**/*",
)
MANIFEST = "published.json"
NOTE = "mlflow.note.content"
VERDICT = "verdict"  # tag of a run: the gate's decision about its policy


class Trade(TypedDict, total=False):
    alpha: float | list[float]
    seed: int


class Sections(TypedDict, total=False):
    train: Trade
    domain: dict[str, Any]


class Trained(TypedDict):
    """What is read here of train/run.json."""

    profile: str
    started: str
    seconds: float
    settings: NotRequired[Sections]
    dependencies: NotRequired[dict[str, str]]
    mlflow_run_id: NotRequired[str | None]


def publish(outputs: Path, root: Path) -> str:
    """Makes MLflow show what is in `outputs` (`outputs/<profile>`); returns the id of the training run.

    The run is the one that trained (`mlflow_run_id` of train/run.json); a store that does not know it gets it again
    from train/metrics.jsonl and run.json, tagged `recreated.from`. Then settings, the figures of result/*.json as
    `result/<task>/<name>`, the note, the files of PUBLISHED and export/policy.onnx are added where they are missing or
    differ. A second call changes nothing. DataError where nothing was trained.
    """
    path = outputs / "train" / "run.json"
    run = read_json(path, kind=Trained)
    with unpacking(path):
        _ended(run)
    uri = store.tracking_uri(root)
    client = store.connect(uri)
    with store.lock(uri, "publish"):
        run_id = _training_run(client, outputs, run)
        _complete(client, run_id, outputs, run)
        write_note(client, run_id, outputs)
        _write_view(client, run_id, outputs)
        _upload(client, run_id, outputs)
        if (outputs / "export" / "policy.onnx").exists():
            log_policy(client, run_id, outputs / "export" / "policy.onnx")
        if client.get_run(run_id).info.status != "FINISHED":  # its process could not say so, but its outputs are whole
            client.set_terminated(run_id, "FINISHED", end_time=_ended(run))
    return run_id


def experiment_name(profile: str) -> str:
    """The experiment of a profile; its artifacts lie in a folder of this name. DataError where that is elsewhere."""
    if not re.fullmatch(NAME, profile):
        raise DataError(f"profile {profile!r} is no name for a folder. Use letters, digits, - and _, at most 64.")
    return f"unmask-{profile}"


def _training_run(client: MlflowClient, outputs: Path, run: Mapping[str, Any]) -> str:
    run_id = run.get("mlflow_run_id")
    if run_id and entries.is_active(client, run_id):
        return run_id
    experiment_id = store.experiment(client, experiment_name(run["profile"]))
    origin = hashlib.sha256((outputs / "train" / "run.json").read_bytes()).hexdigest()
    again = client.search_runs([experiment_id], f"tags.`recreated.from` = '{origin}'", max_results=1)
    if again:
        return again[0].info.run_id
    # With this process's name: a publishing that is killed here leaves no run that stays RUNNING for ever.
    tags = {"recreated.from": origin, "recreated.run_id": str(run_id)} | abandoned.this_process()
    name = entries.run_name(run["profile"], run.get("settings", {}))
    made = client.create_run(experiment_id, start_time=_started(run), run_name=name, tags=tags).info.run_id
    # Not RUNNING while it is filled, since a full disk would forbid to say that it broke off.
    client.set_terminated(made, "FAILED", end_time=_ended(run))
    return made


def _complete(client: MlflowClient, run_id: str, outputs: Path, run: Mapping[str, Any]) -> None:
    """Settings, tags, data sets, curves and results that the run lacks. A verdict on other results goes."""
    from mlflow.entities import Metric, RunTag

    entries.log_settings(client, run_id, run.get("settings", {}))
    data = client.get_run(run_id).data
    tags = {key: value for key, value in entries.run_tags(run).items() if data.tags.get(key) != value}
    known = entries.logged_points(client, run_id)
    # The files do not say when an iteration ended; all that is added late carries the end of the run.
    curves = [
        point
        for record in read_curve(outputs / "train" / "metrics.jsonl")
        for point in entries.metric_entities(
            {k: v for k, v in record.items() if k != "step"}, record["step"], _ended(run), known
        )
    ]
    now = int(datetime.now().timestamp() * 1000)  # the newest value of a step is the one that is shown
    figures = [Metric(k, v, now, 0) for k, v in results(outputs).items() if data.metrics.get(k) != v]
    if figures and VERDICT in data.tags:
        client.delete_tag(run_id, VERDICT)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    entries.log_metrics(client, run_id, curves + figures)
    _log_data(client, run_id, run.get("dependencies", {}))


def results(outputs: Path) -> dict[str, float]:
    """The figures of result/*.json, named `result/<task>/<name>`."""
    return {
        f"result/{path.stem}/{name}": float(value)
        for path in sorted((outputs / "result").glob("*.json"))
        for name, value in read_json(path, kind=dict[str, float | None]).items()
        if value is not None
    }


def write_note(client: MlflowClient, run_id: str, outputs: Path) -> None:
    """The run's description in the UI: the verdict, once there is one, the table of its results, and a link to the
    flow run, where there was one."""
    tags = client.get_run(run_id).data.tags
    table = outputs / "report" / "result.md"
    parts = [f"**{tags[VERDICT]}**" if VERDICT in tags else "", read_text(table) if table.exists() else ""]
    parts.append(f"[The flow run in Prefect]({tags[entries.FLOW_PAGE]})" if entries.FLOW_PAGE in tags else "")
    note = "\n\n".join(part.strip() for part in parts if part)
    if note and tags.get(NOTE) != note:
        client.set_tag(run_id, NOTE, note)


def _write_view(client: MlflowClient, run_id: str, outputs: Path) -> None:
    """The list of runs that `pages.runs` links to has columns for the verdict, the gate's score and speed, and the
    accuracy on each task."""
    shown = [
        name for last in ("score", "gate_nfe", "accuracy") for name in results(outputs) if name.endswith(f"/{last}")
    ]
    view = pages.view(VERDICT, shown)
    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    if experiment.tags.get(pages.VIEW) != view:
        client.set_experiment_tag(experiment.experiment_id, pages.VIEW, view)


def has_verdict(client: MlflowClient, run_id: str) -> bool:
    return VERDICT in client.get_run(run_id).data.tags


def write_verdict(client: MlflowClient, run_id: str, verdict: str, outputs: Path) -> None:
    """The gate's verdict as a tag of the run, which its list shows, and in its note."""
    if client.get_run(run_id).data.tags.get(VERDICT) != verdict:
        client.set_tag(run_id, VERDICT, verdict)
    write_note(client, run_id, outputs)


def metrics_files(outputs: Path) -> dict[str, Path]:
    """Stage -> its figures: metrics/<stage>.json, and headroom/<case>.json as stage headroom-<case>."""
    measured = {path.stem: path for path in (outputs / "metrics").glob("*.json")}
    measured |= {f"headroom-{path.stem}": path for path in (outputs / "headroom").glob("*.json")}
    return dict(sorted(measured.items()))


def _log_data(client: MlflowClient, run_id: str, dependencies: Mapping[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = client.get_run(run_id).inputs
    have = {(used.dataset.name, used.dataset.digest) for used in (inputs.dataset_inputs if inputs else [])}
    used = [
        DatasetInput(
            Dataset(path, digest[:36], "local", json.dumps({"uri": path})),
            [InputTag("mlflow.data.context", "training"), InputTag("sha256", digest)],
        )
        for path, digest in dependencies.items()
        if "data" in Path(path).parts and (path, digest[:36]) not in have
    ]
    if used:
        client.log_inputs(run_id, used)


def _upload(client: MlflowClient, run_id: str, outputs: Path) -> None:
    """Files that the manifest of earlier uploads does not name with this content."""
    before = _manifest(client, run_id)
    now = {str(path.relative_to(outputs)): hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(outputs)}
    changed = [name for name, digest in now.items() if before.get(name) != digest]
    for name in changed:
        folder = str(Path(name).parent)
        client.log_artifact(run_id, str(outputs / name), None if folder == "." else folder)
    if changed:  # last, so that an upload that broke off is repeated
        client.log_dict(run_id, before | now, MANIFEST)


def _manifest(client: MlflowClient, run_id: str) -> dict[str, str]:
    if MANIFEST not in {entry.path for entry in client.list_artifacts(run_id)}:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_json(Path(client.download_artifacts(run_id, MANIFEST, folder)))
        except DataError:  # its writer was killed: everything is uploaded again
            return {}


def _files(outputs: Path) -> Iterator[Path]:
    yield from sorted({path for pattern in PUBLISHED for path in outputs.glob(pattern) if path.is_file()})


def _started(run: Mapping[str, Any]) -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(datetime.fromisoformat(run["started"]).timestamp() * 1000)


def _ended(run: Mapping[str, Any]) -> int:
    ended = datetime.fromisoformat(run["started"]) + timedelta(seconds=run["seconds"])  # OverflowError beyond 9999
    return int(ended.timestamp() * 1000)
