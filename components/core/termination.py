"""How a command ends when it is told to from outside: it unwinds, and it does not outlive the DVC that started it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

POLL_SECONDS = 1.0
GRACE_SECONDS = 30.0  # for clean-up, before a command whose DVC is gone is ended hard
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh"}


def unwind_on_signals() -> None:
    """From now on SIGTERM, and SIGHUP unless `nohup` ignores it, end the command like Ctrl-C: `finally` blocks run."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second signal must not break off the clean-up
    sys.exit(128 + number)


def end_with_dvc() -> None:
    """If DVC started this command, end it when DVC is gone: a killed DVC tells its stages nothing."""
    if "DVC_STAGE" in os.environ:
        threading.Thread(target=_watch, args=(_lineage(),), daemon=True).start()


def _watch(before: tuple[int, ...]) -> None:
    while _lineage() == before:
        time.sleep(POLL_SECONDS)
    print("unmask: the DVC that started this command is gone, so it ends.", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _lineage() -> tuple[int, ...]:
    """The parent; behind a shell that DVC put between also the shell's parent (Linux)."""
    parent = os.getppid()
    try:
        name, _, rest = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").partition("(")[2].rpartition(")")
    except OSError:
        return (parent,)
    return (parent, int(rest.split()[1])) if name in SHELLS else (parent,)
