"""What a flow does, one Prefect task each: look before leaping, open the worktree, run one DVC stage, show, promote.

Left out: the order of it all (train_policy.py). Nothing is cached here: what is up to date is DVC's question.
"""

import base64
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from components.commands.repair import repair
from components.core.errors import SettingsError, masked
from components.core.files import flatten, read_json, read_text
from components.settings import nearest
from components.stages.common.runfile import FLOW_RUN
from components.tracking.publish import metrics_files
from flows import parameters, preflight, worktree
from flows.process_group import CommandFailed, stream


@task(task_run_name="preflight")
def check(source: Path, given: Mapping[str, Any]) -> tuple[str, str]:
    """The run's params.yaml and its profile: merged, checked as a whole, and found able to run on this machine.

    `source`: the checkout, or the worktree of a run that is tried again. No retries: the answer would be the same.
    """
    text = parameters.merge(settings_of(source, given.get("profile")), given)
    settings = parameters.validated(text)
    preflight.check_device(settings.profile, os.environ)
    for model in settings.models.values():
        if model.source != "embedded":
            preflight.check_model(model.source, model.revision)
    return text, settings.profile


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
def open_worktree(checkout: Path, path: Path, params: str) -> list[str]:
    """Make or take up the run's worktree, write its params.yaml, and name its stages in order."""
    log = get_run_logger()
    if left_behind := worktree.not_carried_over(checkout):
        log.warning(
            "%d file(s) of the checkout differ from HEAD and are not part of this run, which works on HEAD: %s; "
            "commit what should be trained with",
            len(left_behind),
            ", ".join(left_behind[:20]),
        )
    taken_up = worktree.open_worktree(checkout, path)
    log.info("%s worktree %s", "taking up" if taken_up else "made", path)
    (path / "params.yaml").write_text(params, encoding="utf-8")
    return worktree.stages_in_order(path)


@task(task_run_name="{stage}", retries=1, retry_delay_seconds=2)
def run_stage(stage: str, path: Path, checkout: Path) -> None:
    """One stage of the DVC graph; skipped by DVC if it is up to date. Its output goes to the flow's log as it comes.

    One retry: training goes on from its last checkpoint, and what fails twice is not bad luck.
    """
    for line in repair(path):
        get_run_logger().warning("%s", line)
    command = worktree.dvc("--wait-for-lock", "repro", "--single-item", stage)
    _follow(command, path, checkout)


@task(task_run_name="results")
def show(path: Path, profile: str) -> dict[str, Any]:
    """The results as artifacts of the flow run; of skipped stages too, since they are read from the stages' files.

    Returns the figures of stage evaluate: {task: {policy: {"accuracy": ..., "nfe": ...}}}.
    """
    outputs = path / "outputs" / profile
    create_markdown_artifact(
        metrics_page(outputs, profile), key=f"{profile}-metrics", description="What the run measured"
    )
    picture = outputs / "report" / "pareto.png"
    if picture.exists():
        page = f"![Accuracy against forward passes]({data_uri(picture)})\n"
        create_markdown_artifact(page, key=f"{profile}-pareto", description="Accuracy against forward passes")
    return evaluated(outputs)


def evaluated(outputs: Path) -> dict[str, Any]:
    """The figures of stage evaluate by task."""
    files = sorted((outputs / "metrics").glob("evaluate-*.json"))
    return {file.stem.removeprefix("evaluate-"): read_json(file) for file in files}


@task(task_run_name="promote")
def promote(path: Path, checkout: Path, dry_run: bool = False) -> dict[str, Any]:
    """Register the exported policy and move the alias if it passes the gate. Returns the verdict, refusals included."""
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder) / "verdict.json"
        command = [sys.executable, "-m", "components.cli", "promote", "--verdict", str(verdict)]
        _follow([*command, *(["--dry-run"] if dry_run else [])], path, checkout)
        # Prefect keeps what a task returns: no password may be in it.
        return json.loads(masked(read_text(verdict, "Run `unmask promote` to see what it prints.")))


def _follow(command: Sequence[str], path: Path, checkout: Path) -> None:
    """`stream` in the stage's environment, without passwords in what is logged or raised: Prefect keeps both.

    The environment is made here, since Prefect may keep the arguments of a task.
    """
    log = get_run_logger().info
    try:
        stream(command, path, stage_environment(checkout, path), lambda line: log("%s", masked(line)))
    except CommandFailed as error:
        raise CommandFailed(masked(str(error))) from None


def metrics_page(outputs: Path, profile: str) -> str:
    """Markdown: the report's own table, then every number that a stage measured, a row each."""
    table = outputs / "report" / "table.md"
    page = [f"# Profile {profile}", ""]
    if table.exists():
        page += [read_text(table).strip(), ""]
    page += ["## Metrics of the stages", "", "| stage | metric | value |", "|---|---|---:|"]
    for stage, file in metrics_files(outputs).items():
        for name, value in flatten(read_json(file), separator="/"):
            if isinstance(value, int | float):
                page.append(f"| {stage} | {name} | {float(value):.4g} |")
    return "\n".join(page) + "\n"


def data_uri(picture: Path) -> str:
    """The PNG itself as an address: the page that shows it need not reach this machine's disk, nor any network."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


def stage_environment(checkout: Path, path: Path) -> dict[str, str]:
    """What a stage in the worktree needs to know: the worktree's code, the checkout's tracking store, this Python."""
    from components.tracking.store import tracking_uri

    joined = {"PYTHONPATH": str(path), "PATH": str(Path(sys.executable).parent)}
    return {
        **{name: os.pathsep.join(filter(None, [first, os.environ.get(name)])) for name, first in joined.items()},
        "MLFLOW_TRACKING_URI": tracking_uri(checkout),
        "DVC_NO_ANALYTICS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        # The training's MLflow run names the flow run that it is of.
        **({FLOW_RUN: str(flow_run.id)} if flow_run.id else {}),
    }
