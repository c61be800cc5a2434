"""`unmask demo`: the released files are the ones that the card names, small, and decode anywhere."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from components.commands.decode import decode_one
from components.commands.demo import CARD, DLLM, FOLDER, POLICY, check, show_demo
from components.commands.puzzles import puzzle_of
from components.commands.resolve import rule
from components.core.errors import CheckpointError
from components.denoisers import load
from components.evaluation.evaluate import Candidate
from components.export import OnnxPolicy
from components.tasks import build
from components.tasks.example import Example
from tests.messages import has_remedy

README = Path(__file__).parents[2] / "README.md"
LARGEST = 3_000_000  # bytes of all released files


def test_the_released_files_have_the_hashes_of_the_card_and_are_small() -> None:
    card = json.loads((FOLDER / CARD).read_text(encoding="utf-8"))
    check(FOLDER, card)
    files = {p.relative_to(FOLDER).as_posix(): p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()}
    assert set(files) == {CARD, *card["files"]} and sum(files.values()) <= LARGEST


def test_the_demo_decodes_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads((FOLDER / CARD).read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    figures = show_demo()
    shown = capsys.readouterr().out
    assert shown.count("learned policy") == shown.count(card["rule"]) == len(card["examples"])
    assert shown.count("forward pass") == 2 * len(card["examples"])
    assert any("learned policy" in line and "test prompts" in line for line in figures)
    assert not list(tmp_path.iterdir())


def test_the_readme_s_prompt_has_several_answers_and_tells_policy_and_rules_apart() -> None:
    """The released policy is the champion whose figures the README prints: more right at equal speed, and faster."""
    (command,) = re.findall(r"^unmask decode (\S+) --policy (\S+)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    card = json.loads((FOLDER / CARD).read_text(encoding="utf-8"))
    task, example = build(card["task"]["kind"], **card["task"]["params"]), Example("", command[0], "")
    puzzle = puzzle_of(task, example.prompt)
    assert puzzle is not None
    choices = puzzle.choices
    one_set = [
        [replace(puzzle, choices=(*choices[:i], digit, *choices[i + 1 :])) for digit in choices[i]]
        for i in range(len(choices))
    ]
    assert max(sum(each.is_solvable() for each in ways) for ways in one_set) > 1
    opened, named = load(str(FOLDER / DLLM)), (command[1], card["rule"])
    rules = [Candidate(name.partition(":")[0], name, rule(name), None) for name in named]
    policy = Candidate("policy", "learned policy", OnnxPolicy(FOLDER / POLICY), None)
    learned, printed, as_fast = (decode_one(c, opened, task, example, None, True) for c in (policy, *rules))
    assert learned.correct and learned.nfe < printed.nfe and not as_fast.correct


@pytest.mark.parametrize("name", [POLICY, f"{DLLM}/model.safetensors"])
def test_another_file_in_a_released_one_s_place_is_refused(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "released"))
    (folder / name).write_bytes(b"another")
    with pytest.raises(CheckpointError, match=name) as refused:
        show_demo(folder)
    assert has_remedy(str(refused.value))
