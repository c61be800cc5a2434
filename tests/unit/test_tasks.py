"""Laws of the puzzle tasks: gold answers are right, others are not, and an address always names the same example."""

import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import DataError, SettingsError
from components.tasks import TASKS, build, gym
from components.tasks.example import END, Example, Task, address, fill, read_examples, write_examples
from components.tasks.puzzle_text import evaluate
from components.tasks.sudoku import peers_of

TEXTS = ("gsm8k", "math", "humaneval", "mbpp", "kodcode", "infill", "zebra", "countdown_text", "sudoku_text")
PUZZLES = [name for name in TASKS if name not in TEXTS]
ONE_ANSWER = ["sudoku_unique", "number_sorting"]


def examples(task: Task, count: int = 25, seed: int = 7):
    return [task.sample(index, seed) for index in range(count)]


def full_grids(box_rows: int, box_columns: int, clues: str) -> Iterator[str]:
    """All completions of a sudoku, by plain search over rows, columns and boxes (written apart from the library)."""
    side = box_rows * box_columns
    cells = list(clues)

    def allowed(cell: int, digit: str):
        row, column = divmod(cell, side)
        for other, value in enumerate(cells):
            r, c = divmod(other, side)
            same_box = (r // box_rows, c // box_columns) == (row // box_rows, column // box_columns)
            if other != cell and value == digit and (r == row or c == column or same_box):
                return False
        return True

    def search() -> Iterator[str]:
        if "." not in cells:
            yield "".join(cells)
            return
        cell = cells.index(".")
        for digit in "123456789"[:side]:
            if allowed(cell, digit):
                cells[cell] = digit
                yield from search()
                cells[cell] = "."

    return search()


# --- every task -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUZZLES)
def test_the_gold_answer_is_right_with_and_without_its_ends(name: str):
    task = build(name)
    for example in examples(task):
        for text in (example.answer, fill(example.answer, task.canvas_length), example.answer + END + "junk"):
            score = task.score(text, example)
            assert (score.correct, score.dense) == (1.0, 1.0), (text, example)


@pytest.mark.parametrize("name", PUZZLES)
def test_empty_cut_and_lengthened_answers_are_wrong(name: str):
    task = build(name)
    for example in examples(task):
        for text in ("", END * task.canvas_length, END + example.answer):
            score = task.score(text, example)
            assert (score.correct, score.dense) == (0.0, 0.0)
        if len(example.answer) > 1:
            assert task.score(example.answer[:-1], example).correct == 0.0
        assert task.score(example.answer + "x", example).correct == 0.0


@pytest.mark.parametrize("name", ONE_ANSWER)
def test_with_one_answer_no_other_text_of_the_same_length_is_right(name: str):
    task = build(name)
    for example in examples(task, count=8):
        for place, other in itertools.product(range(len(example.answer)), task.alphabet):
            if other != example.answer[place]:
                text = example.answer[:place] + other + example.answer[place + 1 :]
                score = task.score(text, example)
                assert score.correct == 0.0 and score.dense < 1.0, (text, example)


@pytest.mark.parametrize("name", PUZZLES)
def test_an_address_names_one_example_whatever_was_drawn_before(name: str):
    first, second = build(name), build(name)
    drawn = examples(first)
    assert drawn == list(reversed([second.sample(index, 7) for index in reversed(range(25))]))


@pytest.mark.parametrize("name", PUZZLES)
def test_neighbouring_seeds_share_no_stream(name: str):
    # reasoning-gym itself: item i of seed s is item i - 1 of seed s + 1
    task = build(name)
    here, there = ([e.prompt for e in examples(task, 40, seed)] for seed in (7, 8))
    for shift in (-1, 0, 1):
        same = sum(a == b for a, b in zip(here[1:-1], there[1 + shift :], strict=False))
        assert same < 10


@pytest.mark.parametrize("name", PUZZLES)
def test_prompts_and_answers_fit_the_declared_alphabet_and_canvas(name: str):
    task = build(name)
    assert task.name == name and END not in task.alphabet
    assert len(set(task.alphabet)) == len(task.alphabet) and 8 <= task.canvas_length <= 36
    for example in examples(task):
        assert example.task == name
        assert set(example.prompt + example.answer) <= set(task.alphabet)
        assert len(fill(example.answer, task.canvas_length)) == task.canvas_length


def test_the_first_character_of_a_prompt_says_its_task():
    markers = [build(name).sample(0, 0).prompt[0] for name in PUZZLES]
    assert len(set(markers)) == len(PUZZLES)


@pytest.mark.parametrize("name", PUZZLES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_text_gets_a_score_and_only_right_ones_are_dense_one(name: str, data: st.DataObject):
    task = build(name)
    example = task.sample(data.draw(st.integers(0, 20)), 3)
    text = data.draw(st.one_of(st.text(alphabet=task.alphabet + END, max_size=40), st.text(max_size=40)))
    state = random.getstate()
    score = task.score(text, example)
    assert score == task.score(text, example)
    assert (score.dense == 1.0) == (score.correct == 1.0)
    assert random.getstate() == state


def test_examples_survive_a_file(tmp_path: Path):
    drawn = [example for name in PUZZLES for example in examples(build(name), 3)]
    drawn.append(Example("x", "line\u2028 \x85 \r\n é", "$1", {"deep": [1, {"a": None}]}))
    write_examples(tmp_path / "a" / "x.jsonl", drawn)
    assert read_examples(tmp_path / "a" / "x.jsonl") == drawn
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.jsonl"]
    (tmp_path / "torn.jsonl").write_text(drawn[0].to_json() + "\n" + drawn[1].to_json()[:20])
    with pytest.raises(DataError, match="line 2 is not an example"):
        read_examples(tmp_path / "torn.jsonl")
    with pytest.raises(DataError, match="is not there"):
        read_examples(tmp_path / "none.jsonl")


def test_identity_is_that_of_the_question_and_stable_across_machines():
    assert address("sudoku", 4, 0, 1) == 1916638395470869006
    example = Example("x", "Two  plus\ntwo?", "4")
    assert example.uid == Example("y", " Two plus two?", "5").uid == "256ca1c27f45b6ab"
    assert Example("z", "Be brief. Two plus two?", "4", {"question": "Two plus two?"}).uid == example.uid


def test_an_answer_that_does_not_fit_its_canvas_is_refused():
    with pytest.raises(DataError, match="does not fit a canvas of 8"):
        fill("123456789", 8)
    with pytest.raises(DataError, match="ends an answer"):
        fill("1$2", 8)


@pytest.mark.parametrize(
    ("task", "knobs", "words"),
    [
        ("sudoku", {}, ["'sudoku' is no task", "sudoku_many", "nearest: sudoku_"]),
        ("sudoku_many", {"max_clue": 3}, ["'max_clue' is no setting of task sudoku_many", "nearest: max_clues"]),
        ("sudoku_many", {"min_clues": 6}, ["min_clues=6, max_clues=5", "Use 0 <="]),
        ("sudoku_many", {"box_rows": 4, "box_columns": 4}, ["16 digits", "at most 9"]),
        ("sudoku_unique", {"max_empty": 13}, ["max_empty=13", "unique"]),
        ("countdown_text", {"max_target": 0}, ["max_target=0", "Use at least 1"]),
        ("countdown_text", {"min_numbers": 5}, ["min_numbers=5, max_numbers=4", "Use 2 <= min_numbers"]),
        ("number_sorting", {"numbers": 1}, ["numbers=1", "Use 2 to 36"]),
        ("n_queens", {"size": 3}, ["size=3", "Use 4 <= size"]),
    ],
)
def test_what_cannot_work_is_refused_when_built(task: str, knobs: dict[str, Any], words: list[str]):
    with pytest.raises(SettingsError) as error:
        build(task, **knobs)
    assert all(word in str(error.value) for word in words), error.value


def test_importing_the_tasks_loads_nothing_heavy():
    heavy = "{'torch', 'reasoning_gym', 'datasets', 'math_verify', 'sympy', 'numpy'} & set(sys.modules)"
    script = f"import sys, components.tasks, components.tasks.splits; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", script], check=True)


