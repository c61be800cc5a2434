"""Several processes evaluate one policy: the same files as one process writes, and an end where one of them dies."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.settings import Settings
from components.stages.common.cases import case_of
from components.stages.common.workspace import Workspace
from components.stages.evaluate import evaluate
from components.stages.rules import rules
from tests.e2e.test_processes import LAUNCH, LIMIT, before_training
from tests.e2e.test_stages import toy

pytestmark = pytest.mark.e2e
FIGURES = {"tokens_per_second", "workers", "rows_in_flight", "tokens_per_forward", "started", "seconds"}
OF_A_RUN = FIGURES | {"results", "file_hash"}  # hashes of files that hold such figures
DIES = (
    "import os, signal\nfrom components.core import processes\n"
    "with processes.joined():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
)


@pytest.fixture
def evaluated(root: Path) -> tuple[Workspace, Settings]:
    """Everything that one process makes of 7 test prompts and of one gate prompt; random candidates in two seeds."""
    counts = {"pretrain": 4, "train": 12, "tune": 4, "gate": 1, "test": 7}
    few = {"block_lengths": [None], "rules": {"random": [2], "threshold": [0.9]}, "seeds": [0, 1]}
    variants = {"offsets": {"learned": [], "distilled": []}, "blocks": []}
    settings = toy(data={"counts": counts}, sweep=few, variants=variants)
    workspace = before_training(root, settings)
    shutil.copytree(workspace.outputs / "distill", workspace.outputs / "train")
    for group, name in (("evaluate", "sudoku_many"), ("gate", "")):
        case = case_of(settings, group, name)
        rules(workspace, settings.decode, settings.sweep, case)
        evaluate(workspace, settings.domain, settings.decode, settings.sweep, settings.variants, case)
    return workspace, settings


def start(commands: list[list[str]]) -> list[subprocess.Popen[str]]:
    """One process per command, without a launcher that would end them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | group | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]


def contents(folder: Path) -> dict[str, Any]:
    """Every file by its path: its JSON lines without what belongs to one run, or its bytes."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = path.read_text(encoding="utf-8")
        if path.name == "results.jsonl":
            lines = [json.loads(line) for line in text.splitlines()]
            found[str(path.relative_to(folder))] = [
                json.dumps({k: v for k, v in line.items() if k not in OF_A_RUN}) for line in lines
            ]
        elif path.name in ("run.json", "sources.json"):
            found[str(path.relative_to(folder))] = {k: v for k, v in json.loads(text).items() if k not in OF_A_RUN}
        elif path.suffix == ".csv":
            head, *rows = [line.split(",") for line in text.splitlines()]
            keep = [i for i, name in enumerate(head) if name not in OF_A_RUN]
            found[str(path.relative_to(folder))] = [[row[i] for i in keep] for row in (head, *rows)]
        else:
            found[str(path.relative_to(folder))] = text
    return found


def test_two_processes_write_the_files_of_one(evaluated: tuple[Workspace, Settings]) -> None:
    """To the last digit, but for the speed and the rows in flight. Of the one gate prompt a process has none."""
    workspace, _ = evaluated
    alone = {name: contents(workspace.outputs / name) for name in ("rules", "evaluate", "tables", "metrics")}
    assert len(alone["evaluate"]) == 5
    for name in ("rules", "evaluate", "tables"):
        shutil.rmtree(workspace.outputs / name)
    for name in ("evaluate-sudoku_many", "gate"):
        (workspace.outputs / "metrics" / f"{name}.json").unlink()
    for stage in (["rules", "--group", "evaluate", "--case", "sudoku_many"], ["rules", "--group", "gate"], ["gate"]):
        both = start([["-m", "components.cli", *stage]] * 2)
        said = [process.communicate() for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert said[0][0] and not said[1][0]
    command = [sys.executable, *LAUNCH, "-m", "components.cli", "evaluate", "--case", "sudoku_many"]
    launched = subprocess.run(command, capture_output=True, text=True, check=False)
    assert launched.returncode == 0, launched.stderr
    assert {name: contents(workspace.outputs / name) for name in alone} == alone


def test_a_process_that_dies_ends_the_evaluation(evaluated: tuple[Workspace, Settings]) -> None:
    """Within a minute, by an error, and what was there before stays as it was."""
    workspace, _ = evaluated
    before = contents(workspace.outputs / "evaluate")
    began = time.monotonic()
    left, dead = start([["-m", "components.cli", "evaluate", "--case", "sudoku_many"], ["-c", DIES]])
    try:
        _, said = left.communicate(timeout=2 * LIMIT)
        assert dead.wait() < 0 and left.returncode != 0 and "another process of this stage is gone" in said
        assert time.monotonic() - began < LIMIT
    finally:
        left.kill()
    assert contents(workspace.outputs / "evaluate") == before
