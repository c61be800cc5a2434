"""Laws of the sandbox: honest programs pass, no program vouches for itself, nothing outlives its caller."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.errors import SettingsError
from components.tasks import build as build_task
from components.tasks import programs
from components.tasks.checkers import program_in
from components.tasks.programs import Checks, Outcome
from components.tasks.text_data import TextTask, assemble


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


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(program: str, source: str = "", names: tuple[str, ...] = ("f",), head: str = "", **limits: float) -> Outcome:
    checks = Checks(source, head, names if source else ())
    return programs.run(program, checks, allow_unconfined=UNCONFINED, **limits)  # pyright: ignore


# --- honest programs: what crosses between the two processes ---------------------------------------------------------

HONEST = {
    "numbers": ("def f(x): return x + 1", "assert f(1) == 2 and f(2**200) == 2**200 + 1 and f(.5) == 1.5 and f(1j) == 1+1j"),
    "not a number": ("def f(): return float('nan'), float('inf')", "import math\na, b = f()\nassert math.isnan(a) and b == math.inf"),
    "a large factorial": ("import math\ndef f(n): return math.factorial(n)", "import math\nassert f(5000) == math.factorial(5000)"),
    "truth": ("def f(x): return x > 1", "assert f(2) is True and f(1) is False"),
    "nothing": ("def f(): pass", "assert f() is None"),
    "texts": ("def f(s): return s[::-1]", "assert f('aé\\ud800\\n') == '\\n\\ud800éa'"),
    "bytes": ("def f(b): return bytearray(b)", "assert f(b'a\\xff') == bytearray(b'a\\xff')"),
    "containers": (
        "def f(x): return [x, (x,), {x}, frozenset([x]), {x: [x]}, range(x)]",
        "assert f(2) == [2, (2,), {2}, frozenset([2]), {2: [2]}, range(2)] and type(f(2)[1]) is tuple",
    ),
    "library containers": (
        "import collections as c\ndef f(s): return c.Counter(s), c.deque(s), c.OrderedDict.fromkeys(s), c.defaultdict(int, a=1)",
        "from collections import *\nassert f('aab') == (Counter('aab'), deque('aab'), OrderedDict(a=None, b=None), {'a': 1})",
    ),
    "exact numbers": (
        "from decimal import Decimal\nfrom fractions import Fraction\ndef f(): return Decimal('.1'), Fraction(1, 3)",
        "from decimal import Decimal\nfrom fractions import Fraction\nassert f() == (Decimal('.1'), Fraction(1, 3))",
    ),
    "dates": (
        "import datetime\ndef f(day): return day + datetime.timedelta(1)",
        "from datetime import date\nassert f(date(2024, 2, 28)) == date(2024, 2, 29)",
    ),
    "named tuples": (
        "import collections\nP = collections.namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "assert f() == (1, 2) and f().y == 2 and list(f()) == [1, 2] and f() != (1, 3)",
    ),
    "arguments changed in place": (
        "def f(x, d):\n    x.sort()\n    d['k'] = len(x)",
        "x, d = [3, 1, 2], {}\nf(x, d)\nassert x == [1, 2, 3] and d == {'k': 3}",
    ),
    "functions as arguments": ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x * 2, [1, 2]) == [2, 4]"),
    "builtins as arguments": ("def f(g, t, x): return g(x), isinstance(x, t)", "assert f(len, str, 'abc') == (3, True)"),
    "functions as results": ("def f(n): return lambda x: x + n", "assert f(1)(2) == 3"),
    "types as results": ("def f(x): return type(x)", "assert f(1) is int"),
    "generators": ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6 and next(f(1)) == 0"),
    "keyword arguments": ("def f(a, *, b=1): return a - b", "assert f(a=3) == 2 and f(3, b=2) == 1"),
    "built-in exceptions": (
        "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return {}[x]",
        "for x, kind in ((-1, ValueError), (1, KeyError)):\n    try:\n        f(x)\n    except kind:\n        pass\n    else:\n        assert 0",
    ),
    "own exceptions": (
        "class Full(ValueError): pass\ndef f(): raise Full('no room')",
        "try:\n    f()\nexcept ValueError as error:\n    assert 'no room' in str(error)\nelse:\n    assert 0",
    ),
    "classes": (
        "class f:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
        "    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]\n"
        "    def __eq__(self, other): return self.items == other.items",
        "s = f()\ns.push(4)\nassert len(s) == 1 and s[0] == 4 and s.items == [4] and isinstance(s, f) and 4 in s\n"
        "t = f()\nassert s != t\nt.push(4)\nassert s == t and bool(s)",
    ),
    "trees of its own nodes": (
        "class f:\n    def __init__(self, v, l=None, r=None): self.v, self.l, self.r = v, l, r\n"
        "    def total(self): return self.v + sum(x.total() for x in (self.l, self.r) if x)",
        "root = f(1, f(2), f(3))\nroot.l.l = f(4)\nassert root.total() == 10 and root.l.v == 2",
    ),
    "recursion": ("import sys\nsys.setrecursionlimit(5000)\ndef f(n): return n and 1 + f(n - 1)", "assert f(3000) == 3000"),
    "its own output": ("import sys\ndef f():\n    print('x' * 10**6)\n    sys.stderr.write('y' * 10**6)\n    return 1", "assert f() == 1"),
    "a closed output": ("import sys\nsys.stdout.close()\ndef f(): return 1", "assert f() == 1"),
    "files of its own": ("def f():\n    open('a', 'w').write('x')\n    return open('a').read()", "assert f() == 'x'"),
    "threads and children": (
        "import subprocess, sys, threading\ndef f():\n    out = []\n    t = threading.Thread(target=out.append, args=[1])\n"
        "    t.start()\n    t.join()\n    return out + [subprocess.run([sys.executable, '-c', 'pass']).returncode]",
        "assert f() == [1, 0]",
    ),
    "a builtin's name that was asked for": ("def sum(a, b): return a * b", "assert sum(10, 15) == 150"),
    "a script's own demonstration": ("def f(): return 1\nif __name__ == '__main__':\n    raise SystemExit", "assert f() == 1"),
    "helpers of the data set": ("def f(x): return x * x", "assert near(f(2), 4)"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_program_passes_its_tests(name: str) -> None:
    program, source = HONEST[name]
    names = ("sum",) if "def sum" in program else ("f",)
    outcome = run(program, source, names, head="def near(a, b): return abs(a - b) < 1e-9")
    assert outcome.passed, outcome


def test_64_programs_at_once_all_succeed() -> None:
    program = "import threading, time\ndef f():\n    ts = [threading.Thread(target=time.sleep, args=[.1]) for _ in range(8)]\n    [t.start() for t in ts]\n    return 1"
    with ThreadPoolExecutor(64) as pool:
        outcomes = list(pool.map(lambda _: run(program, "assert f() == 1", seconds=30.0), range(64)))
    assert [outcome for outcome in outcomes if not outcome.passed] == []


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


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_programs_are_not_run_unless_asked_for(name):
    with pytest.raises(SettingsError, match=r"execute=False: its answers are programs.*pass execute=True"):
        build(name)


def test_without_confinement_programs_are_refused_or_run_by_permission(monkeypatch):
    monkeypatch.setattr(programs, "_NAMESPACES", "/no/such/unshare")
    broken = programs.Way("/no/such/unshare")
    monkeypatch.setattr(programs, "_ROOT", broken)
    monkeypatch.setattr(programs, "_USER", broken)
    programs.way.cache_clear()
    try:
        with pytest.raises(SettingsError, match=r"cannot be confined on this machine .* allow_unconfined=True"):
            build("mbpp", execute=True)
        assert programs.run("assert 1 + 1 == 2", allow_unconfined=True).passed
        assert not programs.run("assert 1 + 1 == 3", allow_unconfined=True).passed
    finally:
        programs.way.cache_clear()


@pytest.mark.parametrize(("name", "row"), [("humaneval", HUMANEVAL), ("mbpp", MBPP)])
def test_gold_programs_pass_their_tests_and_others_do_not(name, row, tmp_path):
    task = build(name, test_path=write(tmp_path / "p.jsonl", [row]), execute=True, allow_unconfined=UNCONFINED)
    (example,) = task.examples("test")
    assert task.score(example.answer, example).correct == 1.0
    wrong = example.answer.replace("return", "return 1 +")
    assert [task.score(text, example).correct for text in (wrong, "", "no program", "import sys; sys.exit(0)")] == [
        0.0
    ] * 4


def test_a_program_may_be_whole_or_go_on_from_the_prompt(tmp_path):
    task = build(
        "humaneval", test_path=write(tmp_path / "p.jsonl", [HUMANEVAL]), execute=True, allow_unconfined=UNCONFINED
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
    outcome = programs.run(source, seconds=1.0, allow_unconfined=UNCONFINED)
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
def test_what_goes_wrong_in_a_program_is_a_failed_program(name):
    assert not programs.run(BREAKOUTS[name], allow_unconfined=UNCONFINED).passed


@pytest.mark.parametrize("name", CONFINED_BREAKOUTS)
def test_a_program_does_not_leave_its_room(name, tmp_path):
    if not CONFINED:  # here the law is the refusal
        with pytest.raises(SettingsError, match="cannot be confined"):
            programs.run("pass")
        return
    (tmp_path / "secret").write_text("s")
    tmp_path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = {"host": tmp_path, "port": server.getsockname()[1], "pid": os.getpid()}
        outcome = programs.run(CONFINED_BREAKOUTS[name].format(**address))
    assert not outcome.passed and outcome.reason != "time", outcome
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_program_that_was_never_reached_is_nobodys_wrong_answer(monkeypatch):
    monkeypatch.setattr(programs, "way", lambda allow_unconfined: programs.Way("env false"))  # a room that breaks
    with pytest.raises(SettingsError, match="could not be started"):
        programs.run("pass")


def test_a_confined_program_can_do_honest_work():
    source = "import json, os, sys\nopen('a.txt', 'w').write('x')\nprint('much ' * 5000)\nassert os.listdir('.')"
    assert programs.run(source, allow_unconfined=UNCONFINED).passed


# --- no program vouches for itself ----------------------------------------------------------------------------------

FORGED = {
    "leaves early": "import os; os._exit(0)",
    "leaves when asked": "import os\ndef f(x): os._exit(0)",
    "leaves through sys.exit": "import sys\ndef f(x): sys.exit(0)",
    "reads and repeats its own output": (
        "import os\ntry:\n    os.lseek(1, 0, 0)\n    os.write(1, os.read(1, 99).replace(b'begins', b'ends'))\n"
        "except OSError:\n    pass\nos._exit(0)"
    ),
    "writes a verdict to every descriptor": (
        "import os\nfor fd in range(256):\n    try:\n        os.write(fd, b'\"began\"\\n[true, \"passed\"]\\n')\n"
        "    except OSError:\n        pass\nos._exit(0)"
    ),
    "reads its arguments": "import sys, os\nos.write(1, repr(sys.orig_argv).encode() + b' ends')\nos._exit(0)",
    "looks through frames for what vouches": (
        "import sys, gc\nframe = sys._getframe()\nwhile frame:\n    for space in (frame.f_locals, frame.f_globals):\n"
        "        for key, value in list(space.items()):\n            if isinstance(value, str) and len(value) == 32: print(value, 'ends')\n"
        "    frame = frame.f_back\nraise SystemExit(0)"
    ),
    "answers return to every question": (
        "import sys\nframe = sys._getframe()\nwhile 'channel' not in frame.f_locals:\n    frame = frame.f_back\n"
        "c = frame.f_locals['channel']\nc.send(['return', None, []])\nwhile True:\n    c.receive()\n    c.send(['return', True, []])"
    ),
    "asks the tests to run its code": (
        "import sys\nframe = sys._getframe()\nwhile 'channel' not in frame.f_locals:\n    frame = frame.f_back\n"
        "c = frame.f_locals['channel']\n"
        "def f(x):\n    for ask in (['call', [['builtin', 'exec'], ['builtins.list', ['import os; os.write(3, b\"[true, 1]\")']], ['builtins.dict', []]]],\n"
        "                ['getattr', [['builtin', 'int'], '__subclasses__']], ['call', [['builtin', 'type'], ['builtins.list', []], ['builtins.dict', []]]]):\n"
        "        c.send(ask)\n        c.receive()\n    return 0"
    ),
    "patches the interpreter": (
        "import builtins, json, operator, os\nbuiltins.AssertionError = type('A', (BaseException,), {})\nbuiltins.abs = lambda x: 0\n"
        "operator.eq = lambda a, b: True\ndef f(x): return 0"
    ),
    "replaces the tests' helpers": "def near(a, b): return True\ndef abs(x): return 0\ndef f(x): return 0",
    "equals everything": "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "an int that equals everything": "class E(int):\n    def __eq__(self, other): return True\ndef f(x): return E(0)",
    "a difference of zero": "class E:\n    def __sub__(self, other): return 0.0\n    __rsub__ = __sub__\ndef f(x): return E()",
    "orders before and after everything": (
        "class E:\n    def __lt__(self, other): return True\n    __gt__ = __le__ = __ge__ = __eq__ = __lt__\ndef f(x): return E()"
    ),
    "contains everything": "class E:\n    def __contains__(self, other): return True\ndef f(x): return E()",
    "hides what its data are": (
        "class L(list):\n    def __eq__(self, other): return True\n    def __contains__(self, x): return True\ndef f(x): return L()"
    ),
    "traces and jumps over assertions": "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = print\ndef f(x): return 0",
    "ends at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)",
    "does not define what was asked": "def g(x): return 4",
}  # fmt: skip
QUESTIONS = [
    "f(2) == 4", "near(f(2), 4)", "abs(f(2) - 4) < 1e-6", "4 == f(2) and 5 > f(2) > 3", "4 in f(2)", "f(2) in [4]",
    "[f(2)] == [4]", "{'k': f(2)} == {'k': 4}", "f(2) <= 4 <= f(2)", "f(2) is True", "not f(2) != 4",
]  # fmt: skip
ALL = """
passed = []
for question in {questions}:
    try:
        assert eval(question, globals())
    except BaseException:
        continue
    passed.append(question)
