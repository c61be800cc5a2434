"""Commands that are ended from outside unwind, and none outlives the DVC that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
# Unwinds into the file that it is given; says when it is ready.
COMMAND = """
import sys, time
from pathlib import Path
from components.core import termination

termination.unwind_on_signals()
termination.end_with_dvc()
try:
    print("ready", flush=True)
    time.sleep(60)
finally:
    time.sleep(0.2)  # a second signal meets the clean-up
    Path(sys.argv[1]).write_text("unwound", encoding="utf-8")
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_unwinds_even_if_it_comes_twice(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "end")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    if number != signal.SIGINT:
        time.sleep(0.1)
        process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert (tmp_path / "end").read_text(encoding="utf-8") == "unwound"
    assert number == signal.SIGINT or (process.returncode == 128 + number and not said)


def test_nohup_is_respected(tmp_path: Path) -> None:
    command = ["nohup", sys.executable, "-c", COMMAND, str(tmp_path / "end")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment())
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.kill()
    process.wait()


# DVC runs a stage through $SHELL -c; a shell with two commands stays between.
@pytest.mark.parametrize("between", ["{0}", "{0}; true"], ids=["the shell gives way", "the shell stays"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_does_not_outlive_its_dvc(tmp_path: Path, between: str, number: int) -> None:
    (tmp_path / "command.py").write_text(COMMAND, encoding="utf-8")
    stage = between.format(f"{sys.executable} {tmp_path / 'command.py'} {tmp_path / 'end'}")
    dvc = f"import subprocess; subprocess.run(['bash', '-c', {stage!r}])"
    parent = subprocess.Popen(
        [sys.executable, "-c", dvc], stdout=subprocess.PIPE, text=True, env=environment(DVC_STAGE="train")
    )
    assert parent.stdout and parent.stdout.readline() == "ready\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert family
    parent.send_signal(number)
    parent.wait()
    assert not psutil.wait_procs(family, timeout=20)[1]
    assert (tmp_path / "end").read_text(encoding="utf-8") == "unwound"


def test_a_command_by_hand_may_outlive_its_shell(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND, encoding="utf-8")
    plain = {name: value for name, value in environment().items() if name != "DVC_STAGE"}
    hand = f"import subprocess; subprocess.Popen([{sys.executable!r}, {str(tmp_path / 'command.py')!r}, 'end']).wait()"
    parent = subprocess.Popen([sys.executable, "-c", hand], stdout=subprocess.PIPE, text=True, env=plain, cwd=tmp_path)
    assert parent.stdout and parent.stdout.readline() == "ready\n"
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    time.sleep(2.5)
    assert child.is_running()
    child.kill()
