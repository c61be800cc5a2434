"""Flow `sweep`: train-policy for every alpha and seed, and one table of how they did.

One after another, or over the workers of a cluster (cluster.py): the table is the same.

Left out: search (it is a plain grid, at most MOST runs).
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run
from pydantic import Field

from components.core.errors import SettingsError, masked
from flows import results, tasks, worktree
from flows.cluster import check_cluster, workers
from flows.command_line import run_from_command_line
from flows.parameters import Profile
from flows.train_policy import train_policy

MOST = 32


@flow(name="sweep")
def sweep(
    alphas: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=1)] = [1.0],  # noqa: B006
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = [0],  # noqa: B006
    profile: Profile | None = None,
    iterations: Annotated[int | None, Field(ge=1)] = None,
    promote: bool = False,
    cluster: str = "",
    repository: str = ".",
) -> Any:
    """Train a policy for every alpha and every seed; a run that fails does not stop the others.

    Args:
        alphas: how much speed counts, one policy each
        seeds: seeds of the training, one policy each
        profile: a profile, of params.yaml or of a file of profiles/. Empty: that of params.yaml
        iterations: iterations of reinforcement learning. Empty: the profile's own
        promote: let every policy try the gate
        cluster: the workers that train: local:2, or a Dask scheduler's tcp://HOST:PORT. Empty: this process
        repository: the checkout to work from, a dot for the one of the machine that runs this

    Returns a row per alpha, seed, task and policy with its accuracy and NFE, and one with a message for a run that
    failed. Raises SettingsError for more than 32 runs.
    """
    grid = list(itertools.product(alphas, seeds))
    if len(grid) > MOST:
        raise SettingsError(
            f"{len(alphas)} alphas x {len(seeds)} seeds are {len(grid)} trainings, which take days. Use at most {MOST}."
        )
    checkout = worktree.root(Path(repository))
    path = worktree.path_of(checkout, "sweep", str(flow_run.id))
    options = {"profile": profile, "iterations": iterations, "promote": promote, "repository": str(checkout)}
    points = [{"alpha": alpha, "seed": seed, "options": options} for alpha, seed in grid]
    shared = {"checkout": checkout, "path": path, "profile": profile}
    found = _over_cluster(cluster, shared, points) if cluster else [training.fn(**point) for point in points]
    rows = [row for point, rows in zip(points, found, strict=True) for row in _rows(point, rows)]
    create_table_artifact(rows, key="sweep", description="A row per alpha, seed, task and policy")
    failed = sum("message" in row for row in rows)
    return results.completed(f"{len(grid) - failed} of {len(grid)} trainings completed", rows)


@task(task_run_name="dLLMs")
def make_models(checkout: Path, path: Path, profile: str | None) -> None:
    """Make the dLLMs that all trainings share. What fails here fails in each of them, and is told there."""
    params, settings = tasks.check(checkout, {"profile": profile})
    graph = tasks.open_worktree(checkout, path, params)
    wanted = worktree.needed_for(graph, lambda stage: stage.startswith("pretrain@"))
    tasks.run_stages(wanted, path, checkout, settings.profile)
    worktree.close_worktree(checkout, path)


@task(task_run_name="alpha={alpha} seed={seed}")
def training(alpha: float, seed: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Train one policy. A row per task and policy; of a run that failed one row with its message."""
    state = train_policy(alpha=alpha, seed=seed, **options, return_state=True)
    row = {"alpha": alpha, "seed": seed, "state": state.name}
    done = state.result() if state.is_completed() else {"figures": {}}
    found = [
        row | {"task": case, "policy": policy} | numbers
        for case, policies in done["figures"].items()
        for policy, numbers in policies.items()
    ]
    return found or [row | {"message": state.message}]


def _over_cluster(cluster: str, shared: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What each training returned, or the exception that ended it; the shared dLLMs are made first."""
    with workers(cluster) as spread:
        spread(make_models, [shared])
        return spread(training, points)


def _rows(point: Mapping[str, Any], found: list[dict[str, Any]] | Exception) -> list[dict[str, Any]]:
    """The rows that a worker found, or one row about a training that no worker could end."""
    if isinstance(found, Exception):
        return [{"alpha": point["alpha"], "seed": point["seed"], "state": "Crashed", "message": masked(str(found))}]
    return found


if __name__ == "__main__":
    run_from_command_line(sweep, "flows.sweep", {"cluster": check_cluster})
