"""Where MLflow keeps runs and models: one SQLite file at the repository's root, or what MLFLOW_TRACKING_URI names.

Everything goes through an explicit client: MLflow's global "active run" and "tracking URI" are not touched, because
setting them also changes the environment of this process. Importing this module does not import MLflow.

MLflow stores where artifacts lie as absolute addresses. Those of an SQLite file lie beside it, so `connect` writes them
anew where the file was moved or copied: a copy reads and writes its own artifacts and never the original's.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ..core.errors import SettingsError, masked
from ..core.online import PATIENCE, answers

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Defaults, not orders: what the user has set stays. With MLflow's own (7 retries) a dead server costs 4 minutes a call.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # its links open an empty page about GenAI; see pages.py
    "ORT_DISABLE_TELEMETRY": "1",
}


LEAST_ROOM = 256 * 2**10  # bytes that a transaction needs
ARTIFACTS = "mlartifacts"
# Every column of MLflow's tables that holds an address of artifacts.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite file mlflow.db of the workspace that ``root`` belongs to."""
    return os.environ.get("MLFLOW_TRACKING_URI") or uri_of(workspace_of(root) / "mlflow.db")


def workspace_of(root: Path) -> Path:
    """``root``, absolute; of a temporary copy that `dvc exp run --queue` or `--temp` made, the workspace it is of.

    DVC deletes such a copy, and a run that was kept in it would go with it.
    """
    whole = root.resolve()
    return next((p.parents[2] for p in whole.parents if p.parts[-3:] == (".dvc", "tmp", "exps")), whole)


def uri_of(path: Path) -> str:
    """The URI of an SQLite file. What a URI reads otherwise is quoted, the rest stays as people write it.

    With the driver named, MLflow does not make a folder of the name as it stands in the URI.
    """
    quoted = quote(str(path), safe="/ ~@:+&=,;!$'()*")
    return f"sqlite:///{quoted}" if quoted == str(path) else f"sqlite+pysqlite:///{quoted}"


def database(uri: str) -> Path | None:
    """The file behind an SQLite URI, else None. SettingsError where SQLite would keep nothing, as in memory."""
    found = re.match(r"sqlite(?:\+pysqlite)?://(/?)([^?]*)", uri)
    if found is None:
        return None
    path = Path(unquote(found[2]))
    device = path.exists() and not (path.is_file() or path.is_dir())  # as /dev/null, or a pipe, which is waited for
    if not found[1] or path.name in ("", ":memory:") or device:
        raise SettingsError(
            f"the tracking store {uri} names no file, so that nothing would be kept. Write sqlite:///mlflow.db, or "
            "unset MLFLOW_TRACKING_URI."
        )
    return path.resolve()


def connect(uri: str) -> MlflowClient:
    """A client of the store at `uri`; makes the SQLite file if there is none. SettingsError where it cannot be used."""
    path = database(uri)
    with _sentences(uri):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        # Processes that meet on a fresh file race in MLflow's migration, and all but one fail.
        with lock(uri, "create"):
            if path is not None:
                with closing(sqlite3.connect(path)) as connection:
                    connection.execute("pragma journal_mode=wal")  # persists; writes become three times as fast
                    _bring_home(connection, path.parent)
            return _client(uri)


@contextmanager
def reading(uri: str) -> Iterator[MlflowClient]:
    """A client that reads and never writes beside an SQLite file: it looks at a copy, which goes when the block ends.

    MLflow opens SQLite files for writing, whatever it is asked, and fails in a folder without write access. Artifacts
    are read where they are. SettingsError where the store cannot be used.
    """
    path = database(uri)
    if path is not None and not path.exists():
        raise SettingsError(f"there is no tracking store {path}. Run `dvc repro` first, then `unmask promote`.")
    with tempfile.TemporaryDirectory() as folder:
        with _sentences(uri):
            client = _client(uri if path is None else uri_of(_copied(path, Path(folder))))
        yield client


def _client(uri: str) -> MlflowClient:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.tracking._tracking_service import utils

    # By run, whatever the store: in one process a copy's client would write into the original's artifacts.
    getattr(utils, "_artifact_repos_cache", {}).clear()
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints the traceback of what it raises
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if re.match(r"postgresql|mysql|mssql", uri):
        _reach(uri)
    if uri.startswith(("http:", "https:")) and not answers(uri):
        raise ConnectionError(f"no answer within {PATIENCE:g} seconds")
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    return client


