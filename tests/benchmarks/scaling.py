"""Peak memory against the number of prompts and against rows in flight, and time per sequence against NFE, by the
engine over a random dLLM of 4 layers and width 128; drawn as docs/engine.png.
Run by hand: `python tests/benchmarks/scaling.py --picture docs/engine.png`."""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path
from typing import Any

import torch

from components.bench.measure import in_turn, median_seconds, peak_bytes
from components.bench.models import random_model, random_prompts
from components.commands.bench import fresh_policies
from components.commands.resolve import active_profile
from components.decode.engine import rollout
from components.decode.job import DecodeOptions
from components.policies.heuristics import Quota

CANVAS = 128
M_MMAP_THRESHOLD = -3  # glibc's malloc.h
PER_STEP = (128, 64, 32, 16, 8, 4, 2)  # 1 to 64 forward passes


def memory(denoiser: Any, encoder: Any, task: Any, policy: Any, rows: int, prompts: int) -> float:
    """Peak bytes of one decode in four steps, hidden states and all statistics read; the largest of two runs.

    Freed tensors go back to the system at once: glibc would keep more of them the longer a job runs, in an arena for
    every worker, and the figure would tell its habits.
    """
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 2**18)
    job = random_prompts(task, encoder, prompts).job(None)
    options = DecodeOptions(rows=rows, choose="mode")
    (runs,) = in_turn([lambda: rollout(denoiser, policy, job, options)], 2, denoiser.device)
    return peak_bytes(runs) or 0


def seconds(denoiser: Any, encoder: Any, task: Any, repeats: int) -> dict[float, float]:
    """Seconds per sequence by NFE, 16 rows in flight."""
    job = random_prompts(task, encoder, 16).job(None)
    options = DecodeOptions(rows=16, choose="mode")
    works = [lambda n=n: rollout(denoiser, Quota("confidence", n), job, options) for n in PER_STEP]
    found = in_turn(works, repeats, denoiser.device)
    return {float(runs[0].value.nfe_R.float().mean()): median_seconds(runs) / len(job) for runs in found}


class Everything:
    """A rule that commits by quota and asks for all that the profile's policy reads."""

    def __init__(self, rule: Any, policy: Any) -> None:
        self.rule, self.needs = rule, rule.needs | policy.needs
        self.distribution = rule.distribution


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--picture", type=Path, default=Path("docs/engine.png"))
    asked.add_argument("--most", type=int, default=1024, help="prompts at most")
    asked.add_argument("--repeats", type=int, default=3)
    want = asked.parse_args()
    denoiser, encoder, task = random_model(CANVAS)
    _, settings = active_profile()
    policy = Everything(Quota("confidence", CANVAS // 4), fresh_policies(settings, denoiser.width)["profile's"])
    by_prompts: dict[int, list[tuple[int, float]]] = {}
    for rows in (32, 128):
        counts = [n for n in (rows, 256, 512, 1024, 2048) if rows <= n <= want.most]
        by_prompts[rows] = [(n, memory(denoiser, encoder, task, policy, rows, n)) for n in dict.fromkeys(counts)]
        for prompts, peak in by_prompts[rows]:
            print(f"{rows} rows in flight, {prompts} prompts: peak {peak / 1e6:.0f} MB", flush=True)
    by_nfe = seconds(denoiser, encoder, task, want.repeats)
    nfe, cost = (
        torch.tensor([pick(item) for item in by_nfe.items()], dtype=torch.float64)
        for pick in (lambda item: item[0], lambda item: item[1])
    )
    design = torch.stack([torch.ones_like(nfe), nfe], 1)
    fixed, slope = torch.linalg.lstsq(design, cost.unsqueeze(1)).solution.squeeze(1).tolist()
    rest = (cost - fixed - slope * nfe).square().sum() / (cost - cost.mean()).square().sum()
    for n, s in by_nfe.items():
        print(f"NFE {n:.0f}: {1e3 * s:.2f} ms per sequence")
    print(f"fit: {1e3 * fixed:.2f} ms + {1e3 * slope:.3f} ms per forward pass, R^2 {1 - rest:.4f}")
    draw(by_prompts, by_nfe, (fixed, slope), want.picture)


def draw(by_prompts: Any, by_nfe: dict[float, float], line: tuple[float, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for rows, found in by_prompts.items():
        left.plot([n for n, _ in found], [peak / 1e6 for _, peak in found], "o-", label=f"{rows} rows in flight")
    left.set(xlabel="prompts", ylabel="peak memory, MB", title="memory: rows in flight, not prompts", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(list(by_nfe), [1e3 * s for s in by_nfe.values()], "o")
    ends = [0.0, max(by_nfe)]
    right.plot(ends, [1e3 * (line[0] + line[1] * n) for n in ends], "-", linewidth=1, label="least squares")
    right.set(
        xlabel="forward passes per sequence (NFE)",
        ylabel="ms per sequence",
        title="time: linear in NFE",
        ylim=(0, None),
    )
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
