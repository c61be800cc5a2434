"""Which weight type this machine runs faster: bfloat16 where its instructions are native, float32 elsewhere.

The policy and all statistics stay in float32 either way. The choice is made once, when the checkpoint is made or
pinned, and recorded beside it, so that every later stage and every resumed run uses the same arithmetic.
"""

from __future__ import annotations

import statistics
import time

import torch

from ..core.types import Canvas
from .loading import load
from .protocol import Denoiser

CLEARLY = 1.2


def fastest(path: str, device: str = "cpu", rows: int = 128, length: int = 40, repeats: int = 7) -> tuple[str, float]:
    """("bfloat16" or "float32", float32 seconds / bfloat16 seconds), by the median of paired forwards run in turn."""
    pair = [load(path, device, dtype)[0] for dtype in ("float32", "bfloat16")]
    ratios = []
    for _ in range(repeats + 1):
        wide, narrow = (_seconds(denoiser, rows, length) for denoiser in pair)
        ratios.append(wide / narrow)
    ratio = statistics.median(ratios[1:])  # the first pair warms up
    return ("bfloat16" if ratio > CLEARLY else "float32"), ratio


def _seconds(denoiser: Denoiser, rows: int, length: int) -> float:
    ids_BT = torch.full((rows, length), denoiser.mask_id, device=denoiser.device)
    canvas = Canvas(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), 0)
    begin = time.perf_counter()
    denoiser.hidden(canvas, None)
    if denoiser.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin
