"""A study of two minute cells, one after another and at the same time, killed in the middle and taken up again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from components.core.files import read_json
from components.evaluation.results import EvalResult, read_results
from tests.clone import Clone, ran

pytestmark = [pytest.mark.e2e, pytest.mark.long]
OFFSETS = {"influence": [2.0], "learned": [2.0], "distilled": []}
STUDY = {
    # A measured type is this minute's.
    "base": {"data.counts.test": 32, "variants.offsets": OFFSETS, "models.mini-llada.dtype": "float32"},
    "cells": {
        "one": {
            "about": "the first",
            "kind": "default",
            "groups": ["evaluate"],
            "set": {"variants.blocks": [4]},
        },
        "two": {"about": "another seed", "kind": "default", "groups": ["evaluate", "ood"], "set": {"train.seed": 1}},
    },
}
COMMAND = (sys.executable, "-m", "flows.study")
COLLECT = ("dvc", "repro", "infra/dvc.yaml")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    def with_study(folder: Path) -> None:
        (folder / "infra" / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")

    return Clone(tmp_path_factory.mktemp("study") / "clone", with_study)


def start(clone: Clone, *words: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(clone.folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, *words],
        cwd=clone.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_at(clone: Clone, line: str) -> list[str]:
    """Start the study, end it by SIGKILL at the first line that holds ``line``; the stages that had begun by then."""
    study = start(clone)
    assert study.stdout
    said: list[str] = []
    for printed in study.stdout:
        said.append(printed)
        if line in printed:
            study.send_signal(signal.SIGKILL)
            break
    study.wait()
    study.stdout.close()
    return ran("".join(said))


def test_a_killed_study_goes_on_and_what_is_done_is_not_done_again(clone: Clone) -> None:
    first = kill_at(clone, "Running stage 'train'")
    assert first[-1] == "train" and {"prepare", "influence", "distill"} <= set(first)
    kept = clone.folder / "outputs" / "study"
    assert not (kept / "one" / "cell.json").exists()

    one, two = clone.run(*COMMAND).split("two (2/2)")
    again, second = ran(one), ran(two)
    assert "train" in again and not {"prepare", "influence", "distill"} & set(again)
    # Another training seed: the data, the dLLMs, the sweep and the starts are the first cell's.
    assert second == ["train", "evaluate@worded_position", "ood-rules@related", "ood@related"]

    assert [line.split()[-1] for line in clone.run(*COMMAND).splitlines()] == ["done", "done"]
    assert {path.stem for path in (kept / "one" / "results").iterdir()} == {"evaluate-worded_position"}
    assert {path.stem for path in (kept / "two" / "results").iterdir()} == {"evaluate-worded_position", "ood-related"}
    found = {name: read_results(kept / name / "results" / "evaluate-worded_position.jsonl") for name in ("one", "two")}
    settings = {name: [(r.family, r.setting) for r in rows if r.is_policy] for name, rows in found.items()}
    assert settings["two"] == [
        ("learned", "mode"),
        ("learned", "sample"),
        ("learned", "offset=2"),
        ("distilled", "mode"),
        ("influence", "mode"),
        ("influence", "offset=2"),
    ]
    assert set(settings["one"]) - set(settings["two"]) == {("learned", "block=4"), ("learned", "block=4,offset=2")}
    for rows in found.values():
        assert {r.prompts for r in rows} == {32}
    weights = [(kept / name / "policies" / "train" / "policy.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] != weights[1]
    cell = read_json(kept / "two" / "cell.json")
    assert cell["about"] == "another seed" and cell["groups"] == ["evaluate", "ood"]

    assert clone.run(*COMMAND, "--speed").strip() == "outputs/study/speed.json"
    collected = clone.run(*COLLECT)
    assert ran(collected) == ["infra/dvc.yaml:results"] and "docs/results.md\ndocs/results.png\n" in collected
    assert ran(clone.run(*COLLECT)) == [] and "infra" not in clone.run("dvc", "repro", "--dry")
    text = (clone.folder / "docs" / "results.md").read_text(encoding="utf-8")
    assert "2 of 2 cells" in text and "2 training seeds" in text and "## Tokens per second" in text
    assert cell["machine"] in text and clone.run("git", "rev-parse", "--short=7", "HEAD").strip() in text


def kept_results(folder: Path) -> dict[str, list[EvalResult]]:
    """What is kept of every cell, by its place, without what the machine decides."""
    files = sorted((folder / "outputs" / "study").glob("*/results/*.jsonl"))
    rows = {
        file: [replace(row, tokens_per_second=0.0, rows_in_flight=0) for row in read_results(file)] for file in files
    }
    return {str(file.relative_to(folder)): rows[file] for file in files}


def worker_of(study: int, cell: str) -> psutil.Process:
    """The worker process that is at this cell: the parent of the guard of what runs in the cell's worktree."""
    for process in psutil.Process(study).children(recursive=True):
        if any(word.endswith("process_group.py") for word in process.cmdline()) and process.cwd().endswith(cell):
            worker = process.parent()
            assert worker and worker.pid != study
            return worker
    raise AssertionError(f"no process works in {cell}")


