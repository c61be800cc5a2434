"""Seconds and peak memory of two ways to do one thing, in turn."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.timer import Timer

PROC = Path("/proc/self")


class Synchronised(Timer):
    """Waits for the device at the end of every section: what a section started belongs to it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def fresh(self) -> Synchronised:
        return Synchronised(self.device)

    @contextmanager
    def __call__(self, section: str) -> Generator[None]:
        with super().__call__(section):
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Timed:
    """peak: bytes above what was held before, at the worst moment; None where the system does not tell."""

    seconds: float
    peak: int | None
    value: Any = None


def timed(work: Callable[[], Any], device: torch.device) -> Timed:
    before = _forget_peak(device)
    begin = time.perf_counter()
    value = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    peak = _peak(device)
    return Timed(seconds, None if before is None or peak is None else max(0, peak - before), value)


def in_turn(
    works: Sequence[Callable[[], Any]], repeats: int, device: torch.device, seconds: float | None = None
) -> list[list[Timed]]:
    """``repeats`` timings of each; in every round all of them are run, and who goes first changes. The first round
    warms up and is not counted. seconds: no further round starts that would end later, but for the first counted one.
    """
    gc.collect()  # what an earlier measurement left; it takes too long to be done each time
    found: list[list[Timed]] = [[] for _ in works]
    begin = time.perf_counter()
    for number in range(-1, repeats):
        gone = time.perf_counter() - begin
        if seconds is not None and number > 0 and gone * (number + 2) / (number + 1) > seconds:
            break
        order = list(range(len(works)))
        for index in order if number % 2 == 0 else reversed(order):
            done = timed(works[index], device)
            if number >= 0:
                found[index].append(done)
    return found


def ratios(ours: Sequence[Timed], theirs: Sequence[Timed]) -> tuple[float, float, float]:
    """Median, lowest and highest over pairs of their seconds / ours: above 1 we are faster."""
    found = [b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(found), min(found), max(found)


def median_seconds(many: Sequence[Timed]) -> float:
    return statistics.median(t.seconds for t in many)


def peak_bytes(many: Sequence[Timed]) -> int | None:
    """The largest peak: memory that is freed late hides a smaller one."""
    known = [t.peak for t in many if t.peak is not None]
    return max(known) if known else None


def _forget_peak(device: torch.device) -> int | None:
    """Starts a new peak; what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return None
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed pages go back, else they would hide the next peak
        (PROC / "clear_refs").write_text("5", encoding="utf-8")
        return _status("VmRSS")
    except (OSError, AttributeError):
        return None


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return _status("VmHWM")
    except OSError:
        return None


def _status(name: str) -> int:
    line = next(
        line for line in (PROC / "status").read_text(encoding="utf-8").splitlines() if line.startswith(name + ":")
    )
    return int(line.split()[1]) * 1024
