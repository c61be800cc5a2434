"""The policy's step alone: the exported file in ONNX Runtime against eager torch, one thread each.

Of a coupled policy the step is its whole decision, the greedy loop over pairs included; of others their scores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..export import OnnxPolicy, export_policy, random_observation
from ..policies.coupled import CoupledPolicy
from ..policies.store import LearnedPolicy
from .measure import in_turn, median_seconds, ratios

SIZES = ((1, 16), (1, 32), (1, 256), (16, 256))


@contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _step(policy: LearnedPolicy, who: Any, obs: Any) -> None:
    if isinstance(policy, CoupledPolicy) and policy.shape.action == "coupled":
        who.distribution(obs).mode()
    else:
        who.score(obs)


def policy_step(
    policy: LearnedPolicy,
    sizes: Sequence[tuple[int, int]] = SIZES,
    repeats: int = 15,
    inner: int = 10,
    seconds: float | None = None,
) -> list[dict[str, Any]]:
    """Milliseconds per step by (rows, canvas length), and the speed-up: median, lowest and highest of paired ratios."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, one_thread(), torch.inference_mode():
        path = Path(folder) / "policy.onnx"
        export_policy(policy, path, {})
        exported = OnnxPolicy(path, threads=1)
        for batch, length in sizes:
            obs = random_observation(policy, batch, length, "bench")
            times = inner if batch * length <= 512 else 1

            def many(who: Any, obs: Any = obs, times: int = times) -> None:
                for _ in range(times):
                    _step(policy, who, obs)

            share = None if seconds is None else seconds / len(sizes)
            works = [lambda: many(exported), lambda: many(policy)]
            ours, theirs = in_turn(works, repeats, torch.device("cpu"), share)
            rows.append(
                {
                    "rows": batch,
                    "length": length,
                    "torch_ms": 1e3 * median_seconds(theirs) / times,
                    "onnx_ms": 1e3 * median_seconds(ours) / times,
                    "speedup": ratios(ours, theirs),
                }
            )
    return rows
