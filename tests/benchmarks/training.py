"""A GRPO round (mu = 2) in its parts, and the policy's update against its bare forward and backward, over a random dLLM
of 4 layers and width 128. Run by hand: `python tests/benchmarks/training.py --canvas 128`."""

from __future__ import annotations

import argparse
from dataclasses import replace

from rich.console import Console

from components.bench import tables
from components.bench.models import random_model, random_prompts
from components.bench.training import training_round, update_throughput
from components.commands.bench import fresh_policies, machine
from components.commands.resolve import active_profile
from components.stages.train import plan_of


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--canvas", type=int, default=64)
    asked.add_argument("--prompts", type=int, default=8, help="of the round, with a group of 8 each")
    asked.add_argument("--repeats", type=int, default=5)
    want = asked.parse_args()
    console, (place, settings) = Console(width=150, highlight=False), active_profile()
    denoiser, encoder, task = random_model(want.canvas)
    console.print(tables.machine(machine(denoiser, place.root)))
    prompts = random_prompts(task, encoder, want.prompts)
    plan, objective = plan_of(settings.train, settings.decode)
    plan = replace(plan, prompts=want.prompts, group=8, experts=0, rollout_rows=64, block_length=None)
    objective = replace(objective, num_epochs=2)
    for name, policy in fresh_policies(settings, denoiser.width).items():
        found, experience = training_round(policy, denoiser, prompts, plan, objective, want.repeats)
        speed = update_throughput(policy, experience, plan, objective, want.repeats)
        console.print(f"{name} policy, canvas {want.canvas}")
        console.print(tables.training(found, speed))


if __name__ == "__main__":
    main()
