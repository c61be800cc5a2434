"""Runs whose process is gone: a killed training cannot tell MLflow that it ended."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import psutil

from . import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROCESS = "unmask.process"


def this_process() -> dict[str, str]:
    """A tag that names this process: machine, number and start, since numbers are used again."""
    return {PROCESS: f"{socket.gethostname()} {os.getpid()} {started(psutil.Process()):.2f}"}


def started(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's: no change of the clock moves it."""
    return process.create_time() - psutil.boot_time()


def close(uri: str) -> list[str]:
    """Mark as KILLED every run of this machine that is RUNNING and whose process is gone. Their ids."""
    path = store.database(uri)
    if path is not None and not path.exists():
        return []
    return close_in(store.connect(uri))


def close_in(client: MlflowClient) -> list[str]:
    """``close`` for a store that is open already."""
    places = [found.experiment_id for found in client.search_experiments()]
    running = client.search_runs(places, "attributes.status = 'RUNNING'") if places else []
    gone = [run.info.run_id for run in running if _is_gone(run.data.tags.get(PROCESS, ""))]
    for run_id in gone:
        client.set_terminated(run_id, "KILLED")
    return gone


def _is_gone(process: str) -> bool:
    machine, _, rest = process.partition(" ")
    if machine != socket.gethostname():
        return False  # of another machine, or of a program that names no process
    number, _, created = rest.partition(" ")
    try:
        return abs(started(psutil.Process(int(number))) - float(created)) > 1
    except psutil.NoSuchProcess:
        return True
    except ValueError:  # nobody's tag
        return False
