"""Files that are whole or absent: text, JSON, JSON lines and CSV, written beside, then renamed."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CheckpointError, DataError, SettingsError
from .json_types import misfit

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""Pattern of a name in the settings that becomes a file name."""


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
        else:
            _reach_the_disk(part)
        os.replace(part, path)
    finally:
        remove(part)


def _reach_the_disk(path: Path) -> None:
    """Otherwise a power loss may leave the new name with half of the content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


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
    """Write a JSON value; a number that is NaN or infinite becomes null, since JSON has none."""
    write_text(path, json.dumps(_finite(value), indent=2, sort_keys=sort, allow_nan=False) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, as ``write_json`` does."""
    lines = (json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) for record in records)
    write_text(path, "".join(line + "\n" for line in lines))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


REMAKE = "Run `dvc repro` to make it."


def read_text(path: Path, remedy: str = REMAKE) -> str:
    """The text of a UTF-8 file. DataError with the file's name and ``remedy`` where it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is not there. {remedy}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}). {remedy}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}). {remedy}") from error


def read_json(path: Path, remedy: str = REMAKE, needs: Iterable[str] = (), kind: Any = None) -> dict[str, Any]:
    """The object in a JSON file. DataError where it is missing, unreadable, no JSON object, or without a needed key.

    kind: a TypedDict, a dataclass or another type that the object must fit. What it has beyond that is left in it.
    """
    return _record(read_text(path, remedy), str(path), remedy, needs, kind)


def read_lines(
    path: Path, remedy: str = REMAKE, needs: Iterable[str] = (), torn: bool = False, kind: Any = None
) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, in order. DataError names the first line that is not what is asked for.

    torn: a last line without its newline is dropped, since a killed writer left it; else it is an error. kind: as in
    ``read_json``.
    """
    *lines, rest = read_text(path, remedy).split("\n")
    if rest and not torn:
        raise DataError(f"{path} is cut off in line {len(lines) + 1}. {remedy}")
    numbered = enumerate(lines, start=1)
    return [_record(line, f"{path}, line {number}", remedy, needs, kind) for number, line in numbered if line.strip()]


def _record(text: str, where: str, remedy: str, needs: Iterable[str], kind: Any) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}). {remedy}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}, not a JSON object. {remedy}")
    missing = [name for name in needs if name not in value]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}. {remedy}")
    if kind is not None and (place := misfit(value, kind)):
        raise DataError(f"{where}: {place} is of another type, or missing. {remedy}")
    return value


def parse_json(text: str, **hooks: Any) -> Any:
    """``json.loads`` that takes no NaN and no infinity, nor a number that is as good as infinite. ValueError there."""
    return json.loads(text, parse_constant=_no_number, parse_float=_finite_number, **hooks)


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def _finite_number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def read_curve(path: Path, torn: bool = False) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl: a whole ``step``, and figures that are numbers or null. DataError for others.

    A step fits into 64 bits, as MLflow keeps it.
    """
    records = read_lines(path, needs=("step",), torn=torn, kind=dict[str, float | None])
    if wrong := [r["step"] for r in records if type(r["step"]) is not int or abs(r["step"]) >= 2**63]:
        raise DataError(f"{path}: step {str(wrong[0])[:30]} is no whole number of 64 bits. {REMAKE}")
    return records


@contextmanager
def unpacking(path: Path, remedy: str = REMAKE) -> Generator[None]:
    """Inside, the content of a file is made into objects. What is of another kind becomes a DataError with its name."""
    try:
        yield
    except (DataError, SettingsError, CheckpointError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, MemoryError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"{path} holds what no stage writes ({what}). {remedy}") from error


def read_yaml(path: Path, remedy: str) -> Any:
    """What a YAML 1.2 file says, the dialect that DVC reads. DataError names the place; a duplicate key is an error."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    text = read_text(path, remedy)
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError, AssertionError) as error:  # the last for %YAML 1.3
        raise DataError(f"{path} is not YAML 1.2 ({_yaml_problem(error)}). {remedy}") from error


def _yaml_problem(error: Exception) -> str:
    """The parser's problem and its place, without its advice about other dialects."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    return f"{problem.splitlines()[0]}{f', line {mark.line + 1}' if mark else ''}"


def replace_whole(source: Path, path: Path) -> None:
    """Put a file or a folder out of the way, over what an earlier call put there."""
    remove(path)
    os.replace(source, path)


def put_aside(who: str, path: Path, error: Exception) -> None:
    """Rename a file or a folder that cannot be read, and print it: a later run must not end at it again."""
    aside = path.with_name(f"{path.name}.unreadable")
    replace_whole(path, aside)
    print(f"{who}: {' '.join(str(error).split())} It is put aside as {aside}, and made anew.", flush=True)


def flatten(nested: Mapping[str, Any], separator: str = ".", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf of nested mappings, in order; an empty mapping has no leaf."""
    for key, value in nested.items():
        path = f"{prefix}{separator}{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flatten(value, separator, path)
        else:
            yield path, value
