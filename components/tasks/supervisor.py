"""Supervisor of one confined program: starts it, watches it, ends all of it, and prints the outcome as JSON.

Run as a script (``-I -S``), never imported; standard library only. It outlives its caller just long enough to end the
program and to remove the program's folder. Time is counted from the moment the program is reached, memory and
processes over the program's whole process tree.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

TICK, START, END = 0.03, 60.0, 10.0  # seconds: between two looks, until a program must begin, for ending it
SUBREAPER = 36  # prctl: orphans of the tree become this process's children
VERDICT, JOB = 3, 4  # descriptors in the sandbox, of the tests' process only
HIGH = 20  # the supervisor's own descriptors lie above the sandbox's
TAIL = 500  # bytes kept of the error output


def tree(root: int) -> list[int]:
    """The process and all its descendants."""
    found, left = [], [root]
    while left:
        pid = left.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as children:
                    left += map(int, children.read().split())
    return found


def memory(pids: list[int], limit: int) -> int:
    """Bytes that the processes hold: resident ones, and if these are more than ``limit``, shared pages counted once."""
    resident = {pid: _resident(pid) for pid in pids}
    total = sum(resident.values())
    return total if total <= limit else sum(_proportional(pid, most) for pid, most in resident.items())


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _proportional(pid: int, otherwise: int) -> int:
    """Bytes with shared pages split among their processes; ``otherwise`` if that is not ours to read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (PermissionError, FileNotFoundError):
        return otherwise if os.path.exists(f"/proc/{pid}") else 0
    except OSError:  # it has just ended
        return 0


def end() -> None:
    """Kill all that this process has started, orphans included, and wait until none is left."""
    deadline = time.monotonic() + END
    while time.monotonic() < deadline:
        for pid in tree(os.getpid())[1:]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


class Watch:
    """Output and measurements of a running program."""

    def __init__(self, job: dict[str, Any], verdict: int, errors: int) -> None:
        self.job, self.verdict, self.errors = job, verdict, errors
        self.lines, self.tail = b"", b""
        self.began, self.base, self.deadline = False, 0, time.monotonic() + START
        self.selector = selectors.DefaultSelector()
        for fd in (verdict, errors):
            self.selector.register(fd, selectors.EVENT_READ)

    def outcome(self) -> tuple[bool, str] | None:
        """Passed or not, with the reason; None while the program runs."""
        for key, _ in self.selector.select(TICK):
            data = os.read(key.fd, 65536)
            if not data:
                self.selector.unregister(key.fd)
            if key.fd == self.errors:
                self.tail = (self.tail + data)[-TAIL:]
            else:
                self.lines += data
                if not data:
                    return False, self._last_words()
        _, *rest = self.lines.split(b"\n")
        if rest and not self.began:
            self.began, self.deadline = True, time.monotonic() + self.job["seconds"]
            self.base = len(tree(os.getpid()))
        if len(rest) == 2:
            passed, reason = json.loads(rest[0])
            return passed, reason
        return self._stopped()

    def _stopped(self) -> tuple[bool, str] | None:
        if os.getppid() != self.job["parent"]:
            return False, "the caller has ended"
        if time.monotonic() > self.deadline:
            return False, "time"
        if self.began:
            pids = tree(os.getpid())[1:]
            if len(pids) >= self.base + self.job["processes"]:
                return False, "processes"
            if memory(pids, self.job["memory"]) > self.job["memory"]:
                return False, "memory"
        return None

    def _last_words(self) -> str:
        """The end of the error output, when there is no verdict."""
        while self.selector.get_map() and self.selector.select(1.0):
            data = os.read(self.errors, 65536)
            self.tail = (self.tail + data)[-TAIL:]
            if not data:
                break
        return self.tail.decode("utf-8", "replace").strip() or "it ended without a verdict"


def start(job: dict[str, Any], folder: str | None) -> tuple[int, int]:
    """Start the job's processes; the descriptors to read their verdict and their error output from."""
    verdict, errors = os.pipe(), os.pipe()
    texts = os.memfd_create("job")
    os.write(texts, json.dumps(job["texts"]).encode())
    os.lseek(texts, 0, os.SEEK_SET)
    given = {VERDICT: verdict[1], JOB: texts}
    given = {low: _above(fd) for low, fd in given.items()}
    read, error = [_above(verdict[0]), _above(errors[0])], _above(errors[1])
    for low, fd in given.items():
        os.dup2(fd, low)
        os.close(fd)
    for command, low in job["commands"]:
        subprocess.Popen(
            command,
            cwd=folder or "/",
            env=job["environment"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=error,
            pass_fds=low,
        )
    for fd in (*given, error):
        os.close(fd)
    return read[0], read[1]


def _above(fd: int) -> int:
    """The same descriptor with a number that the sandbox does not use."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(fd)
    return copy


def main() -> None:
    job = json.load(sys.stdin)
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = None if job["temporary"] is None else tempfile.mkdtemp(prefix="program-", dir=job["temporary"])
    began, outcome = False, None
    try:
        watch = Watch(job, *start(job, folder))
        while outcome is None:
            outcome = watch.outcome()
        began = watch.began
    except OSError as error:  # no unshare on this machine
        outcome = False, str(error)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps([began, *outcome]))


if __name__ == "__main__":
    main()
