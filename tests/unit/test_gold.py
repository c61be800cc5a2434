"""The law of every task kind: a gold answer scores 1 and an empty one 0, on every row."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import DataError, SettingsError
from components.tasks import TASKS, build
from components.tasks.example import END, MASK, Example, Task
from components.tasks.hub import TextTask
from components.tasks.splits import SPLITS, collect_all, split_of
from tests.doubles import json_lines
from tests.unit.test_harness import unconfined

pytestmark = pytest.mark.e2e

QUESTION = "How many, case {}?"
GSM8K = ["18", "1,234", "-3", "0", "2.50", "$7", "1/2", "1/3", "1 234", "90%", "1e3", "100.0"]
MATH = [
    r"\frac12",
    r"2\sqrt{3}",
    r"(1,2)",
    r"\{1,2\}",
    "x=3",
    r"[0,1)",
    "25_8",
    r"\text{Evelyn}",
    r"90^\circ",
    "1,234",
    "x^2+1",
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    r"\$5",
    "50\\%",
    "-7",
    r"\infty",
    r"3\pm\sqrt2",
    "1/2^{99}",
]
PROGRAMS = {
    "f": ("def f(x):\n    return 2 * x", ["assert f(2) == 4", "assert f(-1) == -2"]),
    "g": ("import math\n\ndef g(r):\n    return math.pi * r", ["assert abs(g(1) - 3.14159) < 1e-3"]),
    "h": ("def h(a, b=[1]):\n    a = list(a) + b\n    return sorted(a)", ["assert h((3, 2)) == [1, 2, 3]"]),
    "K": ("class K:\n    def __init__(self, x):\n        self.x = x", ["assert K(3).x == 3"]),
}


def gsm8k() -> list[dict[str, Any]]:
    return [{"question": QUESTION.format(i), "answer": f"So it is.\n#### {gold}"} for i, gold in enumerate(GSM8K)]


def math() -> list[dict[str, Any]]:
    boxed = [{"problem": QUESTION.format(i), "solution": f"So $\\boxed{{{gold}}}$."} for i, gold in enumerate(MATH)]
    return boxed + [{"problem": f"And {i}?", "answer": gold} for i, gold in enumerate(MATH)]


def humaneval() -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"import math\n\ndef {name}(x):\n    '''Say {name}.'''\n",
            "entry_point": name,
            "canonical_solution": f"    return {value}\n",
            "test": f"def check(candidate):\n    assert candidate(3) == {value.replace('x', '3')}\n",
        }
        for name, value in (("one", "1"), ("twice", "2 * x"), ("both", "[x, (x, {x: 'a'.upper()})]"))
    ]


def mbpp() -> list[dict[str, Any]]:
    return [{"prompt": f"Write {n}.", "code": c, "test_list": tests} for n, (c, tests) in PROGRAMS.items()]


def kodcode() -> list[dict[str, Any]]:
    rows = []
    for name, (code, tests) in PROGRAMS.items():
        body = "".join(f"def test_{i}():\n    {test}\n\n" for i, test in enumerate(tests))
        info = [
            {"function_name": name, "function_declaration": f"def {name}(x):", "docstring": "", "parameter_list": ""}
        ]
        test = f"from math import pi\nfrom solution import {name}\n\n{body}"
        rows.append({"question": f"Write {name}.", "solution": code, "test": test, "test_info": info})
    return rows


def infill() -> list[dict[str, Any]]:
    return [{"prompt": f"Say {w}.", "canvas": f"{w[0]}{MASK}{w[-1]}", "answer": w} for w in ("cat", "dogs", "a cow")]


FILES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "gsm8k": gsm8k,
    "math": math,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "kodcode": kodcode,
    "infill": infill,
}
RUN = {"humaneval", "mbpp", "kodcode"}


def opened(kind: str, folder: Path, **more: Any) -> TextTask:
    """The task of a data set over the file that this test writes."""
    if kind in RUN:
        more |= {"execute": True, "allow_unconfined": unconfined(), "seconds": 20.0}
    task = build(kind, test_path=json_lines(folder / f"{kind}.jsonl", FILES[kind]()), **more)
    assert isinstance(task, TextTask)
    return task


def made(kind: str) -> Task:
    """A generated task, a slow one with small puzzles."""
    return build(kind, **({"people": 3, "characteristics": 2} if kind == "zebra" else {}))


def drawn(kind: str, folder: Path) -> tuple[Task, list[Example]]:
    """The task, and all rows of its file or 20 that it generates."""
    if kind in FILES:
        task = opened(kind, folder)
        return task, task.examples("test")
    task = made(kind)
    return task, [task.sample(index, 11) for index in range(20)]


@pytest.mark.parametrize("kind", TASKS)
def test_a_gold_answer_scores_one_and_an_empty_one_nothing_on_every_row(kind: str, tmp_path: Path) -> None:
    task, examples = drawn(kind, tmp_path)
    assert len(examples) == (len(FILES[kind]()) if kind in FILES else 20)
    empty = ["", " \n ", END] if task.alphabet else ["", " \n ", "<answer></answer>", "```python\n```", r"\boxed{}"]
    for example in examples:
        score = task.score(example.answer, example)
        assert (score.correct, score.dense) == (1.0, 1.0), example
        for text in empty:
            score = task.score(text, example)
            assert (score.correct, score.dense) == (0.0, 0.0), (text, example)


@pytest.mark.parametrize("kind", sorted(set(TASKS) - {"sudoku_many", "sudoku_long", "sudoku_pair"}))
def test_the_answer_of_another_row_is_right_only_where_it_is_that_row_s_too(kind: str, tmp_path: Path) -> None:
    """Unlike a constant verdict: of two rows whose golds differ, not all are satisfied by either."""
    task, examples = drawn(kind, tmp_path)
    wrong = [
        task.score(one.answer, other).correct == 0.0
        for one, other in itertools.islice(itertools.permutations(examples[:8], 2), 24)
        if one.answer != other.answer
    ]
    assert sum(wrong) >= 0.5 * len(wrong) > 0


@pytest.mark.parametrize("kind", sorted(RUN))
def test_a_program_of_the_right_names_and_wrong_values_scores_nothing(kind: str, tmp_path: Path) -> None:
    task, examples = drawn(kind, tmp_path)
    for example in examples:
        wrong = re.sub(r"(return|self\.x =) ", r"\1 None and ", example.answer)
        assert wrong != example.answer and task.score(wrong, example).correct == 0.0, wrong


# --- puzzles as text ---------------------------------------------------------------------------------------------

TEXTS = ("zebra", "countdown_text", "sudoku_text")


@pytest.mark.parametrize("kind", TEXTS)
def test_only_the_last_answer_of_a_text_is_scored(kind: str) -> None:
    task = made(kind)
    for example in (task.sample(index, 3) for index in range(5)):
        inner = example.answer.removeprefix("<answer>").removesuffix("</answer>")
        assert task.score(f"<reasoning>Well.</reasoning>\n<answer> {inner} </answer>", example).correct == 1.0
        assert task.score(f"\\boxed{{{inner}}}", example).correct == 1.0
        for text in (f"{example.answer} or rather <answer>7</answer>", inner, f"<answer>{inner} or 7</answer>"):
            assert task.score(text, example).correct == 0.0, text


@pytest.mark.parametrize("kind", TEXTS)
def test_text_puzzles_are_drawn_by_address_into_disjoint_splits(kind: str) -> None:
    task = made(kind)
    counts = {"pretrain": 4, "train": 3, "tune": 1, "gate": 1, "test": 1}
    found = collect_all(task, counts, 0)
    assert {split: len(examples) for split, examples in found.items()} == counts
    assert all(split_of(e) == split for split, examples in found.items() for e in examples)
    assert len({e.uid for examples in found.values() for e in examples}) == 10
    two = {"train": 2}
    assert collect_all(made(kind), two, 0) == {"train": found["train"][:2]} != collect_all(task, two, 1)
    assert all(split in SPLITS for split in found)


@pytest.mark.parametrize("kind", TEXTS)
def test_neighbouring_seeds_share_no_puzzle(kind: str) -> None:
    """reasoning-gym's item i of seed s is its item i - 1 of seed s + 1."""
    task = made(kind)
    here, there = ({task.sample(index, seed).uid for index in range(12)} for seed in (7, 8))
    assert len(here & there) <= 1 < len(here)


