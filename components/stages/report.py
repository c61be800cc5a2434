"""Stage report: pictures, pages, tables and the model card, all from the files of the stages before."""

from __future__ import annotations

from components.core.files import read_json, read_lines
from components.settings import Data, Domain, Evaluate
from components.stages.common.runfile import read_run
from components.stages.common.workspace import Workspace, task_of


def report(workspace: Workspace, data: Data, domain: Domain, evaluate: Evaluate) -> dict[str, float]:
    """P/report: three pictures, order.html, card.md, table.md, headroom.md; P/plots: pareto, learning.csv."""
    from components.reports import card, cells, headroom, learning, order_page, pareto, picture, table

    outputs = workspace.outputs
    folder, plots = outputs / "report", outputs / "plots"
    test = cells.read_cells(outputs / "evaluate" / "test.csv")
    transfer = cells.read_cells(*sorted((outputs / "transfer").glob("*.csv")))
    asked = [path for path in sorted((outputs / "ood").glob("*.csv")) if path.read_text().strip()]
    ood = cells.read_cells(*asked) if asked else []
    rounds = learning.read_rounds(outputs / "train" / "metrics.jsonl")
    decodes = read_lines(outputs / "evaluate" / "decodes.jsonl")

    pareto.draw(folder / "pareto.png", [*test, *transfer, *ood])
    pareto.write_csv(plots / "pareto.csv", test)
    learning.draw(folder / "learning.png", rounds)
    learning.write_csv(plots / "learning.csv", rounds)
    order_page.write(folder / "order.html", decodes)
    gate = evaluate.gate_task
    picture.draw(folder / "picture.png", [d for d in decodes if d["task"] == gate], [c for c in test if c.task == gate])
    table.write(folder / "table.md", [*test, *transfer, *ood])
    headroom.write(folder / "headroom.md", read_json(outputs / "metrics" / "headroom.json"))
    run = read_run(outputs / "train" / "run.json")
    first = next(iter(domain.tasks))
    described = read_policy(workspace)
    facts = card.Facts(
        name=f"unmasking-policy-{workspace.profile}",
        tasks=tuple(domain.tasks),
        denoiser=f"outputs/{workspace.profile}/pretrain/{domain.model}",
        prompt=workspace.examples(first, "test", 1)[0].prompt,
        canvas=task_of(data, first).canvas_length,
        inputs=described["inputs"],
        parameters=described["parameters"],
    )
    card.write(folder / "card.md", facts, run, test, transfer, ood)
    return {}


def read_policy(workspace: Workspace) -> dict:
    """What the policy reads, and how many parameters it has."""
    from components.policies import store

    policy = store.load(workspace.outputs / "train" / "policy")
    inputs = (*policy.shape.inputs, *(["features"] if policy.shape.features else []))
    return {"inputs": inputs, "parameters": sum(p.numel() for p in policy.parameters())}
