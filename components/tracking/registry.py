"""The registered model `unmasking-policy-<profile>`: one version per policy, the alias `champion` on the live one.

A version is found by its tag `identity` (see `model.py`), so registering twice names the existing one. The rules
of promotion are in `gate.py`, who applies them is `components/commands/promote.py`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import DataError, masked
from components.evaluation.gate import Evidence
from components.tracking import store
from components.tracking.model import find_logged

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
WITHDRAWN = "withdrawn"  # tag of a version that a rollback replaced: it does not come back by itself


def model_name(profile: str) -> str:
    return f"unmasking-policy-{profile}"


def champion(client: MlflowClient, profile: str) -> ModelVersion | None:
    """The live version, if there is one."""
    return _aliased(client, model_name(profile), CHAMPION)


def _aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return client.get_model_version(name, str(version)) if version else None


def find(client: MlflowClient, profile: str, identity: str) -> ModelVersion | None:
    """The version of this policy, if it was registered."""
    found = client.search_model_versions(f"name = '{model_name(profile)}' and tags.identity = '{identity}'")
    return found[0] if found else None


def register(
    client: MlflowClient, profile: str, identity: str, run_id: str, tags: Mapping[str, str]
) -> tuple[ModelVersion, bool]:
    """The version of the policy that `run_id` has logged, and whether it was made now. Call it under `store.lock`."""
    from mlflow.exceptions import MlflowException

    known = find(client, profile, identity)
    if known is not None:
        return known, False
    model_id = find_logged(client, client.get_run(run_id).info.experiment_id, run_id, identity)
    if model_id is None:
        raise DataError(
            f"run {run_id} has no policy {identity[:12]}; a version points to the model of a run; publish first"
        )
    try:
        client.create_registered_model(model_name(profile), description="Which masked positions to commit, as ONNX.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # MLflow resolves `models:/` sources with its global tracking URI, which on a server is the right one and here not.
    direct = store.database(client.tracking_uri) is not None
    source = client.get_logged_model(model_id).artifact_location if direct else f"models:/{model_id}"
    made = client.create_model_version(
        model_name(profile),
        source,
        run_id=run_id,
        tags={"identity": identity, **tags},
        model_id=model_id,
        await_creation_for=0,  # it is there when the call returns; waiting only prints that it waits
    )
    return made, True


def set_tags(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Writes what differs, so that saying the same twice leaves the version untouched."""
    have = client.get_model_version(version.name, version.version).tags
    for key, value in tags.items():
        if have.get(key) != value:
            client.set_model_version_tag(version.name, version.version, key, value)


def describe(client: MlflowClient, version: ModelVersion, text: str) -> None:
    """The text beside the version in the UI; left alone where it says this already."""
    if client.get_model_version(version.name, version.version).description != text:
        client.update_model_version(version.name, version.version, description=text)


def set_champion(client: MlflowClient, version: ModelVersion) -> None:
    client.set_registered_model_alias(version.name, CHAMPION, version.version)


def rollback(uri: str, profile: str, version: str) -> None:
    """Puts the alias on `version` and tags the one it leaves `withdrawn`, so that no later promotion brings it back.

    DataError if there is no such version.
    """
    from mlflow.exceptions import MlflowException

    client, name = store.connect(uri), model_name(profile)
    with store.lock(uri, "promote"):
        try:
            target = client.get_model_version(name, str(version))
        except MlflowException as error:
            raise DataError(
                f"{name} has no version {version}; the alias must point to something that loads; look into the registry"
            ) from error
        present = champion(client, profile)
        if present is not None and str(present.version) != str(target.version):
            set_tags(client, present, {WITHDRAWN: f"rolled back to version {target.version}"})
        if WITHDRAWN in target.tags:
            client.delete_model_version_tag(name, target.version, WITHDRAWN)
        set_champion(client, target)


def _evidence_path(identity: str) -> str:
    return f"gate/{identity[:16]}.json"


def save_evidence(client: MlflowClient, version: ModelVersion, evidence: Evidence) -> None:
    """Keeps what the verdict was founded on with the version's run: the next challenger is paired with it."""
    stored = evidence.to_json()
    if _stored_evidence(client, version) != stored:
        client.log_dict(str(version.run_id), stored, _evidence_path(version.tags["identity"]))


def load_evidence(client: MlflowClient, version: ModelVersion) -> Evidence | None:
    """None if the version was registered by other means than a promotion."""
    stored = _stored_evidence(client, version)
    return Evidence.of(stored) if stored else None


def _stored_evidence(client: MlflowClient, version: ModelVersion) -> dict | None:
    if not version.run_id or "identity" not in version.tags:
        return None
    path = _evidence_path(version.tags["identity"])
    if path not in {entry.path for entry in client.list_artifacts(version.run_id, "gate")}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return json.loads(Path(client.download_artifacts(version.run_id, path, folder)).read_text(encoding="utf-8"))


def policy_path(reference: str, uri: str) -> Path:
    """The ONNX file behind `models:/<name>@<alias>` or `models:/<name>/<version>`, fetched if it is far away.

    DataError if the reference is malformed or names nothing.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    client = store.connect(uri)
    parts = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>.+)|/(?P<version>\d+))", reference)
    if parts is None:
        raise DataError(
            f"{reference!r} names no registered policy; it tells which one to load; "
            "write models:/<name>@<alias> or models:/<name>/<version>"
        )
    name, alias = parts["name"], parts["alias"]
    try:
        found = _aliased(client, name, alias) if alias else client.get_model_version(name, parts["version"])
    except MlflowException:
        found = None
    if found is None:
        raise DataError(
            f"{reference} is not in the registry at {masked(uri)}; nothing is live under it; run `unmask promote`"
        )
    place = client.get_model_version_download_uri(name, found.version)
    folder = mlflow.artifacts.download_artifacts(artifact_uri=place, tracking_uri=uri, registry_uri=uri)
    return Path(folder) / "model.onnx"


def load_champion(profile: str, uri: str) -> Path:
    """The ONNX file of the live policy; give it to `OnnxPolicy`. DataError if none is live."""
    return policy_path(f"models:/{model_name(profile)}@{CHAMPION}", uri)
