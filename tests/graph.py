"""dvc.yaml as DVC resolves it from some settings: its stages, one of each case, with what they read and write."""

from __future__ import annotations

import ast
import functools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from dvc.repo import Repo

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cell:
    """A stage as DVC resolves it: its name, one of each case; params: the values that DVC watches, by their path."""

    name: str
    cmd: str
    deps: list[str]
    outs: list[str]
    params: dict[str, Any]

    @property
    def stage(self) -> str:
        return self.name.partition("@")[0]

    @property
    def key(self) -> str:
        return self.name.partition("@")[2]

    @property
    def read(self) -> set[str]:
        """The outputs of other stages that it depends on, without the profile's folder."""
        return {str(PurePosixPath(*PurePosixPath(d).parts[2:])) for d in self.deps if d.startswith("outputs/")}


def resolve(folder: Path, settings: Mapping[str, Any]) -> dict[str, Cell]:
    """The cells of dvc.yaml with these settings."""
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text("[core]\nno_scm = true\nanalytics = false\n", encoding="utf-8")
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    found = {}
    with Repo(str(folder)) as repo:
        stages: list[Any] = list(repo.index.stages)
        for stage in stages:
            watched = [name for dep in stage.deps for name in getattr(dep, "params", [])]
            found[stage.name] = Cell(
                stage.name,
                stage.cmd,
                [str(dep) for dep in stage.deps if not hasattr(dep, "params")],
                [str(out) for out in stage.outs],
                {name: at(settings, name) for name in watched},
            )
    return found


def source_of(node: ast.ImportFrom, path: Path, root: Path) -> str:
    """The whole name of the module that a file under the root imports from, relative or not."""
    above = path.relative_to(root).parts[: -node.level] if node.level else ()
    return ".".join([*above, *filter(None, [node.module])])


def at(settings: Mapping[str, Any], path: str) -> Any:
    return functools.reduce(lambda place, key: place[key], path.split("."), settings)


def within(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)
