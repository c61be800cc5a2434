"""Laws of the sandbox: honest programs pass, no program vouches for itself, nothing outlives its caller."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import SettingsError
from components.tasks import build as build_task
from components.tasks import sandbox
from components.tasks.checkers import program_in
from components.tasks.hub import TextTask
from components.tasks.programs import assemble
from components.tasks.sandbox import Checks, Outcome
from tests.doubles import json_lines

pytestmark = pytest.mark.e2e


def confined() -> bool:
    """Whether this machine can confine programs: asked of the system, not of the library."""
    for rights in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *rights, "--mount", "--pid", "--net", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"]
        with contextlib.suppress(FileNotFoundError):
            if subprocess.run(command, capture_output=True).returncode == 0:
                return True
    return False


CONFINED = confined()
UNCONFINED = not CONFINED  # passed as allow_unconfined: where there is confinement, it is what is tested


def build(name: str, **knobs: object) -> TextTask:
    task = build_task(name, **knobs)
    assert isinstance(task, TextTask)
    return task


def run(program: str, source: str = "", names: tuple[str, ...] = ("f",), head: str = "", **limits: float) -> Outcome:
    checks = Checks(source, head, names if source else ())
    return sandbox.run(program, checks, allow_unconfined=UNCONFINED, **limits)  # pyright: ignore


# --- tasks that run programs ----------------------------------------------------------------------------------------

HUMANEVAL = {
    "task_id": "X/0",
    "prompt": 'import math\n\n\ndef area(r: float) -> float:\n    """The area of a circle."""\n',
    "canonical_solution": "    return math.pi * r * r\n",
    "test": "def check(candidate):\n    assert abs(candidate(1) - 3.14159) < 1e-4\n    assert candidate(0) == 0\n",
    "entry_point": "area",
}
MBPP = {
    "task_id": 1,
    "prompt": "Write a function to add two numbers.",
    "code": "def add(a, b):\n    return a + b",
    "test_imports": ["import math"],
    "test_list": ["assert add(1, 2) == 3", "assert add(math.inf, 1) == math.inf"],
}


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "kodcode"])
def test_programs_are_not_run_unless_asked_for(name: str):
    with pytest.raises(SettingsError, match=r"execute=False: its answers are programs.*Pass execute=True"):
        build(name)


def test_without_confinement_programs_are_refused_or_run_by_permission(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "_NAMESPACES", "/no/such/unshare")
    broken = sandbox.Way("/no/such/unshare")
    monkeypatch.setattr(sandbox, "_ROOT", broken)
    monkeypatch.setattr(sandbox, "_USER", broken)
    sandbox.way.cache_clear()
    try:
        with pytest.raises(SettingsError, match=r"cannot be confined on this machine .* allow_unconfined=True"):
            build("mbpp", execute=True)
        assert sandbox.run("assert 1 + 1 == 2", allow_unconfined=True).passed
        assert not sandbox.run("assert 1 + 1 == 3", allow_unconfined=True).passed
    finally:
        sandbox.way.cache_clear()


@pytest.mark.parametrize(("name", "row"), [("humaneval", HUMANEVAL), ("mbpp", MBPP)])
def test_gold_programs_pass_their_tests_and_others_do_not(name: str, row: dict[str, Any], tmp_path: Path):
    task = build(name, test_path=json_lines(tmp_path / "p.jsonl", [row]), execute=True, allow_unconfined=UNCONFINED)
    (example,) = task.examples("test")
    assert task.score(example.answer, example).correct == 1.0
    wrong = example.answer.replace("return", "return 1 +")
    assert [task.score(text, example).correct for text in (wrong, "", "no program", "import sys; sys.exit(0)")] == [
        0.0
    ] * 4


def test_a_program_may_be_whole_or_go_on_from_the_prompt(tmp_path: Path):
    task = build(
        "humaneval", test_path=json_lines(tmp_path / "p.jsonl", [HUMANEVAL]), execute=True, allow_unconfined=UNCONFINED
    )
    (example,) = task.examples("test")
    body = "    return math.pi * r * r\n"
    whole = "def area(r):\n" + body  # relies on the prompt's import
    for text in (
        body,
        whole,
        f"<answer>\n```python\n{whole}```\n</answer>",
        f"Wrong: ```python\n1\n```\nRight:\n```\n{whole}",
    ):
        assert task.score(text, example).correct == 1.0, assemble(text, example)


def test_the_program_of_a_text():
    assert program_in("```python\na\n```\n```py\nb\n```") == "b\n"
    assert program_in("see <answer>x = 1</answer>") == "x = 1"
    assert program_in("x = 2") == "x = 2"


def running() -> set[str]:
    """The names of all processes."""
    names = set()
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            names.add(comm.read_text().strip())
    return names


def test_a_program_that_does_not_end_is_ended_with_all_it_started():
    name = f"endless{os.getpid()}"  # the name of the program and its child, which hides in a session of its own
    source = f"""import ctypes, os