# --- sudoku ---------------------------------------------------------------------------------------------------------


def test_there_are_288_full_grids_and_the_peers_are_the_rules():
    assert len(set(full_grids(2, 2, "." * 16))) == 288
    assert {len(peers) for peers in peers_of(2, 2)} == {7}
    assert {len(peers) for peers in peers_of(2, 3)} == {12}


def test_sudoku_many_accepts_just_the_completions_among_all_texts():
    task = build("sudoku_many", min_clues=10, max_clues=11)
    for example in examples(task, 4):
        blanks = [cell for cell, clue in enumerate(example.prompt[1:]) if clue == "."]
        accepted = set()
        for digits in itertools.product("1234", repeat=len(blanks)):
            text = list(example.prompt[1:])
            for cell, digit in zip(blanks, digits, strict=True):
                text[cell] = digit
            if task.score("".join(text), example).correct:
                accepted.add("".join(text))
        assert accepted == set(full_grids(2, 2, example.prompt[1:])) and example.answer in accepted


def test_sudoku_many_accepts_just_the_full_grids_that_keep_the_clues():
    task = build("sudoku_many")
    grids = list(full_grids(2, 2, "." * 16))
    several = 0
    for example in examples(task, 12):
        right = {grid for grid in grids if task.score(grid, example).correct}
        assert right == set(full_grids(2, 2, example.prompt[1:]))
        several += len(right) > 1
        for cell, digit in itertools.product(range(16), "1234"):  # one digit changed never leaves a full grid
            text = example.answer[:cell] + digit + example.answer[cell + 1 :]
            assert task.score(text, example).correct == (text == example.answer)
    assert several >= 8


