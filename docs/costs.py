"""The cost of a profile over a large dLLM, by arithmetic: forwards, hours and memory on one H100.

``python -m docs.costs`` prints docs/costs.md from the files of ``profiles/``. Nothing is measured: every
assumption is a constant of this file or of ``components/commands/throughput.py`` and is stated in the document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from components.commands.throughput import DREAM, LLADA, PARALLEL, PEAK, PROMPT, UTILISATION, section
from components.core.types import Needs
from components.decode.readout import chunk_bytes
from components.evaluation.evaluate import Sweep
from components.policies.rules import RULES
from components.settings import Confidence, Feature, Policy, Settings, load
from components.stages.influence import fresh_policy

SHAPES = {
    "GSAI-ML/LLaDA-8B-Instruct": LLADA,
    "Dream-org/Dream-v0-Instruct-7B": DREAM,
    # What `python -m components.bench.checkpoints data/smoke --size 8b` writes.
    "data/smoke/llada": LLADA,
    "data/smoke/dream": DREAM,
}

FLOAT = 4  # bytes: policies are trained in float32
STATE = 6  # of a policy: weights, the best so far, gradients, those of one micro batch, AdamW's two moments
RECORDS = 2  # times an iteration's steps: its own, and their copy as they are joined
PAIR_WIDTHS = 3  # tensors of its width that the pair head works on


@dataclass(frozen=True)
class Cost:
    """One stage of a profile. forwards: of single rows, over ``model``, each of prompt and canvas."""

    stage: str
    model: str
    canvas: int
    forwards: float

    @property
    def hours(self) -> float:
        return self.forwards * SHAPES[self.model].seconds(PROMPT + self.canvas) / 3600


def costs(settings: Settings) -> list[Cost]:
    """Every stage that runs the dLLM. Raises KeyError for a model whose shape is not in ``SHAPES``."""
    domain = settings.domain.model
    canvas = max(settings.data.tasks[name].length for name in settings.domain.tasks)
    one = settings.policy.action == "categorical"
    steps = canvas * (1.0 if one else PARALLEL)
    train, distill, counts = settings.train, settings.distill, settings.data.counts
    validations = -(-train.iterations // train.validate_every) + 1
    found = [
        Cost("distill", _source(settings, domain), canvas, distill.iterations * distill.prompts * steps),
        Cost(
            "train",
            _source(settings, domain),
            canvas,
            train.iterations * train.prompts * (train.group + train.experts) * steps
            + validations * counts.tune * steps,
        ),
    ]
    if settings.policy.kind == "coupled":
        probes = settings.influence.chunks * settings.influence.states * (1 + settings.influence.probes)
        visits = settings.influence.chunks * settings.influence.prompts * canvas * PARALLEL
        found.insert(0, Cost("influence", _source(settings, domain), canvas, probes + visits))
    for stage, model, task, prompts, wide in _cases(settings):
        length = settings.data.tasks[task].length
        own = _variants(settings) * length * (1.0 if one else PARALLEL)
        forwards = prompts * (_swept(settings, length, wide) + own)
        found.append(Cost(f"{stage} {task}", _source(settings, model), length, forwards))
    return found


def _source(settings: Settings, model: str) -> str:
    return settings.models[model].source


def _cases(settings: Settings) -> Iterator[tuple[str, str, str, int, bool]]:
    counts = settings.data.counts
    for task in settings.evaluate.tasks:
        yield "rules and evaluate", settings.domain.model, task, counts.test, True
    yield "rules and gate", settings.domain.model, settings.evaluate.gate_task, counts.gate, False
    for case in settings.transfer.values():
        yield "rules and transfer", case.model, case.task, counts.test, False
    for case in settings.ood.values():
        yield "rules and ood", case.model, case.task, counts.test, False


def _variants(settings: Settings) -> int:
    """Decodes of one prompt by policies: each by its mode and at its offsets, the learned one per seed by sampling."""
    return len(settings.sweep.seeds) + sum(1 + len(offsets) for offsets in settings.variants.offsets.values())


def _swept(settings: Settings, length: int, wide: bool) -> float:
    """Forwards of one prompt by all swept rules; a random rule is decoded once per seed."""
    total, sweep = 0.0, settings.sweep
    for candidate in Sweep(sweep.block_lengths, sweep.rules, (), sweep.frontiers).candidates(length, wide):
        rule = RULES[candidate.family]
        steps = length * PARALLEL
        if rule.commits != "several":
            steps = length / max(float(candidate.setting), 1.0) if rule.commits == "fixed" else float(length)
        total += steps * (len(settings.sweep.seeds) if rule.random else 1)
    return total


@dataclass(frozen=True)
class Memory:
    """Gigabytes on the card at the two peaks of an iteration of training."""

    weights: float
    training: float
    readout: float
    recorded: float
    activations: float

    @property
    def rollout(self) -> float:
        return self.weights + self.training + self.readout + RECORDS * self.recorded

    @property
    def update(self) -> float:
        return self.weights + self.training + self.recorded + self.activations

    @property
    def peak(self) -> float:
        return max(self.rollout, self.update)

    def line(self) -> str:
        """Of docs/costs.md."""
        parts = (self.weights, self.training, self.readout, self.recorded, self.activations)
        named = zip(("weights", "training", "readout", "recorded steps", "micro batch"), parts, strict=True)
        sums = f"rollout {self.rollout:.0f}, update {self.update:.0f}"
        return f"At least {self.peak:.0f} GB: {sums}. {', '.join(f'{n} {x:.2f}' for n, x in named).capitalize()}."


def memory(settings: Settings) -> Memory:
    """What training the policy takes of the card; ``HEAD`` states the assumptions."""
    shape = SHAPES[_source(settings, settings.domain.model)]
    canvas = max(settings.data.tasks[name].length for name in settings.domain.tasks)
    with torch.device("meta"):
        policy = fresh_policy(settings.policy, shape.width, 0)
    train = settings.train
    pairs = train.prompts * (train.group + train.experts) * canvas * train.record_share
    chunk = max(train.micro_batch, settings.distill.micro_batch)
    whole, part = chunk_bytes(torch.device("cuda"))
    sizes = (
        2 * shape.parameters,
        STATE * FLOAT * sum(p.numel() for p in policy.parameters()),
        whole + 4 * part,
        pairs * recorded(policy.needs, shape.width, canvas),
        chunk * activations(settings.policy, shape.width, canvas),
    )
    return Memory(*(size / 1e9 for size in sizes))


def recorded(needs: Needs, width: int, canvas: int) -> float:
    """Bytes of a recorded step: statistics, ids, masks and order of each position, and bfloat16 hidden states."""
    numbers = 1 + len(needs.statistics) + needs.top_k + canvas * len(needs.attention)
    position = 8 + FLOAT * numbers + 8 * needs.top_k * needs.top_ids + 12
    read = {"none": 0, "canvas": canvas, "sequence": PROMPT + canvas}[needs.features]
    return canvas * position + PROMPT + canvas + 2 * width * read


def activations(policy: Policy, width: int, canvas: int) -> float:
    """Bytes that one (row, step) pair of the update holds until its gradient. width: of the dLLM's hidden states.

    The factors are the tensors of a position that torch saves: of the block's width, and of its feed-forward's.
    """
    if isinstance(policy, Feature):
        whole, layers = PROMPT + canvas, 3 * policy.hidden + 1
        block = whole * (11 * width + 4 * policy.mlp_width) + policy.heads * whole**2
        return FLOAT * (block + canvas * layers * (width + policy.top_k + 2))
    read = canvas * width * policy.hidden_states
    if isinstance(policy, Confidence):
        block = canvas * (18 * policy.width + 2 * policy.mlp_width) + policy.heads * canvas**2
        return FLOAT * (block + read)
    block = canvas * (10 * policy.width + 2 * policy.mlp_width) + policy.heads * canvas**2
    # The pair head is not trained here and saves nothing, but works on this much at a time.
    pairs = PAIR_WIDTHS * policy.pair_width * policy.pair_shifts * canvas**2
    return FLOAT * (policy.blocks * block + pairs + read)


HEAD = """# What the profiles over large dLLMs cost

