"""Work of one process on a CPU in several lanes at a time, each a Python thread with its share of torch's threads.

A step of a small model is many small operations, of which a second torch thread makes little: measured on two cores
with the embedded dLLM, two torch threads on one stream of work were worth 1.1 to 1.2 of one, two lanes 1.9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from components.core.timer import Stopwatch


def count(device: torch.device, most: int) -> int:
    """Lanes that are of use: one per torch thread, at most ``most`` and at least one; one on an accelerator."""
    return max(1, min(torch.get_num_threads(), most)) if device.type == "cpu" else 1


@contextmanager
def lanes(number: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Gives a ``map`` whose results come in order, from ``number`` lanes that share torch's threads.

    Who leaves early, by an error or an interruption, waits for what has begun and not for the rest.
    """
    if number <= 1:
        yield map
        return
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // number))
    pool = ThreadPoolExecutor(number)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def watched(work: Sequence[Callable[[Stopwatch], Any]], watch: Stopwatch) -> list[Any]:
    """Each piece of work in a lane of its own. ``watch`` gets the lanes' mean seconds by section: lanes run at the
    same time, so that means add up to about the time that passed."""
    if len(work) == 1:
        return [work[0](watch)]
    own = [watch.fresh() for _ in work]
    with lanes(len(work)) as run:
        found = list(run(lambda piece, time: piece(time), work, own))
    for one in own:
        for section, seconds in one.seconds.items():
            watch.seconds[section] += seconds / len(work)
    return found


def add_gradients(losses: Sequence[Callable[[], tuple[Tensor, Any]]], parameters: Sequence[Tensor]) -> list[Any]:
    """Adds the gradient of the sum of the losses to ``parameters``' own, in the order of the losses: the result does
    not depend on which lane is done first. Returns what came with each loss.

    losses: what computes a scalar and something to return with it, without side effects.
    """

    def work(loss: Callable[[], tuple[Tensor, Any]]) -> tuple[tuple[Tensor | None, ...], Any]:
        with torch.enable_grad():
            value, also = loss()
            return torch.autograd.grad(value, parameters, allow_unused=True), also

    found = []
    with lanes(count(parameters[0].device, len(losses))) as run:
        for gradients, also in run(work, losses):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            found.append(also)
    return found