ctypes.CDLL(None).prctl(15, b"{name}", 0, 0, 0)
if os.fork() == 0:
    os.setsid()
while True:
    pass"""
    outcome = sandbox.run(source, seconds=1.0, allow_unconfined=UNCONFINED)
    assert (outcome.passed, outcome.reason) == (False, "time")
    if CONFINED:  # the kernel ends a process namespace with its first process, sessions or not
        assert any(name not in running() for _ in range(1000))


BREAKOUTS = {
    "leaves early": "import os; os._exit(0)",
    "leaves through sys.exit": "import sys; sys.exit()",
    "takes all memory": "x = bytearray(2 * 10**9)",
    "writes a large file": "open('large', 'wb').write(bytes(9 * 2**20))",
    "does not parse": "def f(:",
    "fails its tests": "assert False",
}
CONFINED_BREAKOUTS = {
    "writes outside its folder": "open('{host}/stolen', 'w').write('x')",
    "writes to the system": "import os; open(os.__file__ + '.x', 'w')",
    "reads our files": "open('{host}/secret').read()",
    "reads users": "open('/etc/passwd').read()",
    "uses the network": "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)",
    "sees other processes": "import os; os.kill({pid}, 0)",
    "has no end of children": "import os, time\nfor _ in range(200):\n    if os.fork() == 0:\n        time.sleep(9)",
    "mounts": "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/usr', b'tmpfs', 0, None) == 0",
    "reads our environment": "import os; os.environ['PATH']",
}


@pytest.mark.parametrize("name", BREAKOUTS)
def test_what_goes_wrong_in_a_program_is_a_failed_program(name: str):
    assert not sandbox.run(BREAKOUTS[name], allow_unconfined=UNCONFINED).passed


@pytest.mark.parametrize("name", CONFINED_BREAKOUTS)
def test_a_program_does_not_leave_its_room(name: str, tmp_path: Path):
    if not CONFINED:  # here the law is the refusal
        with pytest.raises(SettingsError, match="cannot be confined"):
            sandbox.run("pass")
        return
    (tmp_path / "secret").write_text("s")
    tmp_path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = {"host": tmp_path, "port": server.getsockname()[1], "pid": os.getpid()}
        outcome = sandbox.run(CONFINED_BREAKOUTS[name].format(**address))
    assert not outcome.passed and outcome.reason != "time", outcome
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_program_that_was_never_reached_is_nobodys_wrong_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "way", lambda allow_unconfined: sandbox.Way("env false"))  # a room that breaks
    with pytest.raises(SettingsError, match="could not be started"):
        sandbox.run("pass")


def test_a_confined_program_can_do_honest_work():
    source = "import json, os, sys\nopen('a.txt', 'w').write('x')\nprint('much ' * 5000)\nassert os.listdir('.')"
    assert sandbox.run(source, allow_unconfined=UNCONFINED).passed
