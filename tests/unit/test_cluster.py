"""What `cluster` may be, and what is said of one that cannot work; without Dask."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys

import pytest
import torch
from prefect.settings import PREFECT_API_URL, temporary_settings

from components.core.errors import SettingsError
from flows import cluster as clusters
from flows.cluster import check_cluster
from tests.messages import has_remedy


@pytest.mark.parametrize("cluster", ["two", "local:0", "local:", "local:2x", "tcp://host", "tcp://:1", "file://host:1"])
def test_what_names_no_workers_is_refused_with_what_would(cluster: str) -> None:
    with pytest.raises(SettingsError, match="names no workers") as refused:
        check_cluster(cluster)
    assert has_remedy(str(refused.value)) and repr(cluster) in str(refused.value)


def test_a_scheduler_must_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        check_cluster(address)
    with pytest.raises(SettingsError, match="does not answer") as refused:
        check_cluster(address)
    assert has_remedy(str(refused.value)) and address in str(refused.value)


@pytest.mark.parametrize("port", [0, 70000])
def test_a_port_that_cannot_be_is_refused(port: int) -> None:
    with pytest.raises(SettingsError, match="does not answer"):
        check_cluster(f"tcp://127.0.0.1:{port}")


def test_workers_elsewhere_need_a_prefect_server() -> None:

    alone = temporary_settings(restore_defaults={PREFECT_API_URL})  # whatever an earlier test left
    with alone, pytest.raises(SettingsError, match="PREFECT_API_URL") as refused:
        check_cluster("tcp://scheduler.invalid:8786")
    assert has_remedy(str(refused.value))
    server = "http://prefect.invalid:4200/api"
    with temporary_settings({PREFECT_API_URL: server}), pytest.raises(SettingsError, match="does not answer"):
        check_cluster("tcp://192.0.2.1:70000")


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_cluster("local:2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="'cluster'"):
        check_cluster("local:2")


@pytest.mark.parametrize(
    ("environment", "cards"),
    [
        ({}, ["0", "1", "2"]),
        ({"UNMASK_DEVICE": "cuda"}, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "4, 6,GPU-7"}, ["4", "6", "GPU-7"]),
        ({"UNMASK_DEVICE": "cpu"}, []),
        ({"UNMASK_DEVICE": "cuda:1"}, []),
        ({"UNMASK_DEVICE": "auto"}, []),
    ],
)
def test_local_workers_take_the_cards_that_this_process_sees(
    environment: dict[str, str], cards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert clusters._cards(environment) == cards


@pytest.mark.e2e
@pytest.mark.parametrize(("count", "seen"), [(2, ["0", "0", "1"]), (1, [None] * 3), (0, [None] * 3)])
def test_each_local_worker_sees_one_card(count: int, seen: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers, in their own environment. Where there is nothing to choose, it is left alone."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    given = clusters._options("local:3")["cluster_kwargs"]
    with distributed.LocalCluster(**given) as cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(3)
        found = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert sorted(found.values(), key=str) == seen


@pytest.mark.e2e
def test_dask_is_imported_only_where_a_cluster_is_asked_for() -> None:
    code = "import sys, flows.study, flows.sweep; print([m for m in sys.modules if 'dask' in m or m == 'distributed'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
