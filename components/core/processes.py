"""The processes of one stage, as `accelerate launch` or `torchrun` start them. Every call is a no-op for one.

They talk by gloo, on GPUs too: a policy is small, and gloo notices a peer whose connection is gone. Nothing is pickled.
A process that works notices it as well, by a pulse in a thread of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ProcessLost, SettingsError

WORK = timedelta(hours=2)  # one process may work so long while the others wait for it
PULSE_SECONDS = 5.0
SILENCE = timedelta(seconds=25)  # of a machine that is gone without closing its connections
NOTICE_SECONDS = 5.0  # for a process to find out by itself, which keeps its error
GRACE_SECONDS = 20.0  # for clean-up, before a process whose peer is gone is ended hard
LOST = "another process of this stage is gone. See its own message, and start all again; a training resumes."

ALIVE, ENDED, FAILED = 0, 1, -1

Item = TypeVar("Item")
_noticed = threading.Event()


def launched() -> int:
    """How many processes the launcher started."""
    if "WORLD_SIZE" not in os.environ and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        raise SettingsError("accelerate started one process of several. Add --multi_gpu, on a CPU too.")
    return int(os.environ.get("WORLD_SIZE", "1"))


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """0 is the main process: it alone logs and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """This process's items; none where there are fewer items than processes."""
    return items[rank() :: size()]


@contextmanager
def joined() -> Generator[None]:
    """Inside, the launched processes are one group.

    Where one fails or dies, the others end within a minute: by ProcessLost, by SIGTERM, or hard.
    """
    if launched() == 1:
        yield
        return
    if torch.cuda.is_available():  # from here on "cuda" is this process's own GPU
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        dist.init_process_group("gloo", timeout=WORK)
        pulse = _Pulse(dist.new_group(backend="gloo", timeout=SILENCE))
    except RuntimeError as error:
        what = str(error).splitlines()[0]
        raise ProcessLost(f"the processes did not meet ({what}). Check the launcher's address and port.") from error
    pulse.start()
    try:
        yield
        gathered(None)
    except BaseException:
        pulse.leave(FAILED)
        raise
    pulse.leave(ENDED)
    pulse.join()
    dist.destroy_process_group()


class _Pulse(threading.Thread):
    """Meets the pulses of the others until all have ended. Ends its process where one has failed or is silent."""

    def __init__(self, group: Any) -> None:
        super().__init__(daemon=True)
        self._group, self._state, self._leaves = group, ALIVE, threading.Event()

    def leave(self, state: int) -> None:
        self._state = state
        self._leaves.set()

    def run(self) -> None:
        least = torch.tensor([ALIVE])
        while least.item() == ALIVE:
            self._leaves.wait(PULSE_SECONDS)
            own = self._state
            least.fill_(own)
            try:
                dist.all_reduce(least, dist.ReduceOp.MIN, self._group)
            except RuntimeError:
                least.fill_(FAILED)
            if own != ALIVE and least.item() != ALIVE:  # nobody waits for this process any more
                return
        _end()


def _end() -> None:
    if not _noticed.wait(NOTICE_SECONDS):
        print(f"unmask: {LOST}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


@contextmanager
def _peers() -> Generator[None]:
    try:
        yield
    except RuntimeError as error:
        _noticed.set()
        raise ProcessLost(LOST) from error


@contextmanager
def main_first() -> Generator[None]:
    """The main process runs the block, then the others do."""
    if rank() > 0:
        gathered(None)
    yield
    if rank() == 0:
        gathered(None)


def gathered(value: Any) -> list[Any]:
    """The JSON values of all processes, by rank."""
    if size() == 1:
        return [value]
    own = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    with _peers():
        dist.all_gather(lengths, torch.tensor([len(own)]))
        longest = max(int(n) for n in lengths)
        padded = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(padded, torch.cat([own, own.new_zeros(longest - len(own))]))
    return [json.loads(bytes(row[: int(n)].tolist())) for row, n in zip(padded, lengths, strict=True)]


def unsharded(own: Tensor) -> Tensor:
    """All processes' values in the order of the items; the last axis is the items of ``shard``."""
    if size() == 1:
        return own
    parts = [torch.tensor(part, dtype=own.dtype) for part in gathered(own.tolist())]
    whole = own.new_zeros(*own.shape[:-1], sum(part.shape[-1] for part in parts))
    for i, part in enumerate(parts):
        whole[..., i :: size()] = part
    return whole


def require_same(value: Any, what: str) -> None:
    """SettingsError in every process unless all have the same value. what: names it in the message."""
    values = gathered(value)
    if any(other != values[0] for other in values):
        raise SettingsError(f"the processes differ in {what} ({values}). Give all of them one checkout on one disk.")


def added(sums: Mapping[str, float]) -> dict[str, float]:
    """The sums over all processes, which have the same names."""
    first, *rest = gathered(dict(sums))
    return {name: sum((part[name] for part in rest), value) for name, value in first.items()}


def averaged(means: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """The means over the items of all processes. counts: items behind each mean. A process without items has none."""
    first, *rest = gathered({name: (mean, counts[name]) for name, mean in means.items()})
    if not rest:
        return dict(means)
    found: dict[str, float] = {}
    for name in first:
        parts = [part[name] for part in (first, *rest) if name in part]
        found[name] = sum(mean * count for mean, count in parts) / max(sum(count for _, count in parts), 1)
    return found


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Every gradient becomes the sum over the processes; None stays where no process has one."""
    if size() == 1:
        return
    has = torch.tensor([float(p.grad is not None) for p in parameters])
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().cpu() for p in parameters])
    with _peers():
        dist.all_reduce(has)
        dist.all_reduce(flat)
    pieces = flat.split([p.numel() for p in parameters])
    for parameter, piece, count in zip(parameters, pieces, has.tolist(), strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.device) if count else None
