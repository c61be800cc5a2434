"""`unmask`: a sub-command per stage (stages.py) and the tools around the pipeline (tools.py). Imports are lazy."""

from __future__ import annotations

import os
import sys
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

from . import stages, tools  # noqa: E402

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Learned unmasking policies for masked diffusion language models.\n\nStages and their tools run inside the "
    "repository. demo, doctor, decode --model and bench --random run anywhere.",
)
for _command in (*stages.COMMANDS, *tools.COMMANDS):
    app.command(
        _command.__name__,
        epilog=tools.RULES_EPILOG if _command in tools.TAKE_POLICIES else None,
        context_settings=tools.PASSED_ON if _command is tools.lm_eval else None,
    )(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        from ..commands.extras import DISTRIBUTION

        try:
            typer.echo(f"unmask {version(DISTRIBUTION)}")
        except PackageNotFoundError:
            typer.echo("unmask, a checkout that is not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None: ...


def _run_code_of_this_folder() -> None:
    """Start again with the code of the repository that the command is called in, if it is another one.

    `dvc exp run --queue` and `--temp` run stages in a copy with code of its own, as Git worktrees do.
    """
    here = Path.cwd()
    code = (here / "components" / "cli" / "__main__.py", here / "components" / "cli.py")  # now, and in older commits
    if here.resolve() == Path(__file__).resolve().parents[2]:
        return
    if not ((here / "dvc.yaml").is_file() and any(map(Path.is_file, code)) and _is_checkout(here)):
        return
    if os.environ.get("UNMASK_CODE") != str(here):  # else the code here does not import from here: go on with ours
        path = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
        os.environ.update(UNMASK_CODE=str(here), PYTHONPATH=path)
        os.execv(sys.executable, [sys.executable, "-m", "components.cli", *sys.argv[1:]])


def _is_checkout(folder: Path) -> bool:
    """Whether the folder holds this project: another one may have a folder `components` too."""
    from ..commands.extras import DISTRIBUTION

    project = folder / "pyproject.toml"
    return project.is_file() and f'"{DISTRIBUTION}"'.encode() in project.read_bytes()


def main() -> None:
    """Run the command line. An error that a user can mend is one line on stderr."""
    from ..commands.extras import explain
    from ..core import termination
    from ..core.errors import sentence

    _run_code_of_this_folder()
    termination.unwind_on_signals()
    termination.end_with_dvc()
    try:
        app(prog_name="unmask")
    except Exception as error:
        said = explain(error) if isinstance(error, ModuleNotFoundError) else sentence(error)
        if said is None:
            raise
        typer.echo(f"unmask: {said}", err=True)
        sys.exit(1)
