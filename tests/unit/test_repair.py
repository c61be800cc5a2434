"""What a killed DVC leaves is mended, said, and left alone while another DVC is at work. With DVC itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.commands.repair import repair
from components.core.errors import SettingsError
from components.core.files import beside
from tests.messages import has_remedy

pytestmark = pytest.mark.e2e

STAGES = """
stages:
  one:
    cmd: echo one > one.txt
    deps: [source.txt]
    outs: [one.txt]
"""


def dvc(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=root, capture_output=True, text=True, check=False, env=os.environ
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository without Git whose only stage has run."""
    root = tmp_path_factory.mktemp("made")
    assert dvc(root, "init", "--no-scm", "--quiet").returncode == 0
    # As in the project: else DVC leaves a process behind that looks for updates.
    (root / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    check_update = false\n    no_scm = True\n"
    )
    (root / "dvc.yaml").write_text(STAGES)
    (root / "source.txt").write_text("source")
    done = dvc(root, "repro")
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "repository", symlinks=True)


def rwlock(root: Path) -> None:
    (root / ".dvc" / "tmp" / "rwlock").write_bytes(b"")


def run_folder(root: Path) -> None:
    (folder,) = (root / ".dvc" / "cache" / "runs").glob("*/*")
    shutil.rmtree(folder)
    folder.mkdir()
    (root / "dvc.lock").unlink()  # else DVC does not look for the run


def run_file(root: Path) -> None:
    """DVC deletes a file that it cannot read, and stops at the empty folder the next time."""
    (folder,) = (root / ".dvc" / "cache" / "runs").glob("*/*")
    for path in folder.iterdir():
        path.write_bytes(b"")


def lock_file(root: Path) -> None:
    text = (root / "dvc.lock").read_text()
    (root / "dvc.lock").write_text(text[: len(text) // 2] + "\n: [")


BREAKS = {"rwlock": rwlock, "run folder": run_folder, "run file": run_file, "dvc.lock": lock_file}


@pytest.mark.parametrize("what", BREAKS)
def test_what_a_kill_leaves_is_mended_and_said_and_dvc_goes_on(root: Path, what: str) -> None:
    BREAKS[what](root)
    if what != "run file":
        assert dvc(root, "repro").returncode != 0, "DVC has learned to repair this; our code can go"
        BREAKS[what](root) if what == "rwlock" else None
    said = repair(root)
    assert len(said) == 1 and "a killed DVC" in said[0]
    assert repair(root) == []
    assert dvc(root, "repro").returncode == 0


def test_a_whole_repository_is_left_alone(root: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert repair(root) == []
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert repair(tmp_path) == []


def test_nothing_is_touched_while_another_dvc_is_at_work(root: Path) -> None:
    rwlock(root)
    # A process that looks like DVC to whoever lists processes.
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"], cwd=root)
    elsewhere = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"], cwd=root.parent)
    try:
        said = repair(root)
        assert len(said) == 1 and f"while DVC runs (process {other.pid}). Run `unmask repair`" in said[0]
        assert (root / ".dvc" / "tmp" / "rwlock").exists()
        other.kill()
        other.wait()
        assert repair(root) and not (root / ".dvc" / "tmp" / "rwlock").exists()
    finally:
        for process in (other, elsewhere):
            process.kill()
            process.wait()


def test_an_output_that_a_killed_process_did_not_finish_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    code = """
import os, signal
from pathlib import Path
from components.core.files import beside
with beside(Path("outputs/tiny/pretrain/model")) as part:
    part.mkdir(parents=True)
    (part / "weights").write_text("half", encoding="utf-8")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    (left,) = (tmp_path / "outputs/tiny/pretrain").iterdir()
    with beside(tmp_path / "outputs" / "tiny" / "alive") as alive:
        alive.write_text("half", encoding="utf-8")
        (tmp_path / "outputs" / "mine.part").write_text("no number", encoding="utf-8")
        assert repair(tmp_path) == [f"removed {left}, which a killed process did not finish"]
        assert not left.exists() and alive.exists()
    assert repair(tmp_path) == [] and (tmp_path / "outputs" / "mine.part").exists()


def test_a_configuration_that_dvc_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core\n    half", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"\.dvc: DVC's configuration cannot be read") as refused:
        repair(tmp_path)
    assert has_remedy(str(refused.value))
