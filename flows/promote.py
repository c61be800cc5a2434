"""Flow `promote-policy`: judge and promote what the checkout's outputs hold, or put the alias back on a version.

Left out: the rules (components/evaluation/gate.py). `unmask promote` does the same without Prefect.
"""

from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from pydantic import Field

from flows import parameters, tasks, worktree
from flows.command_line import run_from_command_line


@task
def roll_back(checkout: Path, profile: str, version: int) -> None:
    """Put the alias `champion` on `version`. Raises DataError if there is none such."""
    from components.commands.rollback import rollback

    get_run_logger().info("%s: %s", profile, rollback(checkout, profile, version))


@flow(name="promote-policy")
def promote_policy(
    version: Annotated[int | None, Field(ge=1)] = None,
    dry_run: bool = False,
    repository: str = ".",
) -> dict[str, Any]:
    """Promote the policy in the checkout's outputs if it passes the gate, or go back to a version.

    The registered model is that of the profile named in the checkout's params.yaml.

    Args:
        version: put the alias back on this version instead of judging the outputs
        dry_run: say the verdict, change nothing
        repository: the checkout with the outputs

    Returns the verdict, or the profile and the version the alias was put on.
    """
    checkout = worktree.root(Path(repository))
    if version is None:
        return tasks.promote(checkout, checkout, dry_run)
    profile = parameters.validated((checkout / "params.yaml").read_text(encoding="utf-8")).profile
    if not dry_run:
        roll_back(checkout, profile, version)
    return {"profile": profile, "version": version}


if __name__ == "__main__":
    run_from_command_line(promote_policy, "flows.promote")
