"""A git worktree of its own for each flow run, with the checkout's DVC cache, and the stages in it in order.

A run must neither see the edits of whoever works in the checkout, nor touch the checkout, nor meet another run. It
starts from HEAD. A worktree that is there already is taken up again with all that is done in it; that is what makes a
retry of a flow run cheap.

Left out: Prefect (tasks.py), what the parameters mean (parameters.py).
"""

import configparser
import graphlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from components.core.errors import DataError, masked

FOLDER = ".worktrees"


def root(repository: Path) -> Path:
    """The top folder of the git checkout that `repository` lies in. Raises DataError if it cannot carry a flow run."""
    for question in (["--show-toplevel"], ["--verify", "--quiet", "HEAD"]):
        answer = subprocess.run(["git", "rev-parse", *question], cwd=repository, capture_output=True, text=True)
        if answer.returncode:
            raise DataError(
                f"{repository.resolve()} is not a git repository with a commit. Make a first commit, or run "
                f"`dvc repro`, which needs none."
            )
    return Path(_run(["git", "rev-parse", "--show-toplevel"], repository).strip())


def not_carried_over(checkout: Path) -> list[str]:
    """Files of the checkout that differ from HEAD or are unknown to it, and which a flow run therefore does not see."""
    lines = _run(["git", "status", "--porcelain", "--untracked-files=normal"], checkout).splitlines()
    return [name for line in lines if (name := line[3:]) != "dvc.lock" and not name.startswith("outputs/")]


def path_of(checkout: Path, flow: str, run_id: str) -> Path:
    """Where the worktree of this run of the flow is, or would be: the same for every retry of the run."""
    return checkout / FOLDER / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', flow).strip('-.')}-{run_id[:8]}"


def read_at_head(checkout: Path, name: str) -> str:
    """The text of file `name` as committed: uncommitted edits of the checkout do not enter a run."""
    return _run(["git", "show", f"HEAD:{name}"], checkout)


def files_at_head(checkout: Path, folder: str) -> list[Path]:
    """The files of a folder as committed, relative to the checkout; none where there is no such folder."""
    return [Path(name) for name in _run(["git", "ls-tree", "--name-only", "HEAD", f"{folder}/"], checkout).splitlines()]


def tree_at_head(checkout: Path, name: str) -> str:
    """Git's hash of a file or folder as committed."""
    return _run(["git", "rev-parse", f"HEAD:{name}"], checkout).strip()


def is_open(path: Path) -> bool:
    """Whether the worktree is there and whole."""
    return _last_written(path).exists()


def open_worktree(checkout: Path, path: Path) -> bool:
    """Make the worktree `path` at HEAD, or take up the one that is there. True if it was taken up.

    The checkout's dvc.lock is copied in (it names what the shared cache holds; it may well not be committed), and so
    is its local DVC configuration, with the cache folder made absolute.
    """
    if is_open(path):
        return True
    if path.exists():  # a run killed in the middle of the lines below
        close_worktree(checkout, path)
    _run(["git", "worktree", "add", "--quiet", "--detach", str(path), "HEAD"], checkout)
    # The run's parameters are recorded in every run.json: they do not make its code count as edited.
    _run(["git", "update-index", "--skip-worktree", "params.yaml"], path)
    if (checkout / "dvc.lock").exists():
        shutil.copyfile(checkout / "dvc.lock", path / "dvc.lock")
    local = configparser.RawConfigParser()
    local.read(checkout / ".dvc" / "config.local", encoding="utf-8")
    cache = _run(dvc("cache", "dir"), checkout).strip()
    # autostage: else every stage's log ends with four lines of advice to `git add dvc.lock`
    local.read_dict({"cache": {"dir": cache}, "core": {"autostage": "true"}})
    half = path / ".dvc" / "config.half"
    with half.open("w", encoding="utf-8") as file:
        local.write(file)
    half.rename(_last_written(path))
    return False


def open_at_head(checkout: Path, path: Path) -> None:
    """``open_worktree``, made anew where the one that is there is of another commit."""
    head = ["git", "rev-parse", "HEAD"]
    if is_open(path) and _run(head, path) != _run(head, checkout):
        close_worktree(checkout, path)
    open_worktree(checkout, path)


def close_worktree(checkout: Path, path: Path) -> None:
    """Remove the worktree with all that is in it; what its stages made stays in the shared DVC cache."""
    shutil.rmtree(path, ignore_errors=True)
    _run(["git", "worktree", "prune"], checkout)


def graph_of(worktree: Path) -> dict[str, list[str]]:
    """Stage of dvc.yaml -> the stages that it needs the outputs of, matrix stages one by one; each after all that it
    needs. Both are DVC's own: its index and its graph. The study's stage (infra/dvc.yaml) is none of a run."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    try:
        with Repo(str(worktree)) as repo:
            graph = repo.index.graph  # an edge leads from a stage to one that it needs
            stages = [stage for stage in repo.index.stages if stage.path_in_repo == "dvc.yaml"]
            needs = {stage: [n for n in graph.successors(stage) if isinstance(n, PipelineStage)] for stage in stages}
            order = [s for s in graphlib.TopologicalSorter(needs).static_order() if isinstance(s, PipelineStage)]
            return {str(stage.name): sorted(str(need.name) for need in needs[stage]) for stage in order}
    except DvcException as error:
        raise DataError(f"DVC cannot read the stages of {worktree} ({error}). Repair dvc.yaml.") from error


def needed_for(graph: Mapping[str, Sequence[str]], wanted: Callable[[str], bool]) -> dict[str, list[str]]:
    """The part of the graph that the wanted stages need, themselves included; in the same order."""
    keep: set[str] = set()
    for stage in reversed(list(graph)):
        if stage in keep or wanted(stage):
            keep |= {stage, *graph[stage]}
    return {stage: list(needs) for stage, needs in graph.items() if stage in keep}


def dvc(*arguments: str) -> list[str]:
    """A DVC command line that runs in this process's own environment, whatever PATH says."""
    return [sys.executable, "-m", "dvc", *arguments]


def _last_written(path: Path) -> Path:
    return path / ".dvc" / "config.local"


def _run(command: Sequence[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise DataError(
            f"`{' '.join(command)}` in {cwd} ended with code {done.returncode}: {masked(done.stderr.strip())}. "
            "Run the command by hand to see more."
        )
    return done.stdout
