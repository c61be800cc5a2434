"""Flow train-policy for real, with Prefect, Git and DVC, over a small repository made on the spot.

Its stages take no time, note in a journal that they ran, and do what the test asks of them: fail, or hang.
"""

import contextlib
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, LogFilter
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.events.worker import EventsWorker
from prefect.exceptions import ParameterTypeError
from prefect.flow_engine import run_flow
from prefect.logging.handlers import APILogHandler, APILogWorker
from prefect.settings import PREFECT_API_URL
from prefect.states import Scheduled
from prefect.testing.utilities import prefect_test_harness

from components.commands.rollback import Rollback
from flows import deploy, parameters
from flows.evaluate import evaluate_policy
from flows.promote import promote_policy
from flows.rollback import rollback_policy
from flows.sweep import sweep
from flows.train_policy import train_policy

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]

STAGE = """
import json, os, sys, time
from pathlib import Path

name, value = sys.argv[1:]
with open(os.environ["JOURNAL"], "a") as journal:
    journal.write(f"{name} {value} {os.getcwd()}\\n")
print(f"{name} says {value}")
if any(Path(os.environ["JOURNAL"]).with_name(f"break-{what}").exists() for what in (name, f"{name}-{value}")):
    sys.exit(f"{name} is broken")
if Path(os.environ["JOURNAL"]).with_name(f"hang-{name}").exists():
    with open(Path(os.environ["JOURNAL"]).with_name(f"hang-{name}"), "w") as line:
        line.write(f"{os.getpid()}\\n")
    time.sleep(600)
for folder in ("metrics", "report", "made"):
    Path("outputs/tiny", folder).mkdir(parents=True, exist_ok=True)
Path(f"outputs/tiny/made/{name}").write_text(f"{name} {value}")
if name == "train":
    Path("outputs/tiny/metrics/train.json").write_text(json.dumps({"reward": {"mean": float(value)}}))
if name == "report":
    trained = json.loads(Path("outputs/tiny/metrics/train.json").read_text())["reward"]["mean"]
    figures = {"accuracy": trained / 10, "nfe": 4.0, "front": 0.45, "above_front": trained / 10 - 0.45}
    figures = {"learned_mode": figures}
    Path("outputs/tiny/metrics/evaluate-sudoku.json").write_text(json.dumps(figures))
    Path("outputs/tiny/report/pareto.png").write_bytes(b"\\x89PNG the picture")
    Path("outputs/tiny/report/table.md").write_text("| policy | accuracy |\\n|---|---|\\n| learned | 0.9 |\\n")
"""
# The stages are written in the wrong order on purpose.
DVC = """\
vars: [params.yaml]
stages:
  report:
    cmd: python stage.py report 0
    deps: [outputs/tiny/made/train, outputs/tiny/made/pretrain-mini-dream]
    outs: [outputs/tiny/report]
    metrics: [{outputs/tiny/metrics/evaluate-sudoku.json: {cache: false}}]
  gate:
    cmd: python stage.py gate 0
    deps: [outputs/tiny/made/train]
    outs: [outputs/tiny/made/gate]
  train:
    cmd: python stage.py train ${train.seed}
    deps: [outputs/tiny/made/pretrain-mini-llada]
    outs: [outputs/tiny/made/train]
    metrics: [{outputs/tiny/metrics/train.json: {cache: false}}]
  pretrain:
    foreach: ${models}
    do:
      cmd: python stage.py pretrain-${key} 0
      deps: [stage.py]
      outs: ["outputs/tiny/made/pretrain-${key}"]
"""
# Found before the real one by `python -m components.cli` in the worktree.
CLI = """\
import json, os, sys
verdict = {"arguments": sys.argv[1:], "store": os.environ["MLFLOW_TRACKING_URI"], "folder": os.getcwd()}
verdict |= {"page": os.environ.get("UNMASK_FLOW_PAGE", "")}
verdict |= {"promote": True, "version": "3", "reason": "above", "figures": {"score": 0.051}}
print(json.dumps(verdict))
with open(sys.argv[sys.argv.index("--verdict") + 1], "w", encoding="utf-8") as file:
    json.dump(verdict, file)
print('{"a library": "warns at its exit"}')
"""


