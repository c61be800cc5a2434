"""Laws of data sets: each row becomes an example that can be scored, or is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import DataError
from components.settings.data import Counts, Data, Domain, TaskSettings
from components.stages.common.workspace import Workspace
from components.stages.prepare import prepare
from components.tasks import build
from components.tasks.example import Example, read_examples
from components.tasks.hub import TextTask, _read_math, gsm8k, math
from components.tasks.programs import _read_humaneval, _read_mbpp
from components.tasks.splits import collect_all

LINE = '{"question": "How many?", "answer": "#### 3"}'
MBPP = {
    "prompt": "Add.",
    "code": "import math\ndef add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3"],
}
HUMANEVAL = {
    "prompt": "def one():\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}


def file(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + LINE.encode(),
        b"\n\n  \n" + LINE.encode() + b"\n\n",
        LINE.encode() + b"\r\n\r\n",
        LINE.encode(),
        b"\xef\xbb\xbf\n" + LINE.encode(),
    ],
)
def test_byte_order_marks_and_blank_lines_are_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    assert [e.answer for e in gsm8k(test_path=str(tmp_path / "x.jsonl")).examples("test")] == ["<answer>3</answer>"]


BROKEN: dict[str, tuple[bytes, str]] = {
    "latin-1": ('{"question": "Où?", "answer": "#### 3"}'.encode("latin-1"), "is not a JSON object .*UTF-8"),
    "utf-16": (LINE.encode("utf-16"), "UTF-8|not a JSON object"),
    "utf-16 without a mark": (LINE.encode("utf-16-le"), "not a JSON object"),
    "a list": (b"[1, 2]", "a list"),
    "a number": (b"7", "a int"),
    "null": (b"null", "a NoneType"),
    "a torn line": (LINE[:-4].encode(), "not a JSON object"),
    "two objects": (LINE.encode() * 2, "not a JSON object"),
    "a key twice": (b'{"question": "a", "answer": "#### 3", "answer": "#### 4"}', "stands twice"),
    "not a number": (b'{"question": "a", "answer": NaN}', "NaN is no JSON number"),
    "half a character": (b'{"question": "\\ud800", "answer": "#### 3"}', "surrogates"),
    "deep nesting": (b"[" * 100_000, "not a JSON object"),
    "a long integer": (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}", "not a JSON object"),
    "a zero byte alone": (b"\x00", "not a JSON object"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_lines_that_are_no_rows_are_refused_by_number(name: str, tmp_path: Path) -> None:
    content, words = BROKEN[name]
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINE.replace("many", "much").encode() + b"\n" + content)
    with pytest.raises(DataError, match=f"x.jsonl, line 2 .*({words})"):
        gsm8k(test_path=str(path)).examples("test")
    path.write_bytes((Example("t", "p", "a").to_json() + "\n").encode() + content)
    with pytest.raises(DataError, match=r"x\.jsonl, line 2 is not an example"):
        read_examples(path)


@pytest.mark.parametrize(
    "row",
    [
        {"task": 1, "prompt": "p", "answer": "a"},
        {"task": "t", "prompt": None, "answer": "a"},
        {"task": "t", "prompt": "p"},
        {"task": "t", "prompt": "p", "answer": ["a"]},
        {"task": "t", "prompt": "p", "answer": "a", "metadata": []},
        {"task": "t", "prompt": "p", "answer": "a", "more": 1},
    ],
)
def test_examples_of_other_types_are_refused_by_number(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1 is not an example"):
        read_examples(Path(file(tmp_path / "x.jsonl", row)))


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (gsm8k, {"question": "", "answer": "#### 3"}, "question=''"),
    (gsm8k, {"question": " \n", "answer": "#### 3"}, "question="),
    (gsm8k, {"question": 5, "answer": "#### 3"}, "question='5'"),
    (gsm8k, {"question": ["a"], "answer": "#### 3"}, "question="),
    (gsm8k, {"question": "a", "answer": 3}, "answer='3'"),
    (gsm8k, {"question": "a", "answer": {"x": 1}}, "answer="),
    (gsm8k, {"question": None, "answer": "#### 3"}, "no 'question'"),
    (gsm8k, {"question": "a", "answer": "#### 1,2,3"}, "ends in no '#### number'"),
    (gsm8k, {"question": "a", "answer": "#### 0,5"}, "ends in no '#### number'"),
    (gsm8k, {"question": "a", "answer": "#### 1.2 million"}, "ends in no '#### number'"),
    (math, {"problem": "", "answer": "3"}, "problem=''"),
    (math, {"problem": "a", "answer": ""}, "no .*boxed answer"),
    (math, {"problem": "a", "answer": "", "solution": r"\boxed{7}"}, "no .*boxed answer"),
    (math, {"problem": "a", "answer": True}, "answer='True'"),
    (math, {"problem": "a", "answer": ["3"]}, "answer="),
    (math, {"problem": "a", "solution": r"\boxed{}"}, "no .*boxed answer"),
    (math, {"problem": "a", "solution": 3}, "solution='3'"),
]


@pytest.mark.parametrize(("task", "row", "words"), WRONG)
def test_rows_of_wrong_types_are_refused_by_number(task: Any, row: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = file(tmp_path / "x.jsonl", row)
    with pytest.raises(DataError, match=rf"x.jsonl, line 1: .*{words}"):
        task(test_path=path).examples("test")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("so\n#### −3", "-3"),
        ("#### − 3", "-3"),
        ("#### 1,234", "1234"),
        ("#### 1 234", "1234"),
        ("#### 1e3", "1000"),
        ("#### 1/2", "0.5"),
        ("#### 1/3", "1/3"),
        ("#### $18.00", "18"),
        (r"\boxed{7} then #### 18", "18"),
        ("#### 0", "0"),
    ],
)
def test_gold_numbers_keep_their_value(solution: str, answer: str, tmp_path: Path) -> None:
    task = gsm8k(test_path=file(tmp_path / "x.jsonl", {"question": "a", "answer": solution}))
    (example,) = task.examples("test")
    assert example.answer == f"<answer>{answer}</answer>"
    assert task.score(example.answer, example).correct == 1.0 and task.score("", example).correct == 0.0


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"answer": 0, "solution": r"\boxed{7}"}, "0"),
        ({"answer": "0", "solution": r"\boxed{7}"}, "0"),
        ({"answer": 0.5, "solution": r"\boxed{7}"}, "0.5"),
        ({"answer": None, "solution": r"\boxed{7}"}, "7"),
        ({"solution": r"\boxed{5}, no, \boxed{7}"}, "7"),
        ({"answer": -3}, "-3"),
    ],
)
def test_the_answer_column_is_the_gold_answer(row: dict[str, Any], gold: str) -> None:
    assert _read_math("math", {"problem": "a", **row}).metadata["gold"] == gold


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_list": "assert add(1, 2) == 3"}, "no list of texts"),
        ({"test_list": []}, "asserts nothing"),
        ({"test_list": [""]}, "asserts nothing"),
        ({"test_list": ["# add(1, 2)"]}, "asserts nothing"),
        ({"test_list": ["add(1, 2)"]}, "asserts nothing"),
        ({"test_list": ["assert True"]}, "uses none of"),
        ({"test_list": [1]}, "no list of texts"),
        ({"test_list": None}, "no 'test_list'"),
        ({"test_list": {"a": 1}}, "no list"),
        ({"test_list": ["assert add(1, 2 == 3"]}, "no Python"),
        ({"test_imports": "import math"}, "no list of texts"),
        ({"code": "def add(:"}, "no Python"),
        ({"code": ""}, "code=''"),
        ({"prompt": " "}, "prompt="),
    ],
)
def test_mbpp_rows_whose_tests_cannot_fail_are_refused(change: dict[str, Any], words: str) -> None:
    assert _read_mbpp("mbpp", MBPP).metadata["names"] == ["add"]
    with pytest.raises(DataError, match=words):
        _read_mbpp("mbpp", MBPP | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test": ""}, "test=''"),
        ({"test": "def check(candidate):\n    pass\n"}, "asserts nothing"),
        ({"test": "assert one() == 1"}, "entry_point='one'"),
        ({"entry_point": "two"}, "entry_point='two'"),
        ({"test": "def check(c: assert"}, "no Python"),
        ({"canonical_solution": 1}, "canonical_solution='1'"),
    ],
)
def test_humaneval_rows_whose_tests_cannot_fail_are_refused(change: dict[str, Any], words: str) -> None:
    assert _read_humaneval("humaneval", HUMANEVAL).metadata["entry"] == "one"
    with pytest.raises(DataError, match=words):
        _read_humaneval("humaneval", HUMANEVAL | change)


def test_one_question_with_two_answers_is_refused_with_both_lines(tmp_path: Path) -> None:
    one, two = {"question": "How  many?", "answer": "#### 3"}, {"question": "How many?", "answer": "#### 4"}
    path = file(tmp_path / "x.jsonl", one, {"question": "b", "answer": "#### 3"}, two)
    with pytest.raises(
        DataError, match=r"x.jsonl, line 3: it has the question of .*x.jsonl, line 1 .*answer>4.*answer>3"
    ):
        gsm8k(test_path=path).examples("test")
    task = gsm8k(test_path=file(tmp_path / "y.jsonl", one, {**one, "answer": "else\n#### 3.0"}))
    assert len(task.examples("test")) == 1
    half = [{"problem": "Half?", "answer": answer} for answer in (r"\frac12", "0.5")]
    assert len(math(test_path=file(tmp_path / "z.jsonl", *half)).examples("test")) == 1
    with pytest.raises(DataError, match="line 2: it has the question"):
        math(test_path=file(tmp_path / "w.jsonl", half[0], {**half[1], "answer": "0.6"})).examples("test")


def test_mbpp_asks_one_sentence_of_two_functions() -> None:
    other = MBPP | {"code": "def plus(a, b):\n    return a + b", "test_list": ["assert plus(1, 2) == 3"]}
    assert _read_mbpp("mbpp", MBPP).uid != _read_mbpp("mbpp", other).uid


GOOD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # a row, and what makes it one that cannot be scored
    "gsm8k": ({"question": "How many?", "answer": "#### 3"}, {"answer": "three"}),
    "math": ({"problem": "Half?", "solution": r"\boxed{0.5}"}, {"solution": "0.5"}),
    "mbpp": (MBPP, {"test_list": []}),
    "humaneval": (HUMANEVAL, {"test": "pass"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_rows_that_cannot_be_scored_are_left_out_and_counted_if_asked(name: str, tmp_path: Path) -> None:
    good, broken = GOOD[name]
    path = file(tmp_path / "x.jsonl", {**good, **broken}, good, {})
    more = {"execute": True, "allow_unconfined": True} if name in ("mbpp", "humaneval") else {}
    with pytest.raises(DataError, match=r"x.jsonl, line 1: .*leave_out=true\."):
        build(name, test_path=path, **more).examples("test")  # type: ignore[attr-defined]
    task = build(name, test_path=path, leave_out=True, **more)
    assert isinstance(task, TextTask)
    assert len(task.examples("test")) == 1 and [place[-6:] for place in task.left_out] == ["line 1", "line 3"]


# --- stage prepare --------------------------------------------------------------------------------------------------


def settings(folder: Path, seed: int, *, train: int = 20, test: int = 10, pretrain: int = 5) -> Data:
    params = {"train_path": str(folder / "train.jsonl"), "test_path": str(folder / "test.jsonl")}
    counts = Counts(pretrain=pretrain, train=train, tune=1, gate=1, test=test)
    return Data(seed=seed, tasks={"words": TaskSettings(kind="gsm8k", params=params, canvas=64)}, counts=counts)


def test_a_finite_data_set_is_drawn_by_the_seed(tmp_path: Path) -> None:
    for name, count in (("train", 300), ("test", 40)):
        file(tmp_path / f"{name}.jsonl", *({"question": f"{name} {i}?", "answer": f"#### {i}"} for i in range(count)))
    drawn = {}
    for seed in (1, 2, 1):
        workspace = Workspace(root=tmp_path / str(seed), profile="p")
        prepare(workspace, settings(tmp_path, seed), {}, Domain(model="none", tasks={"words": 1}))
        drawn[seed] = workspace.domain("words").examples("test")
        task = settings(tmp_path, seed).tasks["words"].build()
        for split, count in (("train", 20), ("test", 10)):
            assert workspace.domain("words").examples(split) == collect_all(task, {split: count}, seed)[split]
        assert workspace.task("words").examples("test") == drawn[seed]
    assert isinstance(task, TextTask)
    assert drawn[1] != drawn[2] and drawn[1] != task.examples("test")[:10]


def test_the_rows_left_out_are_a_metric_of_the_stage(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(300)]
    twice = {"question": "1?", "answer": "#### 2"}
    file(tmp_path / "train.jsonl", *rows[40:], {"question": "odd?", "answer": ""})
    file(tmp_path / "test.jsonl", *rows[:40], twice)
    data = settings(tmp_path, 1)
    data.tasks["words"].params["leave_out"] = True
    figures = prepare(Workspace(root=tmp_path, profile="p"), data, {}, Domain(model="none", tasks={"words": 1}))
    assert figures["words.rows_left_out"] == 2


@pytest.mark.parametrize(
    ("counts", "words"), [({"test": 41}, "41 .*'test'.* has 40"), ({"train": 999}, "999 .*'train'")]
)
def test_a_data_set_with_too_few_rows_says_so(counts: dict[str, int], words: str, tmp_path: Path) -> None:
    for name, count in (("train", 300), ("test", 40)):
        file(tmp_path / f"{name}.jsonl", *({"question": f"{name} {i}?", "answer": f"#### {i}"} for i in range(count)))
    with pytest.raises(DataError, match=words):
        prepare(
            Workspace(root=tmp_path, profile="p"),
            settings(tmp_path, 1, **counts),
            {},
            Domain(model="none", tasks={"words": 1}),
        )
    assert not (tmp_path / "outputs" / "p" / "data").exists()
