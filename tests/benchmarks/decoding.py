"""Engine against reference loop at fixed sizes, over a random dLLM of 4 layers and width 128: medians of paired ratios,
and where the time goes. Run by hand: `python tests/benchmarks/decoding.py --canvas 128 --rows 64`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from components.bench import tables
from components.bench.decoding import Case, compare
from components.bench.models import random_model, random_prompts
from components.commands.bench import fresh_policies, machine
from components.commands.resolve import active_profile
from components.decode.job import DecodeOptions
from components.policies.heuristics import EntropyBound, Quota, Threshold
from components.trainers.distill import DistillPlan, imitate

SIZES = ((64, 128), (128, 64), (256, 32))  # canvas, rows
GAMMA = 1.0
DISTILLED = "distilled from entropy_bound:1"


def cases(denoiser: Any, encoder: Any, task: Any, settings: Any, rows: int, only: str) -> Iterator[Case]:
    """Near a cold start with legal empty draws (the profile's shape and the published one), distilled, the rules."""
    legal, mode = DecodeOptions(rows=rows, force_commit=False), DecodeOptions(rows=rows, choose="mode")
    for name, policy in fresh_policies(settings, denoiser.width).items():
        yield Case(f"cold start, {name} policy", policy, legal)
    if only in DISTILLED:
        student = fresh_policies(settings, denoiser.width)["profile's"].train()
        plan = DistillPlan(iterations=16, prompts=8, micro_batch=64, learning_rate=0.002, block_length=None, seed=0)
        imitate(
            student, EntropyBound(GAMMA), denoiser, random_prompts(task, encoder, 64, seed=1), plan, lambda *_: None
        )
        yield Case(DISTILLED, student.eval(), mode)
    yield Case("threshold:0.9", Threshold(0.9), mode)
    yield Case("entropy_bound:1", EntropyBound(GAMMA), mode)
    yield Case("confidence:1", Quota("confidence", 1), mode)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--canvas", type=int, help="one size in place of all, with --rows")
    asked.add_argument("--rows", type=int, default=64, help="in flight, and the reference loop's batch")
    asked.add_argument("--prompts", type=int, help="by default twice the rows")
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--vocabulary", type=int, default=68)
    asked.add_argument("--dtype", default="float32")
    asked.add_argument("--only", default="", help="policies whose name holds this")
    want = asked.parse_args()
    console, (place, settings) = Console(width=150, highlight=False), active_profile()
    for canvas, rows in [(want.canvas, want.rows)] if want.canvas else SIZES:
        denoiser, encoder, task = random_model(canvas, vocabulary=want.vocabulary, dtype=want.dtype)
        console.print(tables.machine(machine(denoiser, place.root)))
        job = random_prompts(task, encoder, want.prompts or 2 * rows).job(None)
        found = []
        for case in cases(denoiser, encoder, task, settings, rows, want.only):
            if want.only not in case.name:
                continue
            found.append(compare(denoiser, job, case, want.repeats))
            console.print(f"{case.name}: {tables.spread(found[-1].speedup)}", style="dim")
        console.print(f"canvas {canvas}, {rows} rows in flight, {len(job)} prompts, {want.repeats} pairs")
        console.print(tables.decoding(found), tables.shares(found))


if __name__ == "__main__":
    main()
