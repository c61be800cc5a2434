"""What goes live survives kills, moves, purges and missing rights: promotions stopped at every step and repeated."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from components.commands import doctor
from components.commands.promote import promote
from components.commands.rollback import rollback
from components.core.errors import DataError, PromotionRefused
from components.tracking import abandoned, registry, store
from tests.outputs import PICK, result, results, write_export, write_gate, write_trained
from tests.registry import everything, live, model_file, new_store, run_python, train, versions, weight_of

pytestmark = pytest.mark.e2e
CHAMPION = "models:/unmasking-policy-tiny@champion"
CHANGING = ("create_", "log_", "set_", "update_", "finalize_", "delete_", "restore_")
CHANGES = [name for name in dir(MlflowClient) if name.startswith(CHANGING)]


class Killed(BaseException):
    """No `except Exception` stops it."""


class Steps:
    """Counts the calls that change something, and stops before the one that has this number."""

    def __init__(self, patch: pytest.MonkeyPatch, stop: int | None = None) -> None:
        self.names: list[str] = []
        for name in CHANGES:
            patch.setattr(MlflowClient, name, self._watched(name, getattr(MlflowClient, name), stop))

    def _watched(self, name: str, call: Callable[..., Any], stop: int | None):
        def watched(*args: Any, **kwargs: Any):
            if len(self.names) == stop:
                raise Killed
            self.names.append(name)
            return call(*args, **kwargs)

        return watched


@pytest.fixture(scope="module")
def trained(empty_store: Path, tmp_path_factory: pytest.TempPathFactory):
    """A repository with the outputs of one training, and nothing promoted; take a copy."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        new_store(empty_store, folder)
        train(folder, iterations=3)
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of it; its store comes along."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for processes that a test starts
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "here"))


def assert_live(root: Path, weight: float = 1.0, version: str = "1"):
    """The champion is this version, READY, and its file opens and is this policy."""
    uri = store.tracking_uri(root)
    client = store.connect(uri)
    assert live(client) == version
    found = registry.champion(client, "tiny")
    assert found is not None and registry.defect(client, found) is None
    assert weight_of(registry.policy_path(CHAMPION, uri)) == weight
    assert registry.load_evidence(client, found) is not None


# kills


