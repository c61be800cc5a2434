"""What a flow does, one Prefect task each: look before leaping, open the worktree, run one DVC stage, promote.

Left out: the order of it all (train_policy.py), what is shown of it (results.py). Nothing is cached here: what is up to
date is DVC's question.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from components.commands.repair import repair
from components.core.errors import SettingsError, masked
from components.core.files import read_text
from components.settings import Settings, nearest
from components.stages.common.runfile import FLOW_RUN
from components.tracking.pages import FLOW_PAGE
from flows import parameters, preflight, results, worktree
from flows.process_group import CommandFailed, stream


@task(task_run_name="preflight")
def check(source: Path, given: Mapping[str, Any]) -> tuple[str, Settings]:
    """The run's params.yaml and what it means: merged, checked as a whole, and found able to run on this machine.

    `source`: the checkout, or the worktree of a run that is tried again. No retries: the answer would be the same.
    """
    text = parameters.merge(settings_of(source, given.get("profile")), given)
    settings = parameters.validated(text)
    preflight.check_device(settings, os.environ)
    for model in preflight.pretrained(settings):
        preflight.check_model(model.source, model.revision)
    return text, settings


def settings_of(source: Path, profile: str | None) -> str:
    """The settings at HEAD: params.yaml where it is of this profile or none is named, else profiles/<profile>.yaml.

    SettingsError where there is no such file, or its profile has another name.
    """
    active = worktree.read_at_head(source, "params.yaml")
    if profile in (None, parameters.profile_of(active)):
        return active
    known = [name.stem for name in worktree.files_at_head(source, "profiles") if name.suffix == ".yaml"]
    if profile not in known:
        known = sorted({*known, parameters.profile_of(active)})
        raise SettingsError(
            f"profile={profile!r} is neither that of params.yaml nor a file of profiles/ in the last commit"
            f"{nearest(str(profile), known)}. Use one of {', '.join(known)}, or commit profiles/{profile}.yaml."
        )
    text = worktree.read_at_head(source, f"profiles/{profile}.yaml")
    if parameters.profile_of(text) != profile:
        raise SettingsError(
            f"profiles/{profile}.yaml: profile={parameters.profile_of(text)!r} is not the file's own name, and its "
            f"outputs would be that one's. Write profile: {profile}."
        )
    return text


@task(task_run_name="worktree")
def open_worktree(checkout: Path, path: Path, params: str) -> dict[str, list[str]]:
    """Make or take up the run's worktree and write its params.yaml. Returns its stages in order, with their needs."""
    log = get_run_logger()
    if left_behind := worktree.not_carried_over(checkout):
        log.warning(
            "%d file(s) of the checkout differ from HEAD, which is what runs: %s. Commit what to train with.",
            len(left_behind),
            ", ".join(left_behind[:20]),
        )
    taken_up = worktree.open_worktree(checkout, path)
    log.info("%s worktree %s", "taking up" if taken_up else "made", path)
    (path / "params.yaml").write_text(params, encoding="utf-8")
    return worktree.graph_of(path)


@task(task_run_name="{stage}", retries=1, retry_delay_seconds=2)
def run_stage(stage: str, path: Path, checkout: Path, profile: str) -> str:
    """One stage of the DVC graph; skipped by DVC if it is up to date. Its output goes to the flow's log as it comes.

    One retry: training goes on from its last checkpoint, and what fails twice is not bad luck. Returns, and logs, one
    line with what came of it.
    """
    for line in repair(path):
        get_run_logger().warning("%s", line)
    begin = time.monotonic()
    command = worktree.dvc("--wait-for-lock", "repro", "--single-item", stage)
    ran = any(line.startswith("Running stage") for line in _follow(command, path, checkout))
    how = f"ran in {time.monotonic() - begin:.0f} s" if ran else "up to date"
    figures = results.stage_figures(path / "outputs" / profile, stage)
    line = f"{stage}: {how}" + (f", {figures}" if figures else "")
    get_run_logger().info("%s", line)
    return line


def run_stages(graph: Mapping[str, Sequence[str]], path: Path, checkout: Path, profile: str) -> None:
    """The stages one after another; each waits for those that it needs, which makes the flow run's graph DVC's."""
    done: dict[str, State[str]] = {}
    for stage, needs in graph.items():
        done[stage] = run_stage(
            stage, path, checkout, profile, wait_for=[done[need] for need in needs], return_state=True
        )
        done[stage].result()  # raises where it failed


@task(task_run_name="promote")
def promote(path: Path, checkout: Path, dry_run: bool = False) -> dict[str, Any]:
    """Register the exported policy and move the alias if it passes the gate. Returns the verdict, refusals included."""
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder) / "verdict.json"
        command = [sys.executable, "-m", "components.cli", "promote", "--verdict", str(verdict)]
        _follow([*command, *(["--dry-run"] if dry_run else [])], path, checkout)
        # Prefect keeps what a task returns: no password may be in it.
        return json.loads(masked(read_text(verdict, "Run `unmask promote` to see what it prints.")))


def _follow(command: Sequence[str], path: Path, checkout: Path) -> list[str]:
    """`stream` in the stage's environment, without passwords in what is logged or raised: Prefect keeps both.

    The environment is made here, since Prefect may keep the arguments of a task. Returns the lines.
    """
    log, lines = get_run_logger().info, list[str]()

    def take(line: str) -> None:
        lines.append(masked(line))
        log("%s", lines[-1])

    try:
        stream(command, path, stage_environment(checkout, path), take)
    except CommandFailed as error:
        raise CommandFailed(masked(str(error))) from None
    return lines


# A Dask worker sets the first for its own memory, which also fixes the second at 128 KiB: every tensor above that is
# mapped anew, and a stage spends half of its time in page faults.
MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


def stage_environment(checkout: Path, path: Path) -> dict[str, str]:
    """What a stage in the worktree needs to know: the worktree's code, the checkout's tracking store, this Python."""
    from components.tracking.store import tracking_uri

    page = url_for("flow-run", obj_id=flow_run.id) if flow_run.id else None
    joined = {"PYTHONPATH": str(path), "PATH": str(Path(sys.executable).parent)}
    return {
        **{name: os.pathsep.join(filter(None, [first, os.environ.get(name)])) for name, first in joined.items()},
        "MLFLOW_TRACKING_URI": tracking_uri(checkout),
        **MEMORY,
        # The training's MLflow run names the flow run that it is of, and links to its page where a server has one.
        **({FLOW_RUN: str(flow_run.id)} if flow_run.id else {}),
        **({FLOW_PAGE: page} if page else {}),
    }
