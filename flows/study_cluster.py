"""Flow `study`: the cells of the study over the workers of a cluster, each in a worktree of its own.

All worktrees are made before the first cell begins, so that the cells are of one commit. A cell whose worker died goes
on in its worktree, from the training's last checkpoint. Use: `python -m flows.study --cluster local:2`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, task

from components.core.errors import masked
from flows import results, study, worktree
from flows.cluster import spread


@task(task_run_name="{name}")
def run_cell(checkout: Path, path: Path, name: str) -> None:
    """Run one cell in its worktree, keep its results, remove the worktree."""
    study.run_cell(checkout, path, study.named(study.read_cells(path), name))
    worktree.close_worktree(checkout, path)


@flow(name="study")
def run_cells(checkout: Path, names: Sequence[str], cluster: str) -> Any:
    """Run the cells that are not done; names of those that failed. A cell that fails does not stop the others."""
    pieces: list[dict[str, Any]] = []
    for name in names:
        path = checkout / worktree.FOLDER / f"study-{name}"
        worktree.open_at_head(checkout, path)
        pieces.append({"checkout": checkout, "path": path, "name": name})
    failed = []
    for name, error in zip(names, spread(run_cell, pieces, cluster), strict=True):
        print(f"{name}: {masked(str(error)) if error else 'is done'}", flush=True)
        failed += [name] if error else []
    return results.completed(f"{len(names) - len(failed)} of {len(names)} cells completed", failed)
