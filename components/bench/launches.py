"""What a decoding step asks of the device: kernels, and waits of the host for an answer, by section of the loop.

A wait costs little on a CPU and much on a GPU, where the host could have queued the next kernels meanwhile; its number
is the same on both. On a GPU both are counted from the driver's calls. On a CPU a kernel is an operator that computes
and calls no other, and a wait one that hands a tensor's values to Python or makes a tensor as long as they say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch._C._autograd import DeviceType
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile, record_function

from ..core.timer import Timer
from ..core.types import Rollout

PREFIX = "section "
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal")
DRIVER_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
# Operators that compute nothing.
VIEWS = frozenset(
    [
        "alias",
        "as_strided",
        "as_strided_",
        "detach",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "flatten",
        "lift_fresh",
        "resolve_conj",
        "resolve_neg",
        "result_type",
        "select",
        "slice",
        "t",
        "to",  # as it is already; else its child copies
        "transpose",
        "unsqueeze",
        "view",
        "_reshape_alias",
        "_unsafe_view",
        "set_",
        "resize_",
        "is_nonzero",
        "item",
    ]
)
COPIES: tuple[Any, ...] = tuple(getattr(torch.Tensor, name) for name in ("tolist", "cpu"))


class _Marked(Timer):
    """A timer whose sections the profiler sees."""

    @contextmanager
    def __call__(self, section: str) -> Generator[None]:
        with super().__call__(section), record_function(PREFIX + section):
            yield


class _Copies(TorchFunctionMode):
    """Copies to the host that no operator stands for on a CPU."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in COPIES
        return func(*args, **(kwargs or {}))


def launches(run: Callable[[Timer], Rollout], device: torch.device) -> dict[str, Any]:
    """Of a decode in one worker, called twice: kernels and waits per step by section, and all waits per step.

    A step is one of the longest row's.
    """
    run(Timer())  # what is set up once
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as seen, _Copies() as copies:
        steps = int(run(_Marked()).nfe_R.max())
    kernels, waits = Counter[str](), Counter[str]()
    for event in cast("Iterable[Any]", seen.events() or ()):
        if event.device_type != DeviceType.CPU:
            continue
        where = _section(event)
        if on_gpu:
            kernels[where] += len(event.kernels)
            waits[where] += event.name in DRIVER_WAITS
        else:
            computes = event.name.startswith("aten::") and not event.cpu_children
            kernels[where] += computes and event.name.removeprefix("aten::") not in VIEWS
            waits[where] += event.name in WAITS
    waits["elsewhere"] += 0 if on_gpu else copies.count
    return {
        "steps": steps,
        "kernels_per_step": {name: count / steps for name, count in sorted(kernels.items()) if count},
        "waits_per_step_by_section": {name: count / steps for name, count in sorted(waits.items()) if count},
        "waits_per_step": sum(waits.values()) / steps,
    }


def _section(event: Any) -> str:
    """The section that an operator ran in."""
    while event is not None and not event.name.startswith(PREFIX):
        event = event.cpu_parent
    return "elsewhere" if event is None else event.name.removeprefix(PREFIX)
