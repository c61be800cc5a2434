"""Where files lie and how they are reached: names that a URI reads otherwise, links, secrets, encodings."""

from __future__ import annotations

import ast
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core import files
from components.core.errors import CheckpointError, DataError, SettingsError, masked, sentence
from components.tracking import abandoned, store
from components.tracking.mlflow_tracker import MlflowTracker
from tests.messages import has_remedy

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
NAMES = ["plain", "50%20off", "a?b#c", "a;b&c=d", "ä ö", "x@y", "%41", "%", "a:b", "a+b", "'q\"", "..."]


# --- the tracking store ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_has_its_database_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from sqlalchemy.engine import make_url

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = store.tracking_uri(tmp_path / name)
    assert store.database(uri) == tmp_path / name / "mlflow.db"
    assert make_url(uri).database == str(tmp_path / name / "mlflow.db")


def test_runs_of_a_folder_with_an_odd_name_stay_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "50%20off?a#b"
    root.mkdir()
    client = store.connect(store.tracking_uri(root))
    run = client.create_run(store.experiment(client, "x"))
    client.log_text(run.info.run_id, "hello", "note.txt")
    assert (root / "mlflow.db").exists() and [*root.rglob("note.txt")]
    assert [*tmp_path.iterdir()] == [root]
    assert Path(client.download_artifacts(run.info.run_id, "note.txt")).read_text(encoding="utf-8") == "hello"


@pytest.mark.parametrize("copy", [".dvc/tmp/exps/tmpab12", ".dvc/tmp/exps/standalone/tmpab12"])
def test_a_copy_that_dvc_makes_for_an_experiment_has_the_store_of_its_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store.tracking_uri(tmp_path / copy) == store.tracking_uri(tmp_path)
    assert store.tracking_uri(tmp_path / "other") != store.tracking_uri(tmp_path)


def test_a_run_whose_process_is_gone_is_killed_and_one_that_lives_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = store.tracking_uri(tmp_path)
    assert abandoned.close(uri) == [] and not [*tmp_path.iterdir()]  # looking makes no database
    code = f"""
import os, sys
from components.tracking.mlflow_tracker import MlflowTracker
print(MlflowTracker.start({uri!r}, "x", "gone").run_id, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    gone = done.stdout.split()[-1]
    client = store.connect(uri)
    assert client.get_run(gone).info.status == "RUNNING"
    foreign = client.create_run(store.experiment(client, "x"), tags={abandoned.PROCESS: "elsewhere 1 0.00"}).info.run_id
    unnamed = client.create_run(store.experiment(client, "x")).info.run_id
    mine = MlflowTracker.start(uri, "x", "alive")  # the next training closes it
    states = {run: client.get_run(run).info.status for run in (gone, foreign, unnamed, str(mine.run_id))}
    assert states == {gone: "KILLED", foreign: "RUNNING", unnamed: "RUNNING", mine.run_id: "RUNNING"}
    MlflowTracker.start(uri, "x", "again", run_id=gone)  # a resumed training is this process's
    assert client.get_run(gone).info.status == "RUNNING" and abandoned.close(uri) == []


def test_a_clock_that_is_put_back_makes_no_living_run_an_abandoned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine says of its start, and so of a process's, moves with the clock."""
    tag, boot, created = abandoned.this_process()[abandoned.PROCESS], psutil.boot_time(), psutil.Process().create_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot - 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created - 3600)
    assert not abandoned._is_gone(tag)
    machine, number, _ = tag.split()
    assert abandoned._is_gone(f"{machine} {number} 1.00") and not abandoned._is_gone(f"{machine} by hand")


# --- the code ---

FAKE = "import os, sys\nif __name__ == '__main__':\n    print('the copy', sys.argv[1:], os.getcwd())\n"
# The copy's own command, which takes the store's address from the library.
SAYS_STORE = """
import os, sys
sys.path = [path for path in sys.path if path != os.getcwd()]
sys.modules.pop("components")
from pathlib import Path
from components.tracking.store import tracking_uri
Path("out.txt").write_text(f"the copy {tracking_uri(Path.cwd())}", encoding="utf-8")
"""


def installed(folder: Path) -> str:
    """The console script `unmask` as it is installed from this repository."""
    script = folder / "bin" / "unmask"
    script.parent.mkdir()
    script.write_text("from unmask_policies.cli import main\nmain()\n", encoding="utf-8")
    return str(script)


