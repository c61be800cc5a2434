"""Numbers, names and the file itself: what would be noticed late, or never, is refused when params.yaml is read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from components.core.errors import SettingsError
from components.settings import Settings, read
from tests.messages import has_remedy

FILE = Path(__file__).parents[2] / "params.yaml"
TEXT = FILE.read_text(encoding="utf-8")
RAW: dict[str, Any] = yaml.safe_load(TEXT)


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every number of a profile."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(RAW)
    place: Any = raw
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return raw


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e308, 10**12], ids=str)
def test_no_number_of_the_file_may_be_infinite_or_absurd(value: float) -> None:
    paths = list(numbers(RAW))
    assert len(paths) > 90
    accepted = []
    for path in paths:
        try:
            Settings.model_validate(changed(path, value))
        except (ValidationError, SettingsError):
            continue
        accepted.append(".".join(map(str, path)))
    assert not accepted


def refused(folder: Path, text: str | bytes) -> str:
    path = folder / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError) as error:
        read(path)
    said = str(error.value)
    assert has_remedy(said) and "\n" not in said
    return said


NAMES = ["../../evil", "a/b", "..", ".hidden", "a.b", "", "a b", "-x", "x" * 65, "ä", "a\\b", "a:b", "a\n"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["task", "model", "case", "profile"])
def test_a_name_is_a_part_of_a_path_and_nothing_more(tmp_path: Path, name: str, where: str) -> None:
    raw = copy.deepcopy(RAW)
    place = {"task": raw["data"]["tasks"], "model": raw["models"], "case": raw["ood"], "profile": raw}[where]
    place["profile" if where == "profile" else name] = name if where == "profile" else place[next(iter(place))]
    assert "should match pattern" in refused(tmp_path, yaml.safe_dump(raw))


def test_a_task_whose_weight_is_no_prompt_is_refused(tmp_path: Path) -> None:
    text = TEXT.replace("tasks: {sudoku_many: 1, sudoku_unique: 1}", "tasks: {sudoku_many: 1, sudoku_unique: 1000000}")
    assert "domain.tasks.sudoku_many=1 of 1000001 is no prompt" in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("\n  queens: {model: mini-dream,", "\n  queens: {model: mini-llada,", "n_queens over dLLM mini-llada"),
        ("longer: {model: mini-dream,", "longer: {model: mini-llada,", "sudoku_large over dLLM mini-llada"),
        ("    queens: {model: mini-dream,", "    queens: {model: mini-llada,", "n_queens over dLLM mini-llada"),
        (
            "  tasks: {sudoku_many: 1, sudoku_unique",
            "  tasks: {sudoku_many: 1, n_queens",
            "n_queens over dLLM mini-llada",
        ),
    ],
    ids=["ood", "transfer", "headroom", "domain"],
)
def test_a_case_in_letters_that_its_dllm_never_learned_is_refused(tmp_path: Path, old: str, new: str, named: str):
    assert old in TEXT
    assert named in refused(tmp_path, TEXT.replace(old, new, 1))


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [("0110", 110), ("0o110", 72), ("0x6e", 110), ("110", 110), ("1e2", 100)],
)
def test_a_number_is_what_dvc_reads(tmp_path: Path, written: str, value: float) -> None:
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("rounds: 110\n", f"rounds: {written}\n", 1), encoding="utf-8")
    assert load_yaml(path)["train"]["rounds"] == value
    assert read(path).train.rounds == value


@pytest.mark.parametrize("word", ["yes", "on", "No"])
def test_a_word_is_no_truth_value(tmp_path: Path, word: str) -> None:
    """YAML 1.1 reads these as truth values, DVC and the settings read texts."""
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("source: embedded", f"source: {word}", 1), encoding="utf-8")
    assert load_yaml(path)["models"]["mini-llada"]["source"] == word


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (TEXT.replace("profile: tiny\n", "profile: tiny\nprofile: gpu\n", 1), 'duplicate key "profile"'),
        (TEXT.replace("  rounds: 110\n", "  rounds: 110\n  rounds: 7\n"), 'duplicate key "rounds"'),
        (TEXT.encode("utf-16"), "is not UTF-8"),
        (TEXT.replace("# The settings", "# Größe", 1).encode("latin-1"), "is not UTF-8"),
        (b"profile: \x00", "is not YAML 1.2"),
        ("profile: !!python/object/apply:os.system [id]", "is not YAML 1.2"),
        ("- a\n- b\n", "the whole file="),
        (TEXT.replace("profile: tiny", "profile: [tiny]", 1), "profile="),
        ("&a [*a]", "the whole file="),
    ],
    ids=["key twice", "key twice inside", "utf-16", "latin-1", "NUL", "tag", "list", "profile", "cycle"],
)
def test_a_file_of_another_kind_is_one_sentence(tmp_path: Path, text: str | bytes, named: str) -> None:
    assert named in refused(tmp_path, text)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert read(path) == read(FILE)


def test_a_folder_in_the_files_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(SettingsError, match=r"params\.yaml cannot be read.*Is a directory"):
        read(tmp_path / "params.yaml")