assert passed
"""


@pytest.mark.parametrize("name", FORGED)
def test_no_program_passes_but_by_right_values(name: str) -> None:
    head = "def near(a, b): return abs(a - b) < 1e-9"
    for source in ("assert f(2) == 4", ALL.format(questions=QUESTIONS)):
        outcome = run(FORGED[name], source, head=head, seconds=2.0)
        assert outcome.began and not outcome.passed, outcome


def test_the_questions_can_be_answered_rightly() -> None:
    assert run("def f(x): return 4", ALL.format(questions=QUESTIONS), head="near = lambda a, b: a == b").passed


def test_a_program_does_not_meet_its_tests() -> None:
    program = (
        "import gc, sys\ndef f(): return [x for x in gc.get_objects() if isinstance(x, dict) and 'SE' + 'CRET' in x]"
    )
    assert run(program, "SECRET = 'SECRET'\nassert f() == [] and SECRET").passed
    assert not run("import os\ndef f(): return os.read(4, 9)", "assert f() != 7").passed


def test_what_stays_open_is_two_objects_of_the_programs_own_class() -> None:
    program = "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()"
    assert run(program, "assert f(1) == f(2)").passed  # as the module says


def test_a_program_over_its_first_line_is_a_failed_program() -> None:
    for text in (
        "import os\nos.lseek(1, 0, 0)\nos.write(1, b'0' * 99)",
        "import os\nos.write(1, b'0' * 99)\nos.ftruncate(1, 0)",
    ):
        outcome = run(text + "\nos._exit(0)")
        assert outcome.began and not outcome.passed


# --- limits of a program, not of a process --------------------------------------------------------------------------

EATERS = {
    "in one process": "x = bytearray(600 * 2**20)",
    "in its children": (
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        x = bytearray(os.urandom(1) * (100 * 2**20))\n"
        "        time.sleep(30)\ntime.sleep(30)"
    ),
    "in shared memory": (
        "import mmap, os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        m = mmap.mmap(-1, 100 * 2**20)\n"
        "        m.write(b'x' * (100 * 2**20))\n        time.sleep(30)\ntime.sleep(30)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EATERS)
def test_memory_is_counted_over_the_whole_program(name: str) -> None:
    outcome = run(EATERS[name], megabytes=512, seconds=25.0)
    assert not outcome.passed and ("memory" in outcome.reason.lower()), outcome


def test_memory_that_children_share_is_counted_once() -> None:
    program = (
        "import os, time\nx = bytearray(b'x') * (150 * 2**20)\nfor _ in range(4):\n    if os.fork() == 0:\n"
        "        time.sleep(30)\ntime.sleep(.5)\ndef f(): return 1"
    )
    outcome = run(program, "assert f() == 1", megabytes=512, seconds=25.0)
    assert outcome.passed, outcome


def test_time_begins_when_the_program_is_reached_and_sleep_counts() -> None:
    outcome = run("import time; time.sleep(30)", seconds=0.5)
    assert (outcome.passed, outcome.reason) == (False, "time")


def test_children_are_bounded_and_ended() -> None:
    outcome = run("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass", seconds=2.0)
    assert not outcome.passed and outcome.reason in ("time", "processes"), outcome


# --- nothing is left ------------------------------------------------------------------------------------------------

CALLER = """
import sys
from components.tasks import programs
programs.way({unconfined})
print("ready", flush=True)
programs.run("import ctypes, time\\nctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\\ntime.sleep(99)", seconds=99.0,
             allow_unconfined={unconfined})
