"""Flow `evaluate-policy`: bring evaluations up to date in a worktree of the run's own, and show them.

Nothing is promoted. What they need is made where it is not up to date, the training included: DVC's graph says what
that is. With a server: `prefect deployment run evaluate-policy/cpu`. Without any: `python -m flows.evaluate --groups
'["ood"]'`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from components.tracking.store import tracking_uri
from flows import results, tasks, worktree
from flows.command_line import run_from_command_line
from flows.parameters import Profile

Group = Literal["evaluate", "gate", "transfer", "ood", "headroom"]


@flow(name="evaluate-policy")
def evaluate_policy(
    groups: Annotated[list[Group], Field(min_length=1)] = ["evaluate", "gate", "transfer", "ood"],  # noqa: B006
    profile: Profile | None = None,
    repository: str = ".",
) -> Any:
    """Evaluate the profile's policy on the cases of its settings.

    Args:
        groups: which evaluations: on the policy's tasks, at the gate, over other dLLMs, on other tasks
        profile: a profile, of params.yaml or of a file of profiles/. Empty: that of params.yaml
        repository: the checkout to work from, a dot for the one of the machine that runs this

    Returns the profile, the stages in the order they were looked at, and the figures of stage evaluate.
    """
    checkout = worktree.root(Path(repository))
    path = worktree.path_of(checkout, "evaluate-policy", str(flow_run.id))
    params, settings = tasks.check(path if worktree.is_open(path) else checkout, {"profile": profile})
    results.name_run(settings, "evaluate")
    graph = tasks.open_worktree(checkout, path, params)
    stages = worktree.needed_for(graph, lambda stage: stage.partition("@")[0] in groups)
    tasks.run_stages(stages, path, checkout, settings.profile)
    figures = results.show(path, settings.profile, None, tracking_uri(checkout))
    worktree.close_worktree(checkout, path)
    found = {"profile": settings.profile, "stages": list(stages), "figures": figures}
    return results.completed(f"evaluated {', '.join(groups)}: {len(stages)} stages are up to date", found)


if __name__ == "__main__":
    run_from_command_line(evaluate_policy, "flows.evaluate")
