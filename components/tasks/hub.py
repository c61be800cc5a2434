"""Real data sets: GSM8K, MATH, HumanEval, MBPP, from the hub (by ``datasets``) or from JSON lines with its columns.

They are finite: ``examples(split)`` gives all of a split. 'test' is the test file; 'tune' and 'gate' are cut out of
the train file by hash, 'train' is its rest, without anything that stands in the test file; 'pretrain' is empty, as
these tasks are for models that somebody else has trained. Prompts ask for d1's <reasoning>/<answer> form, in our own
words. Left out: few-shot prompts.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.errors import DataError, SettingsError
from components.tasks import checkers, sandbox
from components.tasks.example import Example, Score, address
from components.tasks.splits import TRAIN_FILE_SHARES, pick

TAGS = "Think first, between <reasoning> and </reasoning>. Then give the result alone, between <answer> and </answer>."
ASK_NUMBER = f"Solve the problem. {TAGS} The result is one number, without its unit.\n\n"
ASK_BOXED = f"Solve the problem. {TAGS} Write the result as \\boxed{{...}}.\n\n"
ASK_BODY = "Complete this Python function. Answer with one ```python block that holds the whole function.\n\n"
ASK_FUNCTION = "Write a Python function. Answer with one ```python block that holds it and all that it needs.\n\n"

Row = dict[str, Any]
Hub = tuple[str, ...]  # what datasets.load_dataset takes: name, and perhaps configuration


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """A finite task: rows become examples by ``read``, texts are right or wrong by ``check``. Dense = correct."""

    name: str
    canvas_length: int
    train_path: str | None
    test_path: str | None
    train_hub: Hub | None
    test_hub: Hub
    read: Callable[[str, Row], Example]
    check: Callable[[str, Example], bool]

    alphabet = ""

    def examples(self, split: str) -> list[Example]:
        """All examples of a split, each prompt once, in the order of the file.

        Raises:
            DataError: as ``load_rows`` and the task's reader.
        """
        if split == "pretrain":
            return []
        if split == "test":
            return list(self._test.values())
        return [e for uid, e in self._train.items() if pick(uid, TRAIN_FILE_SHARES) == split]

    @functools.cached_property
    def _test(self) -> dict[str, Example]:
        rows = load_rows(self.test_path, self.test_hub, "test")
        return {e.uid: e for e in (self.read(self.name, row) for row in rows)}

    @functools.cached_property
    def _train(self) -> dict[str, Example]:
        if self.train_path is None and self.train_hub is None:
            return {}
        rows = load_rows(self.train_path, self.train_hub, "train")
        return {e.uid: e for e in (self.read(self.name, row) for row in rows) if e.uid not in self._test}

    def sample(self, index: int, seed: int) -> Example:
        """From the train split, or from the test file of a data set that has no train file."""
        found = self.examples("train") or self.examples("test")
        return found[address(self.name, seed, index) % len(found)]

    def score(self, text: str, example: Example) -> Score:
        correct = float(self.check(text, example))
        return Score(correct, correct)


# --- rows -----------------------------------------------------------------------------------------------------------


def load_rows(path: str | None, hub: Hub | None, file: str) -> list[Row]:
    """The rows of a local file, else those of file ('train' or 'test') of the hub's data set.

    Raises:
        DataError: the local file is missing or broken; or no path is given, and the hub cannot be reached, lacks the
            data set, or ``datasets`` is not installed.
    """
    if path is not None:
        return _read_rows(Path(path))
    assert hub is not None
    try:
        from datasets import load_dataset

        return [dict(row) for row in load_dataset(*hub, split=file)]  # pyright: ignore
    except (ImportError, OSError, ValueError) as error:
        raise DataError(
            f"{' '.join(hub)} ({file}) cannot be loaded ({type(error).__name__}: {error}): the task has no prompts "
            f"without it; connect to the network and install the extra 'hub', or pass {file}_path=FILE with its rows "
            "as JSON lines"
        ) from error


def _read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(f"{path} is not there: the task has no prompts without it; give the path of a JSON lines file")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number} is not a JSON object ({error}): its prompt would be lost; write one a line"
                ) from error
    return rows


def _column(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise DataError(
            f"a row has the columns {sorted(row)} and no {name!r}: no example can be made of it; check that the file "
            "belongs to this task"
        )
    return row[name]


# --- the four tasks -------------------------------------------------------------------------------------------------


def gsm8k(
    *, name: str = "gsm8k", canvas_length: int = 256, train_path: str | None = None, test_path: str | None = None
) -> TextTask:
    """Grade-school word problems; the final answer must be the right number to within 1e-6."""
    hub = ("openai/gsm8k", "main")
    return TextTask(
        name=name,
        canvas_length=canvas_length,
        train_path=train_path,
        test_path=test_path,
        train_hub=hub,
        test_hub=hub,
        read=_read_gsm8k,
        check=lambda text, example: checkers.number_equal(text, example.answer),
    )


def _read_gsm8k(task: str, row: Row) -> Example:
    question = _column(row, "question")
    gold = (checkers.final_answer(_column(row, "answer")) or "").replace(",", "")
    if checkers.number_in(gold) is None:
        raise DataError(
            f"the solution of {question[:60]!r} ends in no '#### number': its answers cannot be scored; repair the file"
        )
    return Example(task, ASK_NUMBER + question, f"<answer>{gold}</answer>", {"question": question})


def math(
    *, name: str = "math", canvas_length: int = 256, train_path: str | None = None, test_path: str | None = None
) -> TextTask:
    """Competition problems: MATH's train file (from paper A's source), MATH-500 as test; scored by math-verify."""
    return TextTask(
        name=name,
        canvas_length=canvas_length,
        train_path=train_path,
        test_path=test_path,
        train_hub=("ankner/math-500",),
        test_hub=("HuggingFaceH4/MATH-500",),
        read=_read_math,
        check=lambda text, example: checkers.math_equal(text, example.metadata["gold"]),
    )


def _read_math(task: str, row: Row) -> Example:
    question = _column(row, "problem")
    gold = row.get("answer") or checkers.last_boxed(_column(row, "solution"))
    if not gold:
        raise DataError(
            f"the solution of {question[:60]!r} has no \\boxed answer: its answers cannot be scored; repair the file"
        )
    metadata = {"question": question, "gold": gold}
    return Example(task, ASK_BOXED + question, f"<answer>\\boxed{{{gold}}}</answer>", metadata)


def humaneval(
    *,
    name: str = "humaneval",
    canvas_length: int = 256,
    test_path: str | None = None,
    execute: bool = False,
    allow_unconfined: bool = False,
    seconds: float = 5.0,
) -> TextTask:
    """Functions to complete; right if the data set's own tests pass. It has a test file only. See ``_runner``."""
    return TextTask(
        name=name,
        canvas_length=canvas_length,
        train_path=None,
        test_path=test_path,
        train_hub=None,
        test_hub=("openai/openai_humaneval",),
        read=_read_humaneval,
        check=_runner(name, execute, allow_unconfined, seconds),
    )