@pytest.fixture(scope="module")
def prefect() -> Iterator[str]:
    with prefect_test_harness(server_startup_timeout=180):  # a busy machine needs more than the 30 s of Prefect
        yield PREFECT_API_URL.value()
        # Their connection's keepalive draws from the global `random`, in the middle of other modules' tests.
        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(timeout=30)
        for thread in threading.enumerate():
            if thread.name == "EventsWorkerThread":
                thread.join(timeout=30)
                assert not thread.is_alive()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, check=True)
    for name in ("components", "profiles", "infra"):
        (folder / name).mkdir()
    files = {"stage.py": STAGE, "dvc.yaml": DVC, "components/__init__.py": "", "components/cli.py": CLI}
    files |= {name: (ROOT / name).read_text() for name in ("params.yaml", "profiles/gpu.yaml", "infra/dvc.yaml")}
    files |= {".gitignore": "/outputs/\n/.worktrees/\n"}
    for name, text in files.items():
        (folder / name).write_text(text)
    _commit(folder)
    return folder


def _toy(template: Path, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "UNMASK_DEVICE"):
        patch.delenv(name, raising=False)
    patch.setenv("JOURNAL", str(folder / "journal"))
    (folder / "journal").touch()
    return Path(shutil.copytree(template, folder / "toy"))


