"""Run the cells of docs/results.md one by one, or write the document from those that are done.

`python -m flows.study` runs what infra/study.yaml at HEAD lists, the most valuable cells first, each as `dvc repro` in
one git worktree with its own params.yaml. Cells share DVC's cache, so that a stage that two cells have in common runs
once. A finished cell is kept under outputs/study/<cell>; it runs again only if its code or its settings changed. A
killed study goes on where it was. `--cluster local:2` spreads the cells over workers, each in a worktree of its own
(flows/study_cluster.py). `python -m flows.study --report` writes docs/results.md and docs/results.png; as a DVC stage,
`dvc repro infra/dvc.yaml` does so where a cell, the code or a setting has changed. No server is needed.

Left out: what a stage does (components/stages/), what the document says (components/reports/study.py).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from components.commands.bench import processor
from components.commands.repair import repair
from components.core.errors import OURS, DataError, SettingsError, masked
from components.core.files import beside, copy, read_json, write_json
from flows import parameters, tasks, worktree
from flows.cluster import check_cluster
from flows.process_group import CommandFailed, stream

if TYPE_CHECKING:
    from components.settings import Settings

CELLS = "infra/study.yaml"
KEPT = Path("outputs") / "study"
GROUPS = ("evaluate", "transfer", "ood")
POLICIES = ("influence", "distill", "train")
STAGES = ("prepare", "pretrain", *POLICIES, "rules")


@dataclass(frozen=True)
class Cell:
    """An entry of infra/study.yaml.

    kind: default (the policy of params.yaml, in some seeds), domain, profile, paper, blocks, order, ablation or
    control. groups: the evaluations asked for. text: its whole params.yaml.
    """

    name: str
    about: str
    kind: str
    groups: tuple[str, ...]
    text: str
    settings: Settings

    @property
    def stems(self) -> list[str]:
        """The names of its cases' folders and tables."""
        named: dict[str, Sequence[str]] = {
            "evaluate": self.settings.evaluate.tasks,
            "transfer": list(self.settings.transfer),
            "ood": list(self.settings.ood),
        }
        return [f"{group}-{name}" for group in self.groups for name in named[group]]

    @property
    def models(self) -> set[str]:
        """The names of the dLLMs that it needs."""
        cases = {"evaluate": {}, "transfer": self.settings.transfer, "ood": self.settings.ood}
        return {self.settings.domain.model, *(case.model for group in self.groups for case in cases[group].values())}


def read_cells(checkout: Path) -> list[Cell]:
    """The cells as committed, in their order. SettingsError names the cell whose settings cannot work."""
    return cells_of(lambda name: worktree.read_at_head(checkout, name))


def cells_of(text_of: Callable[[str], str]) -> list[Cell]:
    """The cells of infra/study.yaml. text_of: gives the text of a file by its path in the repository."""
    study = YAML(typ="safe").load(text_of(CELLS))
    cells = []
    for name, entry in study["cells"].items():
        unknown = set(entry) - {"about", "kind", "groups", "take", "set"} | set(entry["groups"]) - set(GROUPS)
        if unknown:
            raise SettingsError(f"{CELLS}: cell {name} has {sorted(unknown)}. Use about, kind, groups, take and set.")
        text = _settings_of(text_of, entry.get("take", {}), {**study["base"], **entry.get("set", {})})
        try:
            settings = parameters.validated(text)
        except SettingsError as error:
            raise SettingsError(f"{CELLS}: cell {name}: {error}") from None
        cells.append(Cell(name, entry["about"], entry["kind"], tuple(entry["groups"]), text, settings))
    return cells


