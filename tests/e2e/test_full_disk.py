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
COMMANDS = {
    "prepare": ["prepare"],
    "train": ["train"],
    "gate": ["gate"],
    "export": ["export"],
    "report": ["report"],
    "promote": ["promote"],
}
# Runs in a mount namespace of its own: argv is the finished run, the disk's folder, the room left on it, the command.
INSIDE = """
import json, os, shutil, subprocess, sys
from pathlib import Path

finished, disk, room, words = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)
shutil.copytree(finished, disk, dirs_exist_ok=True)
os.chdir(disk)

def contents():
    files = sorted(p for p in (disk / "outputs").rglob("*") if p.is_file())
    return {str(p.relative_to(disk)): p.read_bytes().hex() for p in files}

def run():
    done = subprocess.run([sys.executable, "-m", "components.cli", *words], capture_output=True, text=True)
    return done.returncode, done.stderr

def states():
    from components.tracking import store
    client = store.connect(store.tracking_uri(disk))
    return [r.info.status for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]

before = contents()
if room < 0:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    print(json.dumps({"full": run(), "same": before == contents()}))
    raise SystemExit
filler = disk / "filler"
free = os.statvfs(disk)
with filler.open("wb") as file:
    file.write(bytes(max(0, free.f_bavail * free.f_frsize - room)))
full = run()
there = contents()
parts = [str(p) for p in (disk / "outputs").rglob("*.part")]
filler.unlink()
freed = states()
again = run()
print(json.dumps({"full": full, "before": before, "there": there, "parts": parts, "freed": freed, "again": again,
                  "after": contents(), "states": states()}))
"""


def namespace() -> list[str]:
    """The command that gives a process mounts of its own on this machine."""
    for rights in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *rights, "--mount"]
        if subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0:
            return command
    pytest.skip("this machine gives no process mounts of its own")


CASES = [*((name, 0) for name in COMMANDS), ("train", 300_000), ("export", 60_000), ("promote", 300_000)]


def outcome(finished: Path, disk: Path, room: int, words: list[str]) -> dict[str, Any]:
    """What INSIDE prints. room: bytes that are left, below 0 for a disk that is read-only."""
    return printed([*namespace(), sys.executable, "-c", INSIDE, finished, disk, str(room), *words])


@pytest.mark.parametrize(("name", "room"), CASES)
def test_a_full_disk_is_a_sentence_and_tears_nothing(finished: Path, tmp_path: Path, name: str, room: int) -> None:
    found = outcome(finished, tmp_path, room, COMMANDS[name])
    code, said = found["full"]
    assert "Traceback" not in said, said
    if room == 0:
        assert code == 1, said
    if code:
        last = said.strip().splitlines()[-1]
        assert last.startswith("unmask: ") and "full" in last, said
    assert not found["parts"] and set(found["before"]) <= set(found["there"])
    for path, content in found["there"].items():
        if path.endswith("run.json"):
            json.loads(bytes.fromhex(content))  # says when it was
        else:
            assert content in (found["before"].get(path), found["after"].get(path)), f"{path} is torn"
    assert found["again"][0] == 0, found["again"][1]
    assert "RUNNING" not in found["states"], found["states"]


READING = {"promote --dry-run": 0, "decode": 0, "doctor": 0, "train": 1, "export": 1, "promote": 1}


@pytest.mark.parametrize("name", READING)
def test_a_read_only_disk_is_enough_to_read_and_a_sentence_to_write(finished: Path, tmp_path: Path, name: str) -> None:
    prompt = read_examples(finished / "outputs/toy/data/tasks/sudoku_many/test.jsonl")[0].prompt
    policy = ["--policy", "outputs/toy/export/policy.onnx"]
    found = outcome(finished, tmp_path, -1, [*name.split(), *([prompt, *policy] if name == "decode" else [])])
    code, said = found["full"]
    assert "Traceback" not in said and found["same"], said
    if READING[name]:
        assert code == 1 and "Read-only file system" in said.strip().splitlines()[-1], said
    elif name != "doctor":  # who finds no store to write to says so
        assert code == 0, said
