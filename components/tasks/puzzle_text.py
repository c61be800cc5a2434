"""Puzzles as text for instruction models, drawn by reasoning-gym: zebra puzzles, countdown, 4x4 sudoku.

Prompts ask for d1's <reasoning>/<answer> form; the last <answer> is scored, and reasoning-gym's partial credit counts
as wrong. Countdown's expressions are evaluated here: its verifier hands the text to ``eval``.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ..core.errors import DataError, SettingsError
from . import gym
from .checkers import final_answer
from .example import Example, Score, address
from .hub import TAGS
from .sudoku import SudokuUnique

ASK_PERSON = f"Solve the puzzle. {TAGS} The result is one name.\n\n"
ASK_EXPRESSION = (
    f"Write an arithmetic expression that has the given value. {TAGS} The result is the expression alone, without '='. "
    "It uses each of the numbers once, and no other, with + - * / and brackets.\n\n"
)
ASK_GRID = (
    f"Complete the 4x4 sudoku: each row, each column and each 2x2 box holds 1, 2, 3 and 4 once. A '.' is an empty "
    f"cell. {TAGS} The result is the whole grid, one row of four digits a line.\n\n"
)
ZEBRA_END = re.compile(r"\?+ Provide only the name of the person as your final answer\.\s*$")


@dataclass(frozen=True, kw_only=True)
class PuzzleText:
    """A generated task of free text. draw: the example at (index, seed). judge: the score of a final answer.

    decide: what the split of that example is hashed from (its ``metadata["split_by"]``), without making it.
    """

    name: str
    canvas_length: int
    draw: Callable[[int, int], Example]
    judge: Callable[[str, Example], Score]
    decide: Callable[[int, int], str] | None = None

    alphabet = ""

    def sample(self, index: int, seed: int) -> Example:
        return self.draw(index, seed)

    def split_by(self, index: int, seed: int) -> str | None:
        return None if self.decide is None else self.decide(index, seed)

    def score(self, text: str, example: Example) -> Score:
        answer = final_answer(text)
        return self.judge(answer, example) if answer else Score(0.0, 0.0)


def zebra(*, name: str = "zebra", canvas_length: int = 256, people: int = 4, characteristics: int = 4) -> PuzzleText:
    """Who has what, from a list of clues; the answer is a name. 70 ms a puzzle.

    The split is that of the solution, which is drawn before the clues: puzzles of other splits are not made.
    """
    for what, number in (("people", people), ("characteristics", characteristics)):
        if not 2 <= number <= 7:
            raise SettingsError(f"{what}={number}: a zebra puzzle has 2 to 7. Use a number between.")
    source = functools.partial(gym.dataset, "zebra_puzzles", num_people=people, num_characteristics=characteristics)

    def solution(index: int, seed: int) -> dict[str, int]:
        return gym.zebra_solution(address("zebra", seed, index), people, characteristics)

    def draw(index: int, seed: int) -> Example:
        item, houses = source()[address("zebra", seed, index)], solution(index, seed)
        question = ZEBRA_END.sub("?", item["question"])
        values = [value.partition(".")[2].replace("_", " ") for value in houses]
        first = next(value for value, house in zip(values, houses.values(), strict=True) if house == 1)  # names lead
        if question == item["question"] or first != item["answer"] or not all(value in question for value in values):
            raise DataError("reasoning-gym makes its zebra puzzles differently. Install reasoning-gym 0.1.")
        metadata = {"question": question, "gold": item["answer"], "split_by": _houses(houses)}
        return Example(name, ASK_PERSON + question, f"<answer>{item['answer']}</answer>", metadata)

    def judge(answer: str, example: Example) -> Score:
        correct = source().score_answer(answer.strip(" \n.'\"*"), {"answer": example.metadata["gold"]}) == 1.0
        return Score(float(correct), float(correct))

    def decide(index: int, seed: int) -> str:
        return _houses(solution(index, seed))

    return PuzzleText(name=name, canvas_length=canvas_length, draw=draw, judge=judge, decide=decide)


def _houses(solution: dict[str, int]) -> str:
    return ", ".join(f"{value} {house}" for value, house in sorted(solution.items()))


def countdown_text(
    *,
    name: str = "countdown_text",
    canvas_length: int = 256,
    min_numbers: int = 3,
    max_numbers: int = 4,
    max_value: int = 99,
    max_target: int = 99,
) -> PuzzleText:
    """An expression over numbers of up to two digits that has the given value. Any one is correct."""
    if not 2 <= min_numbers <= max_numbers <= 6:
        raise SettingsError(
            f"min_numbers={min_numbers}, max_numbers={max_numbers} is no range of numbers. "
            "Use 2 <= min_numbers <= max_numbers <= 6."
        )
    if max_value < 1 or max_target < 1:
        raise SettingsError(f"max_value={max_value}, max_target={max_target}: no number fits. Use at least 1.")
    limits = {"min_numbers": min_numbers, "max_numbers": max_numbers, "max_value": max_value}
    source = functools.partial(gym.dataset, "countdown", **limits, min_target=1, max_target=max_target)

    def draw(index: int, seed: int) -> Example:
        for attempt in range(1000):
            item = source()[address("countdown_text", seed, index, attempt)]
            given, target = item["metadata"]["numbers"], item["metadata"]["target"]
            question = f"Numbers: {', '.join(map(str, given))}. Value: {target}."
            metadata = {"question": question, "numbers": given, "target": target}
            example = Example(name, ASK_EXPRESSION + question, f"<answer>{item['answer']}</answer>", metadata)
            if judge(item["answer"], example).correct:  # its own expression may be cut to a whole number
                return example
        raise DataError(f"1000 draws (seed {seed}, index {index}) gave no exact countdown. Raise max_target.")

    def judge(answer: str, example: Example) -> Score:
        found = evaluate(re.sub(r"\s+", "", answer))
        if found is None:
            return Score(0.0, 0.0)
        correct = found[0] == example.metadata["target"] and Counter(found[1]) == Counter(example.metadata["numbers"])
        return Score(float(correct), float(correct))

    return PuzzleText(name=name, canvas_length=canvas_length, draw=draw, judge=judge)


OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def evaluate(expression: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an expression over + - * / ( ) and the whole numbers in it, in order; None where it is no such
    expression, divides by zero or is longer than 100 characters. Nothing is executed: the syntax tree is walked."""
    if len(expression) > 100 or not re.fullmatch(r"[0-9+\-*/()]+", expression):
        return None
    numbers: list[int] = []

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int(number)):
                numbers.append(number)
                return Fraction(number)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
                return OPERATIONS[type(op)](value(left), value(right))
        raise ValueError(f"{type(node).__name__} is not arithmetic")

    try:
        return value(ast.parse(expression, mode="eval").body), numbers
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def sudoku_text(
    *, name: str = "sudoku_text", canvas_length: int = 256, min_empty: int = 8, max_empty: int = 12
) -> PuzzleText:
    """The puzzles of sudoku_unique, each in the same split as there. Dense: share of the blanks filled right."""
    source = SudokuUnique(min_empty=min_empty, max_empty=max_empty)

    def draw(index: int, seed: int) -> Example:
        drawn = source.sample(index, seed)
        grid, gold = (_lines(text) for text in (drawn.prompt.removeprefix(source.marker), drawn.answer))
        metadata = {"question": drawn.prompt, "gold": drawn.answer, **drawn.metadata}
        return Example(name, ASK_GRID + grid, f"<answer>\n{gold}\n</answer>", metadata)

    def judge(answer: str, example: Example) -> Score:
        digits = re.sub(r"[\s|,]", "", answer)
        return source.score(digits, Example(name, example.metadata["question"], example.metadata["gold"]))

    return PuzzleText(name=name, canvas_length=canvas_length, draw=draw, judge=judge)


def _lines(cells: str) -> str:
    return "\n".join(cells[start : start + 4] for start in range(0, 16, 4))
