"""Flow `train-policy`: the DVC stages one by one in a worktree of the run's own, then the results, then the promotion.

With a server: `prefect deployment run train-policy/cpu -p seed=1 --watch`, and in another shell `tail -f
.stack/worker-cpu.log` to follow its log. Without any: `python -m flows.train_policy --seed 1` (Prefect brings up a
temporary one). A failed, crashed or cancelled run keeps its worktree; `prefect flow-run retry ID` takes it up again and
DVC skips what is done.

Left out: parallel stages (two cores, one GPU), schedules (infra/prefect.yaml), what a stage does (components/stages/).
"""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from components.tracking.store import tracking_uri
from flows import results, tasks, worktree
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
) -> Any:
    """Train, evaluate, export and promote a policy. Every field left empty is as the profile's file at HEAD says.

    Args:
        profile: a profile, of params.yaml or of a file of profiles/. Empty: that of params.yaml
        seed: seed of the training. Empty: the profile's own
        alpha: how much speed counts, reward = correct x speed^alpha. Empty: the profile's own
        iterations: iterations of reinforcement learning. Empty: the profile's own
        learning_rate: learning rate of the policy. Empty: the profile's own
        prompts_per_iteration: prompts per iteration. Empty: the profile's own
        group: rollouts per prompt, compared with each other. Empty: the profile's own
        promote: register the policy, and make it champion if it passes the gate
        repository: the checkout to work from, a dot for the one of the machine that runs this

    Returns the profile, the stages in the order they were looked at, the figures of stage evaluate, and the verdict of
    the promotion, which is also what the last state says.
    """
    given = {name: value for name, value in locals().items() if name not in ("promote", "repository")}
    checkout = worktree.root(Path(repository))
    path = worktree.path_of(checkout, "train-policy", str(flow_run.id))
    params, settings = tasks.check(path if worktree.is_open(path) else checkout, given)
    results.name_run(settings, "train")
    stages = tasks.open_worktree(checkout, path, params)
    tasks.run_stages(stages, path, checkout, settings.profile)
    verdict = tasks.promote(path, checkout) if promote else None
    figures = results.show(path, settings.profile, verdict, tracking_uri(checkout))
    worktree.close_worktree(checkout, path)
    get_run_logger().info("done: the worktree is removed, what the stages made stays in the DVC cache")
    found = {"profile": settings.profile, "stages": list(stages), "figures": figures, "promotion": verdict}
    return results.completed(results.headline(verdict), found)


if __name__ == "__main__":
    run_from_command_line(train_policy, "flows.train_policy")
