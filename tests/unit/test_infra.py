"""The infrastructure files against the code and against each other; nothing is started."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.utilities.importtools import import_object
from prefect.utilities.schema_tools import validate
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from components.core.errors import SettingsError
from components.tracking.abandoned import started
from flows import deploy
from flows.stack import Stack, main, next_steps

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def _yaml(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


# --- deployments --------------------------------------------------------------------------------------------------

DEPLOYMENTS = _yaml("prefect.yaml")["deployments"]
FLOWS = ("train-policy", "sweep", "evaluate-policy", "promote-policy", "rollback-policy")


def _environment(pool: str) -> list[dict[str, str]]:
    return [d["work_pool"]["job_variables"]["env"] for d in DEPLOYMENTS if d["work_pool"]["name"] == pool]


def test_every_flow_is_deployed_on_every_pool_with_parameters_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = []
    for deployment in DEPLOYMENTS:
        flow = import_object(deployment["entrypoint"])
        given = deployment.get("parameters", {})
        assert given.items() <= flow.validate_parameters(given).items()
        assert deployment["name"] == deployment["work_pool"]["name"] and deployment["description"]
        found.append((flow.name, deployment["name"]))
    assert sorted(found) == sorted((flow, pool) for flow in FLOWS for pool in deploy.POOLS)


def test_only_the_gpu_deployments_ask_for_a_gpu() -> None:
    assert {environment["UNMASK_DEVICE"] for environment in _environment("cpu")} == {"cpu"}
    assert {environment["UNMASK_DEVICE"] for environment in _environment("gpu")} == {"cuda"}


def test_a_run_enters_the_checkout_of_its_own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pull step of every deployment is one of ours: Prefect's own would note the folder of whoever deployed."""
    (step,) = _yaml("prefect.yaml")["pull"]
    assert step == {"flows.deploy.enter_checkout": {}}
    assert not any("pull" in deployment for deployment in DEPLOYMENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNMASK_REPOSITORY", raising=False)
    with pytest.raises(SettingsError, match="UNMASK_REPOSITORY"):
        deploy.enter_checkout()
    (tmp_path / "dvc.yaml").touch()
    assert deploy.enter_checkout() == {"directory": str(tmp_path)}  # a Kubernetes job starts in the checkout
    monkeypatch.setenv("UNMASK_REPOSITORY", str(ROOT))
    assert import_object(*step)() == {"directory": str(ROOT)}


# --- dead runs ----------------------------------------------------------------------------------------------------


def _heartbeat() -> EventTrigger:
    trigger = AutomationCore.model_validate(_yaml("heartbeat.yaml")).trigger
    assert isinstance(trigger, EventTrigger)
    return trigger


@pytest.mark.parametrize("where", ["cpu", "gpu", "worker", "stack", "python -m"])
def test_a_healthy_run_may_miss_a_heartbeat_before_it_is_declared_dead(where: str) -> None:
    environments = {
        "cpu": lambda: _environment("cpu")[0],
        "gpu": lambda: _environment("gpu")[0],
        "worker": lambda: _yaml("compose.yaml")["services"]["worker"]["environment"],
        "stack": lambda: Stack(ROOT, {"prefect": 1, "mlflow": 2}).environment(),
        "python -m": lambda: _fresh_environment("flows.train_policy"),
    }
    every = int(environments[where]()["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert 2 * every < _heartbeat().within.total_seconds() <= 90


def _fresh_environment(module: str) -> dict[str, str]:
    code = f"import {module}, json, os; print(json.dumps(dict(os.environ)))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return json.loads(subprocess.run([sys.executable, "-c", code], env=clean, cwd=ROOT, capture_output=True).stdout)


def test_every_way_to_end_or_rest_stops_the_wait_for_the_next_heartbeat() -> None:
    resting = {StateType.PAUSED, StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED}
    names = {f"prefect.flow-run.{state.value.capitalize()}" for state in resting} | {"prefect.flow-run.Suspended"}
    assert names | {"prefect.flow-run.heartbeat"} == _heartbeat().expect


# --- compose ------------------------------------------------------------------------------------------------------

SERVICES: dict[str, dict[str, Any]] = _yaml("compose.yaml")["services"]


def test_secrets_come_from_the_environment_and_must_be_set() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|USER", variable):
                assert re.fullmatch(r"\$\{\w+:\?.*\}", value), f"{name}: {variable}"
            if "://" in str(value) and "@" in str(value):
                assert re.search(r"://\w+:\$\{\w+:\?\}@", value), f"{name}: {variable}"


def test_prefect_and_mlflow_have_databases_of_their_own_and_both_are_made() -> None:
    prefect = SERVICES["prefect"]["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    mlflow = SERVICES["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    made = re.findall(r"CREATE DATABASE (\w+);", (INFRA / "databases.sql").read_text())
    assert sorted(address.rpartition("/")[2] for address in (prefect, mlflow)) == sorted(made)
    assert mlflow.startswith("postgresql+psycopg2://")  # plain postgresql:// is psycopg 3 to SQLAlchemy 2.1


def test_mlflow_lets_in_every_name_that_the_services_call_it_by_with_and_without_port() -> None:
    allowed = SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    called = SERVICES["worker"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert {called, called.partition(":")[0], "localhost", "localhost:*"} <= set(allowed)


def test_services_wait_for_services_that_exist_and_mount_what_exists() -> None:
    volumes = _yaml("compose.yaml")["volumes"]
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            needs_check = how["condition"] == "service_healthy"
            assert not needs_check or "healthcheck" in SERVICES[other], f"{name} waits for {other}'s health for ever"
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in volumes or (INFRA / source).exists(), f"{name} mounts {source}"


def test_ports_are_published_to_this_machine_alone() -> None:
    assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service.get("ports", []))


def test_the_image_is_built_from_what_the_repository_has() -> None:
    dockerfile = (INFRA / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for name in line.split()]
    assert copied and all((ROOT / name).exists() for name in copied)
    (extra,) = re.findall(r"'\.\[(\w+)\]'", dockerfile)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = {Requirement(line).name for line in project["optional-dependencies"][extra]}
    assert {"psycopg2-binary", "boto3", "prefect-kubernetes"} <= needs  # of compose.yaml's addresses and the pool gpu


# --- Kubernetes ---------------------------------------------------------------------------------------------------

TEMPLATE = json.loads((INFRA / "kubernetes" / "job-template.json").read_text())


def test_the_job_template_uses_every_variable_that_it_declares_and_declares_what_it_uses() -> None:
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(TEMPLATE["variables"]["properties"])


def test_a_job_gets_the_gpus_that_are_asked_for_and_finds_its_worktree_again() -> None:
    pod = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "prefect-job"  # Prefect's Kubernetes worker takes no other
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert TEMPLATE["variables"]["properties"]["gpus"]["type"] == "integer"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["workingDir"] in mounts.values()
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)


@pytest.mark.parametrize("flow", FLOWS)
def test_the_kubernetes_worker_makes_a_whole_job_of_the_template_and_a_deployment(
    flow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (deployment,) = [d for d in DEPLOYMENTS if d["name"] == "gpu" and import_object(d["entrypoint"]).name == flow]
    validate(deployment["work_pool"]["job_variables"], TEMPLATE["variables"], raise_on_error=True)
    values = {"name": "a-run", "command": "prefect flow-run execute"} | deployment["work_pool"]["job_variables"]
    nobody: Any = object()  # the template refers to nothing on a server
    job = asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(TEMPLATE, values, client=nobody))
    text = json.dumps(job.model_dump(mode="json"))
    assert (
        "{{" not in text and job.namespace == "default" and job.env == deployment["work_pool"]["job_variables"]["env"]
    )
    (container,) = job.job_manifest["spec"]["template"]["spec"]["containers"]
    gpus = 0 if flow == "rollback-policy" else 1
    assert container["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": gpus}
    assert container["args"] == "prefect flow-run execute" and container["image"] == "unmask-policies:latest"


# --- the local stack ----------------------------------------------------------------------------------------------


def _stack(folder: Path, **processes: dict[str, Any]) -> Stack:
    (folder / ".stack").mkdir()
    state = {"ports": {"prefect": 7, "mlflow": 8}, "processes": processes}
    (folder / ".stack" / "state.json").write_text(json.dumps(state))
    return Stack(folder, {"prefect": 4200, "mlflow": 5000})


def test_a_stranger_with_a_services_old_number_is_not_the_service(tmp_path: Path) -> None:
    stack = _stack(tmp_path, prefect={"pid": os.getpid(), "created": 1.0})
    assert stack.alive("prefect") is None
    assert stack.ports == {"prefect": 4200, "mlflow": 5000}  # nothing is up: the ports asked for now count


@pytest.mark.parametrize("process", [[], {"pid": "7", "created": 1.0}, {"pid": 7}, {"pid": None, "created": "now"}])
def test_a_state_of_another_type_is_taken_for_empty(tmp_path: Path, process: Any) -> None:
    stack = _stack(tmp_path, prefect=process)
    assert not stack.processes and stack.ports == {"prefect": 4200, "mlflow": 5000}


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "4200.5"])
def test_a_port_that_is_none_is_refused(port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("UNMASK_PREFECT_PORT", port)
    monkeypatch.setattr(sys, "argv", ["flows.stack", "status"])
    with pytest.raises(SystemExit):
        main()
    assert f"{port!r} is no port. Use a number" in capsys.readouterr().err


def test_a_deployment_that_fails_is_told_without_the_server_s_password(monkeypatch: pytest.MonkeyPatch) -> None:
    said = subprocess.CompletedProcess([], 1, "no answer from http://me:hidden@host/api", "")
    monkeypatch.setattr(deploy.subprocess, "run", lambda *args, **more: said)
    monkeypatch.setattr(deploy, "ask", lambda *args: {"id": 1})
    monkeypatch.setenv("PREFECT_API_URL", "http://me:hidden@host/api")
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="ended with code 1") as ended:
        deploy.main()
    assert "hidden" not in str(ended.value)


def test_what_is_up_keeps_its_ports_whatever_is_asked_for(tmp_path: Path) -> None:
    import psutil

    stack = _stack(tmp_path, prefect={"pid": os.getpid(), "created": started(psutil.Process())})
    assert stack.alive("prefect")
    assert stack.api == "http://127.0.0.1:7/api"


def test_whoever_watches_a_run_is_told_where_its_log_is(tmp_path: Path) -> None:
    stack = _stack(tmp_path)
    stack.start("worker-cpu", [sys.executable, "-c", "print('a line of the flow run')"])
    process = stack.alive("worker-cpu")
    assert process is None or process.wait(20) in (0, None)
    (command,) = [line.partition(":")[2].strip() for line in next_steps(stack) if "tail -f" in line]
    assert "a line of the flow run" in Path(command.removeprefix("tail -f ")).read_text(encoding="utf-8")


def test_a_taken_port_is_refused_by_name_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        stack = Stack(tmp_path, {"prefect": taken.getsockname()[1], "mlflow": 5000})
        with pytest.raises(SettingsError, match=rf"port {stack.ports['prefect']} is taken.*--prefect-port"):
            stack.start("prefect", ["false"])
    assert not stack.processes


def test_the_mlflow_page_reads_the_store_that_the_stages_write_and_a_remote_store_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.tracking.store import tracking_uri

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stack = Stack(tmp_path, {"prefect": 4200, "mlflow": 5000})
    assert "mlflow" in stack.commands()
    assert stack.private()["MLFLOW_BACKEND_STORE_URI"] == tracking_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hidden@host/mlflow")
    assert "hidden" not in str(stack.commands())  # command lines are read by every user of the machine
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert "mlflow" not in stack.commands()


@pytest.mark.parametrize(
    "path", sorted(path for path in INFRA.rglob("*") if path.is_file()), ids=lambda path: path.name
)
def test_no_file_names_a_package_index_or_a_folder_of_somebodys_machine(path: Path) -> None:
    assert not re.search(r"pypi|index-url|extra-index|/home/|/Users/|/work/", path.read_text())


def test_flows_wait_for_a_slow_server_ask_nobody_and_keep_to_the_checkout(tmp_path: Path) -> None:
    """Prefect's own 20 s are too short on a busy machine; its profile and its telemetry are the user's affair."""
    said = "import json, os, flows; print(json.dumps(dict(os.environ)))"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DO_NOT"))}
    done = subprocess.run(
        [sys.executable, "-c", said], cwd=tmp_path, env=plain | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    found = json.loads(done.stdout)
    assert int(found["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"]) >= 180
    assert found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false" and found["DO_NOT_TRACK"] == "true"
    assert found["PREFECT_HOME"] == str(tmp_path / ".prefect")


@pytest.mark.parametrize("venv", [".venv", "/elsewhere/venv"])
def test_make_finds_the_commands_of_its_environment_wherever_that_is(venv: str) -> None:
    show = ["make", "--silent", "-C", str(ROOT), f"VENV={venv}", "--eval", "shown: ; @echo $$PATH", "shown"]
    found = subprocess.run(show, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    assert found.split(os.pathsep)[0] == str(ROOT / venv / "bin")  # a path that begins with / replaces ROOT


def test_make_train_repairs_what_a_killed_dvc_left_before_it_runs_dvc() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ntrain:")[2].partition("\n\n")[0]
    assert [line.strip() for line in recipe.splitlines()[1:]] == ["unmask repair", "dvc repro", "unmask promote"]
