"""`unmask demo`: the released files are the ones that the card names, small, and decode anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from components.commands.demo import CARD, DLLM, FOLDER, POLICY, check, show_demo
from components.core.errors import CheckpointError
from tests.messages import has_remedy

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


@pytest.mark.parametrize("name", [POLICY, f"{DLLM}/model.safetensors"])
def test_another_file_in_a_released_one_s_place_is_refused(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "released"))
    (folder / name).write_bytes(b"another")
    with pytest.raises(CheckpointError, match=name) as refused:
        show_demo(folder)
    assert has_remedy(str(refused.value))
