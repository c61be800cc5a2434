"""Worker threads of one process on a CPU, each with its share of torch's threads.

A step of a small model is many small operations, of which a second torch thread makes little: measured on two cores
with the embedded dLLM, two torch threads on one stream of work were worth 1.1 to 1.2 of one, two workers 1.9.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .devices import give_back, ran_out
from .timer import Timer

log = logging.getLogger(__name__)


def count(device: torch.device, most: int) -> int:
    """Number of useful workers: one per torch thread, at most ``most`` and at least one; one on an accelerator."""
    return max(1, min(torch.get_num_threads(), most)) if device.type == "cpu" else 1


@contextmanager
def pool(number: int) -> Generator[Callable[..., Iterator[Any]]]:
    """Yield a ``map`` that keeps the order of results, run by ``number`` workers that share torch's threads.

    On an error, running tasks are awaited and queued ones cancelled.
    """
    if number <= 1:
        yield map
        return
    with _executors(1, number) as (executor,):
        yield executor.map


@contextmanager
def queues(number: int) -> Generator[list[Callable[..., Iterator[Any]]]]:
    """Yield ``number`` maps that share torch's threads. Each has one worker, which does its tasks in order.

    On an error, running tasks are awaited and queued ones cancelled.
    """
    if number <= 1:
        yield [map]
        return
    with _executors(number, 1) as executors:
        yield [executor.map for executor in executors]


@contextmanager
def _executors(number: int, threads: int) -> Generator[list[ThreadPoolExecutor]]:
    """Yield ``number`` executors of ``threads`` workers each. All workers share torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // (number * threads)))
    executors = [ThreadPoolExecutor(threads) for _ in range(number)]
    try:
        yield executors
    finally:
        for wait in (False, True):
            for executor in executors:
                executor.shutdown(wait, cancel_futures=True)
        torch.set_num_threads(before)


def timed(work: Sequence[Callable[[Timer], Any]], timer: Timer) -> list[Any]:
    """Run each piece of work in a worker of its own.

    ``timer`` gets the workers' mean seconds by section: workers run at the same time, so means add up to wall time.
    """
    if len(work) == 1:
        return [work[0](timer)]
    own = [timer.fresh() for _ in work]
    with pool(len(work)) as run:
        results = list(run(lambda piece, time: piece(time), work, own))
    for one in own:
        for section, seconds in one.seconds.items():
            timer.seconds[section] += seconds / len(work)
    return results


def add_gradients(losses: Sequence[Callable[[], tuple[Tensor, Any]]], parameters: Sequence[Tensor]) -> list[Any]:
    """Add the gradient of the sum of the losses to ``parameters``' own; return what came with each loss.

    Gradients are added in the order of the losses, so the result does not depend on which worker is done first.
    losses: functions without side effects that compute a scalar and something to return with it.
    """

    def work(loss: Callable[[], tuple[Tensor, Any]]) -> tuple[tuple[Tensor | None, ...], Any]:
        with torch.enable_grad():
            value, also = loss()
            return torch.autograd.grad(value, parameters, allow_unused=True), also

    results = []
    with pool(count(parameters[0].device, len(losses))) as run:
        for gradients, also in run(work, losses):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            results.append(also)
    return results


@dataclass
class Room:
    """Rows in a piece of work: as many as were asked for, or fewer where memory has run out."""

    rows: int


def add_gradients_by_piece(
    loss: Callable[[Tensor], tuple[Tensor, Any]], row_N: Tensor, parameters: Sequence[Tensor], room: Room
) -> list[Any]:
    """``add_gradients`` of the loss over these rows, which is a sum over rows, piece by piece.

    Where memory runs out, begin again with pieces of half the size: the sum is the same up to rounding.
    """
    before = [parameter.grad for parameter in parameters]
    while True:
        pieces = torch.split(row_N, room.rows) if len(row_N) else ()
        try:
            return add_gradients([partial(loss, rows) for rows in pieces], parameters)
        except (RuntimeError, MemoryError) as error:
            held = min(room.rows, len(row_N))
            if held < 2 or not ran_out(error):
                raise
        room.rows = held // 2
        log.warning("Out of memory with %d rows in a piece of the update: going on with %d.", held, room.rows)
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        give_back()