def outside() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("name", ["cli/__main__.py", "cli.py"])  # now, and in older commits
def test_a_stage_runs_the_code_of_the_folder_that_dvc_runs_it_in(tmp_path: Path, name: str) -> None:
    """A copy made by `dvc exp run --temp`, a Git worktree: `unmask` is installed from elsewhere."""
    copy = tmp_path / "copy"
    (copy / "components" / name).parent.mkdir(parents=True)
    (copy / "components" / "__init__.py").touch()
    (copy / "components" / name).write_text(FAKE, encoding="utf-8")
    command = [sys.executable, installed(tmp_path), "train", "--some", "words"]
    run: Any = {"cwd": copy, "env": outside(), "capture_output": True, "text": True, "check": False}
    (copy / "dvc.yaml").touch()
    (copy / "pyproject.toml").write_text('[project]\nname = "of-someone-else"\n', encoding="utf-8")
    assert "the copy" not in subprocess.run(command, **run).stdout  # another project with a folder of that name
    shutil.copy(ROOT / "pyproject.toml", copy)
    assert subprocess.run(command, **run).stdout == f"the copy ['train', '--some', 'words'] {copy}\n"


@pytest.mark.parametrize("how", ["--temp", pytest.param("--queue", marks=pytest.mark.e2e)])
def test_dvc_exp_run_in_a_copy_has_the_copys_code_and_the_workspaces_store(tmp_path: Path, how: str) -> None:
    """A queued experiment runs the code of when it was queued, which the workspace has left by then."""
    root = tmp_path / "workspace"
    (root / "components" / "cli").mkdir(parents=True)
    (root / "components" / "__init__.py").touch()
    (root / "components" / "cli" / "__main__.py").write_text(SAYS_STORE, encoding="utf-8")
    cmd = f"{sys.executable} {installed(tmp_path)}"
    text = f"stages:\n  one:\n    cmd: {cmd}\n    deps: [components/cli]\n    outs: [out.txt]\n"
    (root / "dvc.yaml").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", root)
    environment = outside()
    environment.pop("MLFLOW_TRACKING_URI", None)

    def run(*words: str) -> None:
        done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    dvc = (sys.executable, "-m", "dvc")
    run("git", "init", "--quiet")
    run("git", "config", "user.name", "t")
    run("git", "config", "user.email", "t@example.org")
    run(*dvc, "init", "--quiet")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "-m", "one")
    code = root / "components" / "cli" / "__main__.py"
    code.write_text(SAYS_STORE.replace("the copy", "as queued"), encoding="utf-8")
    run(*dvc, "exp", "run", how, "--name", "queued")
    code.write_text(SAYS_STORE, encoding="utf-8")
    if how == "--queue":
        run(*dvc, "exp", "run", "--run-all")
    run(*dvc, "exp", "apply", "queued")
    assert (root / "out.txt").read_text(encoding="utf-8") == f"as queued sqlite:///{root}/mlflow.db"


# --- secrets -----------------------------------------------------------------------------------------------------

SECRETS = [
    "http://user:{}@host:5000/path",
    "https://{}@host",
    "postgresql+psycopg://user:{}@db:5432/mlflow?sslmode=require",
    "postgresql://user:p@ss{}@db/mlflow",
    "mysql://u:{}/x@db/y",
    "sqlite:///x.db and http://u:{}@h/ (Connection refused)",
    "https://host/path?token={}",
    "postgresql://h/db?user=u&password={}&x=1",
    "https://h/?api_key={}",
    "https://h/a?x=1&X-Amz-Signature={}&y=2",
    "postgresql://u:it's{}@h/db",
    'postgresql://u:a"{}@h/db',
]


@pytest.mark.parametrize("text", SECRETS)
def test_no_secret_of_a_uri_is_shown(text: str) -> None:
    said = masked(f"the store {text.format('s3cr3t')} failed")
    assert "s3cr3t" not in said and said.startswith("the store ") and said.endswith(" failed")
    for error in (SettingsError(text.format("s3cr3t")), OSError(5, text.format("s3cr3t"))):
        assert "s3cr3t" not in str(sentence(error))


