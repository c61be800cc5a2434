"""How many rows are in flight, and how many positions go through one forward: found from a budget of bytes.

Counted from widths before anything runs, generously: a policy's own working memory is not known, and stands for that
of a block of width 128. Rows in flight change what a decision costs and, but for bfloat16's rounding, never the
decision. Not counted: the weights, the job itself, and what the caller gets; recorded steps of rows that have retired
are the caller's, and grow with the job.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.errors import SettingsError
from ..core.types import Canvas, Needs
from ..denoisers.protocol import Denoiser
from .job import Job
from .readout import chunk_bytes
from .refresh import tokens_per_forward

SHARE = 0.5  # of what the device has free
# More rows than fill so many forwards per step are of no use: measured with the embedded dLLM on a CPU (one forward: 64
# rows), 128 and 256 rows were equally fast, 512 by a tenth slower with a learned policy.
FORWARDS = 4
_NUMBER = 4  # bytes: float32, wider than most hidden states are
_COPIES = 4  # a batch is replaced, not changed: as it was, the rows that are looked at, what they gave, as it becomes
_ACTIVATIONS = 24  # a layer's, in hidden widths: residual, attention's four, a gated feed-forward of up to four
_POLICY = 12 * 2**10  # bytes per position of a policy's block of width 128
_PAIRWISE = 8  # bytes per pair of positions: attention's weights, who is more certain than whom
_SHIFTS = 768  # bytes per pair of positions of a policy that compares their tokens: a pair head of width 32


@dataclass(frozen=True)
class Bytes:
    """row: of one row in flight. position: of one sequence position in a forward. logits: of one position's. chunks:
    the logits that exist at a time at most, and of these what is read at a time."""

    row: int
    position: int
    logits: int
    chunks: tuple[int, int]

    def forward(self, tokens: int) -> int:
        """Of one forward of ``tokens`` positions and its readout."""
        whole, part = (min(size, max(tokens * self.logits, self.logits)) for size in self.chunks)
        return tokens * self.position + whole + 4 * part


def count(job: Job, denoiser: Denoiser, needs: Needs, record: bool = False, keep: float = 1.0) -> Bytes:
    """The bytes of decoding the job. record: with every step of a row kept, or the share ``keep`` of them."""
    prompt, length = job.shape
    whole, logits = prompt + length, denoiser.vocabulary * _NUMBER
    numbers = 1 + len(needs.statistics) + needs.top_k + needs.drift
    pairs = length**2 * len(needs.attention) * _NUMBER
    width = {"none": 0, "canvas": length, "sequence": whole}[needs.features] * denoiser.width * _NUMBER
    fields = length * (8 + _NUMBER * numbers + (8 * needs.top_k if needs.top_ids else 0)) + width + pairs
    carried = fields + _state_bytes(denoiser, whole, prompt) + (length * logits if needs.drift else 0)
    # Ids, mask bits and orders; a dozen numbers; the reference answer.
    batch = carried + 9 * whole + 9 * length + 96 + (8 * length if needs.answer else 0)
    policy = length * (_POLICY + _PAIRWISE * length) + 4 * width
    if needs.top_ids:
        policy += _SHIFTS * length**2
    if needs.features == "sequence":
        policy += whole * (_ACTIVATIONS * denoiser.width * _NUMBER + _PAIRWISE * whole)
    step = fields + whole + 12 * length + 48 + (8 * length if needs.answer else 0)
    kept = int(step * length * keep) if record else 0
    position = _ACTIVATIONS * denoiser.width * _NUMBER + _PAIRWISE * whole
    if needs.attention:  # one head of one layer at a time, summed up, and what the layers gave
        position += (2 * _PAIRWISE + _NUMBER * (len(needs.attention) + 1)) * whole
    return Bytes(_COPIES * batch + policy + kept, position, logits, chunk_bytes(denoiser.device))


def _state_bytes(denoiser: Denoiser, whole: int, start: int) -> int:
    """Of what one row carries from step to step (a key-value cache)."""
    ids_BT = torch.full((1, whole), denoiser.mask_id, device=denoiser.device)
    state = denoiser.start(Canvas(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), start))
    return 0 if state is None else sum(t.nbytes for t in state.values())


def budget(device: torch.device) -> int:
    """Bytes that a job may take if nobody says: ``SHARE`` of what the device has free now."""
    return int(SHARE * free_bytes(device))


def fit(
    sizes: Bytes, whole: int, device: torch.device, budget: int, rows: int | None, tokens: int | None
) -> tuple[int, int]:
    """(rows in flight, sequence positions in one forward) of rows that are ``whole`` positions long.

    budget: bytes. rows: at most so many; None: as many as fill ``FORWARDS`` forwards. tokens: positions in a forward at
    most; None: what suits the device. SettingsError where not even one row fits.
    """
    least = sizes.row + sizes.forward(whole)
    if least > budget:
        raise SettingsError(
            f"a memory budget of {budget:,} bytes is too small for one row of {whole} positions: about {least:,}. "
            f"Allow that much, or use a shorter canvas or a policy that reads less."
        )
    asked = tokens or tokens_per_forward(device)
    # A quarter of the budget is enough for a forward; one row always goes.
    found = max(whole, min(asked, budget // 4 // sizes.position))
    found = found if sizes.row + sizes.forward(found) <= budget else whole
    fitting = (budget - sizes.forward(found)) // sizes.row
    most = FORWARDS * max(1, asked // whole) if rows is None else rows
    return min(fitting, most), min(asked, found)


def free_bytes(device: torch.device) -> int:
    """What can still be allocated: of the accelerator, or of the host within its container's limit."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    free = _available()
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    try:
        return min(free, int(limit.read_text(encoding="utf-8")) - int(used.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: half of all memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
