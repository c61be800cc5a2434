"""In the repository `unmask_policies`, the name in the wheel, is an alias of `components`: one copy of each module."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The modules of both names, as a fresh process imports them in this order.
BOTH = """
import sys
from importlib import import_module

for name in {names!r}:
    import_module(name)
aliases = {{name: module for name, module in sys.modules.items() if name.startswith("unmask_policies.")}}
assert len(aliases) == {count}, aliases
for name, module in aliases.items():
    real = name.replace("unmask_policies", "components", 1)
    assert module is sys.modules[real] and module.__name__ == module.__spec__.name == real, name
"""
NAMES = ("core.errors", "policies.rules", "cli", "export")


def python(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("first", ["unmask_policies", "components"])
def test_both_names_are_one_module_whichever_is_imported_first(first: str, tmp_path: Path) -> None:
    second = {"unmask_policies": "components", "components": "unmask_policies"}[first]
    names = [f"{package}.{name}" for package in (first, second) for name in NAMES]
    done = python("-c", BOTH.format(names=names, count=6), folder=tmp_path)  # with core and policies themselves
    assert done.returncode == 0, done.stderr


def test_a_class_has_one_identity() -> None:
    from components.core.errors import SettingsError

    errors = import_module("unmask_policies.core.errors")  # a type checker does not see through the alias

    assert errors.SettingsError is SettingsError and SettingsError.__module__ == "components.core.errors"


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"unmask_policies\.nothing"):
        import_module("unmask_policies.nothing")


def test_the_command_runs_as_a_module_of_either_name(tmp_path: Path) -> None:
    said = [python("-m", f"{name}.cli", "--version", folder=tmp_path) for name in ("components", "unmask_policies")]
    assert said[0].stdout == said[1].stdout and said[0].stdout.startswith("unmask"), said[1].stderr
