"""The pipeline is open: dLLMs, cases, task kinds and profiles are added in params.yaml, and `dvc repro` runs them.

A task kind is one more Python file and its line in the table of tasks. dvc.yaml, command line and flows stay as they
are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from components.core.files import read_lines
from components.evaluation.results import read_table
from components.tracking.publish import metrics_files
from tests.clone import ROOT, Clone, ran

pytestmark = pytest.mark.e2e
P = Path("outputs/mine")


def add_a_task_kind(folder: Path) -> None:
    """The example of CONTRIBUTING.md as a file, and its line in the table; nothing else of the code changes."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- executed by a test: task -->\n```python\n(.*?)```", text, re.DOTALL)
    lines = [line for line in code.splitlines() if "TASKS" not in line]
    (folder / "components" / "tasks" / "reverse.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = folder / "components" / "tasks" / "__init__.py"
    table = path.read_text(encoding="utf-8")
    table = re.sub(r"(?m)^(?=from \S*\.sequences )", "from .reverse import Reverse\n", table, count=1).replace(
        '    "sudoku_many":', '    "reverse": Reverse,\n    "sudoku_many":'
    )
    path.write_text(table, encoding="utf-8")


def add(clone: Clone) -> dict[str, Any]:
    """A profile of its own with a task of the new kind, a third dLLM, and another case of transfer and of ood."""
    params = clone.params()
    params["profile"] = "mine"
    params["data"]["tasks"]["backwards"] = {"kind": "reverse", "params": {"digits": 8}, "canvas": None}
    params["models"]["third"] = params["models"]["mini-dream"] | {"rows": {"sudoku_many": 8, "backwards": 8}}
    params["transfer"]["third"] = {"model": "third", "task": "sudoku_many"}
    params["ood"]["backwards"] = {"model": "third", "task": "backwards"}
    clone.set(params)
    return params


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, list[str]]:
    """The clone after `dvc repro` on the settings of ``add``, and the stages that ran."""
    clone = Clone(tmp_path_factory.mktemp("open"), add_a_task_kind)
    add(clone)
    return clone, ran(clone.run("dvc", "repro"))


def test_repro_runs_what_params_yaml_alone_adds(extended: tuple[Clone, list[str]]) -> None:
    clone, stages = extended
    added = {"pretrain@third", "transfer-rules@third", "transfer@third", "ood-rules@backwards", "ood@backwards"}
    assert added < set(stages) and "ood@related" in stages and len(stages) == len(set(stages))
    assert set(stages) == set(clone.run("dvc", "stage", "list", "--name-only").split())
    changed = clone.run("git", "status", "--porcelain", "--untracked-files=no").split()
    assert changed == ["M", "params.yaml"], "only the settings differ from the commit"
    assert not (clone.folder / "outputs" / "tiny").exists()


def test_what_was_added_is_measured_and_reported(extended: tuple[Clone, list[str]]) -> None:
    clone, _ = extended
    for name, task in (("transfer-third", "sudoku_many"), ("ood-backwards", "backwards")):
        results = read_table(clone.folder / P / "tables" / f"{name}.csv")
        assert {(r.task, r.denoiser, r.split, r.prompts) for r in results} == {(task, "third", "test", 24)}
        assert {"learned", "distilled", "threshold"} <= {r.family for r in results}
    shown = (clone.folder / P / "report" / "table.md").read_text(encoding="utf-8")
    assert re.search(r"\| backwards \| third \|", shown) and re.search(r"\| sudoku_many \| third \|", shown)
    assert "unmasking-policy-mine" in (clone.folder / P / "report" / "card.md").read_text(encoding="utf-8")


def test_the_commands_work_in_the_new_profile_and_over_the_new_dllm(extended: tuple[Clone, list[str]]) -> None:
    clone, _ = extended
    prompt = read_lines(clone.folder / P / "data" / "tasks" / "sudoku_many" / "test.jsonl")[0]["prompt"]
    policy = str(P / "train" / "policy")
    said = clone.run("unmask", "decode", prompt, "--model", str(P / "pretrain" / "third"), "--policy", policy)
    assert said.splitlines()[0] == policy and re.search(r"forward pass(es)?, (right|wrong)$", said.strip())
    assert "ok   settings: profile mine" in clone.run("unmask", "doctor")


def test_one_more_case_reruns_its_own_stages_the_data_and_the_report_alone(extended: tuple[Clone, list[str]]) -> None:
    """By DVC's own words. prepare runs where a task is new; the data of the others are the same bytes."""
    clone, _ = extended
    params = clone.params()
    params["data"]["tasks"]["shorter"] = {"kind": "reverse", "params": {"digits": 4}, "canvas": None}
    params["ood"]["shorter"] = {"model": "third", "task": "shorter"}
    before = _figures(clone)
    clone.set(params)
    assert ran(clone.run("dvc", "repro")) == ["prepare", "ood-rules@shorter", "ood@shorter", "report"]
    after = _figures(clone)
    assert {name: after[name] for name in before if name != "prepare"} == {
        name: text for name, text in before.items() if name != "prepare"
    }
    assert set(after) - set(before) == {"ood-shorter"}
    assert "| shorter | third |" in (clone.folder / P / "report" / "table.md").read_text(encoding="utf-8")
    assert not ran(clone.run("dvc", "repro"))


def _figures(clone: Clone) -> dict[str, str]:
    return {stage: path.read_text(encoding="utf-8") for stage, path in metrics_files(clone.folder / P).items()}


def test_a_removed_case_leaves_the_report(extended: tuple[Clone, list[str]]) -> None:
    clone, _ = extended
    params = clone.params()
    params["ood"].pop("shorter", None)
    del params["ood"]["backwards"]
    clone.set(params)
    assert ran(clone.run("dvc", "repro")) == ["report"]
    shown = (clone.folder / P / "report" / "table.md").read_text(encoding="utf-8")
    assert "backwards" not in shown and "latin_square" in shown
