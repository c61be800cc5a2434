"""Is this free text right? Numeric answers (GSM8K), mathematics (MATH, by math-verify) and the code inside a text.

Pure functions of strings. Programs are not run here but in ``programs``. Left out: units, several answers in one text.
"""

from __future__ import annotations

import re
import threading

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}`` whose braces close, or None."""
    start = len(text)
    while (start := text.rfind(r"\boxed{", 0, start)) >= 0:
        depth = 0
        for end in range(start + len(r"\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + len(r"\boxed{") : end]
    return None


def last_answer(text: str) -> str | None:
    """What stands after the last ``<answer>``, up to its end tag or the end of the text, or None."""
    _, tag, rest = text.rpartition("<answer>")
    return rest.split("</answer>")[0].strip() if tag else None


def final_answer(text: str) -> str | None:
    r"""The answer a text commits itself to: its last ``\boxed{}``, else its last ``<answer>``, else what follows its
    last '####' on the same line; None where it has none of them."""
    if (boxed := last_boxed(text)) is not None:
        return boxed
    if (answer := last_answer(text)) is not None:
        return answer
    _, mark, rest = text.rpartition("####")
    return rest.strip().split("\n")[0] if mark and rest.strip() else None


def number_in(text: str) -> float | None:
    r"""The one number in a short answer such as '$1,234 dollars', 'x = 18' (what follows the last '=') or '18.00'; None
    where there is no number, more than one, or a fraction."""
    text = text.rpartition("=")[2].replace("$", "").replace(r"\!", "").replace("{,}", ",")
    found = NUMBER.findall(text)
    if len(found) != 1 or "/" in text or r"\frac" in text:
        return None
    return float(found[0].replace(",", ""))


def number_equal(text: str, gold: str) -> bool:
    """Whether the text's final answer is the gold one's number, to within 1e-6 (GSM8K's rule in paper A).

    ``gold`` is a bare number or a text with a final answer of its own ('... #### 18').
    """
    said, true = final_answer(text), final_answer(gold)
    value = None if said is None else number_in(said)
    target = number_in(gold if true is None else true)
    return value is not None and target is not None and abs(value - target) < 1e-6


def math_equal(text: str, gold: str) -> bool:
    r"""Whether the text's final answer equals the LaTeX ``gold`` by math-verify, gold first.

    Only the *last* answer is shown to it: of two boxes it would make a set. Its time limits (5 s each for parsing and
    comparing) use ``signal.alarm`` and thus work in the main thread alone; in another thread there are none.
    """
    from math_verify import parse, verify

    said = final_answer(text)
    if said is None or not said.strip():
        return False
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    true, value = (parse(f"\\boxed{{{part}}}", parsing_timeout=limit) for part in (gold, said))  # pyright: ignore
    return bool(true and value and verify(true, value, timeout_seconds=limit))


def program_in(text: str) -> str:
    """The program a text holds: its last fenced block, else what stands in its last ``<answer>``, else all of it."""
    answer = last_answer(text)
    for part in (answer, text):
        if part and (blocks := FENCE.findall(part)):
            return blocks[-1]
    return text if answer is None else answer
