"""Worded tasks: every allowed spelling is right and no other, spellings are equally likely, puzzles stay in one split.

The laws that hold for every task (gold, empty, cut, addresses, alphabet) are in test_tasks.py, over all kinds.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from components.commands.resolve import example_for
from components.core.errors import SettingsError
from components.core.files import write_json
from components.settings import Model, Pretrain, read
from components.stages.common.workspace import Workspace
from components.stages.pretrain import _train
from components.tasks import build
from components.tasks.example import END, Example, write_examples
from components.tasks.sequences import NumberSorting
from components.tasks.splits import collect_all, split_of
from components.tasks.sudoku import SudokuMany, SudokuUnique
from components.tasks.worded import Worded
from components.trainers import pretrain as trainer
from components.trainers.pretrain import Batch

ROOT = Path(__file__).parents[2]
ROWS = list(itertools.permutations("1234"))
STYLES = ("position", "content", "style")
PLAIN = {"worded_many": "sudoku_many", "worded_unique": "sudoku_unique", "worded_sorting": "number_sorting"}
KINDS = list(itertools.product(PLAIN, STYLES))
# Written apart from the library: the spellings of each digit, as letters of the alphabet.
LETTERS = {str(d): f"{d}{'jabcdefghi'[d]}{'tklmnopqrs'[d]}{'JABCDEFGHI'[d]}" for d in range(10)}


def allowed(kind: str, spelled_by: str, place: int, digit: str, prompt: str):
    """The spellings of a digit by the rule's own words."""
    if spelled_by == "position":
        row, column = (0, place) if kind == "worded_sorting" else (place // 4, place % 4)
        return LETTERS[digit][: [1, 2, 4][(row + column) % 3]]
    if spelled_by == "content":
        return LETTERS[digit][: dict(zip("0123456789", (3, 1, 2, 4, 3, 1, 2, 4, 3, 1), strict=True))[digit]]
    return LETTERS[digit][: {":": 1, ";": 2, "!": 4}[prompt[1]]]


def grids(clues: str):
    """All completions of a 4x4 grid, from rows that are permutations."""
    fits = [[row for row in ROWS if all(clues[i + c] in ("." + row[c]) for c in range(4))] for i in (0, 4, 8, 12)]
    for rows in itertools.product(*fits):
        boxes = ({rows[r + i][c + j] for i in (0, 1) for j in (0, 1)} for r in (0, 2) for c in (0, 2))
        if all(len(set(column)) == 4 for column in zip(*rows, strict=True)) and all(len(box) == 4 for box in boxes):
            yield "".join(map("".join, rows))


def plain_of(text: str):
    return "".join(next(d for d, letters in LETTERS.items() if c in letters) for c in text)


@pytest.mark.parametrize(("kind", "spelled_by"), KINDS)
def test_one_place_may_be_written_in_the_allowed_spellings_and_in_no_other(kind: str, spelled_by: str):
    task = build(kind, spelled_by=spelled_by)
    for example in (task.sample(index, 3) for index in range(6)):
        for place, digit in enumerate(plain_of(example.answer)):
            right = allowed(kind, spelled_by, place, digit, example.prompt)
            for other in {*task.alphabet, END, "é", "9"}:
                text = example.answer[:place] + other + example.answer[place + 1 :]
                score = task.score(text, example)
                assert (score.correct == 1.0) == (score.dense == 1.0) == (other in right), (text, example)


@pytest.mark.parametrize(("kind", "spelled_by"), KINDS)
def test_each_spelling_is_equally_likely_in_pretraining_and_independent_of_the_content(kind: str, spelled_by: str):
    task = build(kind, spelled_by=spelled_by)
    seen: dict[str, Counter[str]] = {}
    for example in (task.sample(index, 5) for index in range(150)):
        for text in (example.answer, *example.metadata["respelled"]):
            assert task.score(text, example).correct == 1.0 and plain_of(text) == plain_of(example.answer)
            for place, (digit, written) in enumerate(zip(plain_of(text), text, strict=True)):
                right = allowed(kind, spelled_by, place, digit, example.prompt)
                seen.setdefault(right, Counter())[written] += 1
    assert {len(right) for right in seen} >= {1, 2, 4}
    for right, counts in seen.items():
        share = 1 / len(right)
        for written in right:
            spread = (share * (1 - share) * counts.total()) ** 0.5
            assert abs(counts[written] - share * counts.total()) <= 4.5 * spread, (right, counts)


def test_any_completion_of_a_worded_puzzle_is_right_in_any_wording_and_a_broken_clue_is_not():
    task = build("worded_many", min_clues=5, max_clues=6)
    several, full = 0, list(grids("." * 16))
    assert len(full) == 288
    for example in (task.sample(index, 1) for index in range(8)):
        found = set(grids(example.prompt[1:]))
        several += len(found) > 1
        for grid in full:
            text = "".join(allowed("worded_many", "position", p, d, "")[-1] for p, d in enumerate(grid))
            assert task.score(text, example).correct == (grid in found)
    assert several >= 4


def test_a_worded_puzzle_with_one_solution_refuses_other_full_grids():
    task, example = build("worded_unique"), build("worded_unique").sample(0, 0)
    assert [grid for grid in grids("." * 16) if task.score(grid, example).correct] == list(grids(example.prompt[1:]))


def test_a_worded_list_is_right_in_its_order_alone():
    task = build("worded_sorting", numbers=4)
    for example in (task.sample(index, 0) for index in range(6)):
        digits = example.prompt[2:]
        right = "".join(sorted(digits, reverse=example.prompt[1] == ">"))
        assert plain_of(example.answer) == right
        for order in map("".join, set(itertools.permutations(digits))):
            assert task.score(order, example).correct == (order == right)


@pytest.mark.parametrize("kind", PLAIN)
def test_prompts_are_written_plainly_and_the_style_mark_alone_is_added(kind: str):
    plain = build(PLAIN[kind])
    for spelled_by in STYLES:
        task = build(kind, spelled_by=spelled_by)
        marks = Counter[str]()
        for example in (task.sample(index, 2) for index in range(60)):
            mark = example.prompt[1] if spelled_by == "style" else ""
            marks[mark] += 1
            question = plain.alphabet[0] + example.prompt[1 + len(mark) :]
            assert example.metadata["question"] == question and set(question) <= set(plain.alphabet)
            assert plain.score(plain_of(example.answer), Example("", question, plain_of(example.answer))).correct
        assert set(marks) == ({":", ";", "!"} if spelled_by == "style" else {""}) and min(marks.values()) >= 8


@pytest.mark.parametrize("kind", PLAIN)
def test_a_puzzle_stays_in_one_split_whatever_its_wording(kind: str):
    drawn = collect_all(build(kind, spelled_by="style"), {"pretrain": 300, "tune": 40, "test": 40}, seed=1)
    questions = {split: {x.metadata["question"] for x in examples} for split, examples in drawn.items()}
    assert {split: len(found) for split, found in questions.items()} == {"pretrain": 300, "tune": 40, "test": 40}
    assert not any(a & b for a, b in itertools.combinations(questions.values(), 2))
    for split, found in questions.items():  # also for the plain task, and for another wording of it
        assert {split_of(Example("plain", question, "")) for question in found} == {split}


def test_a_worded_task_does_not_draw_the_plain_task_s_puzzles():
    plain = {build("sudoku_many").sample(index, 1).prompt for index in range(200)}
    worded = {build("worded_many").sample(index, 1).metadata["question"] for index in range(200)}
    assert len(plain & worded) < 3


@pytest.mark.parametrize("kind", PLAIN)
def test_what_gives_no_spelling_is_refused(kind: str):
    with pytest.raises(SettingsError, match="Use position, content or style"):
        build(kind, spelled_by="mood")
    with pytest.raises(SettingsError, match="also a spelling of a digit"):
        build(kind, marker="B")


def test_a_pair_is_right_where_both_halves_are_completed():
    task = build("sudoku_pair", min_clues=5, max_clues=6)
    full = list(grids("." * 16))[::5]
    for example in (task.sample(index, 4) for index in range(3)):
        halves = [set(grids(example.prompt[at : at + 16])) for at in (1, 17)]
        right = set(map("".join, itertools.product(*halves)))
        assert example.answer in right and all(task.score(text, example).correct for text in right)
        for one, other in itertools.product(full, full):
            assert task.score(one + other, example).correct == (one in halves[0] and other in halves[1])
        assert task.score(example.answer[:16], example).dense == 0.5
        assert task.score(example.answer + "1", example).correct == 0.0


def test_the_grids_of_a_pair_are_told_apart():
    drawn = [build("sudoku_pair").sample(index, 0) for index in range(50)]
    halves = [x.prompt[at : at + 16] for x in drawn for at in (1, 17)]
    assert len(set(halves)) == 100
    clues = Counter(16 - half.count(".") for half in halves)
    assert set(clues) == {2, 3, 4, 5}


# --- where they are used --------------------------------------------------------------------------------------------


def test_pretraining_draws_every_spelling_that_an_example_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    workspace = Workspace(tmp_path, "tiny")
    shape = {"width": 8, "layers": 1, "heads": 1, "inner": 8, "steps": 1, "learning_rate": 0.01, "warmup": 0, "seed": 0}
    model = {"source": "embedded", "layout": "llada", "revision": None, "dtype": "float32", "rows": {"worded": 64}}
    example = build("worded_many").sample(0, 0)
    corpus = workspace.corpus("mini", "worded")
    write_json(corpus.folder / "task.json", {"kind": "worded_many", "params": {}, "canvas": None})
    write_examples(corpus.split("pretrain"), [example])
    seen: list[str] = []

    def watch(
        denoiser: object,
        batches: Callable[[int], list[Batch]],
        schedule: object,
        report: Callable[[int, dict[str, float]], None],
    ):
        (batch,) = batches(0)
        letters = sorted(set(build("worded_many").alphabet))
        seen.extend("".join(letters[i - 4] for i in row) for row in batch.answer_BL.tolist())
        report(0, {"loss/0": 0.0})

    monkeypatch.setattr(trainer, "pretrain", watch)
    _train(workspace, Pretrain.model_validate(shape), "mini", Model.model_validate(model), tmp_path / "model")
    assert set(seen) == {example.answer, *example.metadata["respelled"]} and len(seen) == 64


def test_the_profile_trains_as_the_default_one_on_one_wording_and_evaluates_every_other():
    default, found = read(ROOT / "params.yaml"), read(ROOT / "profiles" / "wordings.yaml")
    for section in ("policy", "decode", "influence", "distill", "train"):
        assert getattr(found, section) == getattr(default, section), section
    built = {name: task.build() for name, task in found.data.tasks.items()}
    tasks = {name: task for name, task in built.items() if isinstance(task, Worded)}
    assert tasks.keys() == built.keys()
    (trained,) = found.domain.tasks
    assert [trained] == list(found.evaluate.tasks) and isinstance(tasks[trained].plain, SudokuMany)
    elsewhere = {case.task for case in found.ood.values()}
    assert {tasks[name].spelled_by for name in (trained, *elsewhere)} == set(STYLES)
    assert {type(tasks[name].plain) for name in elsewhere} == {SudokuMany, SudokuUnique, NumberSorting}
    seen = {tasks[name].marker for name in found.models[found.domain.model].rows}
    assert seen == {task.marker for task in tasks.values()}


def test_a_typed_prompt_with_many_answers_is_judged(tmp_path: Path):
    workspace, grid = Workspace(tmp_path, "tiny"), next(grids("1..............."))
    for kind, prompt, text in (
        ("worded_many", "W1...............", grid),
        ("sudoku_pair", "Z" + "1..............." * 2, grid * 2),
    ):
        task = build(kind)
        example, judged = example_for(workspace, kind, task, prompt)
        assert judged and task.score(text, example).correct == 1.0
    for kind, prompt in (
        ("sudoku_unique", "U1..............."),
        ("worded_unique", "X1..............."),
        ("worded_sorting", "Y<31"),
    ):
        assert example_for(workspace, kind, build(kind), prompt)[1] is False
