"""The sub-commands of `unmask` around the pipeline: promote, rollback, demo, decode, compare, bench, lm_eval ..."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..commands.device import check_device
from ..policies.rules import decoders
from .stages import quiet


class Choice(StrEnum):
    mode = "mode"
    sample = "sample"


class Weights(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


POLICY = "a rule and its number, a policy folder, an .onnx file, or models:/NAME@champion"
MODEL = "dLLM folder or hub name, NAME@REVISION for one of its commits; by default the profile's own"
BLOCK = "block length; by default the profile's own"
DRAW = "how a learned policy is drawn from"
_WIDTH = max(map(len, decoders())) + 3
# \b keeps the lines as they are.
RULES_EPILOG = "\b\nRules, and what N may be:\n" + "\n".join(
    f"{f'{name}:N' if rule.number else name:{_WIDTH}}{rule.range}{f': {rule.number}' if rule.number else ''}"
    for name, rule in decoders().items()
)


def promote(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the verdict, change nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the verdict as one line of JSON")] = False,
    verdict_file: Annotated[Path | None, typer.Option("--verdict", help="also write the verdict here, as JSON")] = None,
) -> None:
    """Register the exported policy; champion if it passes the gate.

    In: outputs of train, gate, export. Out: a version of unmasking-policy-PROFILE in the MLflow registry.
    Example: unmask promote --dry-run
    """
    from ..commands.champion import reevaluate_on
    from ..commands.evidence import Pick
    from ..commands.next_steps import next_steps
    from ..commands.promote import promote as run
    from ..core.errors import SettingsError
    from ..settings import read
    from ..stages.common.workspace import Workspace

    if verdict_file is not None and verdict_file.is_dir():
        raise SettingsError(f"--verdict {verdict_file} is a folder. Name a file.")
    check_device()
    settings = read(Path("params.yaml"))
    workspace = Workspace(Path.cwd(), settings.profile)
    quiet()
    if not dry_run:
        from ..tracking import abandoned, store

        abandoned.close(store.tracking_uri(workspace.root))
    pick = Pick.of(settings)
    verdict = run(workspace.outputs, workspace.root, pick, dry_run, reevaluate_on(workspace, settings))
    if verdict_file is not None:
        _write_verdict(verdict_file, asdict(verdict))
    if as_json:
        typer.echo(json.dumps(asdict(verdict)))
        return
    typer.echo(str(verdict))
    if not dry_run:
        typer.echo("\n" + "\n".join(next_steps(workspace.outputs, workspace.root, settings.profile, verdict)))


def _write_verdict(file: Path, verdict: dict[str, object]) -> None:
    from ..core.files import write_json

    if file.exists() and not file.is_file():  # /dev/stdout stays one
        with file.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(verdict) + "\n")
    else:
        write_json(file, verdict)


def rollback(
    version: Annotated[int | None, typer.Option(min=1, help="by default the newest promoted one before it")] = None,
    reason: Annotated[str, typer.Option(help="why; kept with the withdrawn version")] = "",
) -> None:
    """Withdraw the champion and make an earlier version live.

    In: the MLflow registry. Out: the alias champion on that version, the reason on the one before.
    Example: unmask rollback --version 3 --reason "wrong answers on long prompts"
    """
    from ..commands.rollback import rollback as run
    from ..settings import read

    settings = read(Path("params.yaml"))
    quiet()
    typer.echo(str(run(Path.cwd(), settings.profile, version, reason)))


def demo() -> None:
    """Watch a released policy decode three puzzles, here and now.

    In: nothing. Out: the canvas after every forward pass, by a rule and by the policy. Example: unmask demo
    """
    from ..commands.demo import show_demo

    quiet()
    for line in show_demo():
        typer.echo(line)


def decode(
    prompt: Annotated[str, typer.Argument(help="as the task writes it, for example W.1...4..4..1..3.")] = "",
    policy: Annotated[list[str] | None, typer.Option(help=f"{POLICY}; several are shown side by side")] = None,
    task: Annotated[
        str | None, typer.Option(help="of params.yaml data.tasks; by default found by the prompt's first letter")
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help="canvas length; by default the task's own")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    choose: Annotated[Choice, typer.Option(help=DRAW)] = Choice.mode,
    block: Annotated[int | None, typer.Option(min=1, help=BLOCK)] = None,
    canvas: Annotated[str | None, typer.Option(help="a text to fill in, [MASK] for each missing token")] = None,
) -> None:
    """Decode one prompt and show the canvas filling up, in order.

    In: a prompt, a policy; outputs of pretrain. Out: the canvas after every forward pass.
    With --model and an .onnx policy it needs no repository.
    Example: unmask decode W.1...4..4..1..3. --policy threshold:0.9
    """
    from ..commands.decode import Asked, show_decode

    quiet()
    check_device()
    show_decode(policy or ["confidence"], Asked(prompt, task, length, model, choose.value, block, canvas))


def compare(
    one: Annotated[str, typer.Argument(help=POLICY)],
    other: Annotated[str, typer.Argument(help="the same")],
    prompt: Annotated[
        str | None, typer.Option(help="one to show; by default a test prompt that tells the two apart")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="of params.yaml data.tasks; by default the prompt's, or the gate task")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="test prompts to average over, at most")] = 256,
    choose: Annotated[Choice, typer.Option(help=DRAW)] = Choice.mode,
    block: Annotated[int | None, typer.Option(min=1, help=BLOCK)] = None,
) -> None:
    """Compare two policies on the same prompts, also at equal speed.

    In: two policies; outputs of prepare and pretrain. Out: two canvases, a table, paired differences.
    Example: unmask compare entropy_bound:0.3 models:/unmasking-policy-tiny@champion
    """
    from ..commands.compare import show_comparison
    from ..commands.decode import Asked

    quiet()
    check_device()
    show_comparison(one, other, Asked(prompt, task, choose=choose.value, block=block), count)


def bench(
    policy: Annotated[list[str] | None, typer.Option(help=f"{POLICY}; beside those that are always measured")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    random: Annotated[
        int | None,
        typer.Option(min=1, max=16384, help="a random dLLM (4 layers, width 128), canvases this long, no data"),
    ] = None,
    vocabulary: Annotated[int, typer.Option(min=8, max=1000000, help="tokens of the random dLLM")] = 68,
    dtype: Annotated[Weights | None, typer.Option(help="of the dLLM's weights; by default the profile's")] = None,
    count: Annotated[int, typer.Option(min=1, help="prompts, and rows of the training iteration at most")] = 128,
    rows: Annotated[int, typer.Option(min=1, help="rows in flight, and the reference loop's batch")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="pairs of runs that count, at most")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="for all of it; one pair of each is measured anyhow")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="JSON to stdout, the tables to stderr")] = False,
) -> None:
    """Measure how fast this machine decodes and trains, and why.

    In: outputs of prepare and pretrain, policies if there are; nothing with --random. Out: tables, JSON.
    Example: unmask bench --random 64 --json > bench.json
    """
    from rich.console import Console

    from ..commands import bench

    quiet()
    check_device()
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


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness on a dLLM and a policy.

    The words are those of `lm_eval`; the model's name is `unmask`. In: a dLLM, a policy, tasks that generate text.
    Out: the harness's table, and files with --output_path.
    Example: unmask lm_eval --model unmask --model_args denoiser=FOLDER,policy=entropy_bound:0.3 --tasks gsm8k
    """
    from ..commands.lm_eval_model import run

    run(context.args)


def doctor() -> None:
    """Check versions, device, settings, exactness and the tracker.

    In: nothing. Out: one line per check. Example: unmask doctor
    """
    from ..commands.doctor import checks

    failed = False
    for name, ok, text in checks(Path.cwd()):
        failed |= not ok
        typer.echo(f"{'ok  ' if ok else 'FAIL'} {name}: {text}")
    raise typer.Exit(int(failed))


def repair() -> None:
    """Mend what a kill left: lock files, empty folders, half outputs.

    In: .dvc. Out: a line per thing that was mended; nothing while a DVC runs. Example: unmask repair
    """
    from ..commands.repair import repair as run

    for line in run(Path.cwd()):
        typer.echo(f"repair: {line}")


TAKE_POLICIES = (decode, compare, bench)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
COMMANDS = (promote, rollback, demo, decode, compare, bench, lm_eval, doctor, repair)