@pytest.mark.parametrize(
    "text", ["sqlite:////tmp/x@y/mlflow.db", "models:/name@champion", "http://host:5000/a", "a@b.c"]
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert masked(text) == text


def test_doctor_and_a_training_that_cannot_start_show_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:s3cr3t@127.0.0.1:9/")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from components.commands.doctor import tracker

    ok, said = tracker(tmp_path)
    assert not ok and "s3cr3t" not in said and "***@127.0.0.1" in said and has_remedy(said)
    with pytest.raises(SettingsError) as refused:
        MlflowTracker.start(store.tracking_uri(tmp_path), "x", "y")
    assert "s3cr3t" not in str(refused.value) and has_remedy(str(refused.value))


# --- the last resort -----------------------------------------------------------------------------------------------


def of_library(name: str) -> Exception:
    kind: Any = type("Failure", (Exception,), {"__module__": name})
    return kind("database is locked\nand more")


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "/x/y"),
        PermissionError(13, "Permission denied", "/x/y"),
        ConnectionRefusedError(111, "Connection refused"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        *(of_library(name) for name in ("mlflow.exceptions", "sqlalchemy.exc", "sqlite3", "safetensors_rust", "onnx")),
    ],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)
def test_what_a_library_raises_about_a_file_is_a_sentence(error: Exception) -> None:
    said = sentence(error)
    assert said and "\n" not in said and has_remedy(said)
    assert getattr(error, "filename", None) is None or "/x/y" in said


@pytest.mark.parametrize("name", ["safetensors_rust", "mlflow.exceptions", "sqlite3", "torch"])
@pytest.mark.parametrize("text", ["I/O error: No space left on device (os error 28)", "database or disk is full"])
def test_a_full_disk_is_named_whoever_meets_it(name: str, text: str) -> None:
    kind: Any = type("Failure", (Exception,), {"__module__": name})
    assert sentence(kind(text)) == "the disk is full. Free space and run the command again; a training resumes."


