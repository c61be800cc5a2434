"""`unmask`: one sub-command per stage, and promote, rollback, decode, compare, bench, doctor. Imports are lazy."""

from __future__ import annotations

import inspect
import json
import os
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

# Before torch is imported anywhere: waiting threads that spin cost a factor of 3 to 5 on two busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
for _name, _value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "true",
    "ORT_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import typer  # noqa: E402

from components.policies.rules import decoders  # noqa: E402

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Learned unmasking policies for masked diffusion language models. Run inside the repository.",
)


class Choice(StrEnum):
    mode = "mode"
    sample = "sample"


class Weights(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


POLICY = "a rule (threshold:0.9, confidence), a policy folder, an .onnx file, or models:/NAME@champion"
EVERY_RULE = "; ".join(f"{name}:N, {rule.range}, {rule.number}" for name, rule in decoders().items())


def _stage(name: str, group: str | None = None, **extra: str) -> None:
    """Run the function of stage ``name`` with the settings sections in its signature.

    group: of the case that the stage works on, for the stages that work on one; else ``extra`` goes to the function.
    """
    import importlib

    from components.core.files import flatten
    from components.settings import read
    from components.stages.common.cases import case_of
    from components.stages.common.workspace import Workspace

    settings = read(Path("params.yaml"))
    # Stages gate, transfer and ood are stage evaluate on a case of theirs.
    function_name = "evaluate" if group is not None and name != "rules" else name
    function = getattr(importlib.import_module(f"components.stages.{function_name}"), function_name)
    given = extra if group is None else {"case": case_of(settings, group, extra.get("case", ""))}
    sections = {p: getattr(settings, p) for p in inspect.signature(function).parameters if hasattr(settings, p)}
    _quiet()
    workspace = Workspace(Path.cwd(), settings.profile)
    workspace.check_writable(name)
    figures = function(workspace, **sections, **given)
    for path, value in flatten(figures):
        typer.echo(f"{name} {path} {value:.4g}" if isinstance(value, float) else f"{name} {path} {value}")


def _quiet() -> None:
    import logging

    from transformers.utils import logging as hugging_face

    hugging_face.disable_progress_bar()
    logging.getLogger("alembic").setLevel(logging.WARNING)


@app.command()
def prepare() -> None:
    """Draw prompts of every task, in splits that share no prompt.

    In: params.yaml data. Out: outputs/PROFILE/data. Example: unmask prepare
    """
    _stage("prepare")


@app.command()
def pretrain(model: Annotated[str, typer.Option(help="a name of params.yaml models")]) -> None:
    """Train an embedded dLLM, or pin the revision of one from elsewhere.

    In: outputs of prepare. Out: outputs/PROFILE/pretrain/MODEL. Example: unmask pretrain --model mini-llada
    """
    _stage("pretrain", model=model)


@app.command()
def headroom(case: Annotated[str, typer.Option(help="a name of params.yaml headroom.cases")]) -> None:
    """Measure the cost of order and of speed before any policy is seen.

    In: outputs of prepare, pretrain. Out: outputs/PROFILE/headroom/CASE.json. Example: unmask headroom --case many
    """
    _stage("headroom", case=case)


@app.command()
def influence() -> None:
    """Probe the frozen dLLM: how does a commit move its other predictions?

    In: outputs of prepare, pretrain. Out: outputs/PROFILE/influence. Example: unmask influence
    """
    _stage("influence")


@app.command()
def distill() -> None:
    """Teach the policy to do what a reference heuristic does.

    In: outputs of influence. Out: outputs/PROFILE/distill/policy. Example: unmask distill
    """
    _stage("distill")


@app.command()
def train() -> None:
    """Reinforce the distilled policy; killed, it resumes from a checkpoint.

    In: outputs of distill. Out: outputs/PROFILE/train (policy, metrics.jsonl, run.json), an MLflow run.
    Example: unmask train
    """
    _stage("train")


@app.command()
def rules(
    group: Annotated[str, typer.Option(help="evaluate, gate, transfer or ood")],
    case: Annotated[str, typer.Option(help="a task of evaluate, or a case of transfer or ood")] = "",
) -> None:
    """Sweep the heuristics on one case; no policy is needed.

    In: outputs of prepare, pretrain. Out: outputs/PROFILE/rules/GROUP-CASE/results.jsonl.
    Example: unmask rules --group transfer --case longer
    """
    _stage("rules", group, case=case)


@app.command()
def evaluate(case: Annotated[str, typer.Option(help="a task of params.yaml evaluate.tasks")]) -> None:
    """Compare the policy with every swept rule, on prompts it never saw.

    In: outputs of train, rules. Out: outputs/PROFILE/evaluate/evaluate-CASE, tables/evaluate-CASE.csv.
    Example: unmask evaluate --case sudoku_many
    """
    _stage("evaluate", "evaluate", case=case)


@app.command()
def gate() -> None:
    """Decode the gate prompts, by which a policy is promoted.

    In: outputs of train, rules. Out: outputs/PROFILE/evaluate/gate. Example: unmask gate
    """
    _stage("gate", "gate")


@app.command()
def transfer(case: Annotated[str, typer.Option(help="a name of params.yaml transfer")]) -> None:
    """Evaluate the same policy on another dLLM, or on a longer canvas.

    In: outputs of train, rules. Out: outputs/PROFILE/tables/transfer-CASE.csv.
    Example: unmask transfer --case longer
    """
    _stage("transfer", "transfer", case=case)


@app.command()
def ood(case: Annotated[str, typer.Option(help="a name of params.yaml ood")]) -> None:
    """Evaluate the same policy on a task it was not trained for.

    In: outputs of train, rules. Out: outputs/PROFILE/tables/ood-CASE.csv. Example: unmask ood --case related
    """
    _stage("ood", "ood", case=case)


@app.command()
def export() -> None:
    """Write the policy as one ONNX file that decodes the same texts.

    In: outputs of train. Out: outputs/PROFILE/export/policy.onnx. Example: unmask export
    """
    _stage("export")


@app.command()
def report() -> None:
    """Draw pictures, pages, tables and the model card.

    In: outputs of evaluate, transfer, ood, export. Out: outputs/PROFILE/report, plots. Example: unmask report
    """
    _stage("report")


@app.command()
def promote(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the verdict, change nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the verdict as one line of JSON")] = False,
    verdict_file: Annotated[Path | None, typer.Option("--verdict", help="also write the verdict here, as JSON")] = None,
) -> None:
    """Register the exported policy and make it champion if it passes the gate.

    In: outputs of train, gate, export. Out: a version of unmasking-policy-PROFILE in the MLflow registry.
    Example: unmask promote --dry-run
    """
    from components.commands.champion import reevaluate_on
    from components.commands.evidence import Pick
    from components.commands.promote import promote as run
    from components.core.files import write_json
    from components.settings import read
    from components.stages.common.workspace import Workspace

    settings = read(Path("params.yaml"))
    workspace = Workspace(Path.cwd(), settings.profile)
    _quiet()
    if not dry_run:
        from components.tracking import abandoned, store

        abandoned.close(store.tracking_uri(workspace.root))
    pick = Pick.of(settings)
    verdict = run(workspace.outputs, workspace.root, pick, dry_run, reevaluate_on(workspace, settings))
    if verdict_file is not None:
        write_json(verdict_file, asdict(verdict))
    typer.echo(json.dumps(asdict(verdict)) if as_json else str(verdict))


@app.command()
def rollback(
    version: Annotated[int | None, typer.Option(min=1, help="by default the newest promoted one before it")] = None,
    reason: Annotated[str, typer.Option(help="why; kept with the withdrawn version")] = "",
) -> None:
    """Withdraw the champion and make an earlier version live.

    In: the MLflow registry. Out: the alias champion on that version, the reason on the one before.
    Example: unmask rollback --version 3 --reason "wrong answers on long prompts"
    """
    from components.commands.rollback import rollback as run
    from components.settings import read

    settings = read(Path("params.yaml"))
    _quiet()
    typer.echo(str(run(Path.cwd(), settings.profile, version, reason)))


@app.command()
def demo() -> None:
    """Watch a released policy decode three puzzles; nothing is trained.

    In: nothing. Out: the canvas after every forward pass, by a rule and by the policy. Example: unmask demo
    """
    from components.commands.demo import show_demo

    _quiet()
    for line in show_demo():
        typer.echo(line)


@app.command()
def decode(
    prompt: Annotated[str, typer.Argument(help="as the task writes it, for example W.1...4..4..1..3.")] = "",
    policy: Annotated[
        list[str] | None, typer.Option(help=f"{POLICY}; give several to see them side by side. Rules: {EVERY_RULE}")
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help="canvas length; by default the task's own")] = None,
    model: Annotated[str | None, typer.Option(help="dLLM folder or hub name; by default the profile's own")] = None,
    choose: Annotated[Choice, typer.Option(help="how a learned policy is drawn from")] = Choice.mode,
    block: Annotated[int | None, typer.Option(min=1, help="block length; by default the profile's own")] = None,
    canvas: Annotated[str | None, typer.Option(help="text to fill in, [MASK] for each missing token")] = None,
) -> None:
    """Decode one prompt and show the canvas filling up, in order.

    In: a prompt, a policy; outputs of pretrain. Out: the canvas after every forward pass.
    Example: unmask decode W.1...4..4..1..3. --policy threshold:0.9
    """
    from components.commands.decode import show_decode

    show_decode(policy or ["confidence"], prompt, length, model, choose.value, block, canvas)


