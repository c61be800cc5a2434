"""Laws of the checkers of free text."""

import signal
import threading
import time
from pathlib import Path

import pytest

from components.core.errors import DataError
from components.tasks import build as build_task
from components.tasks import mathematics
from components.tasks.checkers import final_answer, last_boxed, math_equal, number_equal
from components.tasks.hub import TextTask, load_rows
from tests.doubles import json_lines


def build(name: str, **knobs: object) -> TextTask:
    task = build_task(name, **knobs)
    assert isinstance(task, TextTask)
    return task


# --- numbers and mathematics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (r"so \boxed{18}", True),
        (r"\boxed{17} no, \boxed{18}", True),
        (r"\boxed{18} no, \boxed{17}", False),
        (r"<answer>\boxed{18}</answer>", True),
        ("<reasoning>16-3=13</reasoning>\n<answer>\n18\n</answer>", True),
        ("<answer>18", True),
        ("<answer>$18 dollars</answer>", True),
        ("<answer>16 + 2 = 18</answer>", True),
        ("<answer>18.0</answer>", True),
        ("<answer>+18</answer>", True),
        ("#### 18", True),
        ("#### 18\nand so on 19", True),
        (r"\boxed{\text{18 eggs}}", True),
        ("<answer>18.00001</answer>", False),
        ("<answer>-18</answer>", False),
        ("<answer>18 or 19</answer>", False),
        ("<answer>18/1</answer>", True),
        (r"\boxed{\frac{18}{7}}", False),
        ("<answer>eighteen</answer>", False),
        ("<answer></answer>", False),
        ("the answer is 18", False),
        (r"\boxed{18", False),
        ("", False),
    ],
)
def test_numeric_answers(text: str, right: bool):
    assert number_equal(text, "She sells them.\n#### 18") is right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<reasoning>\boxed{5}</reasoning><answer>18</answer>", "18"),
        (r"<reasoning>\boxed{5}</reasoning><answer>\boxed{18}</answer>", "18"),
        (r"<answer>18</answer> but \boxed{5}", "18"),
        (r"<reasoning>#### 5</reasoning><answer>18</answer>", "18"),
        (r"<answer>#### 18</answer>", "18"),
        (r"<answer>17</answer> no <answer>18", "18"),
        (r"\boxed {18}", "18"),
        (r"\boxed{5} #### 18", "5"),
        (r"<reasoning>\boxed{5}</reasoning><answer></answer>", ""),
        ("#### 18\nso", "18"),
        ("18", None),
    ],
)
def test_the_answer_stands_where_the_prompt_asks_for_it(text: str, answer: str | None):
    assert final_answer(text) == answer


def test_thousands_and_decimals_are_one_number():
    assert number_equal("<answer>$1,234.50</answer>", "1234.5")
    assert number_equal(r"\boxed{1{,}234}", "#### 1,234")


def test_boxes_close_their_own_braces():
    assert last_boxed(r"\boxed{1} then \boxed{\frac{a}{b^{2}}}.") == r"\frac{a}{b^{2}}"
    assert last_boxed(r"\boxed{1} then \boxed{2") == "1"
    assert last_boxed("none") is None


MATHEMATICS = [
    (r"<answer>\boxed{0.5}</answer>", r"\frac12", True),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", True),
    (r"\boxed{x^2+2x+1}", r"(x+1)^2", True),
    (r"\boxed{13} no, \boxed{12}", "12", True),  # two boxes at once would be the set {12, 13}
    (r"\boxed{12} no, \boxed{13}", "12", False),
    (r"\boxed{(x+2)^2}", r"(x+1)^2", False),
    ("I do not know", "12", False),
    (r"\boxed{}", "12", False),
    ("", "12", False),
]


@pytest.mark.parametrize(("text", "gold", "right"), MATHEMATICS)
def test_mathematical_answers(text: str, gold: str, right: bool):
    assert math_equal(text, gold) is right


SAME = r"""
10000 || 10\,000
10000 || 10,000
10000 || 10 000
-3 || −3
-3 || − 3
1000 || 1e3
2516_8 || 2516_{8}
\text{A1}_{16} || A1_{16}
2516_8 || 02516_8
\frac{1}{2^{98}} || \frac{2}{2^{99}}
2^{1000} || 4^{500}
0.333333 || \frac13
\sqrt2 || 1.41421356
\{1,2\} || \{2,1\}
x_1 || x_{1}
\text{Evelyn} || Evelyn
90^\circ || 90
y=2x+1 || y=1+2x
9^{9^{9^{9}}} || 9^{9^{9^{9}}}
\begin{pmatrix}1\\2\end{pmatrix} || \begin{pmatrix} 1 \\ 2 \end{pmatrix}
11,\! 111 || 11111
2\pm\sqrt3 || 2+\sqrt3, 2-\sqrt3
x>3 || (3,\infty)
""".strip().splitlines()
OTHER = r"""
1/2^{99} || 1/2^{98}
0 || 1/2^{99}
5 || 5+10^{-30}
2^{99} || 2^{99}+1
10^{100} || 10^{100}+1
e^{-40} || e^{-41}
0.0000001 || 0.0000002
x+1/2^{99} || x+1/2^{98}
x/2^{99} || x/2^{98}
i/2^{99} || i/2^{98}
(1/2^{99},1) || (1/2^{98},1)
\{1/2^{99}\} || \{1/2^{98}\}
x=1/2^{99} || x=1/2^{98}
x<1/2^{99} || x<1/2^{98}
[0,1/2^{99}] || [0,1/2^{98}]
2516_8 || 2516_9
2516 || 2516_8
2516_8 || 2516
x_1 || x_2
123 || 1,2,3
5 || 0,5
1,2,3 || 123
\frac13 || 0.33
3 || 9^{9^{
3 || \ge 3
3 || <3
3 || \pm 3
3 || x \approx 3
3 || 3\text{ thousand}
3 || 3 million
""".strip().splitlines()


