"""Files read line by line, files written beside and renamed. A report is the old one or the new one, never half."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """One dict per line. A torn last line (a killed writer's) is dropped; one further up is an error.

    Errors:
        DataError: a line before the last is not a JSON object.
    """
    lines = [line for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise DataError(
                f"{path}: line {number} is not JSON ({error.msg}): the lines after it cannot be trusted either; "
                "run the stage that writes this file again."
            ) from error
        records.append(record)
    return records


def write_text(path: str | Path, text: str) -> Path:
    """Writes UTF-8 with plain newlines; makes the folder."""
    return _beside(Path(path), lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def write_figure(path: str | Path, figure: Figure) -> Path:
    """A PNG at 150 dpi that does not carry a date or a library version, so that equal figures are equal files."""
    return _beside(
        Path(path),
        lambda part: figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None}, facecolor="white"),
    )


def _beside(path: Path, write: Callable[[Path], object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
