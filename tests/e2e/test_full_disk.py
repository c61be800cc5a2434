"""A disk that is really full or read-only, under every command: a sentence, nothing torn, and a rerun that goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.tasks.example import read_examples
from tests.child import printed

pytestmark = [pytest.mark.e2e, pytest.mark.long]
ROOT = Path(__file__).parents[2]
# Stage or command, and the bytes that are left on the disk: none, or too few for all that it writes.
FULL = [("prepare", 0), ("train", 0), ("train", 120_000), ("gate", 0), ("export", 20_000), ("report", 0)]
FULL += [("promote", 0), ("promote", 300_000)]
READING = {"promote --dry-run": 0, "decode": 0, "doctor": 0, "train": 1, "export": 1, "promote": 1}
READ_ONLY = -1
# Runs in a mount namespace of its own, and forks each command, so that imports are paid once. argv: the finished run,
# a folder for disks, and the cases: key, room and command.
INSIDE = """
import json, multiprocessing, os, runpy, shutil, subprocess, sys
from pathlib import Path

import mlflow, onnx, onnxruntime, torch, transformers  # noqa: F401

finished, disks, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
fork = multiprocessing.get_context("fork")

def command(words, log):
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["unmask", *words]
    runpy.run_module("components.cli", run_name="__main__")

def states():
    from components.tracking import store
    client = store.connect(store.tracking_uri(Path.cwd()))
    return [r.info.status for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]

def run(words):
    log = disks / "stderr"
    process = fork.Process(target=command, args=(words, log))
    process.start()
    process.join()
    return process.exitcode, log.read_text()

def closed():
    with fork.Pool(1) as pool:
        return pool.apply(states)

def contents(disk):
    files = sorted(p for p in (disk / "outputs").rglob("*") if p.is_file())
    return {str(p.relative_to(disk)): p.read_bytes().hex() for p in files}

def case(disk, room, words):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)
    shutil.copytree(finished, disk, dirs_exist_ok=True)
    os.chdir(disk)
    before = contents(disk)
    if room < 0:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        return {"full": run(words), "same": before == contents(disk)}
    filler, free = disk / "filler", os.statvfs(disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - room))
    full = run(words)
    there, parts = contents(disk), [str(p) for p in (disk / "outputs").rglob("*.part")]
    filler.unlink()
    freed, again = closed(), run(words)
    return {"full": full, "before": before, "there": there, "parts": parts, "freed": freed, "again": again,
            "after": contents(disk), "states": closed()}

found = {}
for number, (key, room, words) in enumerate(cases):
    disk = disks / str(number)
    disk.mkdir()
    found[key] = case(disk, room, words)
    os.chdir("/")
    subprocess.run(["umount", str(disk)], check=True)
print(json.dumps(found))
"""


def namespace() -> list[str]:
    """The command that gives a process mounts of its own on this machine."""
    for rights in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *rights, "--mount"]
        if subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0:
            return command
    pytest.skip("this machine gives no process mounts of its own")


@pytest.fixture(scope="module")
def found(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Key of a case -> what INSIDE saw."""
    prompt = read_examples(finished / "outputs/toy/data/tasks/sudoku_many/test.jsonl")[0].prompt
    more = {"decode": [prompt, "--policy", "outputs/toy/export/policy.onnx"]}
    cases = [(f"{name} {room}", room, [name]) for name, room in FULL]
    cases += [(name, READ_ONLY, [*name.split(), *more.get(name, [])]) for name in READING]
    disks = tmp_path_factory.mktemp("disks")
    return printed([*namespace(), sys.executable, "-c", INSIDE, finished, disks, json.dumps(cases)])


@pytest.mark.parametrize(("name", "room"), FULL)
def test_a_full_disk_is_a_sentence_and_tears_nothing(found: dict[str, Any], name: str, room: int) -> None:
    seen = found[f"{name} {room}"]
    code, said = seen["full"]
    assert code == 1 and "Traceback" not in said, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("unmask: ") and "full" in last, said
    assert not seen["parts"] and set(seen["before"]) <= set(seen["there"])
    for path, content in seen["there"].items():
        if path.endswith("run.json"):
            json.loads(bytes.fromhex(content))  # says when it was
        else:
            assert content in (seen["before"].get(path), seen["after"].get(path)), f"{path} is torn"
    assert "RUNNING" not in seen["freed"], seen["freed"]
    assert seen["again"][0] == 0, seen["again"][1]
    assert "RUNNING" not in seen["states"], seen["states"]


@pytest.mark.parametrize("name", READING)
def test_a_read_only_disk_is_enough_to_read_and_a_sentence_to_write(found: dict[str, Any], name: str) -> None:
    code, said = found[name]["full"]
    assert "Traceback" not in said and found[name]["same"], said
    if READING[name]:
        assert code == 1 and "Read-only file system" in said.strip().splitlines()[-1], said
    elif name != "doctor":  # who finds no store to write to says so
        assert code == 0, said
