"""The local stack: Prefect server, a worker for each work pool, the deployments, the heartbeat automation, MLflow's UI.

`python -m flows.stack up`, `down`, `status`. Everything it keeps (process ids, logs, Prefect's database) lies under
.stack/ of the checkout. Ports: --prefect-port and --mlflow-port, or UNMASK_PREFECT_PORT and UNMASK_MLFLOW_PORT.

Left out: several machines (infra/compose.yaml), service managers.
"""

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import psutil

from components.core.errors import DataError, SettingsError, masked
from components.core.files import read_json, write_text
from components.tracking.abandoned import started
from components.tracking.pages import UI
from components.tracking.store import connect, tracking_uri
from flows import DEFAULTS, worktree
from flows.deploy import POOLS, ask, deploy

PATIENCE_SECONDS = 180  # a first start migrates two databases, on a loaded laptop
UNFINISHED = ("PENDING", "RUNNING", "CANCELLING", "PAUSED")


class _Process(TypedDict):
    pid: int
    created: float


class _State(TypedDict):
    ports: dict[str, int]
    processes: dict[str, _Process]


class Stack:
    """The services of one checkout, known by what .stack/state.json says of them."""

    def __init__(self, checkout: Path, ports: Mapping[str, int]) -> None:
        self.checkout = checkout
        self.folder = checkout / ".stack"
        self.state_file = self.folder / "state.json"
        state = _read_state(self.state_file)
        self.processes: dict[str, dict[str, Any]] = state.get("processes", {})
        self.ports: dict[str, int] = state["ports"] if any(map(self.alive, self.processes)) else dict(ports)
        self.api = f"http://127.0.0.1:{self.ports['prefect']}/api"

    def environment(self) -> dict[str, str]:
        """What a shell needs to talk to this stack; the services get it too."""
        return {
            **DEFAULTS,
            "PREFECT_API_URL": self.api,
            UI: f"http://127.0.0.1:{self.ports['mlflow']}",
        }

    def private(self) -> dict[str, str]:
        """What only the services get. Without job execution off, MLflow starts 8 more processes for nobody's jobs."""
        return {
            "MLFLOW_BACKEND_STORE_URI": tracking_uri(self.checkout),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "UNMASK_REPOSITORY": str(self.checkout),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "3",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def commands(self) -> dict[str, list[str]]:
        """Service -> command line. No MLflow UI where the tracking store is a server that has its own.

        Every user of the machine can read command lines, so the store, which may have a password, is in `private`.
        """

        def local(port: str) -> list[str]:
            return ["--host", "127.0.0.1", "--port", str(self.ports[port])]

        python = [sys.executable, "-m"]
        services = {"prefect": [*python, "prefect", "server", "start", *local("prefect")]}
        for pool in POOLS:
            services[f"worker-{pool}"] = [*python, "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        if not tracking_uri(self.checkout).startswith("http"):
            services["mlflow"] = [*python, "mlflow", "ui", "--workers", "1", *local("mlflow")]
        return services

    def alive(self, name: str) -> psutil.Process | None:
        """The process of the service, unless it ended; a stranger that got its number does not count."""
        known = self.processes.get(name)
        try:
            process = psutil.Process(known["pid"]) if known else None
        except psutil.NoSuchProcess:
            return None
        if process is None or known is None or abs(started(process) - known["created"]) > 1:
            return None
        return process if process.status() != psutil.STATUS_ZOMBIE else None

    def start(self, name: str, command: list[str]) -> None:
        """Start the service in a session of its own, its output in .stack/<name>.log; nothing if it runs already."""
        if self.alive(name):
            return
        if name in self.ports:
            _refuse_taken_port(name, self.ports[name])
        # A shell may have SIGINT ignored, and children inherit that: a worker would then not stop when told to.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.checkout,
                env={**os.environ, **self.environment(), **self.private()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[name] = {"pid": process.pid, "created": started(psutil.Process(process.pid))}
        write_text(self.state_file, json.dumps({"ports": self.ports, "processes": self.processes}, indent=2))

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Until the service answers. Raises RuntimeError with the end of its log if it ends or takes too long."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end and self.alive(name):
            if ready():
                return
            time.sleep(0.25)
        end_of_log = self.log(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
        raise RuntimeError(
            f"{name} did not come up. Mend what {self.log(name)} names at its end:\n  " + "\n  ".join(end_of_log)
        )

    def log(self, name: str) -> Path:
        """Where the output of a service goes."""
        return self.folder / f"{name}.log"


def up(stack: Stack) -> None:
    """Bring up what is not up yet, and say how to use it. Twice is harmless; a failed start leaves nothing."""
    stack.folder.mkdir(exist_ok=True)
    commands = stack.commands()
    was_up = any(map(stack.alive, stack.processes))
    try:
        stack.start("prefect", commands["prefect"])
        if "mlflow" in commands:
            connect(tracking_uri(stack.checkout))  # makes the database, so that no stage meets MLflow half-way in it
            stack.start("mlflow", commands["mlflow"])
        stack.wait("prefect", lambda: ask(stack.api, "GET", "/health") is True)
        deploy(stack.checkout, stack.api, stack.environment() | stack.private())
        for pool in POOLS:
            stack.start(f"worker-{pool}", commands[f"worker-{pool}"])
        for pool in POOLS:
            stack.wait(f"worker-{pool}", lambda pool=pool: _worker_online(stack, pool))
        if "mlflow" in commands:
            health = f"http://127.0.0.1:{stack.ports['mlflow']}/health"
            stack.wait("mlflow", lambda: _answers(health))
    except BaseException:
        if not was_up:  # what ran before, and the flow runs in it, are not to suffer from this call
            down(stack)
        raise
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in stack.environment().items())
    write_text(stack.folder / "env", exports)
    status(stack)
    print("\n" + "\n".join(next_steps(stack)))


def next_steps(stack: Stack) -> list[str]:
    """What to type after `up`. `--watch` shows states alone; the log of a run is in that of its worker."""
    return [
        f"in your shell:  source {stack.folder / 'env'}",
        "then:           prefect deployment run train-policy/cpu --watch",
        f"its log:        tail -f {stack.log('worker-cpu')}",
    ]


def down(stack: Stack) -> None:
    """End every process of the stack, flow runs included; these end as Crashed and can be retried after the next up."""
    for name in [f"worker-{pool}" for pool in POOLS]:
        _end(stack, name)
    if stack.alive("prefect"):
        _crash_unfinished(stack)
    for name in ("prefect", "mlflow"):
        _end(stack, name)
    stack.state_file.unlink(missing_ok=True)
    (stack.folder / "env").unlink(missing_ok=True)
    print("the stack is down")


def status(stack: Stack) -> int:
    """Print a line per service. Returns 0 if all are up, else 1."""
    from components.tracking.pages import experiments

    places = {
        "prefect": f"http://127.0.0.1:{stack.ports['prefect']}",
        "mlflow": experiments(f"http://127.0.0.1:{stack.ports['mlflow']}"),
    }
    missing = 0
    for name in stack.commands():
        process = stack.alive(name)
        missing += process is None
        print(f"{name:<12} {f'up, process {process.pid}' if process else 'down':<20} {places.get(name, '')}".rstrip())
    return int(missing > 0)


def _read_state(path: Path) -> dict[str, Any]:
    """What an earlier `up` wrote; nothing where it was cut off, for then no service is known by it."""
    if not path.exists():
        return {}
    try:
        return read_json(path, kind=_State)
    except DataError as error:
        print(f"{error} It is taken for empty.", file=sys.stderr)
        return {}


def _worker_online(stack: Stack, pool: str) -> bool:
    workers = ask(stack.api, "POST", f"/work_pools/{pool}/workers/filter", {}) or []
    return any(worker["status"] == "ONLINE" for worker in workers)


def _crash_unfinished(stack: Stack) -> None:
    """A run whose worker was stopped would else be Running in the database for ever."""
    runs = (
        ask(stack.api, "POST", "/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": list(UNFINISHED)}}}})
        or []
    )
    state = {"type": "CRASHED", "name": "Crashed", "message": "the local stack was taken down"}
    for run in runs:
        ask(stack.api, "POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})


def _end(stack: Stack, name: str) -> None:
    """Tell the service to stop, wait for it, and kill what is left of it and of its children."""
    if not (process := stack.alive(name)):
        return
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=20)
    for survivor in left:
        try:
            survivor.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=5)


def _refuse_taken_port(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SettingsError(
                f"port {port} is taken ({error.strerror}). Stop what listens there, or choose another with "
                f"--{name}-port or UNMASK_{name.upper()}_PORT."
            ) from error


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=10).status == 200
    except OSError:
        return False


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port. Use a number from 1 to 65535.")
    return int(text)


def main() -> int:
    """Command line; see the module's first lines."""
    parser = argparse.ArgumentParser("python -m flows.stack", description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("action", choices=["up", "down", "status"])
    for name, port in {"prefect": 4200, "mlflow": 5000}.items():
        default = os.environ.get(f"UNMASK_{name.upper()}_PORT", str(port))
        parser.add_argument(f"--{name}-port", type=_port, default=default, help=f"default {default}")
    given = parser.parse_args()
    try:
        stack = Stack(worktree.root(Path()), {"prefect": given.prefect_port, "mlflow": given.mlflow_port})
        return {"up": up, "down": down, "status": status}[given.action](stack) or 0
    except (SettingsError, DataError, RuntimeError) as error:
        print(masked(str(error)), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
