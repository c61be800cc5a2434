"""Nothing that this project starts looks anything up unasked: sessions, `doctor` and `decode` under watch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components.denoisers import embedded
from components.export import export_policy
from components.policies.confidence import ConfidencePolicy, Shape

ROOT = Path(__file__).parents[2]
# What may be set outside to keep libraries quiet: the project must not depend on it.
QUIET = ("TELEMETRY", "ANALYTICS", "DO_NOT_TRACK", "HF_HUB", "OFFLINE")
WATCH = """
import os, sys

seen = []

def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        seen.append(f"{event} {args[1:]}")
        raise OSError("no network here")

sys.addaudithook(watch)

def threads():
    return sorted(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else []
"""
# ONNX Runtime's telemetry is C++, which no audit hook sees; it has a thread of its own.
SESSION = """
import numpy as np
from pathlib import Path
from components.export.onnx_file import OnnxFile
before = threads()
opened = OnnxFile(Path(sys.argv[1]), 1)
assert threads() == before, "the session started a thread"
assert "torch" not in sys.modules
assert not seen, seen
"""
COMMANDS = """
import contextlib
from components.cli import main
decode = ["decode", "M..3.2.....1...4.", "--model", sys.argv[2], "--policy", "threshold:0.9", "--policy", sys.argv[1]]
for words in (decode, ["demo"], ["doctor"], ["--help"]):
    kept = sys.argv
    sys.argv = ["unmask", *words]
    with contextlib.suppress(SystemExit):
        main()
    sys.argv = kept
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
assert not seen, seen
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An exported policy and an embedded dLLM, neither trained."""
    folder = tmp_path_factory.mktemp("made")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        export_policy(ConfidencePolicy(Shape(width=8, heads=1, mlp_width=8)).eval(), folder / "policy.onnx", {})
    denoiser, encoder = embedded.build("llada", "M.1234", embedded.Shape(16, 1, 2, 16, 64), seed=0)
    embedded.save(denoiser, encoder, folder / "dllm")
    return folder / "policy.onnx", folder / "dllm"


def watched(code: str, made: tuple[Path, Path], folder: Path) -> str:
    plain = {name: value for name, value in os.environ.items() if not any(word in name for word in QUIET)}
    plain.pop("MLFLOW_TRACKING_URI", None)
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code, *map(str, made)],
        cwd=folder,
        env=plain | single,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.e2e
def test_an_onnx_session_asks_nobody(made: tuple[Path, Path], tmp_path: Path) -> None:
    watched(SESSION, made, tmp_path)


@pytest.mark.e2e
def test_decode_demo_and_doctor_ask_nobody(made: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    said = watched(COMMANDS, made, tmp_path)
    assert "threshold:0.9" in said and "policy.onnx" in said and "learned policy" in said and "exactness" in said
