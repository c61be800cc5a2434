"""What infra/ promises, against a real PostgreSQL, an S3 server, MLflow's and Prefect's servers and a worker: the
services of compose.yaml, by their own commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from components.commands.promote import promote
from components.commands.rollback import rollback
from components.core.errors import SettingsError
from components.export import NumpyPolicy
from components.tracking import registry, store
from tests.clone import Clone
from tests.messages import has_remedy
from tests.outputs import PICK
from tests.registry import live, train, versions, weight_of
from tests.services import BINARIES, NO_POSTGRES, SECRETS, Services, answers

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.skipif(BINARIES is None, reason=NO_POSTGRES)]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """All of compose.yaml but the worker, over a clone of the repository."""
    clone = Clone(tmp_path_factory.mktemp("clone"))
    services = Services(tmp_path_factory.mktemp("services"), clone.folder)
    try:
        services.start_database()
        services.start("prefect")
        services.start_store()
        for _ in range(2):  # a restarted stack finds its bucket
            services.start("bucket")
            assert services.processes["bucket"].wait() == 0, services.log("bucket")
        services.start("mlflow")
        services.wait("mlflow", lambda: answers(f"http://127.0.0.1:{services.ports['mlflow']}/health"))
        services.wait("prefect", lambda: answers(f"http://127.0.0.1:{services.ports['prefect']}/api/health"))
        yield services
    finally:
        services.end()


@pytest.fixture
def checkout(services: Services, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The worker's checkout; this process tracks where the worker does."""
    monkeypatch.chdir(services.checkout)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", services.environment("worker")["MLFLOW_TRACKING_URI"])
    return services.checkout


def kept(services: Services) -> list[str]:
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{services.ports['store']}",
        aws_access_key_id=SECRETS["S3_USER"],
        aws_secret_access_key=SECRETS["S3_PASSWORD"],
        region_name="us-east-1",
    )
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="mlflow")
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def test_promotion_and_rollback_keep_rows_in_postgres_and_files_in_the_bucket(
    services: Services, checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = promote(train(checkout, iterations=3), checkout, PICK)
    assert first.promote and first.version == "1"
    better = promote(train(checkout, accuracy=0.95, weight=2.0, iterations=3), checkout, PICK)
    assert better.promote and better.version == "2" and better.figures["gain"] > 0
    worse = promote(train(checkout, accuracy=0.5, weight=3.0, iterations=3), checkout, PICK)
    assert not worse.promote and worse.version == "3"

    assert "http" not in capfd.readouterr().out  # MLflow's own links open an empty page about GenAI

    uri = store.tracking_uri(checkout)
    client = store.connect(uri)
    assert live(client) == "2" and weight_of(registry.load_champion("tiny", uri)) == 2.0
    fields = registry.champion_example("tiny", uri)
    assert NumpyPolicy(registry.load_champion("tiny", uri)).choose(fields).any()
    statuses = {str(v.version): v.tags["status"] for v in versions(client)}
    assert statuses == {"1": "promoted", "2": "promoted", "3": "refused"}
    assert rollback(checkout, "tiny", reason="a test").live == "1" and live(client) == "1"
    assert rollback(checkout, "tiny", 2).live == "2"

    assert services.query("mlflow", "select version from model_versions order by version") == [(1,), (2,), (3,)]
    assert services.query("mlflow", "select alias, version from registered_model_aliases") == [("champion", 2)]
    files = kept(services)
    assert sum(name.endswith("/model.onnx") for name in files) >= 3
    assert all(name.startswith("artifacts/") for name in files)
    assert not list(checkout.glob("mlflow.db*")) and not (checkout / "mlartifacts").exists()


def test_a_worker_deploys_and_its_flow_run_is_kept_in_postgres(services: Services, checkout: Path) -> None:
    """Needs the versions of the test before. The flow moves the champion in the registry that the worker names."""
    services.start("worker")
    api = services.environment("worker")
    watch = [sys.executable, "-m", "prefect", "deployment", "run", "rollback-policy/cpu", "-p", "version=1", "--watch"]
    deployed = "select count(*) from deployment"
    services.wait("worker", lambda: services.query("prefect", deployed) == [(10,)])
    done = subprocess.run(watch, cwd=checkout, env=api, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + services.log("worker")
    ((name, state),) = services.query("prefect", "select name, state_type::text from flow_run")
    assert name.startswith("rollback tiny alpha=") and state == "COMPLETED"
    messages = services.query("prefect", "select message from flow_run_state where type = 'COMPLETED'")
    assert messages == [("version 1 is live, version 2 is withdrawn: rolled back to version 1",)]
    assert live(store.connect(store.tracking_uri(checkout))) == "1"
    shared = "select table_name from information_schema.tables where table_name in ('flow_run', 'model_versions')"
    assert [services.query(database, shared) for database in ("prefect", "mlflow")] == [
        [("flow_run",)],
        [("model_versions",)],
    ]


def test_a_database_that_is_gone_is_one_sentence_without_the_password(tmp_path: Path, services: Services) -> None:
    uri = services.environment("mlflow")["MLFLOW_BACKEND_STORE_URI"].replace("/mlflow", "/absent")
    with pytest.raises(SettingsError, match="cannot be used") as refused:
        store.connect(uri)
    assert SECRETS["POSTGRES_PASSWORD"] not in str(refused.value) and has_remedy(str(refused.value))
