"""Real data sets: GSM8K, MATH, HumanEval, MBPP, from the hub (by ``datasets``) or from JSON lines with its columns.

They are finite: ``examples(split)`` gives all of a split. 'test' is the test file; 'tune' and 'gate' are cut out of
the train file by hash, 'train' is its rest, without anything that stands in the test file; 'pretrain' is empty, as
these tasks are for models that somebody else has trained. Prompts ask for d1's <reasoning>/<answer> form, in our own
words. A row that cannot be scored is refused with its line. Left out: few-shot prompts.
"""

from __future__ import annotations

import functools
import math as maths
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from components.core.errors import DataError, SettingsError
from components.tasks import checkers, rows, sandbox
from components.tasks.example import Example, Score, address
from components.tasks.numerals import number_text
from components.tasks.rows import Hub, Row, load_rows
from components.tasks.splits import TRAIN_FILE_SHARES, pick

TAGS = "Think first, between <reasoning> and </reasoning>. Then give the result alone, between <answer> and </answer>."
ASK_NUMBER = f"Solve the problem. {TAGS} The result is one number, without its unit.\n\n"
ASK_BOXED = f"Solve the problem. {TAGS} Write the result as \\boxed{{...}}.\n\n"
ASK_BODY = "Complete this Python function. Answer with one ```python block that holds the whole function.\n\n"
ASK_FUNCTION = "Write a Python function. Answer with one ```python block that holds it and all that it needs.\n\n"


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
    same: Callable[[Example, Example], bool]  # whether two golds of one question agree

    alphabet = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that its data set has: a test file always, the others with a train file."""
        has_train = self.train_path is not None or self.train_hub is not None
        return ("train", "tune", "gate", "test") if has_train else ("test",)

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
        return self._read_all(load_rows(self.test_path, self.test_hub, "test"))

    @functools.cached_property
    def _train(self) -> dict[str, Example]:
        if "train" not in self.splits:
            return {}
        return self._read_all(load_rows(self.train_path, self.train_hub, "train"), without=self._test)

    def _read_all(self, found: Iterable[tuple[str, Row]], without: Collection[str] = frozenset()) -> dict[str, Example]:
        """Examples by uid, but those of ``without``: of equal questions the first, if their answers agree."""
        examples: dict[str, Example] = {}
        places: dict[str, str] = {}
        for where, row in found:
            try:
                example = self.read(self.name, row)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            if example.uid in without:
                continue
            first = examples.setdefault(example.uid, example)
            places.setdefault(example.uid, where)
            if first is not example and not self.same(first, example):
                raise DataError(
                    f"{where} has the question of {places[example.uid]} and another answer "
                    f"({example.answer[:60]!r}, not {first.answer[:60]!r}). Remove one of the two rows."
                )
        return examples

    def sample(self, index: int, seed: int) -> Example:
        """From the train split, or from the test file of a data set that has no train file."""
        found = self.examples("train") or self.examples("test")
        if not found:
            raise DataError(f"task {self.name} has 0 examples. Give a file that has rows.")
        return found[address(self.name, seed, index) % len(found)]

    def score(self, text: str, example: Example) -> Score:
        correct = float(self.check(text, example))
        return Score(correct, correct)


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
        same=lambda one, other: one.answer == other.answer,
    )


def _read_gsm8k(task: str, row: Row) -> Example:
    question, solution = rows.text(row, "question"), rows.text(row, "answer")
    gold = checkers.gold_number(solution)
    if gold is None:
        raise DataError(
            f"the solution of {question[:60]!r} ends in no '#### number': its answers cannot be scored; repair the file"
        )
    return Example(task, ASK_NUMBER + question, f"<answer>{number_text(gold)}</answer>", {"question": question})


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
        same=lambda one, other: checkers.math_equal(one.answer, other.metadata["gold"]),
    )


def _read_math(task: str, row: Row) -> Example:
    question = rows.text(row, "problem")
    gold = _math_gold(row)
    if not gold or not gold.strip():
        raise DataError(
            f"the solution of {question[:60]!r} has no \\boxed answer: its answers cannot be scored; repair the file"
        )
    metadata = {"question": question, "gold": gold}
    return Example(task, ASK_BOXED + question, f"<answer>\\boxed{{{gold}}}</answer>", metadata)


def _math_gold(row: Row) -> str | None:
    """The column 'answer' where there is one, a number or a text; else the last box of the solution."""
    gold = row.get("answer")
    if gold is None:
        return checkers.last_boxed(rows.text(row, "solution"))
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float)):
        raise DataError(f"answer={str(gold)[:60]!r} is neither a text nor a number. Write LaTeX or a number.")
    if isinstance(gold, float) and not maths.isfinite(gold):
        raise DataError(f"answer={gold} is no number. Write LaTeX or a finite number.")
    return str(gold)


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
        same=lambda one, other: one.metadata["tests"] == other.metadata["tests"],
    )


def _read_humaneval(task: str, row: Row) -> Example:
    question, entry, check = rows.text(row, "prompt"), rows.text(row, "entry_point"), rows.text(row, "test")
    head, definition, _ = question.rpartition(f"def {entry}(")  # imports and helpers that a whole function may rely on
    if not entry.isidentifier() or not definition or "def check(" not in check:
        raise DataError(f"entry_point={entry[:60]!r} is not defined by the prompt and checked. Repair the row.")
    tests = f"{rows.checking(check, 'test')}\ncheck({entry})\n"
    answer = f"```python\n{question}{rows.text(row, 'canonical_solution')}\n```"
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
        same=lambda one, other: one.metadata["tests"] == other.metadata["tests"],
    )


def _read_mbpp(task: str, row: Row) -> Example:
    """Its question is the sentence with the tests: MBPP asks some sentences twice, of functions with other names."""
    sentence, code = rows.text(row, "prompt"), rows.text(row, "code")
    asserts = rows.checking("\n".join(rows.texts(row, "test_list")), "test_list")
    imports = rows.texts(row, "test_imports") if row.get("test_imports") is not None else []
    question = f"{sentence}\n\nIt must pass these tests:\n{asserts}"
    used, names = rows.names(code, asserts)
    metadata = {"question": question, "tests": asserts, "imports": "\n".join([*used, *imports]), "names": names}
    return Example(task, f"{ASK_FUNCTION}{question}", f"```python\n{code}\n```", metadata)


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
        program, tests = assemble(text, example), tests_of(example)
        return sandbox.run(program, tests, seconds=seconds, allow_unconfined=allow_unconfined).passed

    return check


def assemble(text: str, example: Example) -> str:
    """The program to run: the text's, after the prompt's head if it is a whole function, or after the whole prompt if
    it only goes on from there."""
    code, metadata = checkers.program_in(text), example.metadata
    if "entry" not in metadata:
        return code
    whole = f"def {metadata['entry']}(" in code
    return (metadata["head"] if whole else metadata["question"]) + code


def tests_of(example: Example) -> sandbox.Checks:
    """The example's tests. They take from the program only what it was asked for, so that it replaces no helper."""
    metadata = example.metadata
    if "entry" in metadata:
        return sandbox.Checks(metadata["tests"], metadata["head"], [metadata["entry"]])
    return sandbox.Checks(metadata["tests"], metadata["imports"], metadata["names"])
