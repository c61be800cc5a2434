"""Tokens per second of a large dLLM on one H100, by arithmetic: the forward, the readout and the policy of a step.

Nothing is measured: every assumption is a constant of this file and is stated in docs/costs.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..policies.confidence import Shape as ConfidenceShape
    from ..policies.coupled import CoupledShape

PEAK = 989e12  # dense bfloat16 operations per second of an H100 SXM
PEAK_FLOAT32 = 67e12  # of the policy
BANDWIDTH = 3.35e12  # bytes per second
UTILISATION = 0.4  # share of each peak that is reached
PROMPT = 200  # tokens before the canvas
PARALLEL = 0.32  # forwards per canvas position of a rule or policy that commits several
LOGIT_BYTES = 4  # the readout works in float32
# Of the readout over a position's logits: what each asks for, counted in tests/unit/test_costs.py and rounded up.
PASSES = {"threshold:0.9": 10, "paper A": 10, "coupled": 15}
PAIR_PASSES = 10  # of the pair head over its activations
LAUNCH = 5e-6  # seconds of a kernel's launch
CANVAS, BLOCK, ROWS = 256, 32, (1, 64)
COMMITS = round(1 / PARALLEL)  # a step, of one row
# Kernels of a step beside the forward, as counted in tests/unit/test_launches.py.
KERNELS = {"threshold:0.9": 94, "paper A": 178, "coupled": 212}
# Seconds in which the device waits for the host: to read a coupled step's fields, beside their way over a link of so
# many bytes a second; and for each candidate of the walk, a fixed part and a part per row in flight.
READ, LINK, CANDIDATE = 20e-6, 25e9, (32e-6, 0.8e-6)


@dataclass(frozen=True)
class Shape:
    """What the arithmetic reads of a dLLM. Source: the config.json of the model."""

    parameters: float
    layers: int
    width: int
    vocabulary: int

    def operations(self, tokens: int) -> float:
        """Of one row's forward: 2 per parameter and token, 4 per layer, width and pair of tokens."""
        return 2 * self.parameters * tokens + 4 * self.layers * self.width * tokens**2

    def seconds(self, tokens: int) -> float:
        """Of one row's forward, where arithmetic is the bound."""
        return self.operations(tokens) / (PEAK * UTILISATION)


LLADA, DREAM = Shape(8.02e9, 32, 4096, 126_464), Shape(7.62e9, 28, 3584, 152_064)


def confidence_operations(shape: ConfidenceShape, length: int) -> float:
    """Of one row's step: products of matrices, as in paper A's block."""
    width = shape.width
    dense = len(shape.inputs) * width + 4 * width**2 + 2 * width * shape.mlp_width + width
    conditions = 2 * width**2 + 2 * 6 * width**2  # of the time, and of the time with either mask bit
    return 2 * length * (dense + 2 * 6 * width) + 2 * conditions + 4 * length**2 * width


def coupled_operations(shape: CoupledShape, length: int) -> float:
    """Of one row's step: two readers of positions, the head over pairs, the overlap of their largest probabilities."""
    width, pair = shape.width, shape.pair_width
    block = 4 * width**2 + 2 * width * shape.mlp_width + 2 * length * width
    reader = (2 + shape.top_k) * width + shape.blocks * block
    positions = 2 * reader + 2 * width + 2 * width**2 + 2 * width * pair
    pairs = width + (shape.heads + 6 + 2 * len(shape.attention)) * pair + pair + length * shape.top_k
    return 2 * length * positions + 2 * length**2 * pairs


@dataclass(frozen=True)
class Step:
    """One step of ``rows`` canvases by a policy. operations and bytes: of one row; bytes: of readout and policy.

    forwards: of a canvas, assumed. saved: share of them that the policy must save to be as fast as the threshold rule.
    """

    policy: str
    rows: int
    forward_operations: float
    policy_operations: float
    bytes: float
    forward_seconds: float
    seconds: float
    forwards: float = CANVAS * PARALLEL
    saved: float = 0.0

    @property
    def share(self) -> float:
        """Of the time: all but the forward."""
        return 1 - self.forward_seconds / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.rows * CANVAS / (self.forwards * self.seconds)