def _reach(uri: str) -> None:
    """Raise at once where the database does not answer; MLflow would try for 100 seconds and log each try."""
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    engine.connect().close()
    engine.dispose()


@contextmanager
def _sentences(uri: str) -> Generator[None]:
    """What a store that cannot be used raises becomes a SettingsError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"the tracking store {masked(uri)} needs the package {error.name}, which is not installed. Install it, or "
            "name another driver, as in postgresql+psycopg2://."
        ) from error
    except (MlflowException, SQLAlchemyError, OSError, ValueError, sqlite3.Error) as error:
        size, free = _room(uri)
        if size == 0:
            raise SettingsError(
                f"the tracking store {masked(uri)} is in a place that keeps no files, such as /proc. Set "
                "MLFLOW_TRACKING_URI to a file on a disk, or unset it for the SQLite file at the repository's root."
            ) from error
        if free < LEAST_ROOM:  # SQLite calls it an I/O error
            raise SettingsError(
                f"the tracking store {masked(uri)} cannot be used, as its disk is full ({first_line(error)}). Free "
                "space and run the command again."
            ) from error
        if "database schema" in str(error):
            raise SettingsError(
                f"the tracking store {masked(uri)} was written by another version of MLflow. Copy it and run "
                "`mlflow db upgrade` with this address, or install the version that wrote it."
            ) from error
        raise SettingsError(
            f"the tracking store {masked(uri)} cannot be used ({first_line(error)}). Start the server, set "
            "MLFLOW_TRACKING_URI to a store that is there, or unset it for the SQLite file at the repository's root."
        ) from error


def _room(uri: str) -> tuple[int, int]:
    """(size, free bytes) of the disk that an SQLite file is on, where there is one."""
    path = database(uri)
    there = [] if path is None else [folder for folder in path.parents if folder.exists()]
    disk = shutil.disk_usage(there[0]) if there else None
    return (LEAST_ROOM, LEAST_ROOM) if disk is None else (disk.total, disk.free)


def _copied(path: Path, folder: Path) -> Path:
    """A copy of the database that knows where its artifacts are.

    It is copied by SQLite, which sees one state of it. Where SQLite may not make its lock files, nobody writes: there
    the files are copied.
    """
    copy = folder / path.name
    try:
        with (
            closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.OperationalError:
        for name in (path.name, f"{path.name}-wal"):
            if path.with_name(name).exists():
                shutil.copyfile(path.with_name(name), copy.with_name(name))
    with closing(sqlite3.connect(copy)) as connection:
        _bring_home(connection, path.parent)
    return copy


def _bring_home(connection: sqlite3.Connection, folder: Path) -> None:
    """Make every address of artifacts lie under ``folder`` that lay beside this database when it was elsewhere."""
    if not connection.execute("select 1 from sqlite_master where name = 'model_versions'").fetchone():
        return
    places = connection.execute("select artifact_location from experiments").fetchall()
    parts = [str(place).rpartition(f"/{ARTIFACTS}/") for (place,) in places]
    # Only experiments of ours: a user's own may lie where they want.
    homes = {home for home, _, name in parts if home.startswith("file:") and name.startswith("unmask-")}
    with connection:
        for home in homes - {folder.as_uri()}:
            for table, column in ADDRESSES:
                connection.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                    (folder.as_uri(), len(home) + 1, len(home) + 1, f"{home}/"),
                )


def first_line(error: Exception) -> str:
    """What an error says, short enough for a sentence and without passwords."""
    return masked((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]


def experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment `name`, made if there is none.

    Beside an SQLite file, artifacts go to `mlartifacts/<name>/` of the same folder; a server knows its own place.
    """
    from mlflow.exceptions import MlflowException

    path = database(client.tracking_uri)
    place = None if path is None else (path.parent / ARTIFACTS / name).as_uri()
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
def lock(uri: str, purpose: str) -> Generator[None]:
    """One process at a time for one purpose. Only for SQLite files: across machines a server is alone to decide."""
    path = database(uri)
    if path is None:
        yield
        return
    from filelock import FileLock

    file = path.with_name(f"{path.name}.{purpose}.lock")
    if not file.exists():
        file.touch()  # under /proc this fails, where FileLock would try for ever
    with FileLock(file):
        yield
