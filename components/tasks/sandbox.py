"""Run a program that a model wrote, confined, against tests. The one place of the library that executes text.

Confinement: processes in namespaces of their own (mount, pid, net, ipc, uts; and user, unless we are root), whose root
is a fresh read-only file system that holds nothing but the system's libraries and this Python, without capabilities,
with an empty environment, limits on CPU, memory, file size and processes, and a 64 MB /scratch to write in. It sees no
file of ours and no network. ``unshare``, ``mount``, ``pivot_root`` and ``setpriv`` (util-linux) do the work.

The verdict: a supervisor outside (``supervisor``) starts two processes. One holds the program, the other its tests,
which call the program through a socket (``harness``). The program's process never meets the tests, the descriptor of
the verdict or any secret, and cannot name the other processes. The supervisor counts time, and memory and processes
over the program's whole tree; if the caller dies it ends the program.

Left out: seccomp, macOS, programs that attack the kernel. What is open: an object of the program's own class may claim
to equal another of its objects. A text without tests has nothing that vouches for it but its own process. Memory that
belongs to no process (memfd, socket buffers) is bounded by the limits on files alone. Unconfined programs (see ``way``)
share our user's rights and could reach the verdict.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import SettingsError
from . import supervisor

# $1: Python's own folder; then the socket's name, the limits and the command of either role. The new root is mounted
# over /sys, in our namespace only: no folder is made on the machine. Nobody's write access is left anywhere but in
# /scratch. What the host has is not even mounted (/proc only until umount has read it). Descriptors: ``supervisor``.
_SANDBOX = """
set -eu
umask 022
root=/sys python=$1 name=$2 limits=$3; shift 3
mount -t tmpfs -o mode=755,size=1m none "$root"
mkdir "$root/scratch" "$root/proc" "$root/dev" "$root/.old"
: > "$root/dev/null"
for folder in /usr /bin /lib /lib64 "$python"; do
  if [ -L "$folder" ]; then ln -s "$(readlink "$folder")" "$root$folder"
  elif [ -d "$folder" ] && [ ! -d "$root$folder" ]; then
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro,nosuid,nodev "$root$folder"
  fi
done
mount --bind /dev/null "$root/dev/null"
mount -t tmpfs -o mode=1777,size=64m,nr_inodes=1k,nosuid,nodev none "$root/scratch"
mount --rbind /proc "$root/proc"
mount -o remount,bind,ro "$root"
cd "$root"
pivot_root . .old
cd /scratch
{ echo 0 > /proc/sys/kernel/shmall; } 2> /.old/dev/null || true
umount -l /.old
umount -l /proc
unshare --pid --fork --kill-child setpriv PROGRAM --bounding-set=-all --inh-caps=-all --no-new-privs env -i \\
  "$@" program "$name" "$limits" 3<&- 4<&- &
setpriv TESTS --bounding-set=-all --inh-caps=-all --no-new-privs env -i "$@" tests "$name" 3 4 "$limits"
"""

_NAMESPACES = "unshare --mount --pid --net --ipc --uts --fork --kill-child"
_PROCESSES = 64  # of one program, threads included where the kernel counts


@dataclass(frozen=True)
class Way:
    """How programs are run here: in a sandbox (``namespaces``, a command prefix) or, empty, only limited. ``own_user``:
    each program has a user number of its own, which only root can give."""

    namespaces: str
    own_user: bool = False


# As root the namespaces are made with root's own rights and each program runs as a user that nobody else is, so that
# the limit on processes binds it alone. Otherwise a user namespace gives the rights, and the program keeps our number
# but no capability; since Linux 5.14 processes are counted per user namespace.
_ROOT = Way(_NAMESPACES, own_user=True)
_USER = Way(_NAMESPACES + " --user --map-root-user")
_LIMITED = Way("")


@dataclass(frozen=True)
class Outcome:
    """``began``: the program was reached; ``passed``: it and its tests ran to their end without an error; ``reason``:
    'passed', 'time', 'memory', 'processes', or the error."""

    began: bool
    passed: bool
    reason: str


@dataclass(frozen=True)
class Checks:
    """``source`` runs in a process of its own after ``head`` (imports and helpers of the data set). It meets the
    program's ``names``, as proxies, and nothing else of the program."""

    source: str = ""
    head: str = ""
    names: Sequence[str] = ()


