"""Stage headroom: do the tasks ask a real question of the dLLM? Printed before any policy is looked at."""

from __future__ import annotations

from typing import Any

from components.settings import Data, Evaluate, Headroom, Models
from components.stages.common.progress import progress
from components.stages.common.workspace import Workspace, task_of
from components.stages.evaluate import sweep_of


def headroom(
    workspace: Workspace, data: Data, models: Models, evaluate: Evaluate, headroom: Headroom
) -> dict[str, Any]:
    """Metrics per dLLM and task, on the tune split: the cost of order and of speed (evaluation.headroom)."""
    from components.decode.prompts import Prompts
    from components.evaluation.evaluate import table
    from components.evaluation.headroom import order, speed
    from components.stages.common.models import open_denoiser

    figures: dict[str, Any] = {}
    with progress("headroom", len(headroom.cases)) as tick:
        for case in headroom.cases:
            denoiser, encoder = open_denoiser(workspace, models, case.model)
            task = task_of(data, case.task)
            asked = Prompts.of(task, workspace.examples(case.task, "tune", headroom.prompts), encoder)
            rules = table(
                denoiser, sweep_of(evaluate, encoder).candidates(task.canvas_length, wide=False), asked, evaluate.seeds
            )
            figures.setdefault(case.model, {})[case.task] = {
                "order": order(denoiser, asked, headroom.orders, evaluate.seeds[0]),
                "speed": speed(rules),
            }
            tick(f"{case.task} on {case.model}")
    workspace.metrics("headroom", figures)
    for question in ("order", "speed"):
        if not any(found[question]["critical"] for tasks in figures.values() for found in tasks.values()):
            print(
                f"headroom: {question} matters in no case; a learned policy can hardly differ from the swept rules "
                f"there; ask harder puzzles, or pretrain less",
                flush=True,
            )
    return figures
