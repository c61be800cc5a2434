"""Spread a sweep's trainings or the study's cells over Dask workers: one Prefect task each, in a worktree of its own.

Where: `local:2` makes two worker processes of this machine, each on one of its GPUs, in turn; `tcp://HOST:PORT` is a
running scheduler. A worker that dies costs the task that it was at, which Dask gives to another one. Workers of other
machines need the checkout at the same path, on a shared disk, and the Prefect server that PREFECT_API_URL names. One
task at a time: start them with `dask worker ADDRESS --nthreads 1`, on a machine with several GPUs one for each, with
CUDA_VISIBLE_DEVICES set.
Whoever reaches a scheduler's port can run code on its workers: keep it in a closed network, or use Dask's TLS (tls://).

The dLLMs that tasks share are made once, before all else: their type is chosen by a measurement (`dtype: auto`), which
two workers need not decide alike. What else two tasks share both make if they begin at once; later ones find it in
DVC's cache.
Left out: what a task does (sweep.py, study.py). Dask is imported only where a cluster is asked for.
"""

import importlib.util
import os
import re
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from prefect import Task, get_client, get_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings

from components.core.errors import SettingsError

ANSWER_SECONDS = 3.0
HERE = ("127.0.0.1", "::1", "localhost")
Spread = Callable[[Task[..., Any], Sequence[Mapping[str, Any]]], list[Any]]


def check_cluster(cluster: str) -> None:
    """Raise SettingsError unless `cluster` is well written, Dask is installed, and a scheduler answers there."""
    local, address = re.fullmatch(r"local:([1-9]\d?)", cluster), urlsplit(cluster)
    if not local and not (address.scheme in ("tcp", "tls") and address.hostname and re.search(r":\d{1,5}$", cluster)):
        raise SettingsError(f"cluster={cluster!r} names no workers. Use local:2, or a scheduler's tcp://HOST:PORT.")
    if importlib.util.find_spec("prefect_dask") is None:
        raise SettingsError(f"cluster={cluster!r} needs Dask. Install the extra 'cluster'.")
    if not local:
        if address.hostname not in HERE and not PREFECT_API_URL.value():
            raise SettingsError(f"cluster={cluster!r} needs a Prefect server for its workers. Set PREFECT_API_URL.")
        try:
            socket.create_connection((address.hostname or "", address.port or 0), ANSWER_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            raise SettingsError(
                f"cluster={cluster!r} does not answer ({error}). Start `dask scheduler` there."
            ) from None


@contextmanager
def workers(cluster: str) -> Generator[Spread]:
    """Within, the cluster's workers: a function that runs a task for each piece and returns when all have ended.

    For use in a flow. Of each piece it returns what the task returned, or the exception that it ended with, in order.
    """
    check_cluster(cluster)
    from prefect_dask.task_runners import DaskTaskRunner

    with get_client(sync_client=True) as client:
        server = str(client.api_url)  # a temporary server too: without its address every worker starts its own
    with temporary_settings({PREFECT_API_URL: server}), DaskTaskRunner(**_options(cluster)) as runner:

        def spread(work: Task[..., Any], pieces: Sequence[Mapping[str, Any]]) -> list[Any]:
            futures = [runner.submit(work, parameters=dict(piece)) for piece in pieces]
            return [_outcome(future) for future in futures]

        if not runner.client.nthreads():
            get_run_logger().warning("%s has no worker yet. Start `dask worker %s --nthreads 1`.", cluster, cluster)
        yield spread


def _options(cluster: str) -> dict[str, Any]:
    """A local cluster is reached from this machine alone, with a key made for it: its port would run anyone's code."""
    if not cluster.startswith("local:"):
        return {"address": cluster}
    pages = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    workers = {"n_workers": int(cluster.removeprefix("local:")), "threads_per_worker": 1}
    cards, more = _cards(os.environ), dict[str, Any]()
    if len(cards) > 1:
        more = {"processes": True, "worker_class": _on_cards(cards)}
    return {"cluster_kwargs": workers | more | {"security": True, "scheduler_kwargs": pages}}


def _cards(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that workers take in turn, as CUDA_VISIBLE_DEVICES names them.

    None where UNMASK_DEVICE says that no GPU is used, or which: workers that hold one card each could not follow.
    """
    if environment.get("UNMASK_DEVICE") not in (None, "", "cuda"):
        return []
    import torch

    named = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return [card.strip() for card in named[:count]] if any(named) else [str(card) for card in range(count)]


def _on_cards(cards: Sequence[str]) -> Callable[..., Any]:
    """What makes Dask's worker of a number: it and its stages see one card, also where it is started again."""
    from distributed import Nanny

    def made(*address: Any, name: int, **options: Any) -> Nanny:
        return Nanny(*address, name=name, env={"CUDA_VISIBLE_DEVICES": cards[name % len(cards)]}, **options)

    return made


def _outcome(future: Any) -> Any:
    try:
        return future.result()
    except Exception as error:  # of the task, or Dask's own: a task whose workers died one after the other
        return error
