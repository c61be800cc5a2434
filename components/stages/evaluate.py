"""Stage evaluate: the learned policy against every swept heuristic, on prompts it never saw.

Also what transfer and ood share: one task on one dLLM, all candidates, one table.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from components.core.files import write_csv, write_lines
from components.settings import Data, Decode, Domain, Evaluate, Models
from components.stages.common.progress import progress
from components.stages.common.workspace import Workspace, task_of

SHOWN = 8  # prompts per task whose decodes are kept for the pages


def evaluate(
    workspace: Workspace, data: Data, models: Models, domain: Domain, decode: Decode, evaluate: Evaluate
) -> dict[str, Any]:
    """P/evaluate/{test.csv, gate.csv, prompts.jsonl, decodes.jsonl}; metrics per task: accuracy, NFE, envelope."""
    from components.stages.common.models import open_cached

    opened = open_cached(workspace, models, domain.model, decode)
    tests: list[dict[str, Any]] = []
    decodes: list[dict[str, Any]] = []
    for name in evaluate.tasks:
        cells = measure(workspace, data, decode, evaluate, opened, name, "test", wide=True)
        tests += rows_of(data, cells, name, domain.model, "test")
        decodes += show(workspace, data, opened, name, cells)
    gate = measure(workspace, data, decode, evaluate, opened, evaluate.gate_task, "gate")
    length = task_of(data, evaluate.gate_task).canvas_length
    prompts = [line_of(cell, evaluate.gate_task, "gate", length) for cell in gate]
    folder = workspace.outputs / "evaluate"
    write_csv(folder / "test.csv", tests)
    write_csv(folder / "gate.csv", rows_of(data, gate, evaluate.gate_task, domain.model, "gate"))
    write_lines(folder / "prompts.jsonl", prompts)
    write_lines(folder / "decodes.jsonl", decodes)
    figures = summary(tests)
    workspace.metrics("evaluate", figures)
    return figures


def learned(workspace: Workspace, decode: Decode, denoiser, foreign: bool, every: bool = False) -> list[Any]:
    """The trained and the distilled policy, by their mode and by sampling. every: one that was trained for several
    alphas also at each that it is not served at.

    foreign: the dLLM is not the one they were trained over. Its hidden states mean something else, so that a policy
    that also reads statistics goes without them, and one that reads nothing else is left out.
    """
    from components.evaluation.evaluate import Candidate
    from components.policies import store
    from components.policies.confidence import ConfidencePolicy
    from components.stages.common.models import with_decode_settings

    found = []
    for family, stage in (("learned", "train"), ("distilled", "distill")):
        policy = with_decode_settings(store.load(workspace.outputs / stage / "policy").to(denoiser.device), decode)
        if foreign and policy.shape.features:
            if not isinstance(policy, ConfidencePolicy):
                continue
            policy.drop_features(denoiser.width)
        for choose in ("mode", "sample") if family == "learned" else ("mode",):
            found.append(Candidate(family, choose, policy, decode.block_length, choose))
        if every and isinstance(policy, ConfidencePolicy):
            for alpha in policy.shape.alphas:
                if alpha != decode.alpha:
                    other = with_decode_settings(copy.copy(policy), decode.model_copy(update={"alpha": alpha}))
                    found.append(Candidate(family, f"alpha={alpha:g}", other, decode.block_length, decode.choose))
    return found


def sweep_of(evaluate: Evaluate, encoder) -> Any:
    """The heuristics that the settings compare with, for one dLLM's tokenizer."""
    from components.evaluation.evaluate import Sweep

    return Sweep(
        evaluate.block_lengths,
        evaluate.sweep,
        encoder.end_ids if evaluate.suppress_eos else (),
    )


