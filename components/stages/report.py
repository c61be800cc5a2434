"""Stage report: pictures, pages, tables and the model card, all from the files of the stages before."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..core.files import read_json, read_lines, unpacking
from ..evaluation.results import EvalResult, read_results
from ..settings import Cases, Decode, Domain, Evaluate, Headroom
from .common.runfile import read_run
from .common.workspace import Workspace

if TYPE_CHECKING:
    from ..reports.card import Facts


log = logging.getLogger(__name__)


def report(
    workspace: Workspace,
    domain: Domain,
    decode: Decode,
    headroom: Headroom,
    evaluate: Evaluate,
    transfer: Cases,
    ood: Cases,
) -> dict[str, float]:
    """P/report: five pictures, order.html, card.md, table.md, result.md, headroom.md; P/plots: pareto, learning.csv;
    P/result: the few figures that are committed to Git. Then all of it is published to MLflow.

    The files of a case that the settings no longer have are not reported.
    """
    _write(workspace, domain, headroom, evaluate, transfer, ood)
    _write_result(workspace, decode, evaluate)
    show(workspace)
    return {}


def show(workspace: Workspace) -> None:
    """Bring the outputs into MLflow. A store that fails causes a warning; a promotion adds them later."""
    from ..tracking.publish import publish
    from ..tracking.store import first_line

    try:
        publish(workspace.outputs, workspace.root)
    except Exception as error:  # any failure of the tracking leaves the report complete
        log.warning("MLflow did not take the report (%s). Run `unmask promote` to add it later.", first_line(error))


def _write_result(workspace: Workspace, decode: Decode, evaluate: Evaluate) -> None:
    from ..reports import summary

    tasks = {task: _results(workspace, f"evaluate-{task}") for task in evaluate.tasks}
    found = summary.write(workspace.outputs / "result", tasks, _results(workspace, "gate"), decode.choose)
    summary.write_page(workspace.outputs / "report" / "result.md", found)


def _write(
    workspace: Workspace, domain: Domain, headroom: Headroom, evaluate: Evaluate, transfer: Cases, ood: Cases
) -> None:
    from ..reports import card, learning, order_page, pareto, picture, table
    from ..reports import headroom as headroom_page
    from ..reports.boards import Stored

    outputs = workspace.outputs
    folder, plots = outputs / "report", outputs / "plots"
    iterations = learning.read_iterations(outputs / "train" / "metrics.jsonl")
    test = _tables(workspace, "evaluate", evaluate.tasks)
    elsewhere, foreign = _tables(workspace, "transfer", transfer), _tables(workspace, "ood", ood)
    decodes = [
        line
        for task in evaluate.tasks
        for line in read_lines(outputs / "evaluate" / f"evaluate-{task}" / "decodes.jsonl", kind=Stored)
    ]

    pareto.draw(folder / "pareto.png", test)
    pareto.draw_all(folder / "pareto-all.png", [*test, *elsewhere, *foreign])
    pareto.write_csv(plots / "pareto.csv", test)
    learning.draw(folder / "learning.png", iterations)
    learning.write_csv(plots / "learning.csv", iterations)
    order_page.write(folder / "order.html", decodes)
    gate = evaluate.gate_task
    picture.draw(folder / "picture.png", [d for d in decodes if d["task"] == gate], [r for r in test if r.task == gate])
    found = [table.results(cells) for cells in (test, elsewhere, foreign)]
    table.write(folder / "table.md", [result for group in found for result in group])
    figures = [read_json(outputs / "headroom" / f"{case}.json", kind=headroom_page.Case) for case in headroom.cases]
    headroom_page.write(folder / "headroom.md", figures)
    headroom_page.draw(folder / "headroom.png", figures)
    path = outputs / "train" / "run.json"
    run, facts = read_run(path).to_json(), _facts(workspace, domain)
    with unpacking(path):  # its settings may be of any shape
        card.write(folder / "card.md", facts, run, *found)


def _tables(workspace: Workspace, group: str, names: Iterable[str]) -> list[EvalResult]:
    """The results of all cases of a group, per prompt; none where the settings have none."""
    return [result for name in names for result in _results(workspace, f"{group}-{name}")]


def _results(workspace: Workspace, case: str) -> list[EvalResult]:
    return read_results(workspace.outputs / "evaluate" / case / "results.jsonl")


def _facts(workspace: Workspace, domain: Domain) -> Facts:
    """The facts of the model card on the policy and its domain."""
    from ..reports.card import Facts

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
    """The policy's inputs and its number of parameters."""
    from ..policies import store

    policy = store.load(workspace.outputs / "train" / "policy")
    inputs = (*policy.shape.inputs, *(["features"] if policy.shape.features else []))
    return {"inputs": inputs, "parameters": sum(p.numel() for p in policy.parameters())}