def test_a_promotion_stopped_at_any_step_and_repeated_ends_where_it_would_have(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        promote(shutil.copytree(trained, tmp_path / "whole") / "outputs" / "tiny", tmp_path / "whole", PICK)
    assert {"create_logged_model", "log_model_artifacts", "finalize_logged_model"} <= set(steps.names)
    assert {"create_model_version", "log_dict", "set_registered_model_alias"} <= set(steps.names)
    for stop, name in enumerate(steps.names):
        root = Path(shutil.copytree(trained, tmp_path / f"{stop}"))
        with monkeypatch.context() as patch:
            Steps(patch, stop)
            with pytest.raises(Killed):
                promote(root / "outputs" / "tiny", root, PICK)
        client = store.connect(store.tracking_uri(root))
        assert registry.champion(client, "tiny") is None, f"live before {name}"
        verdict = promote(root / "outputs" / "tiny", root, PICK)
        assert (verdict.promote, verdict.version) == (True, "1"), name
        assert_live(root)
        (version,) = versions(client)
        assert version.tags["status"] == "promoted" and version.description == str(verdict), name
        shutil.rmtree(root)


def torn_copies(patch: pytest.MonkeyPatch, count: int):
    """The next upload ends after this many files, the last one half."""
    seen = []

    def torn(source: str, target: str, *args: Any, **kwargs: Any):
        seen.append(target)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        data = Path(source).read_bytes()
        Path(target).write_bytes(data if len(seen) < count else data[: len(data) // 2])
        if len(seen) == count:
            raise Killed

    patch.setattr(shutil, "copyfile", torn)
    patch.setattr(shutil, "copy2", torn)


@pytest.mark.parametrize("before", ["log_model_artifacts", "log_dict"])
def test_a_file_torn_in_the_middle_of_an_upload_is_sent_again(here: Path, monkeypatch: pytest.MonkeyPatch, before: str):
    outputs = here / "outputs" / "tiny"
    for count in (1, 3) if before == "log_model_artifacts" else (1,):
        with monkeypatch.context() as patch:
            whole = getattr(MlflowClient, before)

            def tear(
                *args: Any, count: int = count, patch: pytest.MonkeyPatch = patch, whole: Callable[..., Any] = whole
            ):
                torn_copies(patch, count)
                whole(*args)

            patch.setattr(MlflowClient, before, tear)
            with pytest.raises(Killed):
                promote(outputs, here, PICK)
    assert promote(outputs, here, PICK).promote
    assert_live(here)


def test_a_promotion_killed_for_real_in_the_middle_of_the_upload_is_healed(here: Path):
    code = f"""
import os, signal
from pathlib import Path
from mlflow import MlflowClient
from components.commands.promote import promote
from tests.outputs import PICK

def half(self, model_id, folder):
    place = self.get_logged_model(model_id).artifact_location.removeprefix("file://")
    Path(place).mkdir(parents=True)
    (Path(place) / "model.onnx").write_bytes((Path(folder) / "model.onnx").read_bytes()[:99])
    os.kill(os.getpid(), signal.SIGKILL)

MlflowClient.log_model_artifacts = half
promote(Path("{here}/outputs/tiny"), Path("{here}"), PICK)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert promote(here / "outputs" / "tiny", here, PICK).promote
    assert_live(here)


def test_a_rollback_stopped_at_any_step_and_repeated_ends_where_it_would_have(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    promote(here / "outputs" / "tiny", here, PICK)
    promote(train(here, "better", 0.95, 3.0, iterations=3), here, PICK)
    rollback(here, "tiny")
    rollback(here, "tiny", 2)
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        rollback(shutil.copytree(here, tmp_path / "whole"), "tiny", 1)
    assert len(steps.names) == 3
    for stop in range(3):
        root = Path(shutil.copytree(here, tmp_path / f"{stop}"))
        with monkeypatch.context() as patch:
            Steps(patch, stop)
            with pytest.raises(Killed):
                rollback(root, "tiny", 1, "stopped")
        rollback(root, "tiny", 1, "repeated")
        assert_live(root)
        assert {v.version for v in versions(store.connect(store.tracking_uri(root))) if "withdrawn" in v.tags} == {2}


def test_four_processes_that_promote_two_policies_at_once_make_two_versions_and_one_champion(here: Path):
    better = train(here, "better", 0.95, 3.0, iterations=3)
    code = f"""
from pathlib import Path
from components.commands.promote import promote
from tests.outputs import PICK
for name in ("tiny", "better"):
    promote(Path("{here}/outputs") / name, Path("{here}"), PICK)
"""
    done = run_python(code, 4)
    assert [status for status, _, _ in done] == [0] * 4, done
    client = store.connect(store.tracking_uri(here))
    assert len(versions(client)) == 2
    assert {registry.defect(client, version) for version in versions(client)} == {None}
    assert_live(here, 3.0, live(client))
    before = everything(here)
    assert promote(better, here, PICK).live and everything(here) == before


@pytest.mark.parametrize(("step", "left"), [("publish._upload", "FAILED"), ("MlflowClient.set_terminated", "RUNNING")])
def test_a_lost_run_whose_publication_is_killed_is_closed_and_finished_by_the_next_promotion(
    step: str, left: str, trained: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "elsewhere"
    client = new_store(empty_store, root)
    shutil.copytree(trained / "outputs", root / "outputs")
    code = f"""
import os, signal
from pathlib import Path
from mlflow import MlflowClient
from components.tracking import publish
{step} = lambda *args, **named: os.kill(os.getpid(), signal.SIGKILL)
publish.publish(Path("{root}/outputs/tiny"), Path("{root}"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == left
    if left == "RUNNING":  # killed between its opening and the step that closes it
        assert abandoned.close(store.tracking_uri(root)) == [run.info.run_id]
        assert client.get_run(run.info.run_id).info.status == "KILLED"
    assert promote(root / "outputs" / "tiny", root, PICK).run_id == run.info.run_id
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


# what an alias may name


def test_a_champion_that_older_code_left_without_a_file_is_restored_by_its_own_outputs(here: Path):
    outputs = here / "outputs" / "tiny"
    promote(outputs, here, PICK)
    client = store.connect(store.tracking_uri(here))
    shutil.rmtree(model_file(client, "1").parent)
    with pytest.raises(DataError, match=r"version 1, does not load: .*\. Run `unmask promote`"):
        registry.policy_path(CHAMPION, store.tracking_uri(here))
    assert promote(outputs, here, PICK).live
    assert_live(here)
    before = everything(here)
    assert not promote(outputs, here, PICK).promote
    assert everything(here) == before


def test_a_champion_that_is_lost_for_good_stands_in_nobodys_way(here: Path):
    promote(here / "outputs" / "tiny", here, PICK)
    client = store.connect(store.tracking_uri(here))
    shutil.rmtree(model_file(client, "1").parent)
    weaker = train(here, "weaker", 0.82, 3.0, iterations=3)
    for dry_run in (True, False):
        verdict = promote(weaker, here, PICK, dry_run)
        assert verdict.promote
        assert "the champion, version 1, does not load: " in verdict.reason
    assert_live(here, 3.0, "2")


@pytest.mark.parametrize("harm", ["lost", "torn", "another"])
def test_no_alias_is_put_on_a_version_whose_file_is_not_its_policy(here: Path, harm: str):
    promote(here / "outputs" / "tiny", here, PICK)
    client = store.connect(store.tracking_uri(here))
    path, version = model_file(client, "1"), registry.champion(client, "tiny")
    assert version is not None
    if harm == "lost":
        path.unlink()
    elif harm == "torn":
        path.write_bytes(path.read_bytes()[:99])
    else:
        write_trained(here / "outputs" / "tiny", 5.0)
        write_export(here / "outputs" / "tiny", 5.0)
        shutil.copy(here / "outputs" / "tiny" / "export" / "policy.onnx", path)
    client.delete_registered_model_alias(version.name, "champion")
    with pytest.raises(PromotionRefused, match="version 1 cannot be live"):
        registry.set_champion(client, version)
    assert registry.champion(client, "tiny") is None


def test_the_results_of_the_champion_are_not_overwritten_by_those_of_another_policy(here: Path):
    outputs = here / "outputs" / "tiny"
    promote(outputs, here, PICK)
    before = everything(here)
    write_trained(outputs, 2.0)  # another training, evaluated; the export is the old one
    write_gate(outputs, results(0.95))
    with pytest.raises(PromotionRefused, match="Run `dvc repro export`"):
        promote(outputs, here, PICK)
    assert everything(here) == before
    client = store.connect(store.tracking_uri(here))
    version = registry.champion(client, "tiny")
    assert version is not None
    evidence = registry.load_evidence(client, version)
    assert evidence is not None
    with pytest.raises(DataError, match="are not those of version 1"):
        registry.save_evidence(client, version, type(evidence).of(evidence.to_json() | {"identity": "x"}), "r")


# places


def test_a_moved_repository_keeps_its_champion_and_the_old_folder_stays_away(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    promote(here / "outputs" / "tiny", here, PICK)
    moved = tmp_path / "50%20off ?x"
    shutil.move(here, moved)
    assert weight_of(registry.policy_path(CHAMPION, store.tracking_uri(moved))) == 1.0
    verdict = promote(moved / "outputs" / "tiny", moved, PICK)
    assert (verdict.live, verdict.promote, verdict.version) == (True, False, "1")
    assert_live(moved)
    assert promote(train(moved, "better", 0.95, 3.0, iterations=3), moved, PICK).promote
    assert not here.exists()
    with closing(sqlite3.connect(moved / "mlflow.db")) as connection:
        assert not [row for row in connection.iterdump() if str(here) in row]
    assert doctor.tracker(moved)[0]


def test_a_copy_never_touches_the_original(here: Path, tmp_path: Path):
    promote(here / "outputs" / "tiny", here, PICK)
    before = everything(here)
    copy = Path(shutil.copytree(here, tmp_path / "copy"))
    assert promote(train(copy, "better", 0.95, 3.0, iterations=3), copy, PICK).promote
    assert_live(copy, 3.0, "2")
    assert everything(here) == before
    assert_live(here)


def test_a_copy_without_artifacts_is_told_what_to_do_and_a_promotion_there_brings_its_own(here: Path, tmp_path: Path):
    promote(here / "outputs" / "tiny", here, PICK)
    before = everything(here)
    copy = Path(shutil.copytree(here, tmp_path / "copy", ignore=shutil.ignore_patterns("mlartifacts")))
    ok, said = doctor.tracker(copy)
    assert not ok and "does not load" in said and "Copy the folder mlartifacts" in said
    assert promote(copy / "outputs" / "tiny", copy, PICK).live
    assert_live(copy)
    assert doctor.tracker(copy)[0]
    assert everything(here) == before


def test_an_experiment_that_somebody_put_elsewhere_stays_there(here: Path, tmp_path: Path):
    client = store.connect(store.tracking_uri(here))
    place = (tmp_path / "disk" / "mlartifacts" / "mine").as_uri()
    number = client.create_experiment("mine", artifact_location=place)
    store.connect(store.tracking_uri(here))
    assert client.get_experiment(number).artifact_location == place


@pytest.mark.parametrize(
    "damage", ["update registered_model_aliases set version = 99", "update model_versions set run_id = null"]
)
def test_a_registry_that_names_what_is_not_there_is_healed(here: Path, damage: str):
    promote(here / "outputs" / "tiny", here, PICK)
    with closing(sqlite3.connect(here / "mlflow.db")) as connection:
        connection.execute(damage)
        connection.commit()
    promote(here / "outputs" / "tiny", here, PICK)
    assert_live(here)


def test_a_purged_run_of_the_champion_ends_nothing_in_a_traceback(here: Path):
    outputs, uri = here / "outputs" / "tiny", store.tracking_uri(here)
    run_id = promote(outputs, here, PICK).run_id
    store.connect(uri).delete_run(str(run_id))
    purge = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--run-ids", str(run_id)]
    done = subprocess.run(purge, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    challenger = train(here, "better", 0.95, 3.0, iterations=3)
    for dry_run in (True, False):
        verdict = promote(challenger, here, PICK, dry_run)
        assert not verdict.promote and "its results were not kept. Re-evaluate it" in verdict.reason
    assert promote(outputs, here, PICK).live  # and its results are kept again, with the run that was made anew
    assert_live(here)
    assert promote(challenger, here, PICK, reevaluate=lambda path: result("learned", "mode", 0.5, 5)).promote
    assert_live(here, 3.0, "2")


# no write access

CONFINED = """
import ctypes, os, sys
if os.geteuid() == 0:  # root without CAP_DAC_OVERRIDE is bound by the modes of files, like anybody
    assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


def test_a_dry_run_and_a_reference_need_no_write_access(here: Path):
    promote(here / "outputs" / "tiny", here, PICK)
    better = train(here, "better", 0.95, 3.0, iterations=3)
    # What a reader finds where the last writer is gone: neither -wal nor -shm, and no right to make them.
    with closing(sqlite3.connect(here / "mlflow.db")) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    before = everything(here)
    code = f"""
import json
from pathlib import Path
from components.commands import doctor
from components.commands.promote import promote
from components.tracking import abandoned, registry, store
from tests.outputs import PICK
root = Path("{here}")
try:
    (root / "new").touch()
    raise SystemExit("this process may write")
except PermissionError:
    pass
verdict = promote(Path("{better}"), root, PICK, dry_run=True)
path = registry.policy_path("{CHAMPION}", store.tracking_uri(root))
print(json.dumps([verdict.promote, str(path), doctor.tracker(root)[0]]))
"""
    for path in [here, *here.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", CONFINED, code], env=environment, capture_output=True, text=True, check=False
        )
    finally:
        for path in [here, *here.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)
    assert done.returncode == 0, done.stderr
    promoted, path, fine = json.loads(done.stdout)
    assert promoted and fine and Path(path).is_relative_to(here / "mlartifacts")
    assert everything(here) == before