def _settings_of(text_of: Callable[[str], str], take: Mapping[str, Sequence[str]], changes: Mapping[str, Any]) -> str:
    """params.yaml with whole sections of other files, then single values put in by their path."""
    settings = YAML(typ="safe").load(text_of("params.yaml"))
    for file, sections in take.items():
        other = YAML(typ="safe").load(text_of(file))
        settings |= {section: other[section] for section in sections}
    for path, value in changes.items():
        *above, last = path.split(".")
        place = settings
        for key in above:
            if not isinstance(place.get(key), dict):
                raise SettingsError(f"{CELLS}: {path} is no place in params.yaml. Use a path that is there.")
            place = place[key]
        place[last] = value
    written = io.StringIO()
    YAML(typ="safe", pure=True).dump(settings, written)
    return written.getvalue()


def identity_of(source: Path, cell: Cell) -> str:
    """A hash of all that the cell's results depend on: its settings, and the stages and their code at source's HEAD."""
    from components.stages.common.runfile import digest

    graph = YAML(typ="safe").load(worktree.read_at_head(source, "dvc.yaml"))["stages"]
    stages = {name: graph[name] for name in (*STAGES, *cell.groups)}
    paths = {dep for stage in stages.values() for dep in stage.get("do", stage)["deps"]}
    code = {path: worktree.tree_at_head(source, path) for path in paths if path.startswith("components/")}
    return digest([cell.text, cell.groups, stages, code])


def is_done(checkout: Path, source: Path, cell: Cell) -> bool:
    """Whether the results kept in the checkout are of these settings and of the code at the HEAD of source."""
    kept = checkout / KEPT / cell.name / "cell.json"
    return kept.exists() and read_json(kept, needs=("identity",))["identity"] == identity_of(source, cell)


def repro(checkout: Path, path: Path, cell: Cell, stages: Sequence[str]) -> None:
    """`dvc repro` of stages of the cell in the worktree. CommandFailed if one fails."""
    (path / "params.yaml").write_text(cell.text, encoding="utf-8")
    for line in repair(path):
        print(line, flush=True)
    command = worktree.dvc("--wait-for-lock", "repro", *stages)
    environment = tasks.stage_environment(checkout, path)
    stream(command, path, environment, lambda line: print(f"{cell.name}: {masked(line)}", flush=True))


def run_cell(checkout: Path, path: Path, cell: Cell) -> None:
    """`dvc repro` of the cell's evaluations in the worktree, and its results kept. CommandFailed if a stage fails."""
    begin, started = time.monotonic(), datetime.now(UTC)
    repro(checkout, path, cell, cell.groups)
    about = {
        "cell": cell.name,
        "about": cell.about,
        "kind": cell.kind,
        "identity": identity_of(path, cell),
        "groups": cell.groups,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 1),
        "machine": f"{os.cpu_count()} cores of {processor()}, {os.environ.get('OMP_NUM_THREADS', 'all')} used",
    }
    _keep(path / "outputs" / cell.settings.profile, checkout / KEPT / cell.name, cell, about)


def _keep(outputs: Path, folder: Path, cell: Cell, about: Mapping[str, Any]) -> None:
    """Results, metrics and policies of the cell; of its own cases alone, since another's files lie beside them."""
    stages = (*POLICIES, f"pretrain-{cell.settings.domain.model}")
    with beside(folder) as part:
        for stem in cell.stems:
            copy(outputs / "tables" / f"{stem}.csv", part / "tables" / f"{stem}.csv")
            copy(outputs / "evaluate" / stem / "results.jsonl", part / "results" / f"{stem}.jsonl")
        for name in (*stages, *cell.stems):
            copy(outputs / "metrics" / f"{name}.json", part / "metrics" / f"{name}.json")
        copy(outputs / "train" / "run.json", part / "run.json")
        model, task = cell.settings.domain.model, cell.settings.evaluate.gate_task
        shutil.copytree(outputs / "pretrain" / model, part / "dllm")
        shutil.copytree(outputs / "data" / "tasks" / task, part / "data" / task)
        for stage in POLICIES:
            shutil.copytree(outputs / stage / "policy", part / "policies" / stage)
        (part / "params.yaml").write_text(cell.text, encoding="utf-8")
        write_json(part / "cell.json", about, sort=False)


