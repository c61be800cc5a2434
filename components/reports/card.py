"""``card.md``: the model card that the run writes about its own policy.

What it chooses, what it was trained on, the table against the heuristics, how to load the file, where it is no good,
and with which settings and code it was made. Everything that varies comes from the run's files; the sentence about
where the policy is *below* the heuristics is written by the numbers, not by us.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from ..core.files import write_text
from . import table
from .table import Result

TRAIN_KEYS = {
    "commit": "commit",
    "dirty": "with uncommitted changes",
    "identity": "identity of settings and dependencies",
    "started": "training started",
    "seconds": "seconds of training",
    "mlflow_run_id": "MLflow run",
}


@dataclass(frozen=True)
class Facts:
    """What the card says that no table holds.

    name: of the registered model. tasks: what the policy was trained on. denoiser: folder or hub name of the frozen
    dLLM. prompt: one prompt of the first task, for the example. canvas: its canvas length. inputs: the statistics
    that the policy reads. parameters: how many it has.
    """

    name: str
    tasks: tuple[str, ...]
    denoiser: str
    prompt: str
    canvas: int
    inputs: tuple[str, ...]
    parameters: int


def write(
    path: Path,
    facts: Facts,
    run: Mapping[str, Any],
    found: Sequence[Result],
    transfer: Sequence[Result] = (),
    ood: Sequence[Result] = (),
) -> Path:
    """Writes the card. run: stage train's run.json; found, transfer and ood: the rows of the tables."""
    return write_text(path, markdown(facts, run, found, transfer, ood))


def markdown(
    facts: Facts,
    run: Mapping[str, Any],
    found: Sequence[Result],
    transfer: Sequence[Result] = (),
    ood: Sequence[Result] = (),
) -> str:
    """The card's text."""
    import yaml

    others = [
        f"## {title}\n\n{table.markdown(rows)}"
        for title, rows in (("On other dLLMs and longer canvases", transfer), ("On tasks it never saw", ood))
        if rows
    ]
    return Template(_CARD).substitute(
        name=facts.name,
        inputs=", ".join(facts.inputs).replace("_", " "),
        parameters=f"{facts.parameters:,}",
        tasks=", ".join(facts.tasks),
        denoiser=facts.denoiser,
        objective=_objective(run.get("settings", {}).get("train", {})),
        results=table.markdown(found),
        others="".join(f"{part}\n" for part in others),
        example=example(facts),
        limits="\n".join(f"- {limit}" for limit in limits(facts, run, [*found, *transfer, *ood])),
        provenance=_provenance(run),
        versions=", ".join(f"{name} {version}" for name, version in sorted(run.get("versions", {}).items())),
        settings=yaml.safe_dump(run.get("settings", {}), sort_keys=True, allow_unicode=True).strip(),
    )


def _objective(train: Mapping[str, Any]) -> str:
    """The training in words, from its settings."""
    score = "partial score" if train.get("signal") == "dense" else "correct"
    reward = {"additive": f"{score} - alpha NFE / length"}.get(train.get("reward", ""), f"{score} x speed^alpha")
    pull = f", pulled to {train['reference']} by kl_coef = {train['kl_coef']:g}" if train.get("kl_coef") else ""
    name = str(train.get("objective", "grpo")).upper()
    return f"{name} with reward = {reward}{pull}, started from a policy that imitates a heuristic"


def example(facts: Facts) -> str:
    """Python that loads the ONNX file and decodes one prompt with it."""
    return Template(_EXAMPLE).substitute(
        denoiser=json.dumps(facts.denoiser),
        prompt=json.dumps(facts.prompt),
        canvas=facts.canvas,
    )


def limits(facts: Facts, run: Mapping[str, Any], found: Sequence[Result]) -> list[str]:
    """Sentences on where not to use the policy; those about numbers are drawn from ``found``."""
    said = [
        "It decides when a position is committed, never which token: what the dLLM does not know it cannot mend.",
        f"It reads {', '.join(facts.inputs).replace('_', ' ')} of one frozen dLLM. Over another dLLM its scores may be "
        "off; measure before use (the tables above say where that was done).",
        "NFE counts the dLLM's forward passes. The policy's own forward is extra; beside a large dLLM it is "
        "small, beside a tiny one it is not.",
        "Accuracies are those of the listed tasks, splits and prompts, with the verifiers of this repository.",
    ]
    if run.get("profile") == "tiny":
        said.append(
            "The dLLM of profile tiny is trained on puzzles within minutes: this policy is a demonstration of "
            "the method, and not for language."
        )
    worse = [result for result in found if result.difference < 0]
    if worse:
        places = [f"  - {r.cell.task} on {r.cell.denoiser} ({r.name}): {table.difference(r)}" for r in worse]
        head = "Below the envelope of the heuristics, in points. Use the heuristic there."
        said.append("\n".join([head, *places]))
    unfinished = [result.cell for result in found if result.cell.unfinished > 0]
    if unfinished:
        places = "; ".join(f"{cell.task} {100 * cell.unfinished:.1f} %" for cell in unfinished)
        said.append(f"Canvases that were still masked at the step limit, counted as wrong: {places}.")
    return said


def _provenance(run: Mapping[str, Any]) -> str:
    said = {
        key: {True: "yes", False: "no"}[run[key]] if isinstance(run[key], bool) else run[key]
        for key in TRAIN_KEYS
        if run.get(key) is not None
    }
    return "\n".join(f"- {TRAIN_KEYS[key]}: {value}" for key, value in said.items())


_EXAMPLE = """from unmask_policies.denoisers import load
from unmask_policies.export import OnnxPolicy
from unmask_policies.decode.job import Job, DecodeOptions
from unmask_policies.decode.engine import rollout

denoiser, encoder = load($denoiser)
job = Job.of([encoder.prompt($prompt)], length=$canvas, block_length=$canvas)
decoded = rollout(denoiser, OnnxPolicy("policy.onnx"), job, DecodeOptions(choose="mode"))
print(encoder.text(decoded.canvas_RL[0]), "in", int(decoded.nfe_R[0]), "forward passes")
"""

_CARD = """# $name

An unmasking policy for a masked diffusion language model. At each step of decoding it looks at the masked positions of
the current block and chooses which of them are committed now, at least one. The frozen dLLM alone decides
what is written there. It reads, per position, $inputs, and has $parameters parameters.

## Trained on

Tasks $tasks, over the frozen dLLM `$denoiser`. $objective. The prompts of the tables below were in none of its
training splits.

## Results

$results
Beside this file: [accuracy against forwards](pareto.png), [learning curves](learning.png), and
[how each rule filled the canvas](order.html).

$others
## Load it

```python
$example```

## Limits

$limits

## How it was made

$provenance
- versions: $versions

<details><summary>All settings</summary>

```yaml
$settings
```

</details>
"""
