"""Arithmetic: sums and products from reasoning-gym with its verifier, and countdown, where many expressions are right.

Sums and products are written as 'C12-345=' and 'P12*34='. Countdown's own generator stands in for reasoning-gym's,
which builds each item with sympy (2 ms to 10 ms) and whose verifier hands the text to ``parse_expr``, that is to
``eval``.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from components.core.errors import DataError, SettingsError
from components.tasks import gym
from components.tasks.example import Example, Score, address, canvas_for, cut, matching


def check_range(what: str, low: int, high: int, floor: int, ceiling: int) -> None:
    if not floor <= low <= high <= ceiling:
        raise SettingsError(
            f"min_{what}={low}, max_{what}={high} is no range of {what}: no prompt can be drawn; "
            f"use {floor} <= min_{what} <= max_{what} <= {ceiling}"
        )


@dataclass(frozen=True, kw_only=True)
class Calculation:
    """The value of an expression over '+' and '-' (chain_sum) or '*' (products), scored by reasoning-gym's verifier.

    As the verifier has it, a sign and leading zeros do not matter ('018' is right for 18). Dense: 1 where correct, else
    the share of characters that agree with the answer, place by place.
    """

    name: str = "chain_sum"
    marker: str = "C"
    operators: str = "+-"
    min_terms: int = 2
    max_terms: int = 2
    min_digits: int = 1
    max_digits: int = 3

    def __post_init__(self) -> None:
        if self.operators not in ("+-", "*"):
            raise SettingsError(
                f"operators={self.operators!r}: the generator draws from '+-' or from '*', whatever is written here; "
                "prompts would hold characters that the alphabet has not; write one of these two"
            )
        check_range("terms", self.min_terms, self.max_terms, 2, 6)
        check_range("digits", self.min_digits, self.max_digits, 1, 6)

    @property
    def canvas_length(self) -> int:
        largest = 10**self.max_digits - 1
        most = largest**self.max_terms if "*" in self.operators else largest * self.max_terms
        return canvas_for(len(str(most)) + ("-" in self.operators))

    @property
    def alphabet(self) -> str:
        return self.marker + "0123456789=" + self.operators

    def _gym(self):
        return gym.dataset(
            "products" if "*" in self.operators else "chain_sum",
            min_terms=self.min_terms,
            max_terms=self.max_terms,
            min_digits=self.min_digits,
            max_digits=self.max_digits,
        )

    def sample(self, index: int, seed: int) -> Example:
        item = self._gym()[address("calculation", self.operators, seed, index)]
        terms = {"terms": item["metadata"]["num_terms"], "digits": item["metadata"]["num_digits"]}
        return Example(
            self.name, f"{self.marker}{item['metadata']['expression'].replace(' ', '')}=", item["answer"], terms
        )

    def score(self, text: str, example: Example) -> Score:
        text = cut(text)
        correct = self._gym().score_answer(text, {"answer": example.answer}) == 1.0
        return Score(float(correct), 1.0 if correct else matching(text, example.answer))


def products(
    *,
    name: str = "products",
    marker: str = "P",
    min_terms: int = 2,
    max_terms: int = 2,
    min_digits: int = 1,
    max_digits: int = 3,
) -> Calculation:
    """Products of whole numbers: carries run from right to left, the answer is read from left to right."""
    return Calculation(
        name=name,
        marker=marker,
        operators="*",
        min_terms=min_terms,
        max_terms=max_terms,
        min_digits=min_digits,
        max_digits=max_digits,
    )


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


@dataclass(frozen=True, kw_only=True)
class Countdown:
    """'T3758=24': an expression over + - * / ( ) that uses each digit once and has this value. Any one is correct.

    Dense, for a well-formed expression: half for the share of digits used once each (over the longer of given and
    used), half for the value; 0 for anything else.
    """

    name: str = "countdown"
    marker: str = "T"
    min_numbers: int = 3
    max_numbers: int = 4
    max_target: int = 99

    def __post_init__(self) -> None:
        check_range("numbers", self.min_numbers, self.max_numbers, 2, 8)
        if self.max_target < 1:
            raise SettingsError(
                f"max_target={self.max_target} allows no target: a prompt asks for a whole number; use at least 1"
            )

    @property
    def canvas_length(self) -> int:  # n digits, n - 1 operators, at most n - 2 pairs of brackets
        return canvas_for(4 * self.max_numbers - 5)

    @property
    def alphabet(self) -> str:
        return self.marker + "0123456789=+-*/()"

    def sample(self, index: int, seed: int) -> Example:
        rng = random.Random(address("countdown", seed, index))
        for _ in range(1000):
            digits = [rng.randint(1, 9) for _ in range(rng.randint(self.min_numbers, self.max_numbers))]
            found = _expression(digits, rng)
            if found and found[1].denominator == 1 and 1 <= found[1] <= self.max_target:
                prompt = f"{self.marker}{''.join(map(str, rng.sample(digits, len(digits))))}={found[1]}"
                return Example(self.name, prompt, found[0], {"numbers": len(digits)})
        raise DataError(
            f"no expression with a value from 1 to {self.max_target} in 1000 draws (seed {seed}, index {index}): such "
            "targets are too rare to sample; raise max_target"
        )

    def score(self, text: str, example: Example) -> Score:
        found = evaluate(cut(text))
        if found is None:
            return Score(0.0, 0.0)
        digits, target = example.prompt[1:].split("=")
        given, used = Counter(map(int, digits)), Counter(found[1])
        share = (given & used).total() / max(given.total(), used.total())
        hit = found[0] == int(target)
        return Score(float(share == 1.0 and hit), (share + hit) / 2)


def _expression(numbers: list[int], rng: random.Random) -> tuple[str, Fraction] | None:
    """A random expression over the numbers in their order, with no bracket that could be left out, and its value."""
    text, value, _ = _node(numbers, rng)
    return None if value is None else (text, value)


def _node(numbers: list[int], rng: random.Random) -> tuple[str, Fraction | None, str]:
    if len(numbers) == 1:
        return str(numbers[0]), Fraction(numbers[0]), ""
    split, sign = rng.randint(1, len(numbers) - 1), rng.choice("+-*/")
    left, left_value, left_sign = _node(numbers[:split], rng)
    right, right_value, right_sign = _node(numbers[split:], rng)
    if left_value is None or right_value is None or (sign == "/" and (not right_value or left_value % right_value)):
        return "", None, sign
    if sign in "*/" and left_sign and left_sign in "+-":
        left = f"({left})"
    if right_sign and (sign == "/" or (sign == "*" and right_sign in "+-") or (sign == "-" and right_sign in "+-")):
        right = f"({right})"
    operate = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[sign]
    return f"{left}{sign}{right}", operate(left_value, right_value), sign