@app.command()
def compare(
    one: Annotated[str, typer.Argument(help=POLICY)],
    other: Annotated[str, typer.Argument(help="the same")],
    prompt: Annotated[
        str | None, typer.Option(help="one to show; by default the gate task's first test prompt")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="test prompts to average over, at most")] = 256,
    choose: Annotated[Choice, typer.Option(help="how a learned policy is drawn from")] = Choice.mode,
    block: Annotated[int | None, typer.Option(min=1, help="block length; by default the profile's own")] = None,
) -> None:
    """Two policies side by side: one prompt shown, accuracy and forward passes over many.

    In: two policies; outputs of prepare and pretrain. Out: two canvases, a table with paired differences.
    Example: unmask compare entropy_bound:0.3 models:/unmasking-policy-tiny@champion
    """
    from components.commands.compare import show_comparison

    show_comparison(one, other, prompt, count, choose.value, block)


@app.command()
def bench(
    policy: Annotated[list[str] | None, typer.Option(help=f"{POLICY}; beside those that are always measured")] = None,
    model: Annotated[str | None, typer.Option(help="dLLM folder or hub name; by default the profile's own")] = None,
    random: Annotated[
        int | None, typer.Option(min=1, help="a random dLLM (4 layers, width 128), canvases this long, no data")
    ] = None,
    vocabulary: Annotated[int, typer.Option(min=8, help="tokens of the random dLLM")] = 68,
    dtype: Annotated[Weights | None, typer.Option(help="of the dLLM's weights; by default the profile's")] = None,
    count: Annotated[int, typer.Option(min=1, help="prompts, and rows of the training round at most")] = 128,
    rows: Annotated[int, typer.Option(min=1, help="rows in flight, and the reference loop's batch")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="pairs of runs that count, at most")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="for all of it; one pair of each is measured anyhow")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="JSON to stdout, the tables to stderr")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="log it as a run of the profile's experiment")] = False,
) -> None:
    """The decode engine against a plain loop, a training round in its parts, the policy's step: how fast, and why.

    In: outputs of prepare and pretrain, policies if there are; nothing with --random. Out: tables, JSON.
    Example: unmask bench --random 64 --json > bench.json
    """
    from rich.console import Console

    from components.commands import bench

    _quiet()
    console = Console(stderr=as_json, highlight=False)
    console = console if console.is_terminal else Console(stderr=as_json, highlight=False, width=160)
    found = bench.bench(
        bench.Request(
            policy or (), model, random, vocabulary, dtype.value if dtype else None, count, rows, repeats, seconds
        ),
        console.print,
    )
    if as_json:
        typer.echo(json.dumps(found))
    if mlflow:
        bench.log_to_mlflow(found)


