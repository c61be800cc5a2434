"""A sweep over the workers of a Dask scheduler: the table of one process, also where one is killed on the way.

A local cluster, with the study's cells: test_study.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from components.core.errors import SettingsError
from flows.cluster import check_cluster
from flows.sweep import sweep
from tests.e2e import test_flows_e2e as flows_e2e

pytestmark = pytest.mark.e2e
prefect, template, toy = flows_e2e.prefect, flows_e2e.template, flows_e2e.toy


@contextmanager
def dask(folder: Path, *words: str) -> Iterator[None]:
    """Within, one of Dask's processes, started as flows/cluster.py says, in another folder."""
    command, environment = [sys.executable, "-m", "dask", *words], {**os.environ, "PYTHONPATH": str(flows_e2e.ROOT)}
    process = subprocess.Popen([*command, "--no-dashboard"], cwd=folder, env=environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(address: str) -> None:
    for _ in range(300):
        try:
            return check_cluster(address)
        except SettingsError:
            time.sleep(0.1)
    raise AssertionError("the scheduler did not start")


def kill_the_worker_of(hung: Path) -> threading.Thread:
    """End the worker process of the first stage that writes its number into the named pipe; no later stage hangs."""
    os.mkfifo(hung)

    def kill() -> None:
        stage = psutil.Process(int(flows_e2e._next_line(hung)))
        hung.unlink()
        parents = stage.parents()
        guards = [any(word.endswith("process_group.py") for word in parent.cmdline()) for parent in parents]
        parents[guards.index(True) + 1].kill()  # a guard is the child of the worker

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_two_workers_make_the_table_of_one_process_though_one_is_killed(
    prefect: str, toy: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that fails is a row. The killed one runs its stage again, and no stage that was done."""
    (tmp_path / "break-train-7").touch()
    killer = kill_the_worker_of(tmp_path / "hang-report")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    address, environment = f"tcp://127.0.0.1:{port}", {**os.environ, "PREFECT_API_URL": prefect}
    command = [sys.executable, "-m", "flows.sweep", "--seeds", "[7, 8]", "--repository", str(toy), "--cluster", address]
    with dask(tmp_path, "scheduler", "--host", "127.0.0.1", "--port", port):
        wait_for(address)
        pipe = subprocess.PIPE
        flow = subprocess.Popen(command, cwd=flows_e2e.ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
        assert flow.stderr and any(f"{address} has no worker yet" in line for line in flow.stderr)
        with dask(tmp_path, "worker", address, "--nworkers", "2", "--nthreads", "1"):
            said, _ = flow.communicate(timeout=300)
    rows = json.loads(said)
    killer.join(timeout=1)
    assert not killer.is_alive()
    ran = flows_e2e._ran(toy)
    assert (ran.count("report"), ran.count("train")) == (2, 3)  # a stage that fails is tried twice
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "break-train-7").touch()
    assert sweep(seeds=[7, 8], repository=str(flows_e2e._toy(template, alone, monkeypatch)))[1:] == rows[1:]
    assert (rows[0]["seed"], rows[0]["state"]) == (7, "Failed") and "train is broken" in rows[0]["message"]
    assert len(rows) == 2 and rows[1]["accuracy"] == 0.8


@pytest.mark.parametrize("module", ["flows.sweep", "flows.study"])
def test_a_dead_scheduler_is_named_in_one_sentence_within_5_seconds(module: str) -> None:
    begin = time.monotonic()
    command = [sys.executable, "-m", module, "--cluster", "tcp://127.0.0.1:9"]
    done = subprocess.run(command, cwd=flows_e2e.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and time.monotonic() - begin < 5
    assert "cluster='tcp://127.0.0.1:9' does not answer" in done.stderr and len(done.stderr.splitlines()) == 1
