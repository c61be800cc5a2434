r"""Compare two LaTeX answers by math-verify, in worker processes that a hard time limit ends.

An exponent tower keeps sympy busy inside one C call, which no exception can interrupt, and ``signal.alarm`` works in
the main thread alone. A worker (``math_worker``) is therefore a process of its own, reused between calls; the kernel
ends it when a comparison takes too long, and the next call starts another.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

from ..core.errors import SettingsError
from .numerals import MAGNITUDE, joined, spaced

BASED = re.compile(r"(?:\\text\{|\\mathrm\{)?([0-9A-Z]+)\}?_\{?(\d+)\}?")
POWER_OF_TEN = re.compile(r"(?<![\w.^])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?![\w.^])")
# What math-verify drops: a relation in front, 'about' anywhere, a word that scales.
DROPPED = [
    re.compile(r"^(?:\\(?:leq?|geq?|lt|gt|neq?|pm|mp)(?![a-zA-Z])|[<>≤≥≠±∓])"),
    re.compile(r"\\(?:approx|sim|simeq|cong)(?![a-zA-Z])|[≈~]"),
    re.compile(rf"(?i)\b(?:{MAGNITUDE})\b"),
]
LONGEST = 10_000  # characters of an answer

_idle: queue.LifoQueue[subprocess.Popen[str]] = queue.LifoQueue()
_slots = threading.BoundedSemaphore(os.cpu_count() or 1)


def equal(gold: str, answer: str, *, seconds: float = 3.0) -> bool:
    """True if the answer equals gold; False also where comparing takes more than ``seconds`` of CPU time.

    Separators of true thousands groups are dropped, ``1e3`` is a power of ten, and a numeral with a base ('25_8')
    equals the same numeral in the same base only.

    Raises:
        SettingsError: math-verify is not installed.
    """
    gold, answer = _normal(gold), _normal(answer)
    if not gold or not answer or len(answer) > LONGEST:
        return False
    if gold == answer:
        return True
    if any(bool(pattern.search(gold)) != bool(pattern.search(answer)) for pattern in DROPPED):
        return False
    bases = _based(gold), _based(answer)
    if any(bases):
        return bases[0] == bases[1]
    return _ask(gold, answer, seconds)


def _normal(text: str) -> str:
    text = joined(spaced(text)).strip().strip("$").strip()
    return POWER_OF_TEN.sub(r"\1 \\cdot 10^{\2}", text)


def _based(text: str) -> tuple[str, int] | None:
    """Digits and base of a numeral; without a subscript, None."""
    found = BASED.fullmatch(text.replace(" ", ""))
    if found is None or not (found[1][0].isdigit() or int(found[2]) > 10):
        return None
    return found[1].lstrip("0") or "0", int(found[2])


def _ask(gold: str, answer: str, seconds: float) -> bool:
    with _slots:
        worker = _take()
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(json.dumps([gold, answer, seconds]) + "\n")
            worker.stdin.flush()
            verdict = worker.stdout.readline().strip()
        except BaseException:  # an interruption: its answer would be read by the next call
            _stop(worker)
            raise
        if verdict:
            _idle.put(worker)
        else:
            _stop(worker)
        return verdict == "True"


def _take() -> subprocess.Popen[str]:
    """An idle worker that lives, or a new one."""
    while True:
        try:
            worker = _idle.get_nowait()
        except queue.Empty:
            return _start()
        if worker.poll() is None:
            return worker
        _stop(worker)


def _start() -> subprocess.Popen[str]:
    script = Path(__file__).with_name("math_worker.py")
    worker = subprocess.Popen(
        [sys.executable, "-P", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    assert worker.stdout is not None
    if worker.stdout.readline().strip() != "ready":
        _stop(worker)
        raise SettingsError(
            "math-verify cannot be imported, task 'math' compares answers with it. Install the extra 'hub'."
        )
    return worker


def _stop(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    worker.wait()


@atexit.register
def _close() -> None:
    while not _idle.empty():
        _stop(_idle.get_nowait())


def _forget() -> None:
    """A forked child must not share its parent's workers, nor locks that other threads held."""
    global _idle, _slots
    _idle, _slots = queue.LifoQueue(), threading.BoundedSemaphore(os.cpu_count() or 1)


os.register_at_fork(after_in_child=_forget)
