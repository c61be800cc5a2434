"""A study of two minute cells, killed in the middle and started again: what is done is not done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.core.files import read_json
from components.evaluation.results import read_results
from tests.clone import Clone, ran

pytestmark = [pytest.mark.e2e, pytest.mark.long]
OFFSETS = {"influence": [2.0], "learned": [2.0], "distilled": []}
STUDY = {
    "base": {"data.counts.test": 32, "variants.offsets": OFFSETS},
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


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    def with_study(folder: Path) -> None:
        (folder / "infra" / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")

    return Clone(tmp_path_factory.mktemp("study") / "clone", with_study)


def kill_at(clone: Clone, line: str) -> list[str]:
    """Start the study, end it by SIGKILL at the first line that holds ``line``; the stages that had begun by then."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(clone.folder), "OMP_NUM_THREADS": "1"}
    study = subprocess.Popen(COMMAND, cwd=clone.folder, env=environment, stdout=subprocess.PIPE, text=True)
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
    assert clone.run(*COMMAND, "--report").split() == ["docs/results.md", "docs/results.png"]
    text = (clone.folder / "docs" / "results.md").read_text(encoding="utf-8")
    assert "2 of 2 cells" in text and "2 training seeds" in text and "## Tokens per second" in text
    assert cell["machine"] in text and clone.run("git", "rev-parse", "--short=7", "HEAD").strip() in text


def test_a_cell_of_other_settings_is_open_again_and_a_broken_one_stops_no_other(clone: Clone) -> None:
    """Runs after the test above, in the same clone."""
    study = json.loads(json.dumps(STUDY))
    study["cells"]["two"]["set"] = {"train.seed": 2, "train.reference": "threshold", "train.reference_value": 0.9}
    study["cells"]["two"]["groups"] = ["evaluate"]
    study["cells"] = {"two": study["cells"]["two"], "one": study["cells"]["one"]}
    (clone.folder / "infra" / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    clone.run("git", *author, "commit", "--quiet", "-am", "another cell")
    listed = clone.run(*COMMAND, "--list").splitlines()
    assert [line.split()[:2] for line in listed] == [["open", "two"], ["done", "one"]]
