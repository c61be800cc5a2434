"""Running a program that a model wrote, confined. The one place of the library that executes text.

Confinement: a process in namespaces of its own (mount, pid, net, ipc, uts; and user, unless we are root), whose root
is a fresh read-only file system that holds nothing but the system's libraries and this Python, without capabilities,
with an empty environment, limits on CPU, memory, file size and processes, and a 64 MB /scratch to write in. It sees no
file of ours and no network; when its first process ends or time is up, the kernel ends all the others. ``unshare``,
``mount``, ``pivot_root`` and ``setpriv`` (util-linux) do the work. Left out: seccomp, macOS, programs that attack the
kernel or dig the token of success out of their own interpreter; and the limit on processes does not bind root's own
user namespaces (used only where root cannot make the others).
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import SettingsError

# What the child runs. It sets its own limits (no preexec_fn: unsafe in threads), says that it begins (else the fault is
# ours), runs the program, and says that it ends: a program that leaves early with exit code 0 has not passed.
_BOOT = """
import os, resource, sys, types
for name, value in {limits}:
    resource.setrlimit(getattr(resource, name), (value, value))
os.write(1, b"{token} begins\\n")
sys.modules["program"] = types.ModuleType("program")  # not __main__: a script's own demonstration is not asked for
exec(compile(open("program.py", encoding="utf-8").read(), "program.py", "exec"), sys.modules["program"].__dict__)
sys.__stdout__.flush()
os.write(1, b"{token} ends")
"""

# $1: an empty folder, the new root; $2: the program; then Python's own folder and the command. Nobody's write access
# is left anywhere but in /scratch, and what the host has is not even mounted (/proc only until umount has read it).
_ROOM = """
set -eu
umask 022
root=$1 program=$2 python=$3; shift 3
mount -t tmpfs -o mode=755,size=1m none "$root"
mkdir "$root/scratch" "$root/proc" "$root/.old"
for folder in /usr /bin /lib /lib64 "$python"; do
  if [ -L "$folder" ]; then ln -s "$(readlink "$folder")" "$root$folder"
  elif [ -d "$folder" ] && [ ! -d "$root$folder" ]; then
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro,nosuid,nodev "$root$folder"
  fi
done
mount -t tmpfs -o mode=1777,size=64m,nr_inodes=1k,nosuid,nodev none "$root/scratch"
cp "$program" "$root/scratch/program.py"
chmod 644 "$root/scratch/program.py"
mount --rbind /proc "$root/proc"
mount -o remount,bind,ro "$root"
cd "$root"
pivot_root . .old
cd /scratch
umount -l /.old
umount -l /proc
setpriv {drop} --bounding-set=-all --inh-caps=-all --no-new-privs env -i "$@"
"""

_NAMESPACES = "unshare --mount --pid --net --ipc --uts --fork --kill-child"


@dataclass(frozen=True)
class Way:
    """How programs are run here: in a room of their own (``namespaces``, a command prefix) or, empty, only limited."""

    namespaces: str
    drop: str = ""


# As root the namespaces are made with root's own rights and the program runs as nobody, so that the limit on processes
# binds it; otherwise a user namespace gives the rights, and the program keeps our number but no capability.
_ROOT = Way(_NAMESPACES, "--reuid=65534 --regid=65534 --clear-groups")
_USER = Way(_NAMESPACES + " --user --map-root-user")
_LIMITED = Way("")


@dataclass(frozen=True)
class Outcome:
    """``began``: the program was reached; ``passed``: it ran to its end without an error; ``reason``: 'passed', 'time'
    or the end of its stderr."""

    began: bool
    passed: bool
    reason: str


@functools.cache
def way(allow_unconfined: bool = False) -> Way:
    """The strongest way to run programs that works on this machine, found by running one.

    Raises:
        SettingsError: programs cannot be confined here (and ``allow_unconfined`` is false), or not run at all.
    """
    tried = [_ROOT, _USER] if os.geteuid() == 0 else [_USER]
    reasons = []
    for candidate in tried + [_LIMITED] * allow_unconfined:
        outcome = _run("import json", candidate, seconds=20.0, megabytes=512)
        if outcome.passed:
            return candidate
        reasons.append(outcome.reason)
    raise SettingsError(
        f"programs cannot be confined on this machine ({'; '.join(reasons)}): model-written code could then read and "
        "write our files and use the network; run on a Linux with unprivileged user namespaces and util-linux, or pass "
        "allow_unconfined=True inside a virtual machine that holds nothing of value"
    )


def run(program: str, *, seconds: float = 5.0, megabytes: int = 512, allow_unconfined: bool = False) -> Outcome:
    """Run a program to its end, within ``seconds`` of wall-clock time and ``megabytes`` of address space.

    Raises:
        SettingsError: as ``way``; or this program was never reached, which says nothing about it.
    """
    outcome = _run(program, way(allow_unconfined), seconds, megabytes)
    if not outcome.began and outcome.reason != "time":
        raise SettingsError(
            f"a program could not be started with {megabytes} MB of memory ({outcome.reason}): a right program would "
            "count as wrong; give it more memory, or look at what this machine lacks (memory, processes, mounts)"
        )
    return outcome


def _run(program: str, how: Way, seconds: float, megabytes: int) -> Outcome:
    token = secrets.token_hex(16)
    megabyte = 2**20
    limits = [
        ("RLIMIT_CPU", int(seconds) + 1),
        ("RLIMIT_AS", megabytes * megabyte),
        ("RLIMIT_FSIZE", 8 * megabyte),
        ("RLIMIT_NPROC", 64),
        ("RLIMIT_CORE", 0),
    ]
    python = [os.path.realpath(sys.executable), "-I", "-S", "-c", _BOOT.format(limits=limits, token=token)]
    with tempfile.TemporaryDirectory(prefix="program-") as name:
        folder = Path(name)
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        (folder / "root").mkdir()
        command, environment = python, {}
        if how.namespaces:
            room = ["env", "-i", "sh", "-c", _ROOM.format(drop=how.drop), "room"]
            arguments = [str(folder / "root"), str(folder / "program.py"), sys.base_prefix]
            command = [*shlex.split(how.namespaces), *room, *arguments, *python]
            environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        with (folder / "out").open("w+b") as out, (folder / "err").open("w+b") as err:
            try:
                code = _wait(command, environment, folder, out, err, seconds)
            except OSError as error:  # no unshare on this machine
                return Outcome(False, False, str(error))
            out.seek(0)
            began = out.readline().decode("utf-8", "replace").strip() == f"{token} begins"
            if code is None:
                return Outcome(began, False, "time")
            if code == 0 and f"{token} ends" in _tail(out):
                return Outcome(began, True, "passed")
            return Outcome(began, False, _tail(err).strip() or f"left early with exit code {code}")


def _wait(command: list[str], environment: dict[str, str], folder: Path, out, err, seconds: float) -> int | None:
    """The exit code, or None after the whole group was killed for time."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
    )
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also where the program ended and left others of its group behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(file, size: int = 500) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - size))
    return file.read().decode("utf-8", "replace")
