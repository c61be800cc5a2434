"""The services of infra/compose.yaml as processes of this machine, by the commands and environments that stand there.

What containers would give is put in its place: names of hosts, ports, folders, secrets. The S3 store is moto's.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import yaml

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text("utf-8"))["services"]
SECRETS = {"POSTGRES_PASSWORD": "postgres1", "S3_USER": "user1", "S3_PASSWORD": "password1", "WORK_POOL": "cpu"}
PORTS = {"database": 5432, "store": 9000, "mlflow": 5000, "prefect": 4200}
PATIENCE_SECONDS = 900  # a busy machine; on a quiet one MLflow and Prefect are up within half a minute
BINARIES = next(
    (place for place in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True) if (place / "initdb").exists()),
    Path(found).resolve().parent if (found := shutil.which("initdb")) else None,
)
NO_POSTGRES = (
    "No PostgreSQL server is installed (Debian: apt-get install postgresql). Nothing else tests infra/ on one."
)


class Services:
    """Started one by one; `end` ends them in the opposite order. ``folder``: logs, homes. ``checkout``: /repository."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder, self.checkout = folder, checkout
        self.ports = {name: _free_port() for name in PORTS}
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self.data = Path(tempfile.mkdtemp(prefix="unmask-postgres-"))  # pytest's own folders let no other user in

    def in_place(self, text: str) -> str:
        """The text of the compose file with this machine's addresses and secrets."""
        text = re.sub(r"\$\{(\w+):[?-][^}]*\}", lambda found: SECRETS[found[1]], text)
        for name, port in PORTS.items():
            text = re.sub(rf"\b({name}|127\.0\.0\.1):{port}\b", f"127.0.0.1:{self.ports[name]}", text)
        return text.replace("$$", "$")

    def environment(self, name: str) -> dict[str, str]:
        """The service's own variables, after those of the image."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        image = {"PATH": path, "PYTHONPATH": str(self.checkout), "UNMASK_REPOSITORY": str(self.checkout)}
        image |= {"PREFECT_HOME": str(self.folder / f"home-{name}"), "OMP_NUM_THREADS": "1"}
        own = {key: self.in_place(str(value)) for key, value in COMPOSE[name].get("environment", {}).items()}
        return {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"} | image | own

    def command(self, name: str) -> list[str]:
        given = COMPOSE[name]["command"]
        words = [self.in_place(word) for word in (shlex.split(given) if isinstance(given, str) else given)]
        return [
            "127.0.0.1" if w == "0.0.0.0" else str(self.ports[name]) if w == str(PORTS.get(name)) else w for w in words
        ]

    def start(self, name: str, command: list[str] | None = None, **how: Any) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command or self.command(name),
                cwd=how.pop("cwd", self.checkout),
                env=self.environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **how,
            )

    def wait(self, name: str, ready: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not ready():
            assert self.processes[name].poll() is None and time.monotonic() < end, self.log(name)
            time.sleep(0.2)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-4000:]

    def start_database(self) -> None:
        """A new PostgreSQL cluster; it refuses to run as root, so root lends it to another user."""
        assert BINARIES is not None
        user = (
            next((u.pw_name for u in pwd.getpwall() if u.pw_name == "postgres"), "nobody") if os.getuid() == 0 else None
        )
        (self.data / "password").write_text(SECRETS["POSTGRES_PASSWORD"], encoding="utf-8")
        if user is not None:
            for path in (self.data, self.data / "password"):
                shutil.chown(path, user)
        cluster = ["-D", str(self.data / "cluster")]
        words = [*cluster, "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={self.data / 'password'}", "--no-sync"]
        subprocess.run([BINARIES / "initdb", *words], user=user, cwd=self.data, check=True, stdout=subprocess.DEVNULL)
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        port = ["-p", str(self.ports["database"])]
        self.start("database", [str(BINARIES / "postgres"), *cluster, *port, *options], user=user, cwd=self.data)
        self.wait("database", self._reachable)
        for statement in (ROOT / "infra" / "databases.sql").read_text(encoding="utf-8").split(";")[:-1]:
            self.query("postgres", statement)

    def start_store(self) -> None:
        """An S3 server with an empty memory."""
        self.start("store", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.ports["store"])])
        self.wait("store", lambda: answers(f"http://127.0.0.1:{self.ports['store']}/moto-api/"))

    def query(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(
            self.in_place(f"postgresql://postgres:${{POSTGRES_PASSWORD:?}}@database:5432/{database}")
        )
        try:
            connection.autocommit = True  # no database is made in a transaction
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def end(self) -> None:
        for process in reversed(self.processes.values()):
            for sign, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
                if process.poll() is None:
                    os.killpg(process.pid, sign)
                    _wait(process, seconds)
        shutil.rmtree(self.data)

    def _reachable(self) -> bool:
        try:
            return self.query("postgres", "select 1") == [(1,)]
        except psycopg2.OperationalError:
            return False


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=10).status == 200
    except OSError:
        return False


def _wait(process: subprocess.Popen[Any], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