@pytest.fixture
def toy(prefect: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return _toy(template, tmp_path, monkeypatch)


@dataclass(frozen=True)
class Finished:
    """A checkout with uncommitted edits, as it was before and is after a run of the flow with seed 5."""

    toy: Path
    before: dict[str, str]
    run: FlowRun


@pytest.fixture(scope="module")
def finished(prefect: str, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    with pytest.MonkeyPatch.context() as patch:
        toy = _toy(template, tmp_path_factory.mktemp("finished"), patch)
        (toy / "stage.py").write_text("raise SystemExit('not committed')")
        (toy / "new.py").touch()
        before = _checkout(toy)
        yield Finished(toy, before, _run(_created(repository=str(toy), seed=5)))


def _journal(toy: Path) -> list[str]:
    """A line `stage value folder` for each stage that did work, in order."""
    return (toy.parent / "journal").read_text().splitlines()


def _ran(toy: Path) -> list[str]:
    return [line.split()[0] for line in _journal(toy)]


def _commit(folder: Path) -> None:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    subprocess.run(["git", *author, "commit", "--quiet", "-m", "toy"], cwd=folder, check=True)


def _next_line(fifo: Path) -> str:
    """What a process writes into the named pipe; waits for it, at most a minute."""
    line = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert select.select([line], [], [], 60)[0], "the stage did not start"
    with os.fdopen(line) as file:
        return file.readline()


def _worktrees(toy: Path) -> list[Path]:
    return sorted((toy / ".worktrees").glob("*"))


def _checkout(toy: Path) -> dict[str, str]:
    """Every file of the checkout but Git's and DVC's own, by content."""
    files = (path for path in toy.rglob("*") if path.is_file() and not {".git", ".dvc"} & set(path.parts))
    return {str(path.relative_to(toy)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _created(**parameters: object) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.create_flow_run(train_policy, parameters=parameters)


def _run(run: FlowRun) -> FlowRun:
    """Run, or retry, a flow run that the server knows already, as a worker would. Returns it as it ended."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Scheduled(), force=True)
        run = client.read_flow_run(run.id)
        with contextlib.suppress(Exception):
            run_flow(train_policy, flow_run=run, parameters=run.parameters)
        return client.read_flow_run(run.id)


def _log(run: FlowRun) -> list[str]:
    APILogHandler().flush()
    with get_client(sync_client=True) as client:
        return [log.message for log in client.read_logs(LogFilter.model_validate({"flow_run_id": {"any_": [run.id]}}))]


def _artifact(key: str, run: FlowRun) -> str:
    """What the run shows under this key."""
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(
            artifact_filter=ArtifactFilter.model_validate({"key": {"any_": [key]}, "flow_run_id": {"any_": [run.id]}})
        )
    return str(found.data)


def _task_runs(run: FlowRun) -> list[TaskRun]:
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}}))
    return sorted(found, key=lambda task: str(task.start_time))


def test_a_run_follows_the_graph_then_shows_and_promotes(finished: Finished) -> None:
    assert finished.run.state and finished.run.state.is_completed()
    names = [task.name for task in _task_runs(finished.run)]
    assert names[:2] == ["preflight", "worktree"] and names[-1] == "promote"
    assert sorted(names[2:4]) == ["pretrain@mini-dream", "pretrain@mini-llada"] and names[4] == "train"
    assert sorted(names[5:-1]) == ["gate", "report"]


def test_the_runs_graph_has_the_edges_that_dvc_knows(finished: Finished) -> None:
    runs = {task.id: task for task in _task_runs(finished.run)}
    edges: dict[str, list[str]] = {}
    for task in runs.values():
        waited: list[Any] = task.task_inputs.get("wait_for", [])
        edges[task.name] = sorted(runs[i.id].name for i in waited)
    stages = {name: needs for name, needs in edges.items() if name not in ("preflight", "worktree", "promote")}
    assert stages == {
        "pretrain@mini-llada": [],
        "pretrain@mini-dream": [],
        "train": ["pretrain@mini-llada"],
        "gate": ["train"],
        "report": ["pretrain@mini-dream", "train"],
    }


def test_name_tags_and_last_state_say_what_the_run_was_and_what_came_of_it(finished: Finished) -> None:
    alpha = parameters.validated((ROOT / "params.yaml").read_text(encoding="utf-8")).train.alpha
    assert finished.run.name == f"train tiny alpha={alpha:g} seed=5"
    assert set(finished.run.tags) == {"profile:tiny", f"alpha:{alpha:g}", "seed:5"}
    state = finished.run.state
    assert state and (state.name, state.message) == ("Completed", "promoted version 3, +5.1 points")


def test_the_log_has_a_line_for_each_stage_with_its_result(finished: Finished) -> None:
    lines = [line for line in _log(finished.run) if re.match(r"[\w@-]+: (ran in \d+ s|up to date)", line)]
    stages = ["gate", "pretrain@mini-dream", "pretrain@mini-llada", "report", "train"]
    assert sorted(line.partition(":")[0] for line in lines) == stages
    assert any(re.fullmatch(r"train: ran in \d+ s, reward/mean 5", line) for line in lines)


def test_every_line_of_a_stage_is_in_the_flows_log(finished: Finished) -> None:
    assert "train says 5" in _log(finished.run)


def test_the_promotion_sees_the_worktrees_files_and_the_checkouts_store(finished: Finished) -> None:
    verdict = json.loads(next(line for line in _log(finished.run) if line.startswith('{"arguments"')))
    assert verdict["arguments"][:2] == ["promote", "--verdict"]
    assert Path(verdict["folder"]).parent == finished.toy / ".worktrees"
    assert verdict["store"] == f"sqlite:///{finished.toy}/mlflow.db"  # the worktree's would go with it
    assert verdict["page"].startswith("http") and verdict["page"].endswith(f"/flow-run/{finished.run.id}")


def test_the_figures_and_the_picture_are_artifacts(finished: Finished) -> None:
    metrics = _artifact("tiny-metrics", finished.run)
    assert "| learned | 0.9 |" in metrics and "| train | reward/mean | 5 |" in metrics
    assert "data:image/png;base64," in _artifact("tiny-pareto", finished.run)
    assert _artifact("tiny-verdict", finished.run).startswith("# promoted version 3, +5.1 points")
    (row,) = json.loads(_artifact("tiny-results", finished.run))
    assert (row["case"], row["difference"]) == ("evaluate-sudoku", "+5.0")
    assert "MLflow run none" in _artifact("tiny-links", finished.run)  # the toy tracks nothing


def test_artifacts_belong_to_the_flow_run_and_to_no_task(finished: Finished) -> None:
    with get_client(sync_client=True) as client:
        of_run = ArtifactFilter.model_validate({"flow_run_id": {"any_": [finished.run.id]}})
        found = client.read_artifacts(artifact_filter=of_run)
    shown = {artifact.key for artifact in found if artifact.key and artifact.task_run_id is None}
    assert shown >= {f"tiny-{name}" for name in ("verdict", "results", "metrics", "pareto", "links")}


def test_a_run_works_on_head_and_names_what_it_leaves_behind(finished: Finished) -> None:
    (warning,) = [line for line in _log(finished.run) if "differ from HEAD" in line]
    assert "2 file(s)" in warning and "stage.py" in warning and "new.py" in warning


def test_the_checkout_is_left_alone(finished: Finished) -> None:
    assert _checkout(finished.toy) == finished.before and not _worktrees(finished.toy)


def test_the_same_run_again_does_nothing_and_still_shows_its_figures(finished: Finished) -> None:
    done = _ran(finished.toy)
    again = _run(_created(repository=str(finished.toy), seed=5))
    assert again.state and again.state.is_completed()
    assert _ran(finished.toy) == done
    assert "| train | reward/mean | 5 |" in _artifact("tiny-metrics", again)


def test_a_stage_that_fails_is_tried_once_more_and_a_retried_run_skips_what_is_done(toy: Path) -> None:
    (toy.parent / "break-train").touch()
    run = _run(_created(repository=str(toy)))
    assert run.state and run.state.is_failed() and "train is broken" in str(run.state.message)
    assert _ran(toy).count("train") == 2 and _ran(toy)[-1] == "train"
    kept = _worktrees(toy)
    assert len(kept) == 1
    (toy.parent / "break-train").unlink()
    run = _run(run)
    assert run.state and run.state.is_completed() and run.run_count == 2
    made = ["pretrain-mini-llada", "pretrain-mini-dream", *["train"] * 3, "report", "gate"]
    assert sorted(_ran(toy)) == sorted(made)
    assert f"taking up worktree {kept[0]}" in _log(run)
    assert not _worktrees(toy)


def test_parameters_out_of_bounds_and_settings_that_cannot_work_make_nothing(toy: Path) -> None:
    with pytest.raises(ParameterTypeError, match="alpha"):
        train_policy(repository=str(toy), alpha=-1)
    params = (toy / "params.yaml").read_text()
    (toy / "params.yaml").write_text(params.replace("iterations:", "itrations:"))
    _commit(toy)
    run = _run(_created(repository=str(toy)))
    assert run.state and run.state.is_failed() and "itrations is not a setting" in str(run.state.message)
    assert not _ran(toy) and not _worktrees(toy)


def test_without_a_gpu_the_gpu_profile_fails_at_its_first_task_and_says_so(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = _run(_created(repository=str(toy), profile="gpu"))
    assert run.state and run.state.is_failed() and "sees no GPU on this machine" in str(run.state.message)
    assert [task.name for task in _task_runs(run)] == ["preflight"]
    assert not _ran(toy) and not _worktrees(toy)


def test_a_sweep_shows_every_policy_and_goes_on_after_one_that_failed(toy: Path) -> None:
    (toy.parent / "break-train-7").touch()
    failed, done = sweep(seeds=[7, 8], repository=str(toy))
    assert (failed["seed"], failed["state"]) == (7, "Failed") and "train is broken" in failed["message"]
    assert done == {
        **{"alpha": 1.0, "seed": 8, "state": "Completed"},
        **{"task": "sudoku", "policy": "learned_mode", "accuracy": 0.8, "nfe": 4.0},
        **{"front": 0.45, "above_front": pytest.approx(0.35)},
    }


def test_an_evaluation_runs_what_it_needs_and_promotes_nothing(toy: Path) -> None:
    found = evaluate_policy(groups=["gate"], repository=str(toy), return_state=True)
    assert found.is_completed() and str(found.message).startswith("evaluated gate: 3 stages")
    assert _ran(toy) == ["pretrain-mini-llada", "train", "gate"] and not _worktrees(toy)
    assert found.result()["stages"] == ["pretrain@mini-llada", "train", "gate"]


def test_the_last_state_of_a_promotion_and_of_a_rollback_says_what_was_done(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def rollback(*given: object) -> Rollback:
        asked.extend(given)
        return Rollback("2", "3", "wrong on long prompts")

    monkeypatch.setattr("components.commands.rollback.rollback", rollback)
    state = rollback_policy(version=2, reason="wrong on long prompts", repository=str(toy), return_state=True)
    assert state.message == "version 2 is live, version 3 is withdrawn: wrong on long prompts"
    assert asked == [toy, "tiny", 2, "wrong on long prompts"]
    state = promote_policy(dry_run=True, repository=str(toy), return_state=True)
    assert state.message == "dry run, nothing changed: promoted version 3, +5.1 points"


def test_a_server_takes_every_deployment_without_a_path_of_whoever_deployed(prefect: str) -> None:
    """The pool gpu is one of Kubernetes jobs, as on a cluster: the server checks the template and what fills it."""
    template = json.loads((ROOT / "infra/kubernetes/job-template.json").read_text(encoding="utf-8"))
    pool = WorkPoolCreate(name="gpu", type="kubernetes", base_job_template=template)
    with get_client(sync_client=True) as client:
        client.create_work_pool(pool)
        deploy.deploy(ROOT, prefect, {})
        made = client.read_deployments()
    assert {deployment.work_pool_name for deployment in made} == set(deploy.POOLS)
    assert len(made) == 2 * len({deployment.flow_id for deployment in made}) == 10
    for deployment in made:
        assert deployment.pull_steps == [{"flows.deploy.enter_checkout": {}}]
        assert str(ROOT) not in deployment.model_dump_json() and str(Path.home()) not in deployment.model_dump_json()


def _start(toy: Path, seed: int) -> subprocess.Popen[str]:
    """A flow run in a process and a session of its own, as a worker starts it."""
    command = [sys.executable, "-m", "flows.train_policy", "--repository", str(toy), "--seed", str(seed)]
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_two_runs_at_once_do_not_disturb_each_other_nor_the_checkout(toy: Path) -> None:
    before = _checkout(toy)
    runs = [_start(toy, seed) for seed in (1, 2)]
    for run in runs:
        said, _ = run.communicate(timeout=100)
        assert run.returncode == 0, said
    folders = {line.split()[1]: line.split()[2] for line in _journal(toy) if line.startswith("train ")}
    assert set(folders) == {"1", "2"} and len(set(folders.values())) == 2
    assert _checkout(toy) == before and not _worktrees(toy)


@pytest.mark.parametrize("how", ["cancel", "kill -9"])
def test_a_run_that_is_ended_leaves_no_process_behind_and_can_be_taken_up_again(toy: Path, how: str) -> None:
    hung = toy.parent / "hang-train"
    os.mkfifo(hung)
    flow = _start(toy, seed=3)
    trainer = psutil.Process(int(_next_line(hung)))
    family = [trainer, *psutil.Process(flow.pid).children(recursive=True)]
    if how == "cancel":
        os.killpg(flow.pid, signal.SIGTERM)  # what Prefect's worker does
    else:
        os.kill(flow.pid, signal.SIGKILL)
    flow.communicate(timeout=60)
    assert not psutil.wait_procs(family, timeout=30)[1]
    hung.unlink()
    with get_client(sync_client=True) as client:
        (run,) = [run for run in client.read_flow_runs() if run.parameters.get("repository") == str(toy)]
    if how == "cancel":
        assert run.state and run.state.is_final()  # after kill -9 the worker, or the missing heartbeat, sees to that
    run = _run(run)
    assert run.state and run.state.is_completed()
    assert _ran(toy).count("pretrain-mini-llada") == 1 and not _worktrees(toy)


def test_without_a_server_the_run_keeps_to_the_checkout_and_no_password_is_kept(toy: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".prefect").mkdir(parents=True)
    # A profile that would send everything elsewhere.
    profile = 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    (home / ".prefect" / "profiles.toml").write_text(profile, encoding="utf-8")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "XDG_"))}
    secret = "s3cr3t-of-the-store"
    done = subprocess.run(
        [sys.executable, "-m", "flows.train_policy", "--repository", str(toy), "--seed", "4"],
        cwd=toy,
        env={
            **plain,
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "PYTHONSAFEPATH": "1",  # the toy has a folder `components` of its own
            "MLFLOW_TRACKING_URI": f"http://user:{secret}@127.0.0.1:9/",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout[done.stdout.index("{\n") :])["promotion"]["store"] == "http://***@127.0.0.1:9/"
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["profiles.toml"]
    kept = [path for path in (toy / ".prefect").rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in kept)
    assert not [path for path in kept if secret.encode() in path.read_bytes()]
    assert secret not in done.stdout + done.stderr
