"""The task of texts with gaps: its rows, what is right, and an evaluation of it from settings."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import DataError, SettingsError
from components.decode.engine import rollout
from components.decode.prompts import Prompts
from components.denoisers import embedded
from components.evaluation.evaluate import Candidate, evaluate
from components.evaluation.evidence import check_result
from components.policies.rules import heuristic
from components.settings.data import Counts, Data, Domain, TaskSettings
from components.stages.common.workspace import Workspace
from components.stages.prepare import prepare
from components.tasks import build
from components.tasks.example import MASK, Example
from components.tasks.hub import TextTask
from components.tasks.infill import _read

FILES = ("train", "test")
ROW = {"prompt": "Go on.", "canvas": f"All roads lead{MASK}{MASK}.", "answer": "All roads lead to Rome."}


def file(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def opened(path: str, **more: Any) -> TextTask:
    task = build("infill", test_path=path, **more)
    assert isinstance(task, TextTask)
    return task


def test_a_row_is_a_prompt_with_a_canvas_and_perhaps_without_a_prompt(tmp_path: Path) -> None:
    bare = {"canvas": f"{MASK}b", "answer": "ab"}
    task = opened(file(tmp_path / "x.jsonl", ROW, bare, {**bare, "canvas": f"a{MASK}"}))
    assert task.examples("test") == [
        Example("infill", ROW["prompt"], ROW["answer"], canvas=ROW["canvas"]),
        Example("infill", "", "ab", canvas=f"{MASK}b"),
        Example("infill", "", "ab", canvas=f"a{MASK}"),
    ]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("All roads lead to Rome.", 1.0),
        ("All roads lead to Rome . \n", 1.0),
        ("All roads lead to Roma.", 0.0),
        ("All roads lead to Rome. ...", 0.0),
        ("", 0.0),
    ],
)
def test_a_text_is_right_where_it_is_the_answer_but_for_white_space(text: str, right: float, tmp_path: Path) -> None:
    task = opened(file(tmp_path / "x.jsonl", ROW))
    score = task.score(text, task.examples("test")[0])
    assert (score.correct, score.dense) == (right, right)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"canvas": "All roads lead to Rome."}, "has no gap"),
        ({"canvas": None}, "no 'canvas'"),
        ({"canvas": f"No roads lead{MASK}."}, "filled in"),
        ({"canvas": f"All roads lead{MASK}!"}, "filled in"),
        ({"canvas": f"All{MASK}lead{MASK}roads{MASK}."}, "filled in"),
        ({"canvas": f"aba{MASK}aba", "answer": "ababa"}, "filled in"),
        ({"answer": ""}, "answer"),
        ({"prompt": 3}, "prompt"),
    ],
)
def test_a_row_that_no_text_could_solve_is_refused_or_left_out(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = file(tmp_path / "x.jsonl", ROW, ROW | change)
    with pytest.raises(DataError, match=words):
        opened(path).examples("test")
    assert len(opened(path, leave_out=True).examples("test")) == 1


@pytest.mark.parametrize("canvas", [f"a{MASK}a{MASK}", f"{MASK}b{MASK}{MASK}", f"{MASK}", f"a {MASK}c a"])
def test_given_parts_may_stand_anywhere_in_their_order(canvas: str) -> None:
    assert _read("infill", {"canvas": canvas, "answer": "ab ca"}).canvas == canvas


def test_a_task_without_a_file_is_refused() -> None:
    with pytest.raises(SettingsError, match="test_path"):
        build("infill")


def gaps(path: Path, start: str, count: int) -> str:
    """Rows of 6 or 7 letters, 3 of them missing, the prompt of each its own."""
    prompts = (start + "".join(letters) for letters in itertools.product("abcdefgh", repeat=3))
    rows = (
        {"prompt": prompt, "canvas": f"ab{MASK}d{MASK}{MASK}" + "h" * (i % 2), "answer": "abcdaa" + "h" * (i % 2)}
        for i, prompt in enumerate(itertools.islice(prompts, count))
    )
    return file(path, *rows)


def test_settings_evaluate_it(tmp_path: Path) -> None:
    """Over an embedded dLLM: what is given stays, the gaps alone cost forwards and decide."""
    paths = {f"{split}_path": gaps(tmp_path / split, split[0], 300 if split == "train" else 8) for split in FILES}
    settings = TaskSettings(kind="infill", params=paths, canvas=8)
    data = Data(seed=0, tasks={"gaps": settings}, counts=Counts(pretrain=0, train=4, tune=1, gate=4, test=8))
    workspace = Workspace(root=tmp_path, profile="p")
    prepare(workspace, data, {}, Domain(model="none", tasks={"gaps": 1}))
    stored = workspace.task("gaps")
    denoiser, encoder = embedded.build("llada", "abcdefghrt", embedded.Shape(16, 2, 2, 24, 64), seed=1)
    for split, count in (("test", 8), ("gate", 4)):
        prompts = Prompts.of(stored.task(), stored.examples(split), encoder)
        assert set(prompts.lengths) <= {6, 7} and len(prompts) == count
        done = evaluate(denoiser, Candidate("confidence", "2", heuristic("confidence", 2), None), prompts, [0])
        assert done.nfe_P.tolist() == [2] * count and done.masks_P.tolist() == [3] * count
        check_result(done, settings.length)
        job = prompts.job(None)
        rolled = rollout(denoiser, heuristic("confidence", 2), job)
        texts, correct_R, _ = prompts.scores(job, rolled)
        assert job.canvas_RL is not None
        given_RL = job.canvas_RL >= 0
        assert rolled.canvas_RL[given_RL].tolist() == job.canvas_RL[given_RL].tolist()
        assert [t == e.answer for t, e in zip(texts, prompts.examples, strict=True)] == correct_R.bool().tolist()
        assert correct_R.tolist() == done.correct_P.tolist()
        assert [encoder.text(ids) for ids in prompts.answers()] == [e.answer for e in prompts.examples]
