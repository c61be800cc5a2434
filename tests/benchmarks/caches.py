"""What the prefix and the dual key-value cache cost in accuracy and give in speed: the same prompts by the same rules
without a cache and with either (times as fast: median of paired ratios). Run by hand, beside a params.yaml whose
pretrain stage has run: `python tests/benchmarks/caches.py --model mini-llada --task sudoku_many --blocks 4 8`."""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from components.decode.engine import rollout
from components.decode.job import DecodeOptions
from components.decode.prompts import Prompts
from components.denoisers import with_cache
from components.policies.heuristics import EntropyBound, Quota, Threshold
from components.settings import read
from components.stages.common.models import open_denoiser
from components.stages.common.workspace import Workspace

RULES = {"threshold:0.9": Threshold(0.9), "entropy_bound:0.2": EntropyBound(0.2), "confidence:1": Quota("confidence")}
CACHES = ("none", "prefix", "dual")
COLUMNS = ("block", "rule", "cache", "accuracy", "NFE", "same canvas", "times as fast")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--root", type=Path, default=Path.cwd(), help="holds params.yaml and outputs")
    asked.add_argument("--model", default="mini-llada")
    asked.add_argument("--task", default="sudoku_many")
    asked.add_argument("--prompts", type=int, default=256)
    asked.add_argument("--blocks", type=int, nargs="+", default=[4, 8])
    asked.add_argument("--repeats", type=int, default=3)
    given = asked.parse_args()
    workspace = Workspace(given.root, read(given.root / "params.yaml").profile)
    plain, encoder = open_denoiser(workspace, given.model)
    data = workspace.task(given.task)
    prompts = Prompts.of(data.task(), data.examples("test", given.prompts), encoder)
    denoisers = {kind: with_cache(plain, kind) for kind in CACHES}
    shown = Table(*COLUMNS, title=f"{given.task}, {given.prompts} prompts, {given.model} at {plain.model.dtype}")
    for block in given.blocks:
        job = prompts.job(block)
        for name, rule in RULES.items():
            seconds: dict[str, list[float]] = {kind: [] for kind in CACHES}
            done = {}
            for _ in range(given.repeats + 1):  # in turn; the first round warms up
                for kind, denoiser in denoisers.items():
                    begin = time.perf_counter()
                    done[kind] = rollout(denoiser, rule, job, DecodeOptions(choose="mode"))
                    seconds[kind].append(time.perf_counter() - begin)
            for kind in CACHES:
                ratio = statistics.median(a / b for a, b in zip(seconds["none"][1:], seconds[kind][1:], strict=True))
                same = (done[kind].canvas_RL == done["none"].canvas_RL).all(1).float().mean()
                correct = prompts.scores(job, done[kind])[1].mean()
                shown.add_row(
                    str(block),
                    name,
                    kind,
                    f"{correct:.3f}",
                    f"{done[kind].nfe_R.float().mean():.2f}",
                    f"{same:.3f}",
                    f"{ratio:.2f}",
                )
    Console().print(shown)


if __name__ == "__main__":
    main()
