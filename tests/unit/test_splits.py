"""Laws of the splits: a prompt belongs to one, whatever task settings, seed or run it comes from."""

import itertools
import json
import random
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import DataError, SettingsError
from components.tasks import TASKS, build
from components.tasks.example import Example
from components.tasks.gym import zebra_solution
from components.tasks.hub import TextTask
from components.tasks.puzzle_text import PuzzleText
from components.tasks.splits import SHARES, SPLITS, answers_seen, collect_all, split_of

TEXTS = ("gsm8k", "math", "humaneval", "mbpp", "kodcode", "infill", "zebra", "countdown_text", "sudoku_text")
PUZZLES = [name for name in TASKS if name not in TEXTS]
COUNTS = {"pretrain": 60, "train": 15, "tune": 6, "gate": 6, "test": 6}


@pytest.mark.parametrize("name", PUZZLES)
def test_splits_are_disjoint_within_and_between_seeds(name: str):
    task = build(name)
    drawn = [collect_all(task, COUNTS, seed) for seed in (0, 1)]
    for found in drawn:
        for split, examples in found.items():
            assert len({example.prompt for example in examples}) == COUNTS[split] == len(examples)
            assert {split_of(example) for example in examples} == {split}
    prompts = {split: {e.prompt for found in drawn for e in found[split]} for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not prompts[a] & prompts[b]
    assert prompts["pretrain"] != {e.prompt for e in drawn[0]["pretrain"]}  # another seed, other prompts


def test_a_split_depends_on_its_own_count_and_seed_only():
    task = build("sudoku_many")
    together = collect_all(task, COUNTS, 3)
    for split in SPLITS:
        assert collect_all(task, {split: COUNTS[split]}, 3) == {split: together[split]}
        assert collect_all(task, {split: 4}, 3) == {split: together[split][:4]}
    assert collect_all(task, {"test": 0}, 3) == {"test": []}


def test_other_settings_leave_a_prompt_in_its_split():
    narrow, wide = build("sudoku_many", min_clues=2, max_clues=2), build("sudoku_many", min_clues=1, max_clues=3)
    train = {e.prompt for e in collect_all(narrow, {"pretrain": 300}, 0)["pretrain"]}
    test = {e.prompt for e in collect_all(wide, {"test": 60}, 1)["test"]}
    assert not train & test


def test_the_shares_are_kept():
    task = build("number_sorting")
    drawn = {e.prompt: split_of(e) for e in (task.sample(index, 5) for index in range(4000))}
    for split, share in SHARES.items():
        found = sum(where == split for where in drawn.values()) / len(drawn)
        assert abs(found - share) < 4 * (share * (1 - share) / len(drawn)) ** 0.5
    assert sum(SHARES.values()) == pytest.approx(1.0) and tuple(SHARES) == SPLITS


def test_a_task_with_too_few_prompts_says_so():
    task = build("number_sorting", numbers=2)  # 200 prompts
    assert len(collect_all(task, {"pretrain": 120}, 0)["pretrain"]) == 120
    with pytest.raises(DataError, match=r"gave 1?\d distinct prompts of split 'test' in \d+ draws, not the 60"):
        collect_all(task, {"test": 60}, 0)


def test_an_unknown_split_is_refused():
    with pytest.raises(SettingsError, match="'valid' is no split"):
        collect_all(build("sudoku_many"), {"valid": 1}, 0)


def test_the_share_of_answers_seen():
    seen = [Example("x", "a", "1"), Example("x", "b", "2")]
    assert answers_seen([Example("x", "c", "1"), Example("x", "d", "3")], seen) == 0.5
    assert answers_seen([], seen) == 0.0
    found = collect_all(build("sudoku_many"), {"pretrain": 2000, "test": 50}, 0)
    assert answers_seen(found["test"], found["pretrain"]) > 0.9  # there are only 288 full grids


def gsm8k(train: str, test: str) -> TextTask:
    task = build("gsm8k", train_path=train, test_path=test)
    assert isinstance(task, TextTask)
    return task


def rows(path: Path, questions: Iterable[str]):
    path.write_text("".join(json.dumps({"question": q, "answer": f"#### {i}"}) + "\n" for i, q in enumerate(questions)))
    return str(path)


def test_a_train_file_is_cut_by_hash_and_never_holds_a_test_prompt(tmp_path: Path):
    shared = [f"Shared question {i}?" for i in range(30)]
    train = rows(tmp_path / "train.jsonl", [f"How much is {i} plus 1?" for i in range(400)] + shared + shared)
    test = rows(tmp_path / "test.jsonl", shared + [f"And {i} minus 1?" for i in range(20)])
    task = gsm8k(train, test)
    found = {split: {e.uid for e in task.examples(split)} for split in SPLITS}
    assert [len(found[split]) for split in ("pretrain", "test")] == [0, 50]
    assert sum(len(found[split]) for split in ("train", "tune", "gate")) == 400
    assert all(len(found[split]) >= 5 for split in ("tune", "gate"))
    for a, b in itertools.combinations(SPLITS, 2):
        assert not found[a] & found[b]


def test_finite_tasks_are_drawn_in_an_order_of_the_seed(tmp_path: Path):
    train = rows(tmp_path / "train.jsonl", [f"How much is {i} plus 1?" for i in range(100)])
    test = rows(tmp_path / "test.jsonl", [f"And {i} minus 1?" for i in range(20)])
    task = gsm8k(train, test)
    one, other = (collect_all(task, {"test": 20}, seed)["test"] for seed in (0, 1))
    assert collect_all(task, {"test": 5}, 0)["test"] == one[:5]
    assert one != other and {e.uid for e in one} == {e.uid for e in other}
    assert task.sample(3, 0) == task.sample(3, 0) and task.sample(3, 0) in task.examples("train")
    with pytest.raises(DataError, match="the data set has 20"):
        collect_all(task, {"test": 21}, 0)


# --- zebra: the split is known before the puzzle --------------------------------------------------------------------


@pytest.mark.parametrize(("people", "characteristics"), [(2, 2), (3, 2), (4, 4), (2, 7)])
def test_a_zebra_puzzle_s_solution_is_known_before_it(people: int, characteristics: int) -> None:
    """Held to what reasoning-gym says of the finished puzzle, whose clues have no other solution."""
    generate: Any = import_module("reasoning_gym.logic.contrib.logic_puzzle.generate")
    for item in range(4):
        solution = generate.generate_puzzle(random.Random(item), people, characteristics)[0]["solution"]
        kinds = solution["table_header"][1:]
        rows = {(kind, row[0]): row[i] for row in solution["table_rows"] for i, kind in enumerate(kinds, start=1)}
        found = zebra_solution(item, people, characteristics)
        assert {(k.split(".")[0], house): k.split(".")[1].replace("_", " ") for k, house in found.items()} == rows


def test_zebra_puzzles_of_other_splits_are_not_made() -> None:
    """And those of a split are the ones that drawing and discarding gives."""
    task, made = build("zebra", people=3, characteristics=2), list[int]()
    assert isinstance(task, PuzzleText)

    def draw(index: int, seed: int) -> Example:
        made.append(index)
        return task.draw(index, seed)

    found = collect_all(replace(task, draw=draw), {"tune": 2, "test": 3}, 5)
    every = [task.sample(index, 5) for index in range(made[-1] + 1)]
    for split, count in (("tune", 2), ("test", 3)):
        kept = {e.uid: e for e in every if split_of(e) == split}
        assert found[split] == list(kept.values())[:count]
    assert {split_of(every[index]) for index in made} <= {"tune", "test"}
    assert len(made) < len(every) / 2
    assert all(task.split_by(index, 5) == e.metadata["split_by"] for index, e in enumerate(every[:5]))
    assert len({e.metadata["split_by"] for e in every}) > 10
