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

from components.core.errors import DataError
from components.core.files import read_json, read_yaml, write_json

PACKAGES = ("torch", "transformers", "numpy", "reasoning-gym", "onnx", "onnxruntime", "mlflow", "dvc", "prefect")
NOT_CONTENT = {"__pycache__", ".pytest_cache", ".ruff_cache"}


def describe_run(
    stage: str, profile: str, settings: Mapping[str, Any], dependencies: Iterable[Path], root: Path | None = None
) -> dict[str, Any]:
    """What is known before the stage works: everything of run.json but metrics and duration.

    root: the repository (default: the current folder); dependencies are named relative to it. DataError if one is
    missing.
    """
    root = (root or Path.cwd()).resolve()
    hashes = {_relative(path, root): content_hash(path) for path in sorted(dependencies)}
    commit, dirty = code_version(root)
    return {
        "stage": stage,
        "profile": profile,
        "settings": dict(settings),
        "commit": commit,
        "dirty": dirty,
        "versions": package_versions(),
        "dependencies": hashes,
        "identity": digest({"settings": settings, "dependencies": hashes}),
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def write_run(
    path: Path,
    stage: str,
    profile: str,
    settings: Mapping[str, Any],
    dependencies: Iterable[Path],
    metrics: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes run.json and returns it. `extra` is added and wins, e.g. mlflow_run_id, or `started` and `commit` as
    `describe_run` gave them at the start; `seconds` counts from `started`.
    """
    run: dict[str, Any] = describe_run(stage, profile, settings, dependencies)
    run |= {"metrics": dict(metrics)} | dict(extra or {})
    passed = datetime.now(UTC) - datetime.fromisoformat(run["started"])
    run.setdefault("seconds", max(0.0, round(passed.total_seconds(), 3)))  # the clock may have been put back
    write_json(path, run, sort=False)
    return run


def code_of(stage: str) -> list[Path]:
    """The code that a stage depends on, as dvc.yaml of the running code's repository lists it.

    DataError outside a repository: without the list a training could be resumed by other code.
    """
    repository = Path(__file__).parents[3]
    graph = read_yaml(repository / "dvc.yaml", "Run stages inside the repository.")
    return [repository / dep for dep in graph["stages"][stage]["deps"] if dep.startswith("components/")]


def read_run(path: Path) -> dict[str, Any]:
    """DataError if the stage has not run."""
    return read_json(path, needs=("stage", "profile", "identity", "commit", "dirty", "started", "seconds"))


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
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """Python's and those of the main packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _relative(path: Path, root: Path) -> str:
    whole = path.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else path.as_posix()
