"""A lock for stages whose files two processes must not write at once."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from ...core.errors import CheckpointError
from .workspace import Workspace

PATIENCE_SECONDS = 30.0  # a process that is ending needs less


@contextmanager
def stage_lock(workspace: Workspace, stage: str, patience: float = PATIENCE_SECONDS) -> Generator[None]:
    """Hold the stage's lock of this profile. CheckpointError if another process keeps it for ``patience`` seconds.

    The system frees the lock of a process that is killed.
    """
    from filelock import FileLock, Timeout

    path = workspace.root / ".checkpoints" / workspace.profile / f"{stage}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{stage}: another process runs it for profile {workspace.profile}; waiting", flush=True)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise CheckpointError(
                f"{path} is held by another `unmask {stage}` of this checkout. Wait for its end, or stop it."
            ) from None
    try:
        yield
    finally:
        lock.release()
