"""Laws of a program's test run: honest programs pass, and no program vouches for itself."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.core.errors import SettingsError
from components.tasks import sandbox
from components.tasks.sandbox import Checks, Outcome

pytestmark = pytest.mark.e2e


def cases(name: str) -> dict[str, tuple[str, str]]:
    """Programs and their tests, by title, from a file of this folder."""
    text = (Path(__file__).parent / "programs" / f"{name}.txt").read_text(encoding="utf-8")
    parts = [part.partition("\n") for part in text.split("### ")[1:]]
    return {title: (body.partition("--- tests\n")[0], body.partition("--- tests\n")[2]) for title, _, body in parts}


HONEST, FORGED = cases("honest"), cases("forged")
HEAD = "def near(a, b): return abs(a - b) < 1e-9"  # a helper of the data set
QUESTIONS = """
f(2) == 4
near(f(2), 4)
abs(f(2) - 4) < 1e-6
4 == f(2) and 5 > f(2) > 3
4 in f(2)
f(2) in [4]
[f(2)] == [4]
{'k': f(2)} == {'k': 4}
f(2) <= 4 <= f(2)
not f(2) != 4
""".strip().splitlines()
ANY = f"""
passed = []
for question in {QUESTIONS}:
    try:
        assert eval(question, globals())
    except BaseException:
        continue
    passed.append(question)
assert passed
"""


@functools.cache
def unconfined() -> bool:
    """True if this machine cannot confine programs, which the tests of the sandbox ask the system for."""
    try:
        sandbox.way()
    except SettingsError:
        return True
    return False


def run(program: str, tests: str, names: tuple[str, ...] = ("f",), seconds: float = 10.0) -> Outcome:
    return sandbox.run(program, Checks(tests, HEAD, names), seconds=seconds, allow_unconfined=unconfined())


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_program_passes_its_tests(name: str) -> None:
    program, tests = HONEST[name]
    outcome = run(program, tests, ("sum",) if "def sum" in program else ("f",))
    assert outcome.passed, outcome


@pytest.mark.parametrize("name", FORGED)
def test_no_program_passes_but_by_right_values(name: str) -> None:
    program, _ = FORGED[name]
    outcome = run(program, ANY, seconds=2.0)
    assert outcome.began and not outcome.passed, outcome


def test_right_values_pass_the_questions() -> None:
    for question in QUESTIONS:
        program = "def f(x): return [4]" if " in f" in question else "def f(x): return 4"
        assert run(program, f"assert {question}").passed, question


@pytest.mark.parametrize("name", FORGED)
def test_a_text_alone_does_not_pass_by_leaving_or_writing(name: str) -> None:
    program = FORGED[name][0]
    if "def " in program or "channel" in program:
        return  # it forges when it is asked; a text without tests is vouched for by its own process alone
    assert not sandbox.run(program, seconds=2.0, allow_unconfined=unconfined()).passed


def test_a_program_does_not_meet_its_tests() -> None:
    program = "import gc\ndef f(): return [x for x in gc.get_objects() if isinstance(x, dict) and 'SE' + 'CRET' in x]"
    assert run(program, "SECRET = 'SECRET'\nassert f() == [] and SECRET").passed
    assert not run("import os\ndef f(): return os.read(4, 9)", "assert f() != 7").passed


def test_what_stays_open_is_two_objects_of_the_programs_own_class() -> None:
    program = FORGED["equals everything"][0]
    assert run(program, "assert f(1) == f(2)").passed  # as the module's docstring names it
    assert not run(program, "assert f(1) == 4").passed


@pytest.mark.parametrize("then", ["os.lseek(1, 0, 0)", "os.ftruncate(1, 0)", "os.close(1)", "pass"])
def test_a_program_that_writes_over_its_first_line_has_failed_and_nothing_more(then: str) -> None:
    program = f"import os\ntry:\n    {then}\n    os.write(1, b'0' * 99)\nexcept OSError:\n    pass\nos._exit(0)"
    outcome = sandbox.run(program, allow_unconfined=unconfined())
    assert outcome.began and not outcome.passed


def test_64_programs_at_once_all_succeed() -> None:
    program = """
import threading, time
def f():
    threads = [threading.Thread(target=time.sleep, args=[.1]) for _ in range(8)]
    for thread in threads:
        thread.start()
    return len(threads)
"""
    with ThreadPoolExecutor(64) as pool:
        outcomes = list(pool.map(lambda _: run(program, "assert f() == 8", seconds=30.0), range(64)))
    assert [outcome for outcome in outcomes if not outcome.passed] == []
