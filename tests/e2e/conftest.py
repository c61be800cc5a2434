"""A repository's root with an empty MLflow store, and one with a finished run at toy size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.registry import new_store


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """Settings, outputs and graph of a run at toy size, and an empty tracking store; take a copy."""
    from tests.e2e.test_stages import through, toy

    root = tmp_path_factory.mktemp("finished")
    settings = toy(pretrain={"steps": 2, "warmup": 1, "layers": 1, "inner": 16})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        through(root, settings, patch)
    (root / "params.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    shutil.rmtree(root / "graph")
    new_store(empty_store, root)
    return root


@pytest.fixture
def root(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for processes that a test starts
    monkeypatch.chdir(tmp_path)
    new_store(empty_store, tmp_path)
    return tmp_path
