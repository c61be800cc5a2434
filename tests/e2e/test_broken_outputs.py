"""Every kind of file of a finished run, damaged in every way: who reads it next says a line, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from components.tasks.example import read_examples
from tests.graph import resolve, within
from tests.messages import has_remedy

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
P = "outputs/toy"

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "nothing": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "the end is missing": lambda data: data[:-1],
    "not UTF-8": lambda data: b"\xff\xfe\x00\x01\n",
    "zeros": lambda data: bytes(len(data)),
    "a flipped bit": lambda data: (
        data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 1]) + data[len(data) // 3 + 1 :]
    ),
    "a folder": lambda data: None,
    "another value": lambda data: b"[1, 2]\n",
    "another object": lambda data: b'{"unknown": 1}\n',
}
# One process for all of them: torch is imported once, and each damage is undone.
RUN = """
import contextlib, io, json, shutil, sys, traceback
from pathlib import Path
from components.cli import main
from components.stages import train as training
from components.tracking.tracker import JsonlTracker

class Untracked(JsonlTracker):
    run_id = "none"

training._tracker = lambda workspace, lines, state, begun: Untracked(lines, state.iteration)
found, pristine = [], Path(sys.argv[1])
for words, name, content in json.load(sys.stdin):
    shutil.rmtree("outputs", ignore_errors=True)
    shutil.rmtree(".checkpoints", ignore_errors=True)
    shutil.copytree(pristine, "outputs")
    path = Path(name)
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(bytes.fromhex(content))
    sys.argv = ["unmask", *words]
    code = None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = "traceback"
    found.append([code, said.getvalue()])
print(json.dumps(found))
"""


def readers(root: Path, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """(command, the outputs that it reads), the quick ones first."""
    prompt = read_examples(root / P / "data/tasks/sudoku_many/test.jsonl")[0].prompt
    policies = ["--policy", f"{P}/export/policy.onnx", "--policy", f"{P}/train/policy"]
    yield ["decode", prompt, *policies], [f"{P}/pretrain", f"{P}/export/policy.onnx", f"{P}/train/policy"]
    evidence = [f"{P}/export", f"{P}/evaluate/gate", f"{P}/train", f"{P}/data/tasks/sudoku_many/gate.jsonl"]
    yield ["promote", "--dry-run"], evidence
    cells = resolve(folder, yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")))
    for name in ("report", "gate", "gate-rules", "distill", "train", "pretrain@mini-llada"):
        yield cells[name].cmd.split()[1:], [dep for dep in cells[name].deps if within(dep, "outputs")]


def test_a_damaged_output_is_a_line_of_whoever_reads_it(finished: Path, tmp_path: Path) -> None:
    jobs, seen = [], set[tuple[str, str]]()
    for words, deps in readers(finished, tmp_path / "graph"):
        for path in sorted(path for path in (finished / P).rglob("*") if path.is_file()):
            name = str(path.relative_to(finished))
            if any(within(name, dep) for dep in deps) and (words[0], path.name) not in seen:
                seen.add((words[0], path.name))
                for what, damage in DAMAGES.items():
                    content = damage(path.read_bytes())
                    jobs.append((what, words, name, None if content is None else content.hex()))
    assert len(jobs) > 200
    (tmp_path / "params.yaml").write_bytes((finished / "params.yaml").read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(finished / "outputs")],
        input=json.dumps([job[1:] for job in jobs]),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused = 0
    for (what, words, name, _), (code, said) in zip(jobs, json.loads(done.stdout.splitlines()[-1]), strict=True):
        about = (name, what, words[0], said)
        assert code in (0, None, 1) and "Traceback" not in said, about
        if code == 1:
            refused += 1
            last = said.strip().splitlines()[-1]
            assert last.startswith("unmask: ") and has_remedy(last), about
    assert refused > len(jobs) / 2
