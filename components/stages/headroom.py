"""Stage headroom: what order, speed and dependence could gain on a task, measured before any policy is trained."""

from __future__ import annotations

from typing import Any

from ..settings import Headroom, Sweep
from .common.cases import item_of
from .common.workspace import Workspace
from .rules import sweep_of


def headroom(workspace: Workspace, sweep: Sweep, headroom: Headroom, case: str) -> dict[str, Any]:
    """P/headroom/<case>.json, on tune prompts: order, speed and dependence, see ``evaluation.headroom``."""
    from ..decode.prompts import Prompts
    from ..evaluation.evaluate import Scope, table
    from ..evaluation.headroom import dependence, order, speed
    from .common.models import open_denoiser

    chosen = item_of(headroom.cases, "headroom.cases", case)
    denoiser, encoder = open_denoiser(workspace, chosen.model)
    data = workspace.task(chosen.task)
    prompts = Prompts.of(data.task(), data.examples("tune", headroom.prompts), encoder)
    candidates = sweep_of(sweep, encoder).candidates(prompts.longest, wide=False)
    results = table(denoiser, candidates, prompts, sweep.seeds, Scope(chosen.task, chosen.model, "tune"))
    by_order, learned = order(denoiser, prompts, headroom.orders, sweep.seeds[0])
    swept = list(zip(candidates, results, strict=True))
    front = speed(results)
    figures: dict[str, Any] = {
        "order": by_order,
        "learned_order": learned,
        "speed": front,
        "dependence": dependence(denoiser, prompts, swept, front, sweep.seeds[0]),
    }
    workspace.write_json({"model": chosen.model, "task": chosen.task, **figures}, "headroom", f"{case}.json")
    for question in ("order", "speed"):
        if not figures[question]["critical"]:
            print(f"headroom: {question} does not matter in {chosen.task} over {chosen.model}", flush=True)
    return figures
