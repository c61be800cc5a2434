"""Flow `sweep`: train-policy for every alpha and seed, one after another, and one table of how they did.

Left out: search (it is a plain grid, at most MOST runs), parallel runs (start deployments for that: each run has its
own worktree).
"""

import itertools
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import Field

from components.core.errors import SettingsError
from flows import results
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
    repository: str = ".",
) -> Any:
    """Train a policy for every alpha and every seed; a run that fails does not stop the others.

    Args:
        alphas: how much speed counts, one policy each
        seeds: seeds of the training, one policy each
        profile: a profile, of params.yaml or of a file of profiles/. Empty: that of params.yaml
        iterations: iterations of reinforcement learning. Empty: the profile's own
        promote: let every policy try the gate
        repository: the checkout to work from, a dot for the one of the machine that runs this

    Returns a row per alpha, seed, task and policy with its accuracy and NFE, and one with a message for a run that
    failed. Raises SettingsError for more than 32 runs.
    """
    grid = list(itertools.product(alphas, seeds))
    if len(grid) > MOST:
        raise SettingsError(
            f"{len(alphas)} alphas x {len(seeds)} seeds are {len(grid)} trainings: a sweep runs them one by one and "
            f"would take days; ask for at most {MOST}"
        )
    rows: list[dict[str, Any]] = []
    for alpha, seed in grid:
        rows += trained(alpha, seed, profile=profile, iterations=iterations, promote=promote, repository=repository)
    create_table_artifact(rows, key="sweep", description="A row per alpha, seed, task and policy")
    failed = sum("message" in row for row in rows)
    return results.completed(f"{len(grid) - failed} of {len(grid)} trainings completed", rows)


def trained(alpha: float, seed: int, **others: Any) -> list[dict[str, Any]]:
    """A training's row for each task and policy, or one with the message of a training that failed."""
    state = train_policy(alpha=alpha, seed=seed, return_state=True, **others)
    row = {"alpha": alpha, "seed": seed, "state": state.name}
    done = state.result() if state.is_completed() else {"figures": {}}
    found = [
        row | {"task": task, "policy": policy} | numbers
        for task, policies in done["figures"].items()
        for policy, numbers in policies.items()
    ]
    return found or [row | {"message": state.message}]


if __name__ == "__main__":
    run_from_command_line(sweep, "flows.sweep")
