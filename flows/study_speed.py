"""Tokens per second of a study's policies and of the rules beside them, in turn in one process.

Each decodes the same prompts over the first cell's dLLM, by its mode, with no other work between the rounds. What is
compared is the ratio within a round, since a machine's speed changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from components.bench.decoding import Case, watched
from components.bench.measure import in_turn, median_seconds, ratios
from components.core.errors import DataError
from components.core.files import write_json
from components.core.types import Rollout
from components.decode.engine import rollout
from components.decode.job import DecodeOptions
from components.decode.prompts import Prompts
from components.denoisers import Denoiser, load
from components.evaluation.results import EvalResult, read_results
from components.policies import store
from components.policies.rules import RULES, heuristic
from components.stages.common.workspace import TaskData

if TYPE_CHECKING:
    from flows.study import Cell

PROMPTS, REPEATS = 256, 5
BY_MODE = DecodeOptions(choose="mode")
NAMED = {"small": "coupled, smallest network", "large": "coupled, largest network", "paper-a": "", "paper-b": ""}


def measure(kept: Path, cells: Sequence[Cell]) -> Path:
    """Write speed.json into the folder of the cells; DataError where the first cell is not there."""
    first = kept / cells[0].name
    if not (first / "cell.json").exists():
        raise DataError(f"{first} is not there. Run `python -m flows.study` first.")
    task = cells[0].settings.evaluate.gate_task
    denoiser, encoder = load(str(first / "dllm"))
    data = TaskData(first / "data" / task)
    prompts = Prompts.of(data.task(), data.examples("test", min(PROMPTS, cells[0].settings.data.counts.test)), encoder)
    cases = [*_policies(kept, cells), *_rules(read_results(first / "results" / f"evaluate-{task}.jsonl"))]
    rows = _timed(denoiser, prompts, cases)
    facts = {"task": task, "prompts": len(prompts), "repeats": REPEATS, "threads": torch.get_num_threads()}
    write_json(kept / "speed.json", {**facts, "rows": rows}, sort=False)
    return kept / "speed.json"


def _policies(kept: Path, cells: Sequence[Cell]) -> list[Case]:
    """The first cell's trained policy, then those of the cells that differ in size or are the papers'."""
    found = []
    for number, cell in enumerate(cells):
        folder = kept / cell.name / "policies" / "train"
        if folder.exists() and (number == 0 or cell.name in NAMED):
            name = "coupled, default" if number == 0 else NAMED[cell.name] or cell.about
            found.append(Case(name, store.load(folder), BY_MODE))
    return found


def _rules(results: Sequence[EvalResult]) -> list[Case]:
    """Max-confidence one by one, and the most accurate full-diffusion rule no slower than the policy, in forwards."""
    served = next(r for r in results if (r.family, r.setting) == ("learned", "mode"))
    canvas = max(r.block_length for r in results)
    whole = [r for r in results if not r.is_policy and r.block_length == canvas]
    fast = [r for r in whole if r.nfe <= served.nfe] or [min(whole, key=lambda r: r.nfe)]
    best = max(fast, key=lambda r: r.accuracy)
    chosen = dict.fromkeys([("confidence", "1"), (best.family, best.setting)])
    return [Case(f"{RULES[name].label} {number}", heuristic(name, float(number)), BY_MODE) for name, number in chosen]


def _timed(denoiser: Denoiser, prompts: Prompts, cases: Sequence[Case]) -> list[dict[str, Any]]:
    job = prompts.job(None)
    works, sections = zip(*(watched(rollout, denoiser, job, case) for case in cases), strict=True)
    runs = in_turn(works, REPEATS, denoiser.device)
    rows = []
    for case, timed, seconds in zip(cases, runs, sections, strict=True):
        done: Rollout = timed[-1].value
        weights = case.policy.parameters() if isinstance(case.policy, torch.nn.Module) else ()
        middle, low, high = ratios(timed, runs[0])
        rows.append(
            {
                "name": case.name,
                "parameters": sum(weight.numel() for weight in weights),
                "accuracy": float(prompts.scores(job, done)[1].mean()),
                "nfe": float(done.nfe_R.float().mean()),
                "tokens_per_second": sum(prompts.lengths) / median_seconds(timed),
                "ratio": middle,
                "low": low,
                "high": high,
                "policy": sum(s["policy"] for s in seconds[1:]) / sum(t.seconds for t in timed),
            }
        )
    return rows
