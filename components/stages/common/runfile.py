"""run.json: what a stage ran with, so that an output folder introduces itself.

The same settings and dependencies have the same `identity`; commit, start and duration are of the one run. Where the
file goes and which stage reads it is `dvc.yaml`'s matter.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from components.core.errors import DataError
from components.core.files import read_json, read_yaml, write_json

PACKAGES = ("torch", "transformers", "numpy", "reasoning-gym", "onnx", "onnxruntime", "mlflow", "dvc", "prefect")
NOT_CONTENT = {"__pycache__", ".pytest_cache", ".ruff_cache"}


class RunRecord(BaseModel):
    """The content of run.json. Keys of other versions are ignored.

    dependencies: content hash by path. identity: hash of settings and dependencies. dirty: None outside Git. seconds,
    metrics: of a finished stage. policy_hash, prompts_hash, file_hash: what a promotion compares between stages.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    profile: str
    settings: dict[str, Any] = {}
    commit: str
    dirty: bool | None
    versions: dict[str, str] = {}
    dependencies: dict[str, str] = {}
    identity: str
    started: str
    metrics: dict[str, Any] = {}
    mlflow_run_id: str | None = None
    policy_hash: str | None = None
    prompts_hash: str | None = None
    file_hash: str | None = None
    seconds: float = 0.0

    def finished(self, metrics: Mapping[str, Any], **facts: str | None) -> RunRecord:
        """The record with its results. facts: ``mlflow_run_id`` and the hashes."""
        passed = datetime.now(UTC) - datetime.fromisoformat(self.started)
        seconds = round(passed.total_seconds(), 3)
        return self.model_copy(update={"metrics": dict(metrics), "seconds": seconds, **facts})

    def to_json(self) -> dict[str, Any]:
        """The fields that were set."""
        return self.model_dump(mode="json", exclude_unset=True)


def describe_run(
    stage: str, profile: str, settings: Mapping[str, Any], dependencies: Iterable[Path], root: Path
) -> RunRecord:
    """The record of a stage that begins. root: the repository; dependencies are named relative to it.

    DataError if a dependency is missing.
    """
    root = root.resolve()
    hashes = {_relative(path, root): content_hash(path) for path in sorted(dependencies)}
    commit, dirty = code_version(root)
    return RunRecord(
        stage=stage,
        profile=profile,
        settings=dict(settings),
        commit=commit,
        dirty=dirty,
        versions=package_versions(),
        dependencies=hashes,
        identity=digest({"settings": settings, "dependencies": hashes}),
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def write_run(path: Path, record: RunRecord) -> None:
    write_json(path, record.to_json(), sort=False)


def code_of(stage: str) -> list[Path]:
    """The code that a stage depends on, as dvc.yaml of the running code's repository lists it.

    DataError outside a repository: without the list a training could be resumed by other code.
    """
    repository = Path(__file__).parents[3]
    graph = read_yaml(repository / "dvc.yaml", "Run stages inside the repository.")
    return [repository / dep for dep in graph["stages"][stage]["deps"] if dep.startswith("components/")]


def read_run(path: Path) -> RunRecord:
    """DataError if the stage has not run, or the file cannot be read."""
    needs = ("stage", "profile", "identity", "commit", "dirty", "started", "seconds")
    try:
        return RunRecord.model_validate(read_json(path, needs=needs))
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise DataError(f"{path}: {wrong} is of another type. Run `dvc repro` to make it.") from error


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """SHA-256 (hex) of a file, or of a folder's file names and contents; caches of the interpreter do not count."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise DataError(f"dependency {path} is not there. Run `dvc repro` to make it.")
    files = sorted(p for p in path.rglob("*") if p.is_file() and not NOT_CONTENT & set(p.relative_to(path).parts))
    return digest({p.relative_to(path).as_posix(): content_hash(p) for p in files})


def code_version(root: Path) -> tuple[str, bool | None]:
    """(commit, whether tracked files differ from it); ("unknown", None) without Git or outside a repository.

    dvc.lock does not count: the pipeline rewrites it after every stage.
    """
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return commit or "unknown", None if commit is None or changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return finished.stdout.strip()


def package_versions() -> dict[str, str]:
    """Python's and those of the main packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _relative(path: Path, root: Path) -> str:
    whole = path.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else path.as_posix()
