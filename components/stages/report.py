"""Stage report: pictures, pages, tables and the model card, all from the files of the stages before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from components.core.files import read_json, read_lines
from components.evaluation.results import EvalResult, read_table
from components.settings import Cases, Domain, Evaluate, Headroom
from components.stages.common.runfile import read_run
from components.stages.common.workspace import Workspace

if TYPE_CHECKING:
    from components.reports.card import Facts


def report(
    workspace: Workspace, domain: Domain, headroom: Headroom, evaluate: Evaluate, transfer: Cases, ood: Cases
) -> dict[str, float]:
    """P/report: five pictures, order.html, card.md, table.md, headroom.md; P/plots: pareto, learning.csv.

    The files of a case that the settings no longer have are not reported.
    """
    from components.reports import card, learning, order_page, pareto, picture, table
    from components.reports import headroom as headroom_page

    outputs = workspace.outputs
    folder, plots = outputs / "report", outputs / "plots"
    iterations = learning.read_iterations(outputs / "train" / "metrics.jsonl")
    test = _tables(workspace, "evaluate", evaluate.tasks)
    elsewhere, foreign = _tables(workspace, "transfer", transfer), _tables(workspace, "ood", ood)
    decodes = [
        line
        for task in evaluate.tasks
        for line in read_lines(outputs / "evaluate" / f"evaluate-{task}" / "decodes.jsonl")
    ]

    pareto.draw(folder / "pareto.png", test)
    pareto.draw_all(folder / "pareto-all.png", [*test, *elsewhere, *foreign])
    pareto.write_csv(plots / "pareto.csv", test)
    learning.draw(folder / "learning.png", iterations)
    learning.write_csv(plots / "learning.csv", iterations)
    order_page.write(folder / "order.html", decodes)
    gate = evaluate.gate_task
    picture.draw(folder / "picture.png", [d for d in decodes if d["task"] == gate], [r for r in test if r.task == gate])
    table.write(folder / "table.md", [*test, *elsewhere, *foreign])
    figures = [read_json(outputs / "headroom" / f"{case}.json") for case in headroom.cases]
    headroom_page.write(folder / "headroom.md", figures)
    headroom_page.draw(folder / "headroom.png", figures)
    run = read_run(outputs / "train" / "run.json")
    card.write(folder / "card.md", _facts(workspace, domain), run.to_json(), test, elsewhere, foreign)
    return {}


def _tables(workspace: Workspace, group: str, names: Iterable[str]) -> list[EvalResult]:
    """The results of all cases of a group; none where the settings have none."""
    paths = [workspace.outputs / "tables" / f"{group}-{name}.csv" for name in names]
    return read_table(*paths) if paths else []


def _facts(workspace: Workspace, domain: Domain) -> Facts:
    """What the model card states of the policy and its domain."""
    from components.reports.card import Facts

    described, first = read_policy(workspace), workspace.domain(next(iter(domain.tasks)))
    return Facts(
        name=f"unmasking-policy-{workspace.profile}",
        tasks=tuple(domain.tasks),
        denoiser=f"outputs/{workspace.profile}/pretrain/{domain.model}",
        prompt=first.examples("test", 1)[0].prompt,
        canvas=first.task().canvas_length,
        inputs=described["inputs"],
        parameters=described["parameters"],
    )


def read_policy(workspace: Workspace) -> dict[str, Any]:
    """What the policy reads, and how many parameters it has."""
    from components.policies import store

    policy = store.load(workspace.outputs / "train" / "policy")
    inputs = (*policy.shape.inputs, *(["features"] if policy.shape.features else []))
    return {"inputs": inputs, "parameters": sum(p.numel() for p in policy.parameters())}