def test_the_dense_score_of_sudoku_many_counts_consistent_cells():
    task = build("sudoku_many")
    example = Example("sudoku_many", "M1..............2", "1234341221434321"[:15] + "2")
    full = "1234341223414123"  # valid, but the last clue is 2
    assert task.score(full, example).dense == 15 / 16
    assert task.score("2" + full[1:], Example("sudoku_many", "M" + "." * 16, full)).dense == 13 / 16
    assert task.score("." * 16, example).dense == 0.0
    assert task.score("1", example).dense == 1 / 16


def test_sudoku_unique_has_one_solution_and_the_blanks_it_was_asked_for():
    for low, high, count in ((4, 6, 15), (8, 12, 15), (11, 11, 15), (12, 12, 5)):
        task = build("sudoku_unique", min_empty=low, max_empty=high)
        for example in examples(task, count):
            assert list(full_grids(2, 2, example.prompt[1:])) == [example.answer]
            assert low <= example.prompt.count(".") == example.metadata["empty"] <= high


def test_the_dense_score_of_sudoku_unique_counts_blanks_filled_right():
    task = build("sudoku_unique")
    example = examples(task, 1)[0]
    grid, blanks = example.prompt[1:], example.prompt.count(".")
    assert task.score(grid, example).dense == 0.0
    first = grid.index(".")
    half = grid[:first] + example.answer[first] + grid[first + 1 :]
    assert task.score(half, example).dense == pytest.approx(1 / blanks)
    clue = next(cell for cell, c in enumerate(grid) if c != ".")
    broken = example.answer[:clue] + "x" + example.answer[clue + 1 :]
    assert task.score(broken, example).dense == pytest.approx(blanks / (blanks + 1))


def test_sudoku_long_is_sudoku_with_many_answers():
    task, several = build("sudoku_long"), 0
    for example in examples(task, 12):
        found = list(itertools.islice(full_grids(2, 3, example.answer[:12] + example.prompt[13:]), 50))
        assert all(task.score(grid, example).correct for grid in found) and example.answer in found
        swapped = example.answer.translate(str.maketrans("12", "21"))  # a full grid, but it breaks the clues of 1 and 2
        assert task.score(swapped, example).correct == (not set("12") & set(example.prompt))
        several += len(found) > 1
    assert several >= 6


# --- arithmetic, sorting, queens -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("3+4*2", 11, [3, 4, 2]),
        ("(3+4)*2", 14, [3, 4, 2]),
        ("8/(3-8/3)", 24, [8, 3, 8, 3]),
        ("-2+5", 3, [2, 5]),
        ("12-2", 10, [12, 2]),
    ],
)
def test_expressions_have_exact_values(text: str, value: int, numbers: list[int]):
    assert evaluate(text) == (value, numbers)


@pytest.mark.parametrize(
    "text", ["", "1/0", "2**9", "7//2", "3 5", "(3", "5(3)", "a", "1_0", "()", "07", "1e9", "+" * 99, "(" * 300]
)
def test_what_is_no_arithmetic_has_no_value(text: str):
    assert evaluate(text) is None


def test_sorting_is_exact_where_the_verifier_is_not():
    task, example = build("number_sorting"), Example("number_sorting", "N<52", "25")
    verdict = gym.dataset("number_sorting").score_answer(
        "['3.0', '5.0']", {"answer": "['2.0', '5.0']", "metadata": {"direction": "ascending"}}
    )
    assert verdict == 1.0 and task.score("35", example).correct == 0.0
    for drawn in examples(task):
        assert drawn.answer == "".join(sorted(drawn.prompt[2:], reverse=drawn.prompt[1] == ">"))


def test_queens_agree_with_reasoning_gym_on_all_boards():
    task, several = build("n_queens", size=6, min_remove=3, max_remove=6), 0
    judge = gym.dataset("n_queens", n=6, min_remove=3, max_remove=6)
    for index in range(6):
        item = judge[address("n_queens", 7, index)]
        example = task.sample(index, 7)
        for columns in itertools.permutations("123456"):
            board = "\n".join(" ".join("Q" if int(c) == k else "_" for k in range(1, 7)) for c in columns)
            right = task.score("".join(columns), example).correct
            assert right == (board in item["metadata"]["valid_answers"])
        several += len(item["metadata"]["valid_answers"]) > 1
    assert several