def _read_humaneval(task: str, row: Row) -> Example:
    question, entry = _column(row, "prompt"), _column(row, "entry_point")
    head, _, _ = question.rpartition(f"def {entry}(")  # imports and helpers that a whole function may rely on
    tests = f"{_column(row, 'test')}\ncheck({entry})\n"
    answer = f"```python\n{question}{_column(row, 'canonical_solution')}\n```"
    return Example(
        task,
        f"{ASK_BODY}```python\n{question}```",
        answer,
        {"question": question, "head": head, "entry": entry, "tests": tests},
    )


def mbpp(
    *,
    name: str = "mbpp",
    canvas_length: int = 256,
    train_path: str | None = None,
    test_path: str | None = None,
    execute: bool = False,
    allow_unconfined: bool = False,
    seconds: float = 5.0,
) -> TextTask:
    """Functions to write (the sanitized edition); right if the data set's own tests pass. See ``_runner``."""
    hub = ("google-research-datasets/mbpp", "sanitized")
    return TextTask(
        name=name,
        canvas_length=canvas_length,
        train_path=train_path,
        test_path=test_path,
        train_hub=hub,
        test_hub=hub,
        read=_read_mbpp,
        check=_runner(name, execute, allow_unconfined, seconds),
    )


def _read_mbpp(task: str, row: Row) -> Example:
    question, asserts = _column(row, "prompt"), "\n".join(_column(row, "test_list"))
    tests = "\n".join([*(row.get("test_imports") or []), asserts, ""])
    prompt = f"{ASK_FUNCTION}{question}\n\nIt must pass these tests:\n{asserts}"
    return Example(task, prompt, f"```python\n{_column(row, 'code')}\n```", {"question": question, "tests": tests})


def _runner(task: str, execute: bool, allow_unconfined: bool, seconds: float) -> Callable[[str, Example], bool]:
    """The check that runs a text's program with the example's tests, in a confined process, for at most ``seconds``.

    Raises:
        SettingsError: ``execute`` is false; or programs cannot be confined here and ``allow_unconfined`` is false.
    """
    if not execute:
        raise SettingsError(
            f"task {task} was asked for with execute=False: its answers are programs, and the only way to score one is "
            "to run it; pass execute=True to let model-written programs run in a confined process, or take another task"
        )
    sandbox.way(allow_unconfined)  # refuse now rather than at the first score

    def check(text: str, example: Example) -> bool:
        if not text.strip():
            return False
        program = assemble(text, example)
        return sandbox.run(program, seconds=seconds, allow_unconfined=allow_unconfined).passed

    return check


def assemble(text: str, example: Example) -> str:
    """The program to run: the text's, after the prompt's head if it is a whole function, or after the whole prompt if
    it only goes on from there; then the tests."""
    code, metadata = checkers.program_in(text), example.metadata
    if "entry" in metadata:
        whole = f"def {metadata['entry']}(" in code
        code = (metadata["head"] if whole else metadata["question"]) + code
    return f"{code}\n\n{metadata['tests']}"
