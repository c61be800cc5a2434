"""Stages transfer and ood: the same policy on another dLLM, on a longer canvas, on tasks it was not trained for."""

from __future__ import annotations

from typing import Any

from components.core.files import write_csv
from components.settings import Case, Data, Decode, Domain, Evaluate, Models, Ood, Transfer
from components.stages.common.workspace import Workspace
from components.stages.evaluate import measure, rows_of, summary


def transfer(
    workspace: Workspace,
    data: Data,
    models: Models,
    domain: Domain,
    decode: Decode,
    evaluate: Evaluate,
    transfer: Transfer,
    case: str,
) -> dict[str, Any]:
    """P/transfer/<case>.csv."""
    return _table(workspace, data, models, domain, decode, evaluate, getattr(transfer, case), "transfer", case)


def ood(
    workspace: Workspace,
    data: Data,
    models: Models,
    domain: Domain,
    decode: Decode,
    evaluate: Evaluate,
    ood: Ood,
    case: str,
) -> dict[str, Any]:
    """P/ood/<case>.csv; an empty file where the settings ask for none."""
    if getattr(ood, case) is None:
        print(f"ood: params.yaml asks for no task {case}; nothing is decoded, the table is empty", flush=True)
        write_csv(workspace.outputs / "ood" / f"{case}.csv", [])
        workspace.metrics(f"ood-{case}", {})
        return {}
    return _table(workspace, data, models, domain, decode, evaluate, getattr(ood, case), "ood", case)


def _table(
    workspace: Workspace,
    data: Data,
    models: Models,
    domain: Domain,
    decode: Decode,
    evaluate: Evaluate,
    where: Case,
    stage: str,
    case: str,
) -> dict[str, Any]:
    from components.stages.common.models import open_cached

    opened = open_cached(workspace, models, where.model, decode)
    foreign = where.model != domain.model
    cells = measure(workspace, data, decode, evaluate, opened, where.task, "test", foreign=foreign)
    rows = rows_of(data, cells, where.task, where.model, "test")
    write_csv(workspace.outputs / stage / f"{case}.csv", rows)
    figures = summary(rows)
    workspace.metrics(f"{stage}-{case}", figures)
    return figures
