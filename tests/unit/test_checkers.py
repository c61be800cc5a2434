"""Laws of the checkers of free text."""

import json
import threading

import pytest

from components.errors import DataError
from components.tasks import build as build_task
from components.tasks.checkers import last_boxed, math_equal, number_equal
from components.tasks.text_data import TextTask, load_rows


def build(name: str, **knobs: object) -> TextTask:
    task = build_task(name, **knobs)
    assert isinstance(task, TextTask)
    return task


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


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
def test_numeric_answers(text, right):
    assert number_equal(text, "She sells them.\n#### 18") is right


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
def test_mathematical_answers(text, gold, right):
    assert math_equal(text, gold) is right


def test_mathematical_answers_in_a_thread():
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.extend(math_equal(t, g) for t, g, _ in MATHEMATICS))
    thread.start()
    thread.join()
    assert verdicts == [right for _, _, right in MATHEMATICS]


def test_gold_answers_of_real_formats_are_right(tmp_path):
    test = write(tmp_path / "g.jsonl", [{"question": "How many?", "answer": "2*617=<<2*617=1234>>1234\n#### 1,234"}])
    task = build("gsm8k", test_path=test)
    (example,) = task.examples("test")
    assert example.answer == "<answer>1234</answer>" and "How many?" in example.prompt
    assert task.score(example.answer, example).correct == task.score("so\n#### 1234", example).dense == 1.0
    assert task.score("<answer>1235</answer>", example).correct == task.score("", example).correct == 0.0

    row = {"problem": "Half?", "solution": r"It is $\boxed{\frac{1}{2}}$."}
    task = build("math", test_path=write(tmp_path / "m.jsonl", [row, row | {"problem": "Two?", "answer": "2"}]))
    half, two = task.examples("test")
    assert [half.metadata["gold"], two.metadata["gold"]] == [r"\frac{1}{2}", "2"]
    assert task.score(half.answer, half).correct == task.score(r"\boxed{0.5}", half).correct == 1.0
    assert task.score(half.answer, two).correct == 0.0


def test_files_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        build("gsm8k", test_path=str(tmp_path / "none.jsonl")).examples("test")
    (tmp_path / "torn.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{"questi')
    with pytest.raises(DataError, match="line 2 is not a JSON object"):
        build("gsm8k", test_path=str(tmp_path / "torn.jsonl")).examples("test")
    with pytest.raises(DataError, match=r"columns \['problem'\] and no 'question'"):
        build("gsm8k", test_path=write(tmp_path / "other.jsonl", [{"problem": "a"}])).examples("test")
    with pytest.raises(DataError, match="ends in no '#### number'"):
        build("gsm8k", test_path=write(tmp_path / "bare.jsonl", [{"question": "a", "answer": "b"}])).examples("test")


def test_without_a_network_a_hub_data_set_says_what_to_do(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"openai/gsm8k main \(test\) cannot be loaded .* pass test_path=FILE"):
        load_rows(None, ("openai/gsm8k", "main"), "test")