def test_two_workers_make_the_tables_of_one_process_and_a_killed_worker_costs_its_cell(
    clone: Clone, tmp_path: Path
) -> None:
    """Runs after the test above, whose tables it makes again: all from nothing, both cells at the same time."""
    apart = clone.copy(tmp_path / "apart")
    for made in ("outputs", ".dvc/cache", ".worktrees"):
        shutil.rmtree(apart.folder / made)
    (apart.folder / "dvc.lock").unlink(missing_ok=True)
    apart.run("git", "worktree", "prune")
    study = start(apart, "--cluster", "local:2")
    assert study.stdout
    said: list[str] = []
    for line in study.stdout:
        said.append(line)
        if line.startswith("two: Running stage 'train'") and said.count(line) == 1:
            worker_of(study.pid, "study-two").kill()
    assert study.wait() == 0, "".join(said)
    stages = {cell: ran("".join(line for line in said if line.startswith(f"{cell}: "))) for cell in ("one", "two")}
    assert stages["two"].count("train") == 2 and stages["one"].count("train") == 1, "".join(said)
    assert stages["one"][:2] == ["prepare", "pretrain@mini-llada"] and not set(stages["one"][:2]) & set(stages["two"])
    for of_cell in stages.values():
        assert all(of_cell.count(stage) == 1 for stage in of_cell if stage != "train")
    assert kept_results(apart.folder) == kept_results(clone.folder)
    for cell in ("one", "two"):
        policies = Path("outputs") / "study" / cell / "policies" / "train" / "policy.safetensors"
        assert (apart.folder / policies).read_bytes() == (clone.folder / policies).read_bytes()
    assert not list((apart.folder / ".worktrees").iterdir())
    assert apart.run(*COMMAND, "--cluster", "local:2").splitlines()[-2:] == ["one: is done", "two: is done"]


def test_a_cell_of_other_settings_is_open_again_and_a_broken_one_stops_no_other(clone: Clone) -> None:
    """Runs after the tests above, in the same clone."""
    study = json.loads(json.dumps(STUDY))
    study["cells"]["two"]["set"] = {"train.seed": 2, "train.reference": "threshold", "train.reference_value": 0.9}
    study["cells"]["two"]["groups"] = ["evaluate"]
    study["cells"] = {"two": study["cells"]["two"], "one": study["cells"]["one"]}
    (clone.folder / "infra" / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    clone.run("git", *author, "commit", "--quiet", "-am", "another cell")
    listed = clone.run(*COMMAND, "--list").splitlines()
    assert [line.split()[:2] for line in listed] == [["open", "two"], ["done", "one"]]
