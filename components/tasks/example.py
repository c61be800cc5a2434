"""What a task gives and takes: an example, a score, and the small interface behind which every task stands.

Nothing here knows a puzzle, a tokenizer or a model. Scores are pure functions of (text, example).
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import DataError
from ..core.files import parse_json, write_text

MASK = "[MASK]"  # a position to decode in a canvas that is partly filled; each dLLM's own mask is meant
END = "$"  # ends an answer that is shorter than its canvas, and fills the rest of it; in no task's alphabet


def address(*parts: object) -> int:
    """A 63-bit seed for an address such as ``("sudoku_many", seed, index)``; stable across processes and machines."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def canonical(prompt: str) -> str:
    """The prompt with its Unicode normalised and each run of white space made one blank: what splits hash."""
    return " ".join(unicodedata.normalize("NFC", prompt).split())


@dataclass(frozen=True)
class Example:
    """One prompt with one right answer (a task may accept others). ``metadata`` holds plain JSON values.

    canvas: the text to fill in, with ``MASK`` for each token that is missing; None: all of it is missing. The answer
    is then the whole text.
    """

    task: str
    prompt: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    canvas: str | None = None

    @property
    def uid(self) -> str:
        """16 hex digits: the hash of the canonical prompt and canvas. Where a prompt wraps a question in instructions
        (``metadata["question"]``), of the question alone, so that another wording does not move it to another split."""
        text = canonical(self.metadata.get("question", self.prompt))
        text += "" if self.canvas is None else "\n" + canonical(self.canvas)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        row = asdict(self)
        if self.canvas is None:
            del row["canvas"]
        return json.dumps(row, ensure_ascii=False)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Example:
        """
        Raises:
            DataError: a field is missing, unknown or of another type.
        """
        kinds = {"task": str, "prompt": str, "answer": str, "metadata": dict, "canvas": str}
        given = set(row) | {"metadata", "canvas"} == set(kinds)
        if not given or any(not isinstance(row[name], kinds[name]) for name in row):
            raise DataError(f"the columns {sorted(row)} are not task, prompt, answer (texts), metadata and canvas")
        return cls(**row)


@dataclass(frozen=True)
class Score:
    """``correct`` is 0.0 or 1.0; ``dense`` in [0, 1] says how near the text came, and is 1 where correct is."""

    correct: float
    dense: float

    def __post_init__(self) -> None:
        assert self.correct in (0.0, 1.0) and 0.0 <= self.dense <= 1.0 and self.dense >= self.correct, self


class Task(Protocol):
    """Prompts and verifiable scores. ``canvas_length`` is in tokens of a char-level tokenizer, ENDs included (for
    text tasks a default in tokens of the model's own tokenizer, and ``alphabet`` is empty)."""

    @property
    def name(self) -> str: ...

    @property
    def canvas_length(self) -> int: ...

    @property
    def alphabet(self) -> str: ...

    def sample(self, index: int, seed: int) -> Example:
        """The example at an address: the same (index, seed) gives the same example, whatever was drawn before."""
        ...

    def score(self, text: str, example: Example) -> Score: ...


def cut(text: str) -> str:
    """A decoded text up to the first END, without white space around it."""
    return text.split(END, 1)[0].strip()


def fill(answer: str, canvas_length: int) -> str:
    """The answer as a whole canvas: ENDs appended.

    Raises:
        DataError: the answer is longer than the canvas, or holds an END.
    """
    if len(answer) > canvas_length or END in answer:
        raise DataError(
            f"the answer {answer!r} ({len(answer)} characters) does not fit a canvas of {canvas_length} "
            f"({END!r} ends an answer). Use a longer canvas or another task setting."
        )
    return answer.ljust(canvas_length, END)


def canvas_for(characters: int) -> int:
    """The smallest multiple of 4, at least 8, that holds so many characters: 4 and 8 divide or halve every canvas."""
    return max(8, -(-characters // 4) * 4)


def matching(text: str, gold: str) -> float:
    """Share of places at which the two agree, over the longer of them: 0 for an empty text, 1 only if equal."""
    return sum(a == b for a, b in zip(text, gold, strict=False)) / max(len(text), len(gold), 1)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """JSON lines, written beside and renamed."""
    write_text(path, "".join(example.to_json() + "\n" for example in examples))


def read_examples(path: Path) -> list[Example]:
    """
    Raises:
        DataError: the file is missing, or a line of it is not an example.
    """
    if not path.is_file():
        raise DataError(f"{path} is not there. Run `dvc repro` to make it.")
    examples = []
    for where, row in json_rows(path, "an example"):
        try:
            examples.append(Example.from_row(row))
        except DataError as error:
            raise DataError(f"{where} is not an example ({error}). Write the file again (stage prepare).") from error
    return examples


def json_rows(path: Path, kind: str = "a JSON object") -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON lines file, each with its place ('FILE, line 3'). A byte-order mark and blank lines are
    skipped.

    Raises:
        DataError: a line is not UTF-8 or not one JSON object of distinct keys, finite numbers and whole characters.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                row = parse_json(text, object_pairs_hook=_distinct) if text else None
                json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate has no UTF-8
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is not {kind} ({error}). Save the file as UTF-8.") from error
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(f"{where} is not {kind} ({error}). Write one object a line.") from error
            if isinstance(row, dict):
                yield where, row
            elif text:
                raise DataError(f"{where} is not {kind} (a {type(row).__name__}). Write one object a line.")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"a key of {[key for key, _ in pairs]} stands twice")
    return row