@app.command()
def doctor() -> None:
    """Is this machine ready? Versions, device, settings, an exactness check, the tracker.

    In: nothing. Out: one line per check. Example: unmask doctor
    """
    from components.commands.doctor import checks

    failed = False
    for name, ok, text in checks(Path.cwd()):
        failed |= not ok
        typer.echo(f"{'ok  ' if ok else 'FAIL'} {name}: {text}")
    raise typer.Exit(int(failed))


@app.command()
def repair() -> None:
    """Mend what a killed DVC may leave: an empty lock file, empty folders in its run cache.

    In: .dvc. Out: a line per thing that was mended; nothing while a DVC runs. Example: unmask repair
    """
    from components.commands.repair import repair as run

    for line in run(Path.cwd()):
        typer.echo(f"repair: {line}")


def _run_code_of_this_folder() -> None:
    """Start again with the code of the repository that the command is called in, if it is another one.

    `dvc exp run --queue` and `--temp` run stages in a copy with code of its own, as Git worktrees do.
    """
    here = Path.cwd()
    marks = (here / "dvc.yaml", here / "components" / "cli.py")
    if here.resolve() == Path(__file__).resolve().parents[1] or not all(map(Path.is_file, marks)):
        return
    if os.environ.get("UNMASK_CODE") != str(here):  # else the code here does not import from here: go on with ours
        path = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
        os.environ.update(UNMASK_CODE=str(here), PYTHONPATH=path)
        os.execv(sys.executable, [sys.executable, "-m", "components.cli", *sys.argv[1:]])


def main() -> None:
    from components.core import ending
    from components.core.errors import sentence

    _run_code_of_this_folder()
    ending.unwind_on_signals()
    ending.end_with_dvc()
    try:
        app(prog_name="unmask")
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        typer.echo(f"unmask: {said}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
