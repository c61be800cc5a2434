"""The registered model `unmasking-policy-<profile>`: one version per policy, the alias `champion` on the live one.

A version is found by its tag `identity` (see `model.py`), so registering twice names the existing one. An alias only
names a version that is READY, whose file opens, decides, and is the policy that the tag names. The rules of promotion
are in `components/evaluation/gate.py`, who applies them is `components/commands/promote.py`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..core.errors import DataError, PromotionRefused, masked
from ..core.files import read_json, unpacking
from ..evaluation.gate import Evidence
from . import store
from .mlflow_tracker import is_active
from .model import FILE, READY, defect_at, fetch, find_logged

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
WITHDRAWN = "withdrawn"  # tag of a version that a rollback replaced, with the reason: it does not come back by itself
PROMOTED = "promoted"  # tag of a version that was live once, with the time
EVIDENCE = "evidence.run_id"  # tag: the run that keeps the evidence, where the version's own is gone


def model_name(profile: str) -> str:
    return f"unmasking-policy-{profile}"


def champion(client: MlflowClient, profile: str) -> ModelVersion | None:
    """The live version, if there is one."""
    return _aliased(client, model_name(profile), CHAMPION)


def _aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_registered_model(name).aliases.get(alias)
        return client.get_model_version(name, str(version)) if version else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def versions(client: MlflowClient, profile: str) -> list[ModelVersion]:
    """All versions, the newest first."""
    found = client.search_model_versions(f"name = '{model_name(profile)}'")
    return sorted(found, key=lambda version: -int(version.version))


def find(client: MlflowClient, profile: str, identity: str) -> ModelVersion | None:
    """The newest version of this policy, if it was registered."""
    return next((v for v in versions(client, profile) if v.tags.get("identity") == identity), None)


def defect(client: MlflowClient, version: ModelVersion) -> str | None:
    """Why this version cannot be live, or None: it is READY, its file opens and decides, and is what its tag says."""
    if version.status != READY:
        return f"its status is {version.status}"
    place = client.get_model_version_download_uri(version.name, version.version)
    return defect_at(client, place, version.tags.get("identity", "without identity"))


def register(
    client: MlflowClient, profile: str, identity: str, run_id: str, tags: Mapping[str, str]
) -> tuple[ModelVersion, bool]:
    """The version of the policy that `run_id` has logged, and whether it was made now. Call it under `store.lock`.

    A version whose file was lost gets it again. Where that is not possible a new one is made, withdrawn like the old.
    """
    from mlflow.exceptions import MlflowException

    model_id = _logged(client, run_id, identity)
    known = find(client, profile, identity)
    if known is not None:
        if defect(client, known) is None or _restored(client, known, model_id):
            return known, False
        tags = {**tags, **{name: known.tags[name] for name in (WITHDRAWN, PROMOTED) if name in known.tags}}
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
        tags={**tags, "identity": identity},  # the list shows them in this order
        model_id=model_id,
        await_creation_for=0,  # it is there when the call returns; waiting only prints that it waits
    )
    return made, True


def _logged(client: MlflowClient, run_id: str, identity: str) -> str:
    model = find_logged(client, client.get_run(run_id).info.experiment_id, run_id, identity)
    if model is None:
        raise DataError(f"run {run_id} has no policy {identity[:12]}. Run `unmask promote`, which publishes it.")
    return model.model_id


def _restored(client: MlflowClient, version: ModelVersion, model_id: str) -> bool:
    """Whether the version decides again with the files of the logged model put in its place."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    folder = fetch(client, client.get_logged_model(model_id).artifact_location)
    place = client.get_model_version_download_uri(version.name, version.version)
    try:
        get_artifact_repository(place, client.tracking_uri).log_artifacts(str(folder))
    except (MlflowException, OSError, shutil.Error):
        return False
    return defect(client, version) is None


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
    """PromotionRefused unless the version is READY and decides."""
    if why := defect(client, client.get_model_version(version.name, version.version)):
        raise PromotionRefused(f"version {version.version} cannot be live: {why}. Run `unmask promote` to restore it.")
    client.set_registered_model_alias(version.name, CHAMPION, version.version)


