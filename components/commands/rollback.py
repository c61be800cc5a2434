"""Withdraw the champion and make an earlier version live, with the reason on record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import DataError
from ..tracking import registry, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

LONGEST = 1000  # characters of a reason


@dataclass(frozen=True)
class Rollback:
    """live: the version that is live now. withdrawn: the one that was, None where nothing changed or nothing was."""

    live: str
    withdrawn: str | None
    reason: str

    def __str__(self) -> str:
        if self.withdrawn is None:
            return f"version {self.live} is live"
        return f"version {self.live} is live, version {self.withdrawn} is withdrawn: {self.reason}"


def rollback(root: Path, profile: str, version: int | None = None, reason: str = "") -> Rollback:
    """Put the alias `champion` on ``version``, or on the newest promoted version before the present champion.

    The present champion is tagged `withdrawn` with the reason, and no promotion brings it back; a rollback to it does.
    Killed and repeated, it goes on. DataError where there is no version to go to, or that version does not load.
    """
    if len(reason) > LONGEST:
        raise DataError(f"a reason of {len(reason)} characters. Write at most {LONGEST}.")
    uri = store.tracking_uri(root)
    client = store.connect(uri)
    with store.lock(uri, "promote"):
        present = registry.champion(client, profile)
        target = _earlier(client, profile, present) if version is None else _named(client, profile, version)
        reason = " ".join(reason.split()) or f"rolled back to version {target.version}"
        withdrawn = None
        if present is not None and str(present.version) != str(target.version):
            registry.set_tags(client, present, {registry.WITHDRAWN: reason})
            withdrawn = str(present.version)
        if registry.WITHDRAWN in target.tags:
            client.delete_model_version_tag(target.name, target.version, registry.WITHDRAWN)
        registry.set_champion(client, target)
    return Rollback(str(target.version), withdrawn, reason)


def _earlier(client: MlflowClient, profile: str, present: ModelVersion | None) -> ModelVersion:
    """The newest version before the champion that was promoted, was not withdrawn, and loads."""
    name = registry.model_name(profile)
    if present is None:
        raise DataError(f"{name} has no champion. Name a version with --version.")
    for version in registry.versions(client, profile):
        before = int(version.version) < int(present.version) and registry.was_promoted(version)
        if before and registry.WITHDRAWN not in version.tags and registry.defect(client, version) is None:
            return version
    raise DataError(
        f"{name} has no promoted version before the champion, version {present.version}. Name one with --version."
    )


def _named(client: MlflowClient, profile: str, version: int) -> ModelVersion:
    name, known = registry.model_name(profile), registry.versions(client, profile)
    found = next((v for v in known if int(v.version) == version), None)
    allowed = ", ".join(str(v.version) for v in known if registry.was_promoted(v)) or "none"
    if found is None:
        raise DataError(f"{name} has no version {version}. Use one that was promoted: {allowed}.")
    if not registry.was_promoted(found):
        why = found.tags.get("reason", "no gate saw it")
        raise DataError(f"{name} version {version} was never promoted ({why}). Use one that was: {allowed}.")
    if why := registry.defect(client, found):
        raise DataError(f"{name} version {version} does not load: {why}. Use another that was promoted: {allowed}.")
    return found