def test_partial_credit_is_no_right_answer() -> None:
    task = build("sudoku_text")
    example = task.sample(0, 0)
    gold = example.metadata["gold"]
    swapped = gold.translate(str.maketrans("1234", "2134"))
    score = task.score(f"<answer>{swapped}</answer>", example)
    assert score.correct == 0.0 and 0.0 < score.dense < 1.0
    spaced = " | ".join(gold)
    assert task.score(f"<answer>{spaced}</answer>", example).correct == 1.0
    assert task.score(f"<answer>{gold}1</answer>", example).correct == 0.0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("(3+4)*2", True),
        (" ( 3 + 4 ) * 2", True),
        ("2*(4+3)", True),
        ("3*4+2", True),
        ("14", False),
        ("7*2", False),
        ("3+4+2", False),
        ("(3+4)*2=14", False),
        ("(3+4)*2+3-3", False),
        ("__import__('os')", False),
        ("3+4+2+5", False),
    ],
)
def test_countdown_takes_any_expression_over_the_numbers(text: str, right: bool) -> None:
    example = Example("countdown_text", "", "", {"numbers": [4, 2, 3], "target": 14})
    assert build("countdown_text").score(f"<answer>{text}</answer>", example).correct == right


def test_a_sudoku_as_text_is_in_the_split_of_its_grid() -> None:
    text, grid = build("sudoku_text"), build("sudoku_unique")
    for index in range(5):
        assert text.sample(index, 2).uid == grid.sample(index, 2).uid


