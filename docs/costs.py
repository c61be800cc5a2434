"""The cost of a profile over a large dLLM, by arithmetic: forwards, hours and memory on one H100.

``python -m docs.costs`` prints docs/costs.md from the files of ``profiles/``. Nothing is measured: every
assumption is a constant of this file or of ``components/commands/throughput.py`` and is stated in the document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.commands.throughput import DREAM, LLADA, LOGIT_BYTES, PARALLEL, PEAK, PROMPT, UTILISATION, section
from components.evaluation.evaluate import Sweep
from components.policies.rules import RULES
from components.settings import Settings, load

SHAPES = {
    "GSAI-ML/LLaDA-8B-Instruct": LLADA,
    "Dream-org/Dream-v0-Instruct-7B": DREAM,
    # What `python -m components.bench.checkpoints data/smoke --size 8b` writes.
    "data/smoke/llada": LLADA,
    "data/smoke/dream": DREAM,
}


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


def memory(settings: Settings) -> float:
    """Gigabytes at the most rows in flight: bfloat16 weights, and float32 logits of the positions of one block."""
    shape = SHAPES[_source(settings, settings.domain.model)]
    canvas = max(settings.data.tasks[name].length for name in settings.domain.tasks)
    eligible = min(settings.decode.block_length or canvas, canvas)
    return (2 * shape.parameters + settings.train.rollout_rows * eligible * shape.vocabulary * LOGIT_BYTES) / 1e9


HEAD = """# What the profiles over large dLLMs cost

Arithmetic, not measurement: `python -m docs.costs > docs/costs.md`, and a test compares. No profile of
this page was run by us. Hours are those of **one H100**; rows are independent: eight cards need about an eighth.

Assumed: {utilisation:.0%} of {peak:.0f} TFLOP/s (dense bfloat16); {prompt} prompt tokens; {parallel} forwards per
canvas position for whatever commits several a step (a public grid of threshold 0.9 in blocks of 32 over a canvas of 256
has 81.5), one per position for whatever commits one; every row runs to the end of its canvas. One forward of LLaDA-8B
over 456 tokens then takes {milliseconds:.0f} ms of the card. Memory: weights, and float32 logits of the eligible
positions of all rows in flight; activations and the update of the policy come on top. The policy's own arithmetic is
below 1 % of it; its launches and the readout are counted in the last section.

To make it cheaper: fewer `sweep` numbers and block lengths (the sweep is decoded once per dLLM and task, whatever the
policy), fewer `data.counts.test`, `decode.end_of_text: true`.
"""


def document(files: Sequence[Path]) -> str:
    """docs/costs.md for those of ``files`` whose dLLMs are in ``SHAPES``."""
    milliseconds = 1000 * SHAPES["GSAI-ML/LLaDA-8B-Instruct"].seconds(PROMPT + 256)
    lines = [
        HEAD.format(
            utilisation=UTILISATION, peak=PEAK / 1e12, prompt=PROMPT, parallel=PARALLEL, milliseconds=milliseconds
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
        lines += [f"At least {memory(settings):.0f} GB.", ""]
    lines += [section(), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(sorted(Path(__file__).parents[1].glob("profiles/*.yaml"))), end="")
