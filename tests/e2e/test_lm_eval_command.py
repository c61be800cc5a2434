"""The command line that the README prints: `unmask lm_eval`, offline, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from components.commands.demo import DLLM, FOLDER, POLICY
from components.commands.lm_eval_model import Unmask
from components.commands.promote import promote
from tests.outputs import PICK
from tests.registry import train
from tests.unit.test_lm_eval import TASK, asked, ours, task_file

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


def test_unmask_lm_eval_prints_the_harness_s_table_and_writes_its_samples(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    drawn = [TASK.sample(index, 5) for index in range(24)]
    texts, result = ours(FOLDER / DLLM, str(FOLDER / POLICY), drawn)
    task_file(tasks, drawn)
    words = [
        "--model",
        "unmask",
        "--model_args",
        f"denoiser={FOLDER / DLLM},policy={FOLDER / POLICY}",
        "--tasks",
        "local_sudoku",
    ]
    words += ["--include_path", str(tasks), "--apply_chat_template", "--batch_size", "auto"]
    words += ["--log_samples", "--output_path", str(tmp_path / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "components.cli", "lm_eval", *words],
        env={**os.environ, **offline, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "|local_sudoku|" in done.stdout and "exact_match" in done.stdout
    (results,) = (tmp_path / "out").rglob("results_*.json")
    config = json.loads(results.read_text(encoding="utf-8"))["config"]
    assert config["forward_passes"] == pytest.approx(result.nfe)
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    found.sort(key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in found] == texts
    assert [sample["exact_match"] for sample in found] == result.correct_P.tolist()


def test_what_is_wrong_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    words = ["lm_eval", "--model", "unmask", "--model_args", "denoiser=none", "--tasks", "gsm8k"]
    done = subprocess.run(
        [sys.executable, "-m", "components.cli", *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "unmask: model_args has no policy. Write --model_args denoiser=FOLDER,policy=NAME."
    )


def test_the_champion_decodes_as_the_file_that_was_exported(root: Path) -> None:
    train(root, iterations=3)
    promote(root / "outputs" / "tiny", root, PICK)
    (exported,) = (root / "outputs" / "tiny").rglob("policy.onnx")
    texts, build = [], cast(Any, Unmask)  # the harness's registry hides the signature
    for name in ("models:/unmasking-policy-tiny@champion", str(exported)):
        one = build(denoiser=str(FOLDER / DLLM), policy=name, block_length=8)
        chats = [one.apply_chat_template([{"role": "user", "content": TASK.sample(i, 5).prompt}]) for i in range(6)]
        texts.append(one.generate_until(asked(*chats, max_gen_toks=16)))
    assert texts[0] == texts[1] and len(set(texts[0])) > 3
