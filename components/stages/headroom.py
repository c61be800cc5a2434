"""Stage headroom: do the tasks ask a real question of the dLLM? Printed before any policy is looked at."""

from __future__ import annotations

from typing import Any

from components.settings import Data, Domain, Evaluate, Headroom, Models
from components.stages.place import Place, task_of
from components.stages.progress import progress


def headroom(
    place: Place, data: Data, models: Models, domain: Domain, evaluate: Evaluate, headroom: Headroom
) -> dict[str, Any]:
    """Metrics per evaluated task, on the tune split: what the order and what speed costs; see components.headroom."""
    from components.evaluation import Sweep, table
    from components.headroom import order, speed
    from components.prompts import Prompts
    from components.stages.decoding import open_denoiser

    denoiser, encoder = open_denoiser(place, models, domain.model)
    sweep = Sweep(evaluate.block_lengths, evaluate.thresholds, evaluate.factors, evaluate.gammas, evaluate.per_step,
                  encoder.end_ids if evaluate.ends_last else ())  # fmt: skip
    figures: dict[str, Any] = {}
    with progress("headroom", len(evaluate.tasks)) as tick:
        for name in evaluate.tasks:
            task = task_of(data, name)
            asked = Prompts.of(task, place.examples(name, "tune", headroom.prompts), encoder)
            rules = table(denoiser, sweep.candidates(task.canvas_length, wide=False), asked, evaluate.seeds)
            figures[name] = {
                "order": order(denoiser, asked, headroom.orders, evaluate.seeds[0]),
                "speed": speed(rules),
            }
            tick(name)
    place.metrics("headroom", figures)
    for question in ("order", "speed"):
        if not any(f[question]["critical"] for f in figures.values()):
            print(f"headroom: {question} matters on none of {', '.join(figures)}; a learned policy can hardly differ "
                  f"from the swept rules there; ask harder puzzles, or pretrain less", flush=True)  # fmt: skip
    return figures
