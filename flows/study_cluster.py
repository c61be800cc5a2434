"""Flow `study`: the cells of the study over the workers of a cluster, each in a worktree of its own.

All worktrees are made before the first cell begins, so that the cells are of one commit. A cell whose worker died goes
on in its worktree, from the training's last checkpoint. Use: `python -m flows.study --cluster local:2`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, task
from ruamel.yaml import YAML

from components.core.errors import masked
from components.stages.common.runfile import digest
from flows import results, study, worktree
from flows.cluster import workers

# What the stages prepare and pretrain read.
SECTIONS = ("profile", "data", "models", "domain", "pretrain")


@task(task_run_name="dLLMs of {name}")
def make_models(checkout: Path, path: Path, name: str, models: Sequence[str]) -> None:
    """Make the dLLMs of a cell and of all that share them. What fails here fails in each of them, and is told there."""
    study.repro(checkout, path, study.named(study.read_cells(path), name), [f"pretrain@{model}" for model in models])


@task(task_run_name="{name}")
def run_cell(checkout: Path, path: Path, name: str) -> None:
    """Run one cell in its worktree, keep its results, remove the worktree."""
    study.run_cell(checkout, path, study.named(study.read_cells(path), name))
    worktree.close_worktree(checkout, path)


@flow(name="study")
def run_cells(checkout: Path, names: Sequence[str], cluster: str) -> Any:
    """Run the cells that are not done; names of those that failed. A cell that fails does not stop the others."""
    pieces: dict[str, dict[str, Any]] = {}
    for name in names:
        path = checkout / worktree.FOLDER / f"study-{name}"
        worktree.open_at_head(checkout, path)
        pieces[name] = {"checkout": checkout, "path": path, "name": name}
    shared = shared_models([cell for cell in study.read_cells(checkout) if cell.name in names])
    with workers(cluster) as spread:
        spread(make_models, [pieces[name] | {"models": models} for name, models in shared.items()])
        outcomes = spread(run_cell, list(pieces.values()))
    failed = {name: masked(str(outcome)) for name, outcome in zip(names, outcomes, strict=True) if outcome}
    for name in names:
        print(f"{name}: {failed.get(name, 'is done')}", flush=True)
    return results.completed(f"{len(names) - len(failed)} of {len(names)} cells completed", list(failed))


def shared_models(cells: Sequence[study.Cell]) -> dict[str, list[str]]:
    """Of all cells with the same dLLMs the first one's name, and the models that any of them needs."""
    alike: dict[str, list[study.Cell]] = {}
    for cell in cells:
        settings = YAML(typ="safe").load(cell.text)
        alike.setdefault(digest([settings[section] for section in SECTIONS]), []).append(cell)
    return {group[0].name: sorted({model for cell in group for model in cell.models}) for group in alike.values()}
