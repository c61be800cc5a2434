"""The README's first ten minutes, every command as printed, in a terminal of 80 columns: after a small run of the
pipeline, and in a fresh clone."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.clone import Clone, ran
from tests.messages import has_remedy

pytestmark = [pytest.mark.e2e, pytest.mark.long]
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHAMPION = "models:/unmasking-policy-tiny@champion"
# The beginning of a command -> what must come after a run of the pipeline.
PROMISED = {
    "unmask demo": r"learned policy +\d+\.\d % right in \d+\.\d\d forward passes",
    "unmask compare": r"paired by prompt:\n  accuracy [+-]\d+\.\d\d points \[[+-]\d.*\]\n  forward passes [+-]\d",
    "dvc repro": r"up to date",
    "dvc metrics show": r"accuracy",
    "dvc exp run": r"Ran experiment\(s\)|Experiment results have been applied",
    "unmask decode": r"\d+ forward pass(es)?, (right|wrong)",
    "unmask promote": r"(promoted|already live|refused).*:",
    "unmask rollback": r"version 1 is live",
    "unmask bench": r"threshold:0\.9",
    "unmask doctor": r"ok   exactness: .* decodes agree",
    "unmask repair": r"",
    "python -m flows.train_policy": r'"profile": "tiny"',
}
# Not played here: what makes an environment, starts servers or needs a GPU.
ELSEWHERE = ("make ", "source ", "prefect ", "pip ", "git clone")


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """What is printed in the shell fences, without comments; parts that are joined by && one by one."""
    lines = [line.partition("  #")[0].strip() for fence in fences("sh") for line in fence.splitlines()]
    return [part.strip() for line in lines if line and not line.startswith("#") for part in line.split("&&")]


PLAYED = [command for command in commands() if not command.startswith(ELSEWHERE)]


def wanted(command: str) -> str:
    return next(pattern for begin, pattern in PROMISED.items() if command.startswith(begin))


def in_terminal(clone: Clone, command: str) -> tuple[int, str]:
    """Exit code and text of a command in a terminal of 80 columns, without colours and movements of the cursor."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    dropped = ("COLUMNS", "LINES", "NO_COLOR", "MLFLOW_TRACKING_URI", "UNMASK_DEVICE", "PREFECT_API_URL")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(clone.folder),
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm",
    }
    process = subprocess.Popen(
        command, shell=True, cwd=clone.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while part := _read(ours):
        said += part
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode("utf-8", errors="replace"))
    return process.wait(), text.replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """What `make train` leaves, at minute size."""
    clone = Clone(tmp_path_factory.mktemp("finished"))
    clone.run("dvc", "repro")
    said = clone.run("unmask", "promote")
    assert "promoted (version 1)" in said and "\npages:\n" in said and "\nnext:\n" in said
    return clone


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("fresh"))


def test_every_printed_command_is_played_or_known_to_be_played_elsewhere() -> None:
    assert len(PLAYED) >= 8
    assert not [command for command in PLAYED if not command.startswith(tuple(PROMISED))]
    assert not [begin for begin in PROMISED if not any(command.startswith(begin) for command in PLAYED)]


@pytest.mark.parametrize("command", PLAYED)
def test_after_a_run_every_command_does_what_is_promised(finished: Clone, command: str) -> None:
    code, said = in_terminal(finished, command)
    assert code == 0 and "Traceback" not in said, said
    assert re.search(wanted(command), said), said
    assert "\N{HORIZONTAL ELLIPSIS}" not in said  # a name that was cut
    again = [stage for stage in ran(said) if "rules" in stage or stage.startswith(("pretrain", "influence"))]
    assert not again, "another alpha pays for its own policies alone"
    for name in (word for word in command.split() if word.startswith("models:/")):
        assert name in said


@pytest.mark.parametrize("command", [command for command in PLAYED if command.startswith("unmask ")])
def test_in_a_fresh_clone_every_command_works_or_says_what_to_run_first(fresh: Clone, command: str) -> None:
    code, said = in_terminal(fresh, command)
    assert "Traceback" not in said, said
    if code == 0:
        assert re.search(wanted(command), said), said
        return
    whole = " ".join(said.split())
    first = "one that was promoted" if command.startswith("unmask rollback") else "`dvc repro"
    assert whole.startswith("unmask: ") and first in whole and has_remedy(whole), said


@pytest.mark.parametrize("number", range(len(fences("python"))))
def test_every_python_fence_runs_as_printed(finished: Clone, number: int) -> None:
    said = finished.run(sys.executable, "-c", fences("python")[number])
    assert re.search((r"\d+ forward passes", r"\[.*\d.*\]")[number], said), said
