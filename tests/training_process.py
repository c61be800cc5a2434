"""Trainings over a formula, and a process of them as a launcher starts it: `python -m tests.training_process CASES`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from components.core import processes
from components.policies.confidence import ConfidencePolicy, Shape
from components.tasks.example import Example, Score
from components.trainers.checkpoints import TrainState, load
from components.trainers.plan import Objective, Plan
from components.trainers.reinforce import Method, optimizer_for, reinforce
from tests.toy_domain import KeyFirst

WORK_SECONDS = 1000.0  # of a rollout that no test waits for
ITERATIONS = 3


@dataclass(frozen=True)
class PartlyMute(KeyFirst):
    """Only answers to the first ``heard`` examples are told apart."""

    heard: int = 100

    def score(self, text: str, example: Example) -> Score:
        heard = example in [self.sample(i, 0) for i in range(self.heard)]
        return super().score(text, example) if heard else Score(0.0, 0.0)


def trained(folder: Path, drawn: int, choice: int, heard: int, until: int = ITERATIONS, hang: bool = False) -> Path:
    """Train on ``drawn`` of ``choice`` prompts per iteration, from the folder's checkpoint if it has one; the new one.

    until: iterations. hang: process 0 works on after the second one. Metrics and whether this process had a gradient
    of its own are written for every process and iteration.
    """
    torch.manual_seed(0)
    policy = ConfidencePolicy(Shape(width=16, heads=1, mlp_width=16, bias=-0.5)).double()
    plan = Plan(ITERATIONS, drawn, 4, learning_rate=1e-2, seed=0, block_length=2, warmup=1, entropy=0.5)
    task, optimizer, saved = PartlyMute(heard=heard), optimizer_for(policy, plan), folder / "state.safetensors"
    state, signals = TrainState(), []
    if saved.exists():
        state = TrainState.read(saved)
        load(saved, policy, optimizer)
    optimizer.register_step_pre_hook(lambda *_: signals.append(SIGNAL[-1] if SIGNAL else True))
    prompts, method = task.prompts().take(range(choice)), Method(plan, Objective(signal="dense", alpha=0.5))
    for number, metrics in reinforce(policy, optimizer, task.denoiser(), prompts, method, state):
        state = TrainState(number, (metrics["decode/temperature"], metrics["decode/entropy"]))
        processes.gathered(None)  # nobody reads the checkpoint that is about to be written
        if processes.rank() == 0:
            state.save(saved, policy, optimizer)
        figures = {name: value for name, value in metrics.items() if not name.startswith("seconds")}
        record = json.dumps({"metrics": figures, "signals": signals})
        (folder / f"{processes.rank()}-{number}.json").write_text(record, encoding="utf-8")
        if hang and number == 1 and processes.rank() == 0:
            time.sleep(WORK_SECONDS)
        if number + 1 == until:
            break
    return saved


SIGNAL: list[bool] = []
"""Whether this process had a gradient before the processes' were added, by call."""


def _watch_gradients() -> None:
    add = processes.sum_gradients

    def watched(parameters: Any) -> None:
        SIGNAL.append(any(p.grad is not None for p in parameters))
        add(parameters)

    processes.sum_gradients = watched


if __name__ == "__main__":
    torch.set_num_threads(1)
    _watch_gradients()
    with processes.joined():
        for case in json.loads(sys.argv[1]):
            trained(Path(case.pop("folder")), **case)
