"""run.json: settings, dependencies, code and results of a stage, beside its outputs.

Equal settings and dependencies give the same `identity`; commit, start and duration belong to one run.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...core.errors import DataError
from ...core.files import read_json, read_yaml, unpacking, write_json

PACKAGES = ("torch", "transformers", "numpy", "reasoning-gym", "onnx", "onnxruntime", "mlflow", "dvc", "prefect")
FLOW_RUN = "UNMASK_FLOW_RUN"  # in the environment of a stage that a flow runs: the flow run's id
NOT_CONTENT = {"__pycache__", ".pytest_cache", ".ruff_cache"}


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json.

    dependencies: content hash by path. identity: hash of settings and dependencies. dirty: None outside Git. metrics,
    seconds: of a finished stage. policy_hash, prompts_hash, file_hash: what a promotion compares between stages.
    flow_run: the id of the flow run that the stage is of.
    """

    stage: str
    profile: str
    settings: Mapping[str, Any]
    commit: str
    dirty: bool | None
    versions: Mapping[str, str]
    dependencies: Mapping[str, str]
    identity: str
    started: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    mlflow_run_id: str | None = None
    policy_hash: str | None = None
    prompts_hash: str | None = None
    file_hash: str | None = None
    flow_run: str | None = None

    def finished(self, metrics: Mapping[str, Any], **facts: str | None) -> RunRecord:
        """The record with its results. facts: ``mlflow_run_id`` and the hashes."""
        passed = datetime.now(UTC) - datetime.fromisoformat(self.started)
        seconds = max(0.0, round(passed.total_seconds(), 3))  # the clock may have been put back
        return replace(self, metrics=dict(metrics), seconds=seconds, **facts)

    def to_json(self) -> dict[str, Any]:
        """Everything but the facts that the stage does not have."""
        return {name: value for name, value in vars(self).items() if value is not None or name not in FACTS}


FACTS = ("mlflow_run_id", "policy_hash", "prompts_hash", "file_hash", "flow_run")


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
        flow_run=os.environ.get(FLOW_RUN) or None,
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
    """DataError if the stage has not run, or a value is of another type. Keys of other versions are ignored."""
    stored = read_json(path, kind=RunRecord)
    with unpacking(path):
        datetime.fromisoformat(stored["started"])
    return RunRecord(**{name: stored[name] for name in (f.name for f in fields(RunRecord)) if name in stored})


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, independent of the order of its keys."""
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

    dvc.lock and what Git keeps of the outputs do not count: the pipeline rewrites them.
    """
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!outputs")
    return commit or "unknown", None if commit is None or changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return finished.stdout.strip()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed main packages."""
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
