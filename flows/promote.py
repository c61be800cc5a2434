"""Flow `promote-policy`: judge the policy in the checkout's outputs and promote it if it passes the gate.

Left out: the rules (components/evaluation/gate.py). `unmask promote` does the same without Prefect.
"""

from pathlib import Path
from typing import Any

from prefect import flow

from flows import parameters, results, tasks, worktree
from flows.command_line import run_from_command_line


@flow(name="promote-policy")
def promote_policy(dry_run: bool = False, repository: str = ".") -> Any:
    """Promote the policy in the checkout's outputs if it passes the gate.

    The registered model is that of the profile named in the checkout's params.yaml.

    Args:
        dry_run: say the verdict, change nothing
        repository: the checkout with the outputs, a dot for the one of the machine that runs this

    Returns the verdict, which is also what the last state says.
    """
    checkout = worktree.root(Path(repository))
    settings = parameters.active(checkout)
    results.name_run(settings, "promote")
    verdict = tasks.promote(checkout, checkout, dry_run)
    results.show_verdict(settings.profile, verdict)
    said = results.headline(verdict)
    return results.completed(f"dry run, nothing changed: {said}" if dry_run else said, verdict)


if __name__ == "__main__":
    run_from_command_line(promote_policy, "flows.promote")
