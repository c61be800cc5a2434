"""Real data sets, from the hub (by ``datasets``) or from a local file with its columns; GSM8K and MATH among them.

They are finite: ``examples(split)`` gives all of a split. 'test' is the test file; 'tune' and 'gate' are cut out of
the train file by hash, 'train' is its rest, without anything that stands in the test file; 'pretrain' is empty, as
these tasks are for models that somebody else has trained. Prompts ask for d1's <reasoning>/<answer> form, in our own
words. A row that cannot be scored is refused with its line, or left out and counted where ``leave_out`` is set.
"""

from __future__ import annotations

import functools
import math as maths
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

from ..core.errors import DataError
from . import checkers, rows
from .example import Example, Score, address
from .numerals import number_text
from .rows import Hub, Row, load_rows
from .splits import TRAIN_FILE_SHARES, pick

TAGS = "Think first, between <reasoning> and </reasoning>. Then give the result alone, between <answer> and </answer>."
ASK_NUMBER = f"Solve the problem. {TAGS} The result is one number, without its unit.\n\n"
ASK_BOXED = f"Solve the problem. {TAGS} Write the result as \\boxed{{...}}.\n\n"


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """A finite task: rows become examples by ``read``, texts are right or wrong by ``check``. Dense = correct.

    ask        the instruction that every prompt begins with.
    same       whether two golds of one question agree.
    shots      worked examples that stand behind the instruction: the first rows of ``shots_path``, else of the hub's
               split 'prompt'. They are in no split.
    leave_out  rows that cannot be scored are skipped, and their places kept in ``left_out``; stage prepare counts them.
               Of two answers to one question the first stays.
    """

    name: str
    canvas_length: int
    ask: str
    read: Callable[[str, Row], Example]
    check: Callable[[str, Example], bool]
    same: Callable[[Example, Example], bool]
    train_path: str | None = None
    test_path: str | None = None
    train_hub: Hub | None = None
    test_hub: Hub | None = None
    shots: int = 0
    shots_path: str | None = None
    leave_out: bool = False
    left_out: list[str] = field(default_factory=list, init=False, compare=False)

    alphabet = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that its data set has: 'test' with a test file, the others with a train file."""
        has_train = self.train_path is not None or self.train_hub is not None
        has_test = self.test_path is not None or self.test_hub is not None
        return ("train", "tune", "gate") * has_train + ("test",) * has_test

    def examples(self, split: str) -> list[Example]:
        """All examples of a split, each prompt once, in the order of the file.

        Raises:
            DataError: as ``load_rows`` and the task's reader.
        """
        if split == "test":
            return list(self._test.values())
        return [e for uid, e in self._train.items() if pick(uid, TRAIN_FILE_SHARES) == split]

    @functools.cached_property
    def _shown(self) -> dict[str, Example]:
        if not self.shots:
            return {}
        found = self._read_all(load_rows(self.shots_path, self.train_hub, "prompt", "shots_path"))
        if len(found) < self.shots:
            raise DataError(f"shots={self.shots}, and there are {len(found)} worked examples. Ask for fewer.")
        return dict(list(found.items())[: self.shots])

    @functools.cached_property
    def _test(self) -> dict[str, Example]:
        if "test" not in self.splits:
            return {}
        found = self._read_all(load_rows(self.test_path, self.test_hub, "test", "test_path"))
        for uid in found.keys() & self._shown.keys():
            raise DataError(
                f"{found[uid].metadata['question'][:60]!r} is a worked example and a test question: its answer would "
                "stand in its prompt. Use other worked examples."
            )
        return self._with_shots(found)

    @functools.cached_property
    def _train(self) -> dict[str, Example]:
        if "train" not in self.splits:
            return {}
        found = load_rows(self.train_path, self.train_hub, "train", "train_path")
        return self._with_shots(self._read_all(found, without={*self._test, *self._shown}))

    def _with_shots(self, found: dict[str, Example]) -> dict[str, Example]:
        shown = "".join(f"{e.prompt.removeprefix(self.ask)}\n\n{e.answer}\n\n" for e in self._shown.values())
        return {uid: replace(e, prompt=self.ask + shown + e.prompt.removeprefix(self.ask)) for uid, e in found.items()}

    def _read_all(self, found: Iterable[tuple[str, Row]], without: Collection[str] = frozenset()) -> dict[str, Example]:
        """Examples by uid, but those of ``without``: of equal questions the first, if their answers agree."""
        examples: dict[str, Example] = {}
        places: dict[str, str] = {}
        for where, row in found:
            try:
                example = self.read(self.name, row)
                first = examples.get(example.uid, example)
                if first is not example and not self.same(first, example):
                    raise DataError(
                        f"it has the question of {places[example.uid]} and another answer "
                        f"({example.answer[:60]!r}, not {first.answer[:60]!r}). Remove one of the two rows."
                    )
            except DataError as error:
                if not self.leave_out:
                    raise DataError(f"{where}: {error} Or set leave_out=true.") from error
                self.left_out.append(where)
                continue
            if example.uid not in without:
                examples.setdefault(example.uid, example)
                places.setdefault(example.uid, where)
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


# --- numbers and mathematics ------------------------------------------------------------------------------------------


def gsm8k(
    *,
    name: str = "gsm8k",
    canvas_length: int = 256,
    train_path: str | None = None,
    test_path: str | None = None,
    leave_out: bool = False,
) -> TextTask:
    """Grade-school word problems; the final answer must be the right number to within 1e-6."""
    hub = ("openai/gsm8k", "main")
    return TextTask(
        name=name,
        canvas_length=canvas_length,
        ask=ASK_NUMBER,
        train_path=train_path,
        test_path=test_path,
        leave_out=leave_out,
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
        raise DataError(f"the solution of {question[:60]!r} ends in no '#### number'. Repair the file.")
    return Example(task, ASK_NUMBER + question, f"<answer>{number_text(gold)}</answer>", {"question": question})


def math(
    *,
    name: str = "math",
    canvas_length: int = 256,
    train_path: str | None = None,
    test_path: str | None = None,
    leave_out: bool = False,
) -> TextTask:
    """Competition problems: MATH's train file (from paper A's source), MATH-500 as test; scored by math-verify."""
    return TextTask(
        name=name,
        canvas_length=canvas_length,
        ask=ASK_BOXED,
        train_path=train_path,
        test_path=test_path,
        leave_out=leave_out,
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
        raise DataError(f"the solution of {question[:60]!r} has no \\boxed answer. Repair the file.")
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
