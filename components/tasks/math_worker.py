"""Worker process of ``mathematics``: compares pairs of LaTeX answers, one JSON line each, until its input ends.

Run as a script, never imported. The kernel ends it (SIGPROF, SIGALRM) when one comparison takes too long.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import signal
import sys
from typing import Any

MEMORY = 4 * 2**30  # bytes of address space: a tower may fill memory before its time is up
DIGITS = 200  # of the arithmetic in which exact numbers are compared
ROUNDED = 1e-5  # largest relative difference of equal numbers where one is a decimal


def equal(gold: str, answer: str) -> bool:
    """True if math-verify calls them equal and no number in them contradicts it."""
    from math_verify import parse, verify

    parsed, read = (parse(f"\\boxed{{{part}}}", parsing_timeout=None) for part in (gold, answer))  # pyright: ignore
    if not parsed or not read or not verify(parsed, read, timeout_seconds=None):
        return False
    return not differ(parsed[0], read[0])


def differ(gold: Any, answer: Any) -> bool:
    """True if two expressions hold numbers that are apart, though equal after rounding to 6 decimals.

    math-verify rounds differences: 1/2^{99} and 1/2^{98} are 0 to it. Numbers are compared relatively here.
    """
    from sympy import Basic, FiniteSet, Float, Interval, N, Rational, Tuple, prime
    from sympy.core.relational import Relational

    if not (isinstance(gold, Basic) and isinstance(answer, Basic)):
        return False
    if isinstance(gold, (FiniteSet, Tuple, Interval)) and len(gold.args) == len(answer.args):
        rows = [list(part.args) for part in (gold, answer)]
        if isinstance(gold, FiniteSet):
            rows = [sorted(row, key=lambda x: float(N(x)) if x.is_real else 0.0) for row in rows]
        return any(differ(a, b) for a, b in zip(*rows, strict=True))
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        return gold.lhs == answer.lhs and gold.func == answer.func and differ(gold.rhs, answer.rhs)
    gold, answer = (getattr(part, "rhs", part) for part in (gold, answer))  # of an equation
    symbols = sorted(gold.free_symbols, key=str)
    if gold.free_symbols != answer.free_symbols or not all(hasattr(part, "is_finite") for part in (gold, answer)):
        return False
    point = {symbol: Rational(prime(index + 5), 7) for index, symbol in enumerate(symbols)}
    gold, answer = gold.subs(point), answer.subs(point)
    if not (gold.is_number and answer.is_number and gold.is_finite and answer.is_finite):
        return False
    size = max(abs(N(part, DIGITS)) for part in (gold, answer))
    apart = abs(N(gold.doit() - answer.doit(), DIGITS))
    decimals = gold.has(Float) or answer.has(Float)
    return bool(apart > size * (ROUNDED if decimals else Rational(10) ** (20 - DIGITS)))


def main() -> None:
    try:
        import math_verify  # noqa: F401
    except ImportError:
        return
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(int(20 * seconds) + 1)  # a worker that waits uses no CPU time
        try:
            verdict = equal(gold, answer)
        except Exception:  # what cannot be compared is not equal
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        print(verdict, flush=True)


if __name__ == "__main__":
    main()