@pytest.mark.parametrize(
    ("kind", "knobs", "words"),
    [
        ("zebra", {"people": 1}, "people=1"),
        ("zebra", {"characteristics": 8}, "characteristics=8"),
        ("countdown_text", {"min_numbers": 1}, "min_numbers=1"),
        ("countdown_text", {"max_value": 0}, "max_value=0"),
        ("sudoku_text", {"max_empty": 13}, "max_empty=13"),
    ],
)
def test_knobs_of_text_puzzles_that_cannot_work_are_refused(kind: str, knobs: dict[str, int], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        build(kind, **knobs)


# --- KodCode -----------------------------------------------------------------------------------------------------


def test_kodcode_is_there_to_learn_from(tmp_path: Path) -> None:
    more: dict[str, Any] = {"execute": True, "allow_unconfined": unconfined()}
    task = build("kodcode", train_path=json_lines(tmp_path / "k.jsonl", kodcode()), **more)
    assert isinstance(task, TextTask) and task.splits == ("train", "tune", "gate") and task.examples("test") == []
    assert sum(len(task.examples(split)) for split in task.splits) == len(PROGRAMS)
    example = task.sample(0, 0)
    assert f"def {example.metadata['names'][0]}(x):" in example.prompt  # the tests call it by this name


TESTS = "from solution import f\n"
UNSCORABLE = {
    "pytest": "import pytest\ndef test_a():\n    with pytest.raises(ValueError):\n        f(1)\n    assert f(1)",
    "a package inside": "def test_a():\n    import numpy\n    assert f(1) == numpy.ones(1)",
    "fixtures": "def test_a(tmp_path):\n    assert f(1) == 2",
    "a class": "class TestF:\n    def test_a(self):\n        assert f(1) == 2",
    "a test case": "import unittest\nclass Cases(unittest.TestCase):\n    def test_a(self):\n        assert f(1) == 2",
    "a class beside a function": "def test_b(): assert f(1)\nclass TestF:\n    def test_a(self): assert f(2)",
    "a case beside a function": "import unittest\ndef test_b(): assert f(1)\nclass Cases(unittest.TestCase): a = 1",
    "decorated": "def twice(g): return g\n@twice\ndef test_a():\n    assert f(1) == 2",
    "a coroutine": "async def test_a():\n    assert f(1) == 2",
    "helpers alone": "def check():\n    assert f(1) == 2",
    "no assertion": "def test_a():\n    f(1)",
    "another name": "from solution import g\ndef test_a():\n    assert f(1) == 2 and g",
}


@pytest.mark.parametrize("name", UNSCORABLE)
def test_a_row_whose_tests_would_not_all_run_is_refused_or_left_out(name: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"execute": True, "allow_unconfined": unconfined()}
    bad = {"question": "Write f.", "solution": "def f(x):\n    return 2", "test": TESTS + UNSCORABLE[name]}
    path = json_lines(tmp_path / "k.jsonl", [*kodcode()[:2], bad])
    with pytest.raises(DataError, match=r"k\.jsonl, line 3: "):
        build("kodcode", test_path=path, **more).examples("test")  # type: ignore[attr-defined]
    task = build("kodcode", test_path=path, leave_out=True, **more)
    assert isinstance(task, TextTask)
    assert len(task.examples("test")) == 2 and [place[-6:] for place in task.left_out] == ["line 3"]


# --- worked examples, parquet --------------------------------------------------------------------------------------


def test_worked_examples_stand_behind_the_instruction_and_in_no_split(tmp_path: Path) -> None:
    """MBPP's three shots of paper A; the same question stays in the same split with and without them."""
    shown = [
        {"prompt": f"Show {i}.", "code": f"def s{i}():\n    return {i}", "test_list": [f"assert s{i}() == {i}"]}
        for i in range(4)
    ]
    paths = {
        "shots_path": json_lines(tmp_path / "shots.jsonl", shown),
        "train_path": json_lines(tmp_path / "t.jsonl", shown),
    }
    plain, task = opened("mbpp", tmp_path), opened("mbpp", tmp_path, shots=3, **paths)
    for bare, example in zip(plain.examples("test"), task.examples("test"), strict=True):
        parts = example.prompt.split("```python\n")
        assert [part.startswith(f"def s{i}()") for i, part in enumerate(parts[1:])] == [True] * 3
        assert example.prompt.startswith(task.ask) and example.prompt.count(task.ask) == 1
        assert example.prompt.endswith(bare.prompt.removeprefix(task.ask)) and "Show 3." not in example.prompt
        assert example.uid == bare.uid and task.score(example.answer, example).correct == 1.0
    left = [e.metadata["question"] for split in ("train", "tune", "gate") for e in task.examples(split)]
    assert len(left) == 1 and left[0].startswith("Show 3.")
    with pytest.raises(DataError, match=r"shots=5, and there are 4"):
        opened("mbpp", tmp_path, shots=5, **paths).examples("test")
    with pytest.raises(DataError, match="a worked example and a test question"):
        opened("mbpp", tmp_path, shots=1, shots_path=json_lines(tmp_path / "own.jsonl", mbpp())).examples("test")


@pytest.mark.parametrize("kind", FILES)
def test_a_parquet_file_gives_what_json_lines_give(kind: str, tmp_path: Path) -> None:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    rows = FILES[kind]()
    columns = {name: [row.get(name) for row in rows] for name in {**rows[0], **rows[-1]}}
    write_table(Table.from_pydict(columns), tmp_path / "rows.parquet")
    more = {"execute": True, "allow_unconfined": unconfined()} if kind in RUN else {}
    task = build(kind, test_path=str(tmp_path / "rows.parquet"), **more)
    assert isinstance(task, TextTask) and task.examples("test") == opened(kind, tmp_path).examples("test")


def test_a_parquet_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match=r"x\.parquet is no whole parquet file .* download it again"):
        build("gsm8k", test_path=str(tmp_path / "x.parquet")).examples("test")  # type: ignore[attr-defined]