def on_paper(dllm: Shape = LLADA) -> list[Step]:
    """Threshold rule, paper A's policy and the coupled one of the profile gpu-coupled: one row, and a full batch."""
    from ..policies.confidence import PAPER
    from ..policies.coupled import CoupledShape

    shape = CoupledShape(offsets=31, action="accept")
    pair_bytes = PAIR_PASSES * 4 * CANVAS**2 * shape.pair_width
    # Positions read: of the block's masks, on average half of it; all; all masks, on average half of the canvas.
    deciders = {
        "threshold:0.9": (BLOCK // 2, 0.0, 0.0),
        "paper A": (CANVAS, confidence_operations(PAPER, CANVAS), 0.0),
        "coupled": (CANVAS // 2, coupled_operations(shape, CANVAS), float(pair_bytes)),
    }
    found: list[Step] = []
    for rows in ROWS:
        steps = [
            _step(dllm, name, rows, operations, moved + read * PASSES[name] * LOGIT_BYTES * dllm.vocabulary)
            for name, (read, operations, moved) in deciders.items()
        ]
        found += [replace(step, saved=1 - steps[0].seconds / step.seconds) for step in steps]
    return found


def _host_seconds(name: str, rows: int, commits: int) -> float:
    """In which the device waits: the coupled policy's walk, up to the first candidate that is skipped."""
    if name != "coupled":
        return 0.0
    looked_at, fields = min(commits + 1, BLOCK), 4 * rows * CANVAS**2
    return READ + fields / LINK + (CANDIDATE[0] + CANDIDATE[1] * rows) * looked_at


def _shared_seconds(name: str, rows: int, commits: int) -> float:
    """Of a step, whatever its rows: launches, and what the host decides."""
    return KERNELS[name] * LAUNCH + _host_seconds(name, rows, commits)


def _step(dllm: Shape, name: str, rows: int, operations: float, moved: float) -> Step:
    forward = dllm.operations(PROMPT + CANVAS)
    weights = 2 * dllm.parameters / (BANDWIDTH * UTILISATION)  # read once for all rows
    asked = max(rows * forward / (PEAK * UTILISATION), weights)
    decided = rows * (operations / (PEAK_FLOAT32 * UTILISATION) + moved / (BANDWIDTH * UTILISATION))
    # Of a full batch the row of most commits counts: a whole block is assumed.
    shared = _shared_seconds(name, rows, COMMITS if rows == 1 else BLOCK)
    return Step(name, rows, forward, operations, moved, asked, asked + decided + shared)


HEADINGS = (
    "policy",
    "rows in flight",
    "forward, TFLOP",
    "policy, GFLOP",
    "readout and policy, GB",
    "ms a step",
    "of it beside the forward",
    "tokens/s",
    "forwards to save",
)
IN_SHORT = ("policy", "rows in flight", "ms a step", "of it beside the forward", "tokens/s", "forwards to save")
"""The columns that fit a terminal."""


def cells(step: Step) -> tuple[str, ...]:
    """A line of the table, in the order of HEADINGS."""
    return (
        step.policy,
        str(step.rows),
        f"{step.forward_operations / 1e12:.2f}",
        f"{step.policy_operations / 1e9:.2f}",
        f"{step.bytes / 1e9:.2f}",
        f"{1000 * step.seconds:,.1f}",
        f"{step.share:.1%}",
        f"{step.tokens_per_second:,.0f}",
        f"{step.saved:.1%}",
    )


def cells_in_short(step: Step) -> list[str]:
    """The same under IN_SHORT."""
    named = dict(zip(HEADINGS, cells(step), strict=True))
    return [named[name] for name in IN_SHORT]


SECTION = f"""## Tokens per second of LLaDA-8B

One step on one H100: a canvas of {CANVAS} in blocks of {BLOCK} behind {PROMPT} prompt tokens, no key-value cache.
Assumed beside the above:

- {UTILISATION:.0%} of {BANDWIDTH / 1e12} TB/s and, for the policy in float32, of {PEAK_FLOAT32 / 1e12:.0f} TFLOP/s;
  the weights are read once a step
- passes over the logits of each position that is read: {PASSES["threshold:0.9"]} by the threshold rule, over the
  block's masks; {PASSES["paper A"]} by paper A's policy, over all positions; {PASSES["coupled"]} by the coupled one,
  over all masks; {PAIR_PASSES} passes over the pair head's activations
- {LAUNCH * 1e6:.0f} us for each kernel beside the forward, which all rows share:
  {", ".join(f"{name} {count:,}" for name, count in KERNELS.items())}
- of the coupled policy's walk, which the host decides while the device waits: {READ * 1e6:.0f} us, its pair shifts over
  a link of {LINK / 1e9:.0f} GB/s, and {CANDIDATE[0] * 1e6:.0f} + {CANDIDATE[1] * 1e6:.1f} x rows us for each candidate:
  {COMMITS + 1} where one row commits {COMMITS} a step, a block's at {ROWS[1]} rows
  (counts and times of docs/performance.md)

Tokens per second are those at {CANVAS * PARALLEL:.0f} forwards a canvas for all three: what the policies save at 8B
has not been measured. Last column: the share of forwards that a policy must save to be as fast as the threshold rule.
What it saves beyond that is gain.
"""


def section() -> str:
    """The section of docs/costs.md."""
    steps = on_paper()
    lines = [" | ".join(cells(step)) for step in steps]
    head = [" | ".join(HEADINGS), "|".join(["---", *["---:"] * (len(HEADINGS) - 1)])]
    table = "\n".join(f"|{line}|" if "---" in line else f"| {line} |" for line in [*head, *lines])
    alone = next(step for step in steps if step.policy == "coupled" and step.rows == 1)
    return f"{SECTION}\n{table}\n\n{_commits_of(alone)}"


def _commits_of(alone: Step) -> str:
    """Up to how many commits all but the forward is a tenth of a step. alone: the coupled policy's, with one row."""
    of_row = alone.seconds - _shared_seconds("coupled", 1, COMMITS)

    def share(commits: int) -> float:
        return 1 - alone.forward_seconds / (of_row + _shared_seconds("coupled", 1, commits))

    most = max(commits for commits in range(BLOCK) if share(commits) <= 0.1)
    return (
        f"With one row the coupled policy's share beside the forward is {share(0):.1%} where nothing is committed,\n"
        f"and at most 10 % up to {most} commits a step. Of a whole block it would be {share(BLOCK):.0%}."
    )
