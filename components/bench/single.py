"""One canvas at a time, whole, beside a sampler as public code writes it: where a loop has least to gain.

Sharp logits are those of a model that is sure: most of a softmax is then too small for a normal float32, which costs
some CPUs many times the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..core.types import Canvas
from ..decode.engine import rollout
from ..decode.job import DecodeOptions
from ..policies.rules import heuristic
from .measure import in_turn, median_seconds, ratios
from .models import random_model, random_prompts
from .reference import one_canvas

SHARP = 19.0  # standard deviation of the logits
THRESHOLD = 0.9


@dataclass(frozen=True)
class Single:
    """per_step None: the threshold rule."""

    vocabulary: int
    per_step: int | None
    sharp: bool
    length: int = 128

    @property
    def name(self) -> str:
        rule = f"threshold:{THRESHOLD:g}" if self.per_step is None else f"confidence:{self.per_step}"
        return f"{rule}, {self.vocabulary:,} tokens, {'sharp' if self.sharp else 'plain'} logits"


CASES = (
    *(Single(512, per_step, sharp) for per_step in (2, None) for sharp in (False, True)),
    *(Single(126_464, 16, sharp) for sharp in (False, True)),
    Single(126_464, None, True),  # with plain logits it takes minutes
)


def single(case: Single, repeats: int, seconds: float | None = None) -> dict[str, Any]:
    """Seconds of a canvas by either loop, and the speed-up: median, lowest and highest of paired ratios."""
    denoiser, encoder, task = random_model(case.length, vocabulary=case.vocabulary)
    prompts = random_prompts(task, encoder, 1)
    if case.sharp:
        denoiser.model.lm_head.weight.data *= SHARP / _deviation(denoiser, prompts.ids[0], case.length)
    rule = heuristic("threshold", THRESHOLD) if case.per_step is None else heuristic("confidence", case.per_step)
    job, options = prompts.job(None), DecodeOptions(choose="mode", workers=1)
    ours, theirs = in_turn(
        [
            lambda: rollout(denoiser, rule, job, options),
            lambda: one_canvas(denoiser, prompts.ids[0], case.length, case.per_step, THRESHOLD),
        ],
        repeats,
        denoiser.device,
        seconds,
    )
    done, (canvas_L, steps) = ours[-1].value, theirs[-1].value
    return {
        "name": case.name,
        "nfe": int(done.nfe_R[0]),
        "same": float(bool((done.canvas_RL[0] == canvas_L).all()) and int(done.nfe_R[0]) == steps),
        "engine_seconds": median_seconds(ours),
        "public_seconds": median_seconds(theirs),
        "speedup": ratios(ours, theirs),
    }


def _deviation(denoiser: Any, prompt: torch.Tensor, length: int) -> float:
    """Of the logits of a canvas that is all masks."""
    ids_1T = torch.cat([prompt, torch.full((length,), denoiser.mask_id)]).unsqueeze(0)
    with torch.no_grad():
        hidden_1TD, _ = denoiser.hidden(Canvas(ids_1T, torch.ones_like(ids_1T).bool(), len(prompt)), None)
        return float(denoiser.logits(hidden_1TD[0, -length:]).std())