def run_cells(checkout: Path, cells: Sequence[Cell]) -> list[str]:
    """Run each cell that is not done; names of those that failed. A cell that fails does not stop the others."""
    path, failed = checkout / worktree.FOLDER / "study", []
    worktree.open_at_head(checkout, path)
    for number, cell in enumerate(cells, start=1):
        if is_done(checkout, path, cell):
            print(f"{cell.name} ({number}/{len(cells)}): is done", flush=True)
            continue
        print(f"{cell.name} ({number}/{len(cells)}): {cell.about}", flush=True)
        try:
            run_cell(checkout, path, cell)
        except CommandFailed as error:
            failed.append(cell.name)
            print(f"{cell.name}: {masked(str(error))}", flush=True)
    return failed


@contextmanager
def _alone(checkout: Path) -> Generator[None]:
    """One study at a time: two would write the same worktree."""
    (checkout / KEPT).mkdir(parents=True, exist_ok=True)
    lock = FileLock(checkout / KEPT / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{lock.lock_file} is held by another study. Wait for its end.") from None
    try:
        yield
    finally:
        lock.release()


def main() -> None:
    """Command line; see the module's first lines."""
    parser = argparse.ArgumentParser("python -m flows.study", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", help="names of cells, separated by commas; all by default")
    parser.add_argument("--list", action="store_true", help="name the cells, and which are done")
    parser.add_argument("--cluster", default="", help="the workers: local:2, or a Dask scheduler's tcp://HOST:PORT")
    parser.add_argument("--speed", action="store_true", help="measure tokens per second of the cells' policies")
    parser.add_argument("--report", action="store_true", help="write docs/results.md from the cells that are done")
    given = parser.parse_args()
    try:
        if given.cluster:
            check_cluster(given.cluster)
        checkout = worktree.root(Path.cwd())
        cells = read_cells(checkout)
        if given.cells:
            cells = [named(cells, name) for name in given.cells.split(",")]
        if given.list:
            for cell in cells:
                print(f"{'done' if is_done(checkout, checkout, cell) else 'open'}  {cell.name:16} {cell.about}")
        elif given.speed:
            from flows.study_speed import measure

            with _alone(checkout):
                print(measure(checkout / KEPT, cells).relative_to(checkout))
        elif given.report:
            from flows.study_report import report

            kept = checkout / KEPT
            stale = [c.name for c in cells if (kept / c.name).exists() and not is_done(checkout, checkout, c)]
            for path in report(checkout, kept, cells, stale):
                print(path.relative_to(checkout))
        else:
            with _alone(checkout):
                failed = _run(checkout, cells, given.cluster)
            if failed:
                sys.exit(f"{len(failed)} cell(s) failed: {', '.join(failed)}. Run the same command to try them again.")
    except OURS as error:
        sys.exit(f"study: {masked(str(error))}")


def _run(checkout: Path, cells: Sequence[Cell], cluster: str) -> list[str]:
    for line in worktree.not_carried_over(checkout):
        print(f"{line} differs from the last commit and is no part of the study.")
    if not cluster:
        return run_cells(checkout, cells)
    from flows import study_cluster

    todo = []
    for cell in cells:
        if is_done(checkout, checkout, cell):
            print(f"{cell.name}: is done", flush=True)
        else:
            todo.append(cell.name)
    return study_cluster.run_cells(checkout, todo, cluster) if todo else []


def named(cells: Sequence[Cell], name: str) -> Cell:
    """The cell of that name. Raises SettingsError where there is none."""
    for cell in cells:
        if cell.name == name:
            return cell
    raise SettingsError(f"cell {name!r} is not in {CELLS}. Use one of {', '.join(cell.name for cell in cells)}.")


if __name__ == "__main__":
    main()
