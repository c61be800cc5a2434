"""Checks of free text: numeric answers (GSM8K), mathematics (MATH) and the program inside a text.

Pure functions of strings. ``sandbox`` runs programs, ``mathematics`` compares LaTeX. Left out: units, several answers
in one text.
"""

from __future__ import annotations

import re
from fractions import Fraction

from . import mathematics
from .numerals import number_in

BOXED = re.compile(r"\\boxed\s*\{")
FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` whose braces close, or None."""
    for box in reversed(list(BOXED.finditer(text))):
        depth = 1
        for end in range(box.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[box.end() : end]
    return None


def last_answer(text: str) -> str | None:
    """The text after the last ``<answer>``, up to its end tag or the end of the text, or None."""
    _, tag, rest = text.rpartition("<answer>")
    return rest.split("</answer>")[0].strip() if tag else None


def final_answer(text: str) -> str | None:
    r"""The answer a text commits itself to: its last ``<answer>``, else its last ``\boxed{}``, else the line after
    its last '####'; None without any of them. Of an ``<answer>`` that holds a box, the box."""
    if (answer := last_answer(text)) is not None:
        inner = last_boxed(answer)
        return (_after_hashes(answer) or answer) if inner is None else inner
    return _after_hashes(text) if (boxed := last_boxed(text)) is None else boxed


def _after_hashes(text: str) -> str | None:
    _, mark, rest = text.rpartition("####")
    return rest.strip().split("\n")[0] if mark and rest.strip() else None


def gold_number(gold: str) -> Fraction | None:
    """The number of a gold answer: a bare number, or a solution's last '#### 18', else its final answer."""
    return number_in(_after_hashes(gold) or final_answer(gold) or gold)


def number_equal(text: str, gold: str) -> bool:
    """True if the text's final answer is the gold one's number, to within 1e-6 (GSM8K's rule in paper A).

    A gold number below 1e-3 asks for more: a thousandth of itself. ``gold`` is as in ``gold_number``.
    """
    answer, target = final_answer(text), gold_number(gold)
    value = None if answer is None else number_in(answer)
    if value is None or target is None:
        return False
    return value == target or abs(value - target) < min(Fraction(1, 10**6), abs(target) / 1000)


def math_equal(text: str, gold: str) -> bool:
    r"""True if the text's final answer equals the LaTeX ``gold`` by math-verify, gold first, in any thread.

    Only the last answer is compared: math-verify would make a set of two boxes. See ``mathematics.equal``.
    """
    answer = final_answer(text)
    return answer is not None and mathematics.equal(gold, answer)


def program_in(text: str) -> str:
    """The program a text holds: its last fenced block, else what stands in its last ``<answer>``, else all of it."""
    answer = last_answer(text)
    for part in (answer, text):
        if part and (blocks := FENCE.findall(part)):
            return blocks[-1]
    return text if answer is None else answer
