"""How a training ends: in turn, from a checkpoint that can be read, and with a final state. Over a formula, no dLLM."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from components.core.errors import CheckpointError
from components.policies.confidence import ConfidencePolicy, Shape
from components.stages import train as training
from components.stages.common.lock import stage_lock
from components.stages.common.workspace import Workspace
from components.tracking.tracker import JsonlTracker
from components.trainers import checkpoints
from components.trainers.checkpoints import TrainState, resumed
from tests.messages import has_remedy

ROOT = Path(__file__).parents[2]


def fresh(seed: int = 0) -> tuple[ConfidencePolicy, torch.optim.Optimizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = ConfidencePolicy(Shape(width=8, heads=1, mlp_width=8))
    return policy, torch.optim.AdamW(policy.parameters())


def stepped(seed: int = 0) -> tuple[ConfidencePolicy, torch.optim.Optimizer]:
    policy, optimizer = fresh(seed)
    sum(p.square().sum() for p in policy.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return policy, optimizer


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A checkpoint after iteration 1 with its metrics."""
    folder = tmp_path / "identity"
    policy, optimizer = stepped()
    TrainState(1, (1.0, 0.5), 0.5, "r1").save(folder / "state.safetensors", policy, optimizer)
    tracker = JsonlTracker(folder / "metrics.jsonl")
    for step in range(3):
        tracker.log({"reward/mean": 0.1}, step)
    tracker.finish("KILLED")
    return folder


def weights(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_whole_checkpoint_is_taken_up(kept: Path) -> None:
    policy, optimizer = fresh(1)
    assert resumed(kept, policy, optimizer) == TrainState(1, (1.0, 0.5), 0.5, "r1")
    assert same(weights(policy), weights(stepped()[0])) and optimizer.state_dict()["state"]


def cut(share: float) -> Any:
    def damage(folder: Path) -> None:
        data = (folder / "state.safetensors").read_bytes()
        (folder / "state.safetensors").write_bytes(data[: int(share * len(data))])

    return damage


def another_policy(folder: Path) -> None:
    policy = ConfidencePolicy(Shape(width=16, heads=1, mlp_width=8))
    TrainState(1).save(folder / "state.safetensors", policy, torch.optim.AdamW(policy.parameters()))


def no_facts(folder: Path) -> None:
    policy, optimizer = fresh()
    checkpoints.save(folder / "state.safetensors", policy, optimizer, {"iteration": 1})


def rewritten(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """The same facts beside other tensors."""

    def damage(folder: Path) -> None:
        path = folder / "state.safetensors"
        with safe_open(path, framework="pt") as stored:
            facts = stored.metadata()
        save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path, facts)

    return damage


DAMAGES = {
    "a weight that is NaN": rewritten(lambda ts: ts | {"policy/head.bias": ts["policy/head.bias"] * torch.nan}),
    "infinite moments": rewritten(lambda ts: {n: t + torch.inf if "exp_avg" in n else t for n, t in ts.items()}),
    "moments of another shape": rewritten(
        lambda ts: {n: torch.cat([t, t]) if "exp_avg" in n else t for n, t in ts.items()}
    ),
    "another optimizer": rewritten(lambda ts: {n.replace("exp_avg_sq", "momentum"): t for n, t in ts.items()}),
    "half of a best policy": rewritten(lambda ts: ts | {"best/head.bias": ts["policy/head.bias"].clone()}),
    "empty": cut(0),
    "cut in the head": cut(0.01),
    "cut in the middle": cut(0.5),
    "cut at the end": cut(0.999),
    "no safetensors": lambda folder: (folder / "state.safetensors").write_bytes(b"\x80\x04pickle" * 9),
    "a folder": lambda folder: ((folder / "state.safetensors").unlink(), (folder / "state.safetensors").mkdir()),
    "another policy": another_policy,
    "no facts": no_facts,
    "no metrics": lambda folder: (folder / "metrics.jsonl").unlink(),
    "metrics cut off": lambda folder: (folder / "metrics.jsonl").write_text('{"step": 0}\n{"st', encoding="utf-8"),
    "metrics of bytes": lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00"),
    "metrics without steps": lambda folder: (folder / "metrics.jsonl").write_text("{}\n[]\n", encoding="utf-8"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_an_unreadable_checkpoint_is_put_aside_and_said_and_training_begins_anew(
    kept: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    DAMAGES[what](kept)
    policy, optimizer = fresh(1)
    before = weights(policy)
    assert resumed(kept, policy, optimizer) == TrainState()
    assert same(before, weights(policy)) and not optimizer.state_dict()["state"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"put aside as {kept}.unreadable" in said
    assert not kept.exists() and kept.with_name("identity.unreadable").exists()
    assert resumed(kept, policy, optimizer) == TrainState()  # and nothing is in the way of the next


def test_two_trainings_of_a_checkout_take_turns_and_a_killed_one_is_no_obstacle(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from components.stages.common.lock import stage_lock
from components.stages.common.workspace import Workspace
with stage_lock(Workspace(Path({str(tmp_path)!r}), "tiny"), "train"):
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert other.stdout and other.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=r"train\.lock is held by another `unmask train`") as refused:  # noqa: SIM117
        with stage_lock(Workspace(tmp_path, "tiny"), "train", patience=0.2):
            pytest.fail("both hold it")
    assert has_remedy(str(refused.value))
    with stage_lock(Workspace(tmp_path, "gpu"), "train", patience=0.2):  # another profile writes elsewhere
        pass
    other.kill()
    other.wait()
    with stage_lock(Workspace(tmp_path, "tiny"), "train", patience=5.0):
        pass


class Watched:
    """A tracker that remembers the states it was given."""

    run_id = "r1"

    def __init__(self) -> None:
        self.states: list[str] = []

    def finish(self, status: str) -> None:
        self.states.append(status)
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (OSError(28, "full"), "FAILED"),
        (ValueError("x"), "FAILED"),
        (SystemExit(143), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
    ids=["full disk", "error", "SIGTERM", "Ctrl-C"],
)
def test_whatever_ends_a_training_gives_its_run_a_final_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str
) -> None:
    tracker = Watched()

    def break_off(workspace: Any, domain: Any, decode: Any, train: Any, ending: Any) -> None:
        ending.push(training._final_state(tracker))  # type: ignore[arg-type]
        raise error

    monkeypatch.setattr(training, "_train", break_off)
    nothing: Any = None
    with pytest.raises(type(error)) as raised:
        training.train(Workspace(tmp_path, "tiny"), nothing, nothing, nothing)
    assert raised.value is error and tracker.states == [state]