def broken_champions(client: MlflowClient) -> list[str]:
    """A clause for each live version, of whatever profile, that does not load."""
    found: list[str] = []
    for model in client.search_registered_models(f"name like '{model_name('%')}'"):
        name = cast(str, model.name)
        version = _aliased(client, name, CHAMPION)
        if version is not None and (why := defect(client, version)):
            found.append(f"{name}@{CHAMPION}, version {version.version}, does not load: {why}")
    return found


def was_promoted(version: ModelVersion) -> bool:
    return PROMOTED in version.tags


def _evidence_path(identity: str) -> str:
    return f"gate/{identity[:16]}.json"


def save_evidence(client: MlflowClient, version: ModelVersion, evidence: Evidence, run_id: str) -> None:
    """Keep what the verdict was founded on: the next challenger is paired with it.

    It lies with the version's run or, where that was deleted, with ``run_id``. DataError if it is another policy's.
    """
    if evidence.identity != version.tags["identity"]:
        raise DataError(
            f"the results of policy {evidence.identity[:12]} are not those of version {version.version}. "
            "Run `dvc repro gate export`."
        )
    stored = evidence.to_json()
    if _stored_evidence(client, version) == stored:
        return
    home = _evidence_run(version)
    if not home or not is_active(client, home):
        home = run_id
        set_tags(client, version, {EVIDENCE: home})
    client.log_dict(home, stored, _evidence_path(version.tags["identity"]))


def load_evidence(client: MlflowClient, version: ModelVersion) -> Evidence | None:
    """None if none was kept, or what was kept is no evidence for this version."""
    stored = _stored_evidence(client, version)
    try:
        with unpacking(Path(_evidence_path(version.tags.get("identity", "")))):
            evidence = Evidence.of(stored) if stored else None
    except DataError:
        return None
    return evidence if evidence and evidence.identity == version.tags["identity"] else None


def _evidence_run(version: ModelVersion) -> str:
    return version.tags.get(EVIDENCE) or str(version.run_id or "")


def _stored_evidence(client: MlflowClient, version: ModelVersion) -> dict[str, Any] | None:
    from mlflow.exceptions import MlflowException

    run_id = _evidence_run(version)
    if not run_id or "identity" not in version.tags:
        return None
    path = _evidence_path(version.tags["identity"])
    try:
        if path not in {entry.path for entry in client.list_artifacts(run_id, "gate")}:
            return None
    except MlflowException as error:  # the run was purged
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_json(Path(client.download_artifacts(run_id, path, folder)))
        except DataError:  # its writer was killed
            return None


def policy_path(reference: str, uri: str) -> Path:
    """The ONNX file behind `models:/<name>@<alias>` or `models:/<name>/<version>`, fetched if it is far away.

    Nothing is written beside an SQLite store. DataError if the reference is malformed or names nothing that loads.
    """
    from mlflow.exceptions import MlflowException

    parts = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>.+)|/(?P<version>\d+))", reference)
    if parts is None:
        raise DataError(
            f"{reference!r} names no registered policy. Write models:/<name>@<alias> or models:/<name>/<version>."
        )
    name, alias = parts["name"], parts["alias"]
    with store.reading(uri) as client:
        try:
            found = _aliased(client, name, alias) if alias else client.get_model_version(name, parts["version"])
        except MlflowException:
            found = None
        if found is None:
            raise DataError(f"{reference} is not in the registry at {masked(uri)}. Run `unmask promote`.")
        if why := defect(client, found):
            raise DataError(
                f"{reference}, version {found.version}, does not load: {why}. Run `unmask promote` where its outputs "
                "are, or `unmask rollback`."
            )
        return fetch(client, client.get_model_version_download_uri(name, found.version)) / FILE


def load_champion(profile: str, uri: str) -> Path:
    """The ONNX file of the live policy; give it to `OnnxPolicy`. DataError if none is live."""
    return policy_path(f"models:/{model_name(profile)}@{CHAMPION}", uri)


def champion_example(profile: str, uri: str) -> dict[str, np.ndarray]:
    """What the live policy read half-way through a real decode, as `NumpyPolicy` takes it."""
    from mlflow.models import Model

    folder = load_champion(profile, uri).parent
    stored = Model.load(str(folder)).load_input_example(str(folder))
    if not isinstance(stored, dict):
        raise DataError(f"{folder} has no input example. Run `unmask promote` where its outputs are.")
    return stored
