"""Flow `train-policy`: the DVC stages one by one in a worktree of the run's own, then the results, then the promotion.

With a server: `prefect deployment run train-policy/cpu -p seed=1 --watch`. Without any: `python -m flows.train_policy
--seed 1` (Prefect brings up a temporary one). A failed, crashed or cancelled run keeps its worktree; `prefect flow-run
retry ID` takes it up again and DVC skips what is done.

Left out: parallel stages (two cores, one GPU), schedules (infra/prefect.yaml), what a stage does (components/stages/).
"""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows import tasks, worktree
from flows.command_line import run_from_command_line
from flows.parameters import Alpha, Group, Iterations, LearningRate, Profile, Prompts, Seed


@flow(name="train-policy")
def train_policy(
    profile: Profile | None = None,
    seed: Seed = None,
    alpha: Alpha = None,
    iterations: Iterations = None,
    learning_rate: LearningRate = None,
    prompts_per_iteration: Prompts = None,
    group: Group = None,
    promote: bool = True,
    repository: str = ".",
) -> dict[str, Any]:
    """Train, evaluate, export and promote a policy. Every field left empty is as params.yaml at HEAD says.

    Args:
        profile: the profile of params.yaml, or a file of profiles/
        seed: seed of the training
        alpha: how much speed counts: reward = correct x speed^alpha
        iterations: iterations of reinforcement learning
        learning_rate: learning rate of the policy
        prompts_per_iteration: prompts per iteration
        group: rollouts per prompt, compared with each other
        promote: register the policy, and make it champion if it passes the gate
        repository: the checkout to work from

    Returns the profile, the stages in the order they were looked at, the figures of stage evaluate, and the verdict of
    the promotion.
    """
    given = {name: value for name, value in locals().items() if name not in ("promote", "repository")}
    checkout = worktree.root(Path(repository))
    path = worktree.path_of(checkout, flow_run.name or "run", str(flow_run.id))
    params, active = tasks.check(path if worktree.is_open(path) else checkout, given)
    stages = tasks.open_worktree(checkout, path, params)
    for stage in stages:
        tasks.run_stage(stage, path, checkout)
    figures = tasks.show(path, active)
    verdict = tasks.promote(path, checkout) if promote else None
    worktree.close_worktree(checkout, path)
    get_run_logger().info("done: the worktree is removed, what the stages made stays in the DVC cache")
    return {"profile": active, "stages": stages, "figures": figures, "promotion": verdict}


if __name__ == "__main__":
    run_from_command_line(train_policy, "flows.train_policy")
