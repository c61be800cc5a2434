"""Flow `rollback-policy`: withdraw the champion and make an earlier version live. `unmask rollback` does the same."""

from pathlib import Path
from typing import Annotated, Any

from prefect import flow, task
from pydantic import Field

from flows import parameters, results, worktree
from flows.command_line import run_from_command_line


@task(task_run_name="rollback")
def roll_back(checkout: Path, profile: str, version: int | None, reason: str) -> str:
    """Put the alias `champion` on the version. Raises DataError if there is none such."""
    from components.commands.rollback import rollback

    return str(rollback(checkout, profile, version, reason))


@flow(name="rollback-policy")
def rollback_policy(
    version: Annotated[int | None, Field(ge=1)] = None,
    reason: Annotated[str, Field(max_length=1000)] = "",
    repository: str = ".",
) -> Any:
    """Make an earlier version live.

    The registered model is that of the profile named in the checkout's params.yaml.

    Args:
        version: the version to go to. Empty: the newest promoted one before the champion
        reason: why, kept with the version that is withdrawn. Empty: none is given
        repository: the checkout whose registry is meant, a dot for the one of the machine that runs this

    Returns what was done, which is also what the last state says.
    """
    checkout = worktree.root(Path(repository))
    settings = parameters.active(checkout)
    results.name_run(settings, "rollback")
    said = roll_back(checkout, settings.profile, version, reason)
    return results.completed(said, said)


if __name__ == "__main__":
    run_from_command_line(rollback_policy, "flows.rollback")
