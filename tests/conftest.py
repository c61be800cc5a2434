"""The environment of every test, and what tests of several kinds are given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.toy_domain import KeyFirst, ManyTexts

# Before anything imports ONNX Runtime, MLflow, Prefect or DVC: no test may look anything up.
for name in ("ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS"):
    os.environ.setdefault(name, "1")
for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}.items():
    os.environ.setdefault(name, value)
# What a shell, a Git hook or a flow has set for its own runs reaches no test.
OUTSIDE = ("MLFLOW_TRACKING_URI", "UNMASK_DEVICE", "UNMASK_CODE", "UNMASK_REPOSITORY", "DVC_STAGE", "PREFECT_API_URL")
for name in (*OUTSIDE, "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
    os.environ.pop(name, None)
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run. Making the tables takes seconds; every test starts from a copy."""
    from components.tracking import store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def key_first() -> KeyFirst:
    from tests.toy_domain import KeyFirst

    return KeyFirst()


@pytest.fixture
def many_texts() -> ManyTexts:
    from tests.toy_domain import ManyTexts

    return ManyTexts()