@functools.cache
def way(allow_unconfined: bool = False) -> Way:
    """The strongest way to run programs that works on this machine, found by running one.

    Raises:
        SettingsError: programs cannot be confined here (and ``allow_unconfined`` is false), or not run at all.
    """
    tried = [_ROOT, _USER] if os.geteuid() == 0 else [_USER]
    reasons = []
    for candidate in tried + [_LIMITED] * allow_unconfined:
        outcome = _run("import json", Checks(), candidate, seconds=20.0, megabytes=512)
        if outcome.passed:
            return candidate
        reasons.append(outcome.reason)
    raise SettingsError(
        f"programs cannot be confined on this machine ({'; '.join(reasons)}), and could read and write files and use "
        "the network. Run on a Linux with unprivileged user namespaces and util-linux, or pass "
        "allow_unconfined=True inside a virtual machine that holds nothing of value."
    )


def run(
    program: str,
    tests: Checks | None = None,
    *,
    seconds: float = 5.0,
    megabytes: int = 512,
    allow_unconfined: bool = False,
) -> Outcome:
    """Run a program and its tests to their end, within ``seconds`` of wall-clock time and ``megabytes`` of memory.

    Raises:
        SettingsError: as ``way``; or this program was never reached, which says nothing about it.
    """
    outcome = _run(program, tests or Checks(), way(allow_unconfined), seconds, megabytes)
    if not outcome.began:
        raise SettingsError(
            f"a program could not be started with {megabytes} MB of memory ({outcome.reason}): a right program would "
            "count as wrong. Give it more memory, or check what this machine lacks (memory, processes, mounts)."
        )
    return outcome


def _run(program: str, tests: Checks, how: Way, seconds: float, megabytes: int) -> Outcome:
    texts = [program, tests.source, tests.head, list(tests.names)]
    job = {
        "parent": os.getpid(),
        "seconds": seconds,
        "memory": megabytes * 2**20,
        "processes": _PROCESSES,
        "texts": [part.encode("utf-8", "replace").decode() if isinstance(part, str) else part for part in texts],
        "temporary": None if how.namespaces else tempfile.gettempdir(),
        "environment": {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"} if how.namespaces else {},
        "commands": _commands(how, seconds, megabytes),
    }
    command = [sys.executable, "-I", "-S", supervisor.__file__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(json.dumps(job).encode())
        except BaseException:
            process.terminate()  # it ends the program first
            raise
    if process.returncode:
        return Outcome(False, False, err.decode("utf-8", "replace").strip()[-500:] or "its supervisor was killed")
    return Outcome(*json.loads(out))


def _commands(how: Way, seconds: float, megabytes: int) -> list[tuple[list[str], list[int]]]:
    """The commands that the supervisor starts, each with the descriptors that it gets."""
    limits: list[tuple[str, int]] = [
        ("RLIMIT_CPU", int(seconds) + 1),
        ("RLIMIT_AS", megabytes * 2**20),
        ("RLIMIT_FSIZE", 8 * 2**20),
        ("RLIMIT_NOFILE", 128),
        ("RLIMIT_CORE", 0),
    ]
    if how.own_user or (how.namespaces and _kernel() >= (5, 14)):
        limits.append(("RLIMIT_NPROC", _PROCESSES))
    python = [os.path.realpath(sys.executable), "-I", "-S", "-c", _harness()]
    name = f"program-{secrets.token_hex(8)}"  # of the socket between the two; no secret once they are connected
    if not how.namespaces:
        roles = ["program", name, json.dumps(limits)], ["tests", name, "3", "4", json.dumps(limits)]
        return [([*python, *roles[0]], []), ([*python, *roles[1]], [3, 4])]
    users = ["", ""]
    if how.own_user:
        number = 2**30 + secrets.randbelow(2**29) * 2  # of no account and, but for one chance in 2^29, no other program
        users = [f"--reuid={user} --regid={user} --clear-groups" for user in (number, number + 1)]
    script = _SANDBOX.replace("PROGRAM", users[0]).replace("TESTS", users[1])
    sandbox = ["env", "-i", "sh", "-c", script, "sandbox", sys.base_prefix, name, json.dumps(limits), *python]
    return [(["setpriv", "--pdeathsig", "KILL", *shlex.split(how.namespaces), *sandbox], [3, 4])]


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


@functools.cache
def _harness() -> str:
    return Path(__file__).with_name("harness.py").read_text(encoding="utf-8")
