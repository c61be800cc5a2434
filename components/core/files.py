"""Files that are whole or absent: text, JSON, JSON lines and CSV, written beside, then renamed."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.core.errors import DataError


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path in the same folder to write a file or a folder at. It takes the name ``path`` when the block ends well.

    An error inside leaves what was at ``path`` as it was. A reader sees the old content or the new one, never half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    remove(part)
    try:
        yield part
        if part.is_dir():
            remove(path)
        os.replace(part, path)
    finally:
        remove(part)


def remove(path: Path) -> None:
    """Delete a file or a folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def copy(source: Path, path: Path) -> None:
    """Copy a file, beside and renamed: a link at ``path`` is replaced, what it points to stays as it is."""
    with beside(path) as part:
        shutil.copyfile(source, part)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 with plain newlines; the folder is made. Returns ``path``."""
    with beside(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path


def write_json(path: Path, value: Any, sort: bool = True) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=sort) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, csv_text(rows))


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV text, columns in the order of first appearance."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_text(path: Path, remedy: str = "Run `dvc repro` to make it.") -> str:
    """The text of a UTF-8 file. DataError with the file's name and ``remedy`` where it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is not there. {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}). {remedy}") from error


def read_json(path: Path, remedy: str = "Run `dvc repro` to make it.") -> dict[str, Any]:
    """The object in a JSON file. DataError where it is missing, unreadable or not a JSON object."""
    try:
        value = json.loads(read_text(path, remedy))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}). {remedy}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not a JSON object. {remedy}")
    return value


def read_lines(path: Path, remedy: str = "Run `dvc repro` to make it.") -> list[dict[str, Any]]:
    """The records of a JSON-lines file, in order. DataError names the first line that is not a JSON object.

    A last line without its newline is dropped: its writer was killed while it was being written.
    """
    records: list[dict[str, Any]] = []
    for number, line in enumerate(read_text(path, remedy).split("\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON ({error.msg}). {remedy}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} is not a JSON object. {remedy}")
        records.append(record)
    return records


def flatten(nested: Mapping[str, Any], separator: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf of nested mappings, in order; an empty mapping has no leaf."""
    for key, value in nested.items():
        path = f"{prefix}{separator}{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flatten(value, separator, path)
        else:
            yield path, value
