"""Rows of a data set, each with its place ('FILE, line 3'), and typed access to their columns."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.online import offline_unless_hub_answers
from .example import json_rows

Row = dict[str, Any]
Hub = tuple[str, ...]  # what datasets.load_dataset takes: name, and perhaps configuration


def load_rows(path: str | None, hub: Hub | None, file: str, knob: str = "path") -> list[tuple[str, Row]]:
    """The rows of a local file (JSON lines, or .parquet), else of a split ('train', 'test') of the hub's data set.

    Each has its place. knob: the task's setting that names the local file.

    Raises:
        DataError: the local file is missing or broken; or no path is given, and the hub cannot be reached, lacks the
            data set, or ``datasets`` is not installed.
    """
    if path is not None:
        if not Path(path).is_file():
            raise DataError(f"{path} is not there. Give the path of a JSON lines or parquet file.")
        return _parquet(path) if path.endswith(".parquet") else list(json_rows(Path(path)))
    if hub is None:
        raise DataError(f"the task has no split {file!r} on the hub. Set {knob} to a file.")
    name = f"{' '.join(hub)} ({file})"
    try:
        offline_unless_hub_answers()
        from datasets import load_dataset

        rows = load_dataset(*hub, split=file)
        return [(f"{name}, row {number}", dict(row)) for number, row in enumerate(rows, start=1)]  # pyright: ignore
    except (ImportError, OSError, ValueError) as error:
        raise DataError(
            f"{name} cannot be loaded ({type(error).__name__}: {error}). Connect to the network and "
            f"install the extra 'hub', or pass {knob}=FILE with its rows as JSON lines or parquet."
        ) from error


def _parquet(path: str) -> list[tuple[str, Row]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise DataError(f"{path}: reading parquet needs pyarrow ({error}). Install the extra 'hub'.") from error
    try:
        found = read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is no whole parquet file ({error}). Write or download it again.") from error
    return [(f"{path}, row {number}", row) for number, row in enumerate(found, start=1)]


def column(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise DataError(
            f"a row has the columns {sorted(row)} and no {name!r}. Check that the file belongs to this task."
        )
    return row[name]


def text(row: Row, name: str) -> str:
    value = column(row, name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name}={str(value)[:60]!r} is no text with a content. Write one, or remove the row.")
    return value


def texts(row: Row, name: str) -> list[str]:
    value = column(row, name)
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        raise DataError(f"{name}={str(value)[:60]!r} is no list of texts. Write a JSON list of strings.")
    return list(value)


def checking(tests: str, name: str) -> str:
    """The tests, if they can fail: without an assertion every program would pass them."""
    try:
        found = any(isinstance(node, (ast.Assert, ast.Raise)) for node in ast.walk(ast.parse(tests)))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"{name}={tests[:60]!r} is no Python ({error}). Repair it, or remove the row.") from error
    if not found:
        raise DataError(f"{name}={tests[:60]!r} asserts nothing. Write a test that can fail, or remove the row.")
    return tests


def names(code: str, tests: str) -> tuple[list[str], list[str]]:
    """The imports of a gold program, and those of its own names that the tests use: what a program must define."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"code={code[:60]!r} is no Python ({error}). Repair it, or remove the row.") from error
    imports = [ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    defined = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    defined |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    if not defined & used:
        raise DataError(f"test_list={tests[:60]!r} uses none of {sorted(defined)}. Test what the code defines.")
    return imports, sorted(defined & used)