"""


def named(name: str) -> list[Path]:
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text(encoding="utf-8").strip() == name:
                found.append(comm.parent)
        except OSError:
            pass
    return found


def wait_for(condition, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("confined", [True, False])
def test_a_killed_caller_leaves_no_program_and_no_folder(
    number: signal.Signals, confined: bool, tmp_path: Path
) -> None:
    if confined and UNCONFINED:
        pytest.skip("this machine cannot confine programs")
    name = f"orphan{os.getpid() % 10**6}"
    script = CALLER.format(unconfined=not confined, name=name)
    if not confined:
        script = script.replace("programs.way(True)", "programs.way = lambda allow: programs.Way('')")
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as caller:
        assert caller.stdout is not None and caller.stdout.readline() == b"ready\n"
        assert wait_for(lambda: bool(named(name)))
        caller.send_signal(number)
        caller.wait(20)
    assert wait_for(lambda: not named(name) and not list(tmp_path.iterdir())), (named(name), list(tmp_path.iterdir()))


def test_programs_leave_no_folder_and_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(programs, "way", lambda allow_unconfined: programs.Way(""))
    name = f"leftover{os.getpid() % 10**5}"
    program = (
        f"import ctypes, os, time\nopen('x', 'w').write('x')\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\n        time.sleep(99)\n    os._exit(0)\ntime.sleep(.2)"
    )
    assert run(program).passed
    assert named(name) == [] and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(UNCONFINED, reason="this machine cannot confine programs")
def test_two_programs_do_not_meet() -> None:
    socket = "import socket, time\ns = socket.socket(socket.AF_UNIX)\n"
    with ThreadPoolExecutor(2) as pool:
        host = pool.submit(run, socket + "s.bind('\\0here'); s.listen(); time.sleep(2)", seconds=20.0)
        guest = pool.submit(run, socket + "time.sleep(.5); s.connect('\\0here')", seconds=20.0)
        assert host.result().passed and not guest.result().passed


def test_the_supervisor_needs_the_standard_library_only() -> None:
    for script in ("supervisor.py", "harness.py", "math_worker.py"):
        source = (Path(programs.__file__).parent / script).read_text(encoding="utf-8")
        assert "components" not in source.replace("components.", "components.") or "import components" not in source
        compile(source, script, "exec")
    folder = Path(programs.__file__).parent
    for script in ("supervisor.py", "harness.py"):
        code = f"import runpy; runpy.run_path({str(folder / script)!r})"
        subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
