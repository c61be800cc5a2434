"""Everything to find out on a GPU, in at most 8 minutes: ``python infra/gpu_check.py --out gpu.json``.

Random weights in the shapes of LLaDA-8B and Dream-7B, made on the device. The file is written anew after each figure,
so that it holds what was measured whatever ends the run. A part that fails or takes too long leaves its error there.
``--device cpu --size small`` is the same in seconds: try it first, on the machine itself.

The checkout need not be installed, and there need be no network. Needed are torch, transformers, accelerate,
safetensors, numpy, psutil, pydantic and ruamel.yaml, 16 GB of disk for temporary files, and a card with 40 GB.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # else a machine without network waits for the hub

import torch  # noqa: E402

from components.bench import checkpoints  # noqa: E402
from components.bench.decoding import SECTIONS, same_rows  # noqa: E402
from components.bench.launches import launches  # noqa: E402
from components.bench.measure import Synchronised, timed  # noqa: E402
from components.bench.training import training_iteration  # noqa: E402
from components.core.timer import Timer  # noqa: E402
from components.core.types import Rollout  # noqa: E402
from components.decode.engine import rollout  # noqa: E402
from components.decode.job import DecodeOptions, Job  # noqa: E402
from components.decode.prompts import Prompts  # noqa: E402
from components.denoisers import Encoder, TransformerDenoiser, load  # noqa: E402
from components.policies.rules import heuristic  # noqa: E402
from components.settings import read  # noqa: E402
from components.stages.influence import fresh_policy  # noqa: E402
from components.stages.train import plan_of  # noqa: E402
from components.tasks.hub import gsm8k  # noqa: E402
from components.trainers.reinforce import Method  # noqa: E402

ALL = 460.0  # seconds of all parts together
Figures = Iterator[dict[str, Any]]
SETTINGS = {name: ROOT / "profiles" / f"{name}.yaml" for name in ("gpu", "gpu-smoke")}


@dataclass
class Check:
    """device, size: where, and of which shapes. made: the dLLM that parts share, by layout; one is held at a time."""

    device: str
    size: str
    made: dict[str, tuple[TransformerDenoiser, Encoder]] = field(default_factory=dict)

    @property
    def large(self) -> bool:
        return self.size != "small"

    def open(self, layout: str) -> tuple[TransformerDenoiser, Encoder]:
        if layout not in self.made:
            self.made.clear()
            _free()
            self.made[layout] = checkpoints.open_random(layout, self.size, self.device, "bfloat16")
        return self.made[layout]

    def policies(self, width: int) -> dict[str, Any]:
        """The threshold rule, and fresh policies of the profiles' shapes, always the same."""
        fresh = {name: fresh_policy(read(path).policy, width, 0) for name, path in SETTINGS.items()}
        found = {"threshold": heuristic("threshold", 0.9), "confidence": fresh["gpu"], "coupled": fresh["gpu-smoke"]}
        return {name: policy.to(self.device).eval() if name in fresh else policy for name, policy in found.items()}

    def prompts(self, encoder: Encoder, count: int, canvas: int) -> Prompts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            path.write_text(checkpoints.rows(count, "gpu"), encoding="utf-8")
            task = gsm8k(canvas_length=canvas, test_path=str(path))
            return Prompts.of(task, task.examples("test"), encoder)

    def job(self, encoder: Encoder, canvas: int, rows: int = 8) -> Job:
        return self.prompts(encoder, rows if self.large else min(rows, 2), canvas).job(16)


def machine(check: Check) -> Figures:
    yield {"torch": torch.__version__, "device": check.device, "size": check.size}
    if check.device.startswith("cuda"):
        yield {"name": torch.cuda.get_device_name(), "bytes": torch.cuda.get_device_properties(0).total_memory}


def make(check: Check, layout: str) -> Figures:
    """Weights made on the device."""
    done = timed(lambda: check.open(layout), torch.device(check.device))
    weights = list(done.value[0].model.parameters())
    yield {
        "seconds": done.seconds,
        "parameters": sum(weight.numel() for weight in weights),
        "weight_bytes": sum(weight.nbytes for weight in weights),
        "peak_bytes": done.peak,
    }


def decode(check: Check, layout: str, rows: int) -> Figures:
    """By policy: tokens per second and memory undisturbed, then where the time goes, waiting after each section."""
    denoiser, encoder = check.open(layout)
    job, options = check.job(encoder, 64 if check.large else 16, rows), DecodeOptions(choose="mode", workers=1)
    for name, policy in check.policies(denoiser.width).items():
        rollout(denoiser, policy, job, options)  # what is set up once
        done = timed(lambda policy=policy: rollout(denoiser, policy, job, options), denoiser.device)
        timer = Synchronised(denoiser.device)
        begin = time.perf_counter()
        rollout(denoiser, policy, job, options, timer)
        whole = time.perf_counter() - begin
        shares = {section: timer.seconds[section] / whole for section in SECTIONS[:-1]}
        figures = {
            "rows": len(job),
            "canvas": int(job.length_R.max()),
            "nfe": float(done.value.nfe_R.float().mean()),
            "seconds": done.seconds,
            "tokens_per_second": int(job.masks_R.sum()) / done.seconds,
            "peak_bytes": done.peak,
            "shares": shares | {SECTIONS[-1]: 1 - sum(shares.values())},
            "not_the_forward": 1 - shares["denoiser"],
        }
        yield {name: figures}