@pytest.mark.parametrize(
    ("size", "free", "said"),
    [(2**30, 0, "its disk is full"), (2**31, 2**30, "Start the server"), (0, 0, "a place that keeps no files")],
)
def test_a_store_on_a_full_disk_is_told_from_one_that_is_broken(
    size: int, free: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says "disk I/O error" to both."""
    (tmp_path / "mlflow.db").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=size, free=free))
    with pytest.raises(SettingsError, match=said) as refused:
        store.connect(store.uri_of(tmp_path / "mlflow.db"))
    assert has_remedy(str(refused.value))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
def test_a_store_under_proc_is_refused_and_not_waited_for() -> None:
    with pytest.raises(SettingsError, match="a place that keeps no files") as refused:
        store.connect("sqlite:////proc/mlflow.db")
    assert has_remedy(str(refused.value))


def test_a_store_of_another_version_of_mlflow_is_said_to_be_one(tmp_path: Path, empty_store: Path) -> None:
    uri = store.uri_of(tmp_path / "mlflow.db")
    with (
        closing(sqlite3.connect(empty_store)) as source,
        closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection,
    ):
        source.backup(connection)
        connection.execute("update alembic_version set version_num = '75868b020152'")
        connection.commit()
    with pytest.raises(SettingsError, match=r"another version of MLflow.*upgrade") as refused:
        store.connect(uri)
    assert has_remedy(str(refused.value))


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:////", "sqlite:///?x=1", "sqlite:////dev/null"]
)
def test_a_store_that_would_keep_nothing_is_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="names no file") as refused:
        store.connect(uri)
    assert has_remedy(str(refused.value)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("uri", "said"),
    [("mssql+nothing://u:secret@h/db", "nothing"), ("mysql+oursql://u:secret@h/db", "oursql"), ("http://[::1", "IPv6")],
)
def test_an_address_that_cannot_be_tried_is_a_sentence(uri: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        store.connect(uri)
    assert has_remedy(str(refused.value)) and "secret" not in str(refused.value)


def test_a_database_whose_driver_is_not_installed_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingsError, match=r"\*\*\*@h/db needs the package psycopg") as refused:
        store.connect("postgresql+psycopg://u:secret@h/db")
    assert has_remedy(str(refused.value))


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), AssertionError(), ValueError("x")], ids=repr)
def test_an_error_of_this_program_keeps_its_traceback(error: Exception) -> None:
    assert sentence(error) is None


# --- links and encodings -------------------------------------------------------------------------------------------


def writers() -> Iterator[tuple[str, Any]]:
    from matplotlib.figure import Figure

    from components.reports import files as figures

    yield "text", lambda path: files.write_text(path, "new")
    yield "json", lambda path: files.write_json(path, {"new": 1})
    yield "lines", lambda path: files.write_lines(path, [{"new": 1}])
    yield "csv", lambda path: files.write_csv(path, [{"new": 1}])
    yield "copy", lambda path: files.copy(Path(__file__), path)
    yield "figure", lambda path: figures.write_figure(path, Figure())


@pytest.mark.parametrize("link", ["symlink", "hardlink"])
def test_no_writer_writes_through_a_link(tmp_path: Path, link: str) -> None:
    for name, write in writers():
        cached, path = tmp_path / "cache" / name, tmp_path / "outputs" / name
        cached.parent.mkdir(exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        cached.write_text("cached", encoding="utf-8")
        path.symlink_to(cached) if link == "symlink" else path.hardlink_to(cached)
        write(path)
        assert cached.read_text(encoding="utf-8") == "cached", name
        assert not path.is_symlink() and path.read_bytes() != b"cached", name


def modules() -> Iterator[tuple[Path, ast.AST]]:
    for package in ("components", "flows"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str, str]]:
    """(call, what it is called on, its name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            of = ast.unparse(node.func)
            on, _, name = of.rpartition(".")
            yield node, on, name


BINARY = ("rb", "wb", "ab", "w+b", "xb", "r+b")
# Not outputs: the kernel's own files, and what is kept in folders that DVC does not know.
NO_OUTPUT = ("components/core/files.py", "components/bench/measure.py", "components/tracking/store.py")


def test_every_text_file_is_opened_with_its_encoding() -> None:
    broken = []
    for path, tree in modules():
        for call, on, name in calls(tree):
            modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            opens = name in ("read_text", "write_text") and not (name in dir(files) and not on)
            opens |= name == "open" and not any(mode in BINARY for mode in modes) and on not in ("os", "webbrowser")
            if opens and "encoding" not in {keyword.arg for keyword in call.keywords}:
                broken.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}")
    assert not broken, "\n".join(broken)


def test_outputs_are_written_beside_and_renamed() -> None:
    """Whoever writes a file writes the part that `beside` gave him."""
    broken = []
    for path, tree in modules():
        if str(path.relative_to(ROOT)) in NO_OUTPUT or path.is_relative_to(ROOT / "flows"):
            continue
        for call, on, name in calls(tree):
            target = ast.unparse(call.args[0]) if call.args else ""
            writes = name in ("write_bytes", "write_text") and on not in ("", "files")
            into = on if writes else target
            writes |= name in ("savefig", "copyfile", "copy2", "copytree")
            if name == "save_file":
                writes, into = True, ast.unparse(call.args[1])
            if writes and "part" not in into and "folder" not in into:
                broken.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}")
    assert not broken, "\n".join(broken)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_a_reader_says_the_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(content)
    for reader in (
        files.read_text,
        files.read_json,
        files.read_lines,
        lambda p: files.read_yaml(p, "Run."),
    ):
        try:
            reader(path)
        except DataError as error:
            assert str(path) in str(error) and has_remedy(str(error)) and "\n" not in str(error).replace("\\n", "")


def test_a_policy_of_a_newer_version_or_cut_off_is_a_sentence(tmp_path: Path) -> None:
    from components.policies import store as policies
    from components.policies.confidence import ConfidencePolicy, Shape

    policies.save(ConfidencePolicy(Shape(width=8, heads=1, mlp_width=8)), tmp_path / "whole")
    described = files.read_json(tmp_path / "whole" / "policy.json")
    newer = {**described, "shape": {**described["shape"], "momentum": 3}}
    older = {**described, "shape": {k: v for k, v in described["shape"].items() if k != "inputs"}}
    texts = {
        "newer": newer,
        "older": older,
        "kind": {**described, "kind": "oracle"},
        "shape": {**described, "shape": 3},
    }
    for name, changed in texts.items():
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        files.write_json(tmp_path / name / "policy.json", changed)
    for name, file, size in (
        ("cut", "policy.json", 30),
        ("weights", "policy.safetensors", 100),
        ("none", "policy.safetensors", 0),
    ):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        os.truncate(tmp_path / name / file, size)
    policies.load(tmp_path / "whole")
    for name in [*texts, "cut", "weights", "none", "absent"]:
        with pytest.raises(CheckpointError) as refused:
            policies.load(tmp_path / name)
        said = str(refused.value)
        assert str(tmp_path / name) in said and has_remedy(said) and "\n" not in said, name
