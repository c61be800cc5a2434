"""Several processes train one policy: the same as one process does, also after one of them was killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from safetensors.torch import load_file

from components.denoisers import embedded
from components.policies import store
from components.policies.confidence import ConfidencePolicy, Shape
from components.settings import Settings
from components.stages.common.workspace import Workspace
from components.stages.prepare import prepare
from components.stages.train import train
from tests.e2e.test_stages import toy
from tests.training_process import ITERATIONS, trained

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
FULL: dict[str, Any] = {"drawn": 5, "choice": 12, "heard": 100}
CASES = {
    "every process has signal": FULL,
    "one of two prompts is mute": {"drawn": 2, "choice": 2, "heard": 1},
    "fewer prompts than processes": {"drawn": 1, "choice": 12, "heard": 100},
    "resumes from one process": FULL,
}
SAME = 1e-6
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
LIMIT = 60.0  # seconds in which a process must find out that another one is gone


def start(size: int, cases: list[dict[str, Any]]) -> list[subprocess.Popen[str]]:
    """The processes of a training, without a launcher that would end them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "tests.training_process", json.dumps(cases)]
    return [
        subprocess.Popen(
            command, env=os.environ | group | {"RANK": f"{i}"}, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for i in range(size)
    ]


def apart(one: Path, other: Path, prefix: str = "") -> float:
    """The largest difference of two files' tensors."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if name.startswith(prefix))


def record(folder: Path, rank: int, number: int) -> dict[str, Any]:
    return json.loads((folder / f"{rank}-{number}.json").read_text(encoding="utf-8"))


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_two_processes_train_the_policy_that_one_trains(tmp_path: Path) -> None:
    """In float64; rewards and weights are float32. Metrics and the temperature that follows them are the same too."""
    one = {name: made(tmp_path / "one" / name) for name in CASES}
    two = {name: made(tmp_path / "two" / name) for name in CASES}
    for name, case in CASES.items():
        trained(one[name], **case)
    trained(two["resumes from one process"], **FULL, until=1)
    started = start(2, [CASES[name] | {"folder": str(two[name])} for name in CASES])
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said[0]
    for name in CASES:
        assert apart(one[name] / "state.safetensors", two[name] / "state.safetensors") < SAME, name
        wanted = record(one[name], 0, ITERATIONS - 1)["metrics"]
        for rank in (0, 1):
            assert record(two[name], rank, ITERATIONS - 1)["metrics"] == pytest.approx(wanted, abs=1e-6), name
    idle = [record(two["fewer prompts than processes"], rank, ITERATIONS - 1)["signals"] for rank in (0, 1)]
    assert any(idle[0]) and not any(idle[1])
    mute = [record(two["one of two prompts is mute"], rank, ITERATIONS - 1)["signals"] for rank in (0, 1)]
    assert any(mute[0]) != any(mute[1]) or all(a != b for a, b in zip(*mute, strict=True))


@pytest.mark.parametrize("victim", [0, 1], ids=["the one that works", "the one that waits"])
def test_a_process_that_is_killed_ends_the_other_and_the_training_resumes(tmp_path: Path, victim: int) -> None:
    """Process 0 works on its rollouts, process 1 waits for it. One process goes on where two were."""
    whole, cut = made(tmp_path / "whole"), made(tmp_path / "cut")
    trained(whole, **FULL)
    started = start(2, [FULL | {"folder": str(cut), "hang": True}])
    try:
        while not all((cut / f"{rank}-1.json").exists() for rank in (0, 1)):
            assert all(process.poll() is None for process in started)
            time.sleep(0.2)
        began = time.monotonic()
        started[victim].kill()
        _, said = started[1 - victim].communicate(timeout=LIMIT)
        assert time.monotonic() - began < LIMIT
        assert started[1 - victim].returncode != 0 and "another process of this stage is gone" in said
    finally:
        for process in started:
            process.kill()
    assert apart(trained(cut, **FULL), whole / "state.safetensors") < SAME


def before_training(root: Path, settings: Settings) -> Workspace:
    """What stage train reads: data, an untrained dLLM and an untrained policy."""
    (root / "params.yaml").write_text(json.dumps(settings.model_dump(mode="json")), encoding="utf-8")
    workspace = Workspace(root, settings.profile)
    prepare(workspace, settings.data, settings.models, settings.domain)
    alphabet = "".join(sorted(set("".join(task.build().alphabet for task in settings.data.tasks.values()))))
    denoiser, encoder = embedded.build("llada", alphabet, embedded.Shape(16, 1, 2, 16, 64), seed=0)
    embedded.save(denoiser, encoder, workspace.outputs / "pretrain" / "mini-llada")
    workspace.write_json(
        {"source": None, "revision": None, "dtype": "float32"}, "pretrain", "mini-llada", "source.json"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        store.save(ConfidencePolicy(Shape(width=8, heads=1, mlp_width=8)), workspace.outputs / "distill" / "policy")
    return workspace


def test_the_launched_command_is_one_training(root: Path) -> None:
    """One MLflow run, the files of `unmask train`, and nothing left behind; another stage is refused."""
    # An untrained dLLM is never right: rows differ by their forwards alone.
    settings = toy(train={"reward": "additive", "iterations": 3, "validate_every": 1, "learning_rate": 1e-3})
    workspace = before_training(root, settings)
    figures = train(workspace, settings.domain, settings.decode, settings.train)
    folder = workspace.outputs / "train"
    folder.rename(root / "alone")
    launched = launch("train")
    assert launched.returncode == 0, launched.stderr
    places = (workspace.outputs / "distill", root / "alone", folder)
    start, alone, both = (place / "policy" / "policy.safetensors" for place in places)
    assert apart(alone, both) < SAME < 1e-4 < apart(start, both)
    written = json.loads((workspace.outputs / "metrics" / "train.json").read_text(encoding="utf-8"))
    assert written == pytest.approx(figures)
    assert launched.stdout.count("train tune/reward") == 1
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 2
    assert not [path for path in (root / ".checkpoints" / "toy").iterdir() if path.is_dir()]
    refused = launch("prepare")
    assert refused.returncode != 0 and "unmask: stage prepare is the work of one process" in refused.stderr


def launch(stage: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *LAUNCH, "-m", "components.cli", stage]
    return subprocess.run(command, capture_output=True, text=True, check=False)
