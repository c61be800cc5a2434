"""The sub-commands of `unmask` that DVC runs: one per stage."""

from __future__ import annotations

import inspect
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

SHARED = ("train", "rules", "evaluate", "gate", "transfer", "ood")
"""The stages that several processes can share."""


def _stage(name: str, group: str | None = None, **extra: str) -> None:
    """Run the function of stage ``name`` with the settings sections in its signature.

    group: of the case that the stage works on, for the stages that work on one; else ``extra`` goes to the function.
    """
    import importlib

    from ..commands.device import check_device
    from ..core.files import flatten
    from ..settings import read
    from ..stages.common.cases import case_of
    from ..stages.common.workspace import Workspace

    _check_launch(name)
    check_device()
    settings = read(Path("params.yaml"))
    # Stages gate, transfer and ood are stage evaluate on a case of theirs.
    function_name = "evaluate" if group is not None and name != "rules" else name
    function = getattr(importlib.import_module(f"..stages.{function_name}", __package__), function_name)
    case = None if group is None else case_of(settings, group, extra.get("case", ""))
    given = extra if case is None else {"case": case}
    sections = {p: getattr(settings, p) for p in inspect.signature(function).parameters if hasattr(settings, p)}
    quiet()
    workspace = Workspace(Path.cwd(), settings.profile)
    workspace.check_writable(name, extra.get("model", "") if case is None else case.stem)
    figures = function(workspace, **sections, **given)
    for path, value in flatten(figures):
        typer.echo(f"{name} {path} {value:.4g}" if isinstance(value, float) else f"{name} {path} {value}")


def _check_launch(name: str) -> None:
    """SettingsError where a stage is started as one process of several in a way that cannot work."""
    from ..core.errors import SettingsError

    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return
    if name not in SHARED:
        raise SettingsError(f"stage {name} is the work of one process, not of several. Run `unmask {name}`.")
    lacking = [other for other in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(other)]
    if not size.isdecimal() or int(size) < 1 or lacking:
        why = f"without {', '.join(lacking)}" if lacking else "is no number of processes"
        raise SettingsError(f"WORLD_SIZE={size} {why}. Start the processes by torchrun, or unset it for one process.")
    device, here = os.environ.get("UNMASK_DEVICE", ""), os.environ.get("LOCAL_WORLD_SIZE", size)
    if here != "1" and (device == "auto" or device.startswith("cuda:")):
        where = "over all GPUs" if device == "auto" else "on one GPU"
        raise SettingsError(
            f"UNMASK_DEVICE={device} puts each of {here} processes {where}. Write UNMASK_DEVICE=cuda, with which each "
            "takes a GPU of its own."
        )


def quiet() -> None:
    from transformers.utils import logging as hugging_face

    hugging_face.disable_progress_bar()
    logging.getLogger("alembic").setLevel(logging.WARNING)


def prepare() -> None:
    """Draw prompts of every task, in splits that share no prompt.

    In: params.yaml data. Out: outputs/PROFILE/data. Example: unmask prepare
    """
    _stage("prepare")


def pretrain(model: Annotated[str, typer.Option(help="a name of params.yaml models")]) -> None:
    """Train an embedded dLLM, or pin another one's revision.

    In: outputs of prepare. Out: outputs/PROFILE/pretrain/MODEL. Example: unmask pretrain --model mini-llada
    """
    _stage("pretrain", model=model)


def headroom(case: Annotated[str, typer.Option(help="a name of params.yaml headroom.cases")]) -> None:
    """Measure what order and speed cost without any policy.

    In: outputs of prepare, pretrain. Out: outputs/PROFILE/headroom/CASE.json. Example: unmask headroom --case many
    """
    _stage("headroom", case=case)


def influence() -> None:
    """Probe the frozen dLLM: how commits move other predictions.

    In: outputs of prepare, pretrain. Out: outputs/PROFILE/influence. Example: unmask influence
    """
    _stage("influence")


def distill() -> None:
    """Teach the policy to do what a reference heuristic does.

    In: outputs of influence. Out: outputs/PROFILE/distill/policy. Example: unmask distill
    """
    _stage("distill")


def train() -> None:
    """Reinforce the distilled policy; a killed run resumes.

    In: outputs of distill. Out: outputs/PROFILE/train (policy, metrics.jsonl, run.json), an MLflow run.
    Example: unmask train
    """
    _stage("train")


def rules(
    group: Annotated[str, typer.Option(help="evaluate, gate, transfer or ood")],
    case: Annotated[str, typer.Option(help="a task of evaluate, or a case of transfer or ood")] = "",
) -> None:
    """Sweep the heuristics on one case; no policy is needed.

    In: outputs of prepare, pretrain. Out: outputs/PROFILE/rules/GROUP-CASE (results.jsonl, sources.json).
    Example: unmask rules --group transfer --case longer
    """
    _stage("rules", group, case=case)


def evaluate(case: Annotated[str, typer.Option(help="a task of params.yaml evaluate.tasks")]) -> None:
    """Compare the policy with every swept rule, on new prompts.

    In: outputs of train, rules. Out: outputs/PROFILE/evaluate/evaluate-CASE, tables/evaluate-CASE.csv.
    Example: unmask evaluate --case sudoku_many
    """
    _stage("evaluate", "evaluate", case=case)


def gate() -> None:
    """Decode the gate prompts, by which a policy is promoted.

    In: outputs of train, rules. Out: outputs/PROFILE/evaluate/gate. Example: unmask gate
    """
    _stage("gate", "gate")


def transfer(case: Annotated[str, typer.Option(help="a name of params.yaml transfer")]) -> None:
    """Evaluate the same policy on another dLLM, a longer canvas.

    In: outputs of train, rules. Out: outputs/PROFILE/tables/transfer-CASE.csv.
    Example: unmask transfer --case longer
    """
    _stage("transfer", "transfer", case=case)


def ood(case: Annotated[str, typer.Option(help="a name of params.yaml ood")]) -> None:
    """Evaluate the same policy on a task it was not trained for.

    In: outputs of train, rules. Out: outputs/PROFILE/tables/ood-CASE.csv. Example: unmask ood --case related
    """
    _stage("ood", "ood", case=case)


def export() -> None:
    """Write the policy as one ONNX file that decodes the same texts.

    In: outputs of train. Out: outputs/PROFILE/export/policy.onnx. Example: unmask export
    """
    _stage("export")


def report() -> None:
    """Draw pictures, pages, tables and the model card.

    In: outputs of evaluate, gate, transfer, ood, export. Out: outputs/PROFILE/report, plots, result; the MLflow run.
    Example: unmask report
    """
    _stage("report")


COMMANDS = (
    prepare,
    pretrain,
    headroom,
    influence,
    distill,
    train,
    rules,
    evaluate,
    gate,
    transfer,
    ood,
    export,
    report,
)
