"""A repository's root with an empty MLflow store."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.tracking import store
from tests.registry import new_store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """Making the tables takes seconds; every test starts from a copy."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def root(tmp_path, empty_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for processes that a test starts
    monkeypatch.chdir(tmp_path)
    new_store(empty_store, tmp_path)
    return tmp_path
