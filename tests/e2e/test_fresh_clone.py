"""Every command in a clone whose pipeline has not run, and over broken outputs: one line, never a traceback."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from components.cli import stages, tools
from tests.child import printed
from tests.messages import has_remedy

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
COMMANDS = [command.__name__ for command in (*stages.COMMANDS, *tools.COMMANDS)]
PROMPT = "W.1...4..4..1..3."
# Without these there is nothing that could be missing.
NEED_NOTHING = {"prepare", "doctor", "repair", "rollback", "demo", "lm_eval"}
WORDS: dict[str, list[str]] = {
    "pretrain": ["pretrain", "--model", "mini-llada"],
    "headroom": ["headroom", "--case", "many"],
    "rules": ["rules", "--group", "evaluate", "--case", "sudoku_many"],
    "evaluate": ["evaluate", "--case", "sudoku_many"],
    "transfer": ["transfer", "--case", "longer"],
    "ood": ["ood", "--case", "queens"],
    "decode": ["decode", PROMPT],
    "compare": ["compare", "threshold:0.9", "confidence"],
    "bench": ["bench", "--count", "2", "--repeats", "1"],
}
MORE = [
    ["promote", "--dry-run"],
    ["decode", PROMPT, "--policy", "outputs/tiny/export/policy.onnx"],
    ["compare", "confidence", "threshold:0.9", "--prompt", PROMPT],
    ["compare", "confidence", "models:/unmasking-policy-tiny@champion"],
    ["decode", PROMPT, "--policy", "models:/unmasking-policy-tiny@champion"],
]
# One process for all of them: torch is imported once.
RUN = """
import contextlib, io, json, sys, traceback
from pathlib import Path
from components.cli import main

found = []
for words, *broken in json.loads(sys.argv[1]):
    for path, content in broken:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(bytes.fromhex(content))
    sys.argv = ["unmask", *words]
    code = None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
    found.append([words, code, said.getvalue()])
print(json.dumps(found))
"""


def outcomes(folder: Path, calls: list[Any]) -> list[tuple[list[str], Any, str]]:
    return printed([sys.executable, "-c", RUN, json.dumps(calls)], folder)


def test_every_command_names_what_is_missing_and_dvc_repro(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    calls = [WORDS.get(command, [command]) for command in COMMANDS if command not in NEED_NOTHING] + MORE
    assert len(calls) > 12
    for words, code, said in outcomes(tmp_path, [[words] for words in calls]):
        assert code == 1, (words, said)
        assert re.fullmatch(r"unmask: [^\n]*(is not there|there is no)[^\n]*\n", said), (words, said)
        assert "`dvc repro" in said, (words, said)
        assert has_remedy(said), (words, said)


# --- broken outputs -----------------------------------------------------------------------------------------------

BYTES: dict[str, bytes] = {
    "not UTF-8": b"\xff\xfe\x00\x01\n",
    "nothing": b"",
    "half an object": b'{"prompt": "a", "shape": {"inp',
    "a list": b"[1, 2]\n",
    "another object": b'{"unknown": 1}\n',
    "deep": b"[" * 9_000 + b"\n",
}
# file -> the command that reads it first
READERS: dict[str, list[str]] = {
    "pretrain/mini-llada/source.json": ["decode", PROMPT],
    "data/tasks/sudoku_many/test.jsonl": ["compare", "confidence", "threshold:0.9"],
    "train/run.json": ["promote", "--dry-run"],
    "train/policy/policy.json": ["export"],
    "train/metrics.jsonl": ["report"],
    "export/policy.onnx": ["decode", PROMPT, "--policy", "outputs/tiny/export/policy.onnx"],
}


def test_a_broken_output_is_one_line_with_its_name(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    cases = [(name, what) for name in READERS for what in BYTES]
    calls = [[READERS[name], (f"outputs/tiny/{name}", BYTES[what].hex())] for name, what in cases]
    for (name, what), (words, code, said) in zip(cases, outcomes(tmp_path, calls), strict=True):
        assert code == 1, (name, what, words, said)
        assert re.fullmatch(r"unmask: [^\n]*\n", said), (name, what, said)
        assert has_remedy(said), (name, what, said)
        assert Path(name).name in said or Path(name).parent.name in said, (name, what, said)


def test_a_place_that_cannot_be_written_is_noticed_before_any_work(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "tiny").write_text("a file", encoding="utf-8")
    calls = [WORDS.get(command, [command]) for command in ("prepare", "pretrain", "train", "evaluate")]
    for words, code, said in outcomes(tmp_path, [[words] for words in calls]):
        assert code == 1 and re.fullmatch(r"unmask: [^\n]*outputs/tiny[^\n]*Not a directory[^\n]*\n", said), (
            words,
            said,
        )
        assert has_remedy(said)