def count(check: Check, layout: str) -> Figures:
    """Kernels and waits of the host per step, by policy."""
    denoiser, encoder = check.open(layout)
    job, options = check.job(encoder, 16), DecodeOptions(choose="mode", workers=1)

    def run(policy: Any) -> Callable[[Timer], Rollout]:
        return lambda timer: rollout(denoiser, policy, job, options, timer)

    for name, policy in check.policies(denoiser.width).items():
        yield {name: launches(run(policy), denoiser.device)}


def learn(check: Check, layout: str) -> Figures:
    """One iteration of gpu-smoke's training, after one that warms up."""
    denoiser, encoder = check.open(layout)
    settings = read(SETTINGS["gpu-smoke"])
    plan, objective = plan_of(settings.train, settings.decode)
    prompts = check.prompts(encoder, 8, 32 if check.large else 16)
    policy = check.policies(denoiser.width)["coupled"].train()
    yield asdict(training_iteration(policy, denoiser, prompts, Method(plan, objective), 1))


def files(check: Check, layout: str) -> Figures:
    """The same weights written in the hub's layout, and loaded: read, compared with the files, probed."""
    denoiser, _ = check.open(layout)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        shape = checkpoints.SHAPES[layout, check.size]
        checkpoints.write(layout, Path(folder), shape, made=denoiser.model)
        yield {"seconds_to_write": time.perf_counter() - begin}
        del denoiser
        check.made.clear()
        _free()
        done = timed(lambda: load(folder, check.device, "bfloat16"), torch.device(check.device))
        check.made[layout] = done.value
        yield {"seconds_to_load": done.seconds, "peak_bytes": done.peak}


def same(check: Check) -> Figures:
    """Share of texts, orders and steps that are the CPU's, on a small dLLM in float32, by policy."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for layout in checkpoints.LAYOUTS:
        done: dict[str, list[Rollout]] = {}
        for device in ("cpu", check.device):
            denoiser, encoder = checkpoints.open_random(layout, "small", "cpu", "float32")
            denoiser = TransformerDenoiser(
                denoiser.model.to(device), denoiser.mask_id, encoder.tokenizer.get_vocab().values(), denoiser.shifted
            )
            here = Check(device, "small")
            for name, policy in here.policies(denoiser.width).items():
                job = here.prompts(encoder, 4, 16).job(16)
                done.setdefault(name, []).append(rollout(denoiser, policy, job, DecodeOptions(seed=1)))
        yield {layout: {name: same_rows(*pair) for name, pair in done.items()}}


def parts(check: Check) -> Iterator[tuple[str, float, Callable[[], Figures]]]:
    """Name, most seconds, and what is done; what may take longest, and depends on the disk, comes last."""
    yield "machine", 10, lambda: machine(check)
    yield "same_texts", 40, lambda: same(check)
    for layout in checkpoints.LAYOUTS:
        yield f"make_{layout}", 40, lambda layout=layout: make(check, layout)
        yield f"decode_{layout}", 110, lambda layout=layout: decode(check, layout, 8)
        yield f"decode_{layout}_one_row", 60, lambda layout=layout: decode(check, layout, 1)
        yield f"count_{layout}", 40, lambda layout=layout: count(check, layout)
        if layout == "llada":
            yield "training_iteration", 60, lambda layout=layout: learn(check, layout)
    yield "files_dream", 120, lambda: files(check, "dream")  # which is held by now


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """TimeoutError in this thread after so many seconds."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(words: list[str] | None = None) -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--device", default="cuda")
    asked.add_argument("--size", choices=("small", "8b"), default="8b")
    asked.add_argument("--slack", type=float, default=1.0, help="times the seconds that parts get")
    given = asked.parse_args(words)
    check, found, begin = Check(given.device, given.size), dict[str, Any](), time.perf_counter()

    def write() -> None:
        text = json.dumps(found | {"seconds": time.perf_counter() - begin}, indent=1)
        given.out.write_text(text + "\n", encoding="utf-8")

    for name, seconds, work in parts(check):
        started = time.perf_counter()
        found[name] = {}
        try:
            left = given.slack * ALL - (started - begin)
            with within(max(0.1, min(given.slack * seconds, left))):
                for figures in work():
                    found[name] |= figures
                    write()
        except Exception as error:  # a part fails alone
            found[name] |= {"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc()[-2000:]}
            error.__traceback__ = None  # it holds the part's tensors
            _free()
        found.setdefault("part_seconds", {})[name] = time.perf_counter() - started
        write()
        print(f"{name}: {'failed, ' + found[name]['error'] if 'error' in found[name] else 'done'}", flush=True)
    return sum("error" in value for value in found.values())


if __name__ == "__main__":
    sys.exit(main())