@pytest.mark.parametrize("pair", SAME)
def test_equal_mathematics(pair: str):
    gold, answer = pair.split(" || ")
    assert math_equal(f"\\boxed{{{answer}}}", gold)


@pytest.mark.parametrize("pair", OTHER)
def test_unequal_mathematics(pair: str):
    gold, answer = pair.split(" || ")
    assert not math_equal(f"<answer>{answer}</answer>", gold) and not math_equal(f"<answer>{gold}</answer>", answer)


def test_the_gold_answer_comes_first():
    """math-verify's comparison of an interval with a relation is not symmetric."""
    assert math_equal(r"\boxed{(-\infty,3)}", "x<3")
    assert not math_equal(r"\boxed{1\le x\le 3}", "[1,3]")


def test_mathematical_answers_in_threads():
    verdicts = []
    threads = [
        threading.Thread(target=lambda: verdicts.append([math_equal(t, g) for t, g, _ in MATHEMATICS])) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [[right for _, _, right in MATHEMATICS]] * 2


@pytest.mark.e2e
@pytest.mark.parametrize("tower", ["9^{9^{9^{9}}}", "((((9!)!)!)!)!", "10^{10^{10}}"])
def test_a_tower_hangs_no_thread_and_the_next_comparison_works(tower: str):
    verdicts = []

    def compare():
        verdicts.append(mathematics.equal("1", tower, seconds=0.5))
        verdicts.append(mathematics.equal("0.5", r"\frac12"))

    before, start = signal.getsignal(signal.SIGALRM), time.monotonic()
    thread = threading.Thread(target=compare)
    thread.start()
    thread.join(60)
    assert verdicts == [False, True] and time.monotonic() - start < 60
    assert signal.getsignal(signal.SIGALRM) is before


def test_workers_are_used_again_and_a_killed_one_is_replaced():
    assert mathematics.equal("1", "1.0")
    worker = mathematics._idle.get_nowait()
    mathematics._idle.put(worker)
    assert mathematics.equal("2", "2.0") and worker.poll() is None
    worker.kill()
    worker.wait()
    assert mathematics.equal("2", "2.0")


def test_gold_answers_of_real_formats_are_right(tmp_path: Path):
    test = json_lines(
        tmp_path / "g.jsonl", [{"question": "How many?", "answer": "2*617=<<2*617=1234>>1234\n#### 1,234"}]
    )
    task = build("gsm8k", test_path=test)
    (example,) = task.examples("test")
    assert example.answer == "<answer>1234</answer>" and "How many?" in example.prompt
    assert task.score(example.answer, example).correct == task.score("so\n#### 1234", example).dense == 1.0
    assert task.score("<answer>1235</answer>", example).correct == task.score("", example).correct == 0.0

    row = {"problem": "Half?", "solution": r"It is $\boxed{\frac{1}{2}}$."}
    task = build("math", test_path=json_lines(tmp_path / "m.jsonl", [row, row | {"problem": "Two?", "answer": "2"}]))
    half, two = task.examples("test")
    assert [half.metadata["gold"], two.metadata["gold"]] == [r"\frac{1}{2}", "2"]
    assert task.score(half.answer, half).correct == task.score(r"\boxed{0.5}", half).correct == 1.0
    assert task.score(half.answer, two).correct == 0.0


def test_files_that_cannot_be_read_say_why(tmp_path: Path):
    with pytest.raises(DataError, match="is not there"):
        build("gsm8k", test_path=str(tmp_path / "none.jsonl")).examples("test")
    (tmp_path / "torn.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{"questi')
    with pytest.raises(DataError, match="line 2 is not a JSON object"):
        build("gsm8k", test_path=str(tmp_path / "torn.jsonl")).examples("test")
    with pytest.raises(DataError, match=r"columns \['problem'\] and no 'question'"):
        build("gsm8k", test_path=json_lines(tmp_path / "other.jsonl", [{"problem": "a"}])).examples("test")
    with pytest.raises(DataError, match="ends in no '#### number'"):
        build("gsm8k", test_path=json_lines(tmp_path / "bare.jsonl", [{"question": "a", "answer": "b"}])).examples(
            "test"
        )


def test_without_a_network_a_hub_data_set_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"openai/gsm8k main \(test\) cannot be loaded .*test_path=FILE"):
        load_rows(None, ("openai/gsm8k", "main"), "test", "test_path")