def measure(
    workspace: Workspace,
    data: Data,
    decode: Decode,
    evaluate: Evaluate,
    opened,
    name: str,
    split: str,
    wide: bool = False,
    foreign: bool = False,
) -> list[Any]:
    """Cells of all candidates on one task and split. wide: see Sweep.candidates. foreign: see ``learned``."""
    from components.decode.prompts import Prompts
    from components.evaluation.evaluate import table

    denoiser, encoder = opened
    task = task_of(data, name)
    asked = Prompts.of(task, workspace.examples(name, split, getattr(data.counts, split)), encoder)
    sweep = sweep_of(evaluate, encoder)
    candidates = learned(workspace, decode, denoiser, foreign, every=wide) + sweep.candidates(task.canvas_length, wide)
    with progress(f"evaluate {name} {split}", len(candidates)) as tick:
        return table(denoiser, candidates, asked, evaluate.seeds, lambda _: tick(""))


def rows_of(data: Data, cells: Sequence[Any], name: str, model: str, split: str) -> list[dict[str, Any]]:
    length = task_of(data, name).canvas_length
    return [cell.row(name, model, split, length) for cell in cells]


def line_of(cell: Any, name: str, split: str, length: int) -> dict[str, Any]:
    """The cell prompt by prompt, for the gate's paired bootstrap; ``length``: the canvas, full diffusion's block."""
    return {
        "task": name,
        "split": split,
        "family": cell.candidate.family,
        "setting": cell.candidate.setting,
        "block_length": cell.candidate.block_length or length,
        "choose": cell.candidate.choose,
        "correct": cell.correct_SP.mean(0).tolist(),
        "nfe": cell.nfe_SP.mean(0).tolist(),
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per task and trained policy: accuracy, NFE, the heuristics' envelope there, and the difference."""
    from components.maths.pareto import front_at

    figures: dict[str, Any] = {}
    for name in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == name]
        rules = [row for row in mine if row["family"] not in ("learned", "distilled")]
        for row in mine:
            if row["family"] in ("learned", "distilled"):
                front = front_at([r["nfe"] for r in rules], [r["accuracy"] for r in rules], row["nfe"])
                figures.setdefault(name, {})[f"{row['family']}_{row['setting']}"] = {
                    "accuracy": row["accuracy"],
                    "nfe": row["nfe"],
                    "envelope": front,
                    "above_front": row["accuracy"] - front,
                }
    return figures


def show(workspace: Workspace, data: Data, opened, name: str, cells: Sequence[Any]) -> list[dict[str, Any]]:
    """Decodes of the first prompts by the policies, by the full-diffusion rule that needs the fewest forwards to be as
    accurate as the learned one, and one by one."""
    from components.decode.engine import rollout
    from components.decode.job import DecodeOptions
    from components.decode.prompts import Prompts

    denoiser, encoder = opened
    task = task_of(data, name)
    asked = Prompts.of(task, workspace.examples(name, "test", SHOWN), encoder)
    own = [cell for cell in cells if cell.candidate.family in ("learned", "distilled")]
    target = float(own[0].correct_SP.mean()) if own else 1.0
    rules = [c for c in cells if c.candidate.block_length is None and c not in own]
    equal = [c for c in rules if float(c.correct_SP.mean()) >= target]
    rival = [min(equal, key=lambda c: float(c.nfe_SP.mean()))] if equal else []
    quota = [c for c in rules if (c.candidate.family, c.candidate.setting) == ("confidence", "1")]
    one_by_one = [c for c in quota if c not in rival]
    lines = []
    for cell in [*own, *rival, *one_by_one]:
        chosen = cell.candidate
        job = asked.job(chosen.block_length)
        done = rollout(denoiser, chosen.policy, job, DecodeOptions(choose=chosen.choose))
        texts, correct_R, _ = asked.scores(job, done)
        for i, example in enumerate(asked.examples):
            length = asked.lengths[i]
            lines.append(
                {
                    "task": name,
                    "family": chosen.family,
                    "setting": chosen.setting,
                    "prompt": example.prompt,
                    "text": texts[i],
                    "gold": example.answer,
                    "correct": float(correct_R[i]),
                    "nfe": int(done.nfe_R[i]),
                    "canvas_length": length,
                    "order": done.order_RL[i, :length].tolist(),
                    "tokens": [encoder.token(t) for t in done.canvas_RL[i, :length].tolist()],
                }
            )
    return lines
