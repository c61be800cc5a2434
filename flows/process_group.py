"""Run a command line by line, such that nothing of it outlives whoever asked for it.

`stream` starts the command under a small guard process (this same file, run as a script), which ends the command's
whole family of processes when the command ends, when it is told to (SIGTERM, SIGINT), or when its standard input
closes, that is when the asking process is gone, be it by kill -9. DVC alone does not do that: when it is terminated,
the training it started runs on. The guard stays in the caller's process group, so that a cancelled flow run reaches it.

Left out: resource limits, time-outs, Windows.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

GRACE_SECONDS = 10  # Prefect gives a cancelled flow run 30 s before it kills: this must fit in


class CommandFailed(RuntimeError):
    """A command ended with an error, or was ended from outside."""


def stream(command: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Callable[[str], object]) -> None:
    """Run `command` in `cwd`, handing each line that it prints (both streams) to `log` as it comes.

    `environment` is laid over this process's own. Raises CommandFailed, with the last lines printed, if it fails.
    """
    guarded = subprocess.Popen(
        [sys.executable, "-P", __file__, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
    )
    assert guarded.stdin and guarded.stdout
    last: deque[str] = deque(maxlen=3)
    try:
        for line in guarded.stdout:
            if line := line.rstrip():
                log(line)
                last.extend([line.strip()] if line.strip(" ^~") else [])  # a traceback's underlining says nothing alone
        code = guarded.wait()
    finally:
        guarded.stdin.close()  # whatever brought us here, a cancelled flow run included: the family ends now
        guarded.wait()
        guarded.stdout.close()
    if code:
        raise CommandFailed(f"`{' '.join(command)}` ended with code {code}: {' | '.join(last) or 'it printed nothing'}")


def main(command: Sequence[str]) -> int:
    """The guard: run `command`, and end all its descendants before ending. Returns its exit code."""
    _adopt_orphans()
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    threading.Thread(target=_leave_with_caller, daemon=True).start()
    try:
        code = subprocess.Popen(command, stdin=subprocess.DEVNULL).wait()
        return code if code >= 0 else 128 - code
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_descendants()


def _adopt_orphans() -> None:
    """Become the parent of grandchildren whose own parent dies, so that they are still found (Linux only)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _leave_with_caller() -> None:
    os.read(0, 1)  # returns when the other end is closed, by whatever means
    os.kill(os.getpid(), signal.SIGTERM)


def _end_descendants() -> None:
    family = psutil.Process().children(recursive=True)
    for process in family:
        _signal(process, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(family, timeout=GRACE_SECONDS)
    for process in [*stubborn, *psutil.Process().children(recursive=True)]:
        _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
