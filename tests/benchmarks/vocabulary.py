"""A vocabulary of 126,464 and a canvas of 256 with a two-layer dLLM: the engine's peak memory at 32 rows, and that of
the reference loop at 4 rows, scaled to 32. Run by hand: `python tests/benchmarks/vocabulary.py`."""

from __future__ import annotations

import argparse
import resource

from components.bench.measure import timed
from components.bench.models import random_model, random_prompts
from components.bench.reference import reference_rollout
from components.decode.engine import rollout
from components.decode.job import DecodeOptions
from components.policies.heuristics import Quota


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--vocabulary", type=int, default=126_464)
    asked.add_argument("--canvas", type=int, default=256)
    asked.add_argument("--rows", type=int, default=32)
    asked.add_argument("--steps", type=int, default=4, help="forward passes of a canvas")
    want = asked.parse_args()
    denoiser, encoder, task = random_model(want.canvas, layers=2, vocabulary=want.vocabulary)
    rule, few = Quota("confidence", want.canvas // want.steps), max(1, want.rows // 8)
    weights = sum(p.numel() * p.element_size() for p in denoiser.model.parameters())
    print(f"weights {weights / 1e9:.2f} GB")
    job = random_prompts(task, encoder, want.rows).job(None)
    ours = timed(lambda: rollout(denoiser, rule, job, DecodeOptions(rows=want.rows, choose="mode")), denoiser.device)
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # before the reference raises it
    print(
        f"engine, {want.rows} rows: {gigabytes(ours.peak)} above what was held, {gigabytes(whole)} with everything, "
        f"{ours.seconds:.0f} s for {want.steps} forward passes"
    )
    job = random_prompts(task, encoder, few).job(None)
    theirs = timed(
        lambda: reference_rollout(denoiser, rule, job, DecodeOptions(rows=few, choose="mode")), denoiser.device
    )
    scaled = None if theirs.peak is None else theirs.peak * want.rows // few
    print(
        f"reference, {few} rows: {gigabytes(theirs.peak)}, {theirs.seconds:.0f} s; "
        f"scaled to {want.rows} rows: {gigabytes(scaled)}"
    )


def gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