Arithmetic, not measurement: `python -m docs.costs > docs/costs.md`, and a test compares. No profile of
this page was run by us. Hours are those of **one H100**; rows are independent: eight cards need about an eighth.

Assumed: {utilisation:.0%} of {peak:.0f} TFLOP/s (dense bfloat16); {prompt} prompt tokens; {parallel} forwards per
canvas position for whatever commits several a step (a public grid of threshold 0.9 in blocks of 32 over a canvas of 256
has 81.5), one per position for whatever commits one; every row runs to the end of its canvas. One forward of LLaDA-8B
over 456 tokens then takes {milliseconds:.0f} ms of the card. The policy's own arithmetic is below 1 % of it; its
launches and the readout are counted in the last section.

Memory is that of stage train on one card, at the larger of two peaks, in GB of 1e9 bytes:

- rollout: weights, training, readout, and {records} times the recorded steps: its own, and the copy as they are joined
- update: weights, training, the recorded steps, and one micro batch
- weights: of the dLLM, in bfloat16
- training: {state} times the policy in float32: weights, the best so far, gradients, those of one micro batch, AdamW's
  two moments
- readout: {readout:.1f} GB, whatever the rows: logits exist in chunks of {chunk:.0f} MiB, and four such are worked on
- recorded steps: every row takes as many steps as its canvas has positions, `train.record_share` of them is kept;
  hidden states, where the policy reads them, in bfloat16
- micro batch: what torch saves for the gradient of `micro_batch` (row, step) pairs, in float32, attention's weights
  included; of a coupled policy also what its pair head works on

Not counted: rows in flight, which take up to half of what is free and fewer where memory runs out; the allocator's
fragments; CUDA itself.

To make it cheaper: fewer `sweep` numbers and block lengths (the sweep is decoded once per dLLM and task, whatever the
policy), fewer `data.counts.test`, `decode.end_of_text: true`.
"""


def document(files: Sequence[Path]) -> str:
    """docs/costs.md for those of ``files`` whose dLLMs are in ``SHAPES``."""
    milliseconds = 1000 * SHAPES["GSAI-ML/LLaDA-8B-Instruct"].seconds(PROMPT + 256)
    whole, part = chunk_bytes(torch.device("cuda"))
    lines = [
        HEAD.format(
            utilisation=UTILISATION,
            peak=PEAK / 1e12,
            prompt=PROMPT,
            parallel=PARALLEL,
            milliseconds=milliseconds,
            records=RECORDS,
            state=STATE,
            readout=(whole + 4 * part) / 1e9,
            chunk=whole / 2**20,
        )
    ]
    for path in files:
        settings = load.read(path)
        if not {model.source for model in settings.models.values()} <= SHAPES.keys():
            continue
        rows = costs(settings)
        lines += [f"## {settings.profile}", "", "| stage | row forwards | hours |", "|---|---:|---:|"]
        lines += [f"| {row.stage} | {row.forwards:,.0f} | {row.hours:,.1f} |" for row in rows]
        total = sum(row.hours for row in rows)
        lines += [f"| **all** | {sum(row.forwards for row in rows):,.0f} | **{total:,.0f}** |", ""]
        lines += [memory(settings).line(), ""]
    lines += [section(), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(sorted(Path(__file__).parents[1].glob("profiles/*.yaml"))), end="")
