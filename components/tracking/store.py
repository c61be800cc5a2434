"""Where MLflow keeps runs and models: one SQLite file at the repository's root, or what MLFLOW_TRACKING_URI names.

Everything goes through an explicit client: MLflow's global "active run" and "tracking URI" are not touched, because
setting them also changes the environment of this process. Importing this module does not import MLflow.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from components.core.errors import SettingsError, masked

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Defaults, not orders: what the user has set stays. With MLflow's own (7 retries) a dead server costs 4 minutes a call.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "ORT_DISABLE_TELEMETRY": "1",
}


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite file mlflow.db of the workspace that ``root`` belongs to."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_uri(workspace_of(root) / "mlflow.db")


def workspace_of(root: Path) -> Path:
    """``root``, absolute; of a temporary copy that `dvc exp run --queue` or `--temp` made, the workspace it is of.

    DVC deletes such a copy, and a run that was kept in it would go with it.
    """
    whole = root.resolve()
    return next((p.parents[2] for p in whole.parents if p.parts[-3:] == (".dvc", "tmp", "exps")), whole)


def _sqlite_uri(path: Path) -> str:
    """SQLAlchemy decodes a URI's path, so that `50%20off` must be written `50%2520off`.

    With the driver named, MLflow does not make a folder of the name as it stands in the URI.
    """
    quoted = quote(str(path), safe="/ ~@:+&=,;!$'()*")
    return f"sqlite:///{quoted}" if quoted == str(path) else f"sqlite+pysqlite:///{quoted}"


def database(uri: str) -> Path | None:
    """The file behind an SQLite URI, else None."""
    found = re.match(r"sqlite(\+pysqlite)?:///([^?]*)", uri)
    return Path(unquote(found[2])).resolve() if found else None


def connect(uri: str) -> MlflowClient:
    """A client of the store at `uri`; makes the SQLite file if there is none. SettingsError where it cannot be used."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    path = database(uri)
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        # Processes that meet on a fresh file race in MLflow's migration, and all but one fail.
        with lock(uri, "create"):
            if path is not None:
                with closing(sqlite3.connect(path)) as connection:
                    connection.execute("pragma journal_mode=wal")  # persists; writes become three times as fast
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    except (MlflowException, OSError, sqlite3.Error) as error:
        raise SettingsError(
            f"the tracking store {masked(uri)} cannot be used ({first_line(error)}). Start the server, or set "
            "MLFLOW_TRACKING_URI to a store that is there, or unset it for the SQLite file at the repository's root."
        ) from error
    return client


def first_line(error: Exception) -> str:
    """What an error says, short enough for a sentence and without passwords."""
    return masked((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]


def experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment `name`, made if there is none.

    Beside an SQLite file, artifacts go to `mlartifacts/<name>/` of the same folder; a server knows its own place.
    """
    from mlflow.exceptions import MlflowException

    path = database(client.tracking_uri)
    place = None if path is None else (path.parent / "mlartifacts" / name).as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


@contextmanager
def lock(uri: str, purpose: str) -> Iterator[None]:
    """One process at a time for one purpose. Only for SQLite files: across machines a server is alone to decide."""
    path = database(uri)
    if path is None:
        yield
        return
    from filelock import FileLock

    with FileLock(path.with_name(f"{path.name}.{purpose}.lock")):
        yield
