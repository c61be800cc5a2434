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

FILE = Path(__file__).parents[2] / "profiles" / "confidence.yaml"
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
    first = next(iter(RAW["domain"]["tasks"]))
    raw = changed(("domain", "tasks"), {name: 1_000_000 for name in RAW["domain"]["tasks"]} | {first: 1})
    assert f"domain.tasks.{first}=1 of" in refused(tmp_path, yaml.safe_dump(raw))


def cases() -> Iterator[tuple[str, ...]]:
    """Every place that names a dLLM beside a task."""
    yield from (("transfer", name) for name in RAW["transfer"])
    yield from (("ood", name) for name in RAW["ood"])
    yield from (("headroom", "cases", name) for name in RAW["headroom"]["cases"])


@pytest.mark.parametrize("place", list(cases()), ids=".".join)
def test_a_case_in_letters_that_its_dllm_never_learned_is_refused(tmp_path: Path, place: tuple[str, ...]) -> None:
    raw = copy.deepcopy(RAW)
    raw["data"]["tasks"]["foreign"] = {"kind": "n_queens", "params": {"marker": "@"}, "canvas": None}
    model = raw["domain"]["model"]
    case = raw
    for part in place:
        case = case[part]
    case |= {"model": model, "task": "foreign"}
    said = refused(tmp_path, yaml.safe_dump(raw))
    assert f"task foreign over dLLM {model} needs letters" in said and "@" in said


def test_a_task_of_the_domain_in_foreign_letters_is_refused(tmp_path: Path) -> None:
    raw = copy.deepcopy(RAW)
    raw["data"]["tasks"]["foreign"] = {"kind": "n_queens", "params": {"marker": "@"}, "canvas": None}
    raw["domain"]["tasks"]["foreign"] = 1
    assert "task foreign over dLLM" in refused(tmp_path, yaml.safe_dump(raw))


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [("0110", 110), ("0o110", 72), ("0x6e", 110), ("110", 110), ("1e2", 100)],
)
def test_a_number_is_what_dvc_reads(tmp_path: Path, written: str, value: float) -> None:
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("iterations: 110\n", f"iterations: {written}\n", 1), encoding="utf-8")
    assert load_yaml(path)["train"]["iterations"] == value
    assert read(path).train.iterations == value


@pytest.mark.parametrize("word", ["yes", "on", "No"])
def test_a_word_is_no_truth_value(tmp_path: Path, word: str) -> None:
    """YAML 1.1 reads these as truth values, DVC and the settings read texts."""
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("source: embedded", f"source: {word}", 1), encoding="utf-8")
    assert load_yaml(path)["models"]["mini-llada"]["source"] == word


@pytest.mark.parametrize(
    "place", [("train", "seed"), ("distill", "learning_rate"), ("train", "alpha"), ("train", "group")]
)
def test_a_truth_value_is_no_number(tmp_path: Path, place: tuple[str, str]) -> None:
    raw = yaml.safe_load(TEXT)
    raw[place[0]][place[1]] = True
    assert ".".join(place) in refused(tmp_path, yaml.safe_dump(raw))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (TEXT.replace("profile: confidence\n", "profile: confidence\nprofile: gpu\n", 1), 'duplicate key "profile"'),
        (TEXT.replace("  iterations: 110\n", "  iterations: 110\n  iterations: 7\n"), 'duplicate key "iterations"'),
        (TEXT.encode("utf-16"), "is not UTF-8"),
        (("# Größe\n" + TEXT).encode("latin-1"), "is not UTF-8"),
        (b"profile: \x00", "is not YAML 1.2"),
        ("%YAML 1.3\n---\n" + TEXT, "is not YAML 1.2"),
        ("profile: !!python/object/apply:os.system [id]", "is not YAML 1.2"),
        ("- a\n- b\n", "the whole file="),
        (TEXT.replace("profile: confidence", "profile: [tiny]", 1), "profile="),
        ("&a [*a]", "the whole file="),
    ],
    ids=["key twice", "key twice inside", "utf-16", "latin-1", "NUL", "YAML 1.3", "tag", "list", "profile", "cycle"],
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
