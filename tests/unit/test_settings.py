"""params.yaml against its models: what is there parses, what cannot work is refused before anything runs, in a sentence
of three clauses: what was wrong with which value; why it matters; what to do."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from components.core.errors import SettingsError
from components.maths import plackett_luce
from components.settings import Params, Settings, compatibility, load, read
from components.tasks import sandbox

FILE = Path(__file__).parents[2] / "params.yaml"
RAW: dict[str, Any] = yaml.safe_load(FILE.read_text())


def write(folder: Path, changes: dict[str, Any], drop: str = "") -> Path:
    """params.yaml with values of the tiny profile replaced: {"train.alpha": -1}."""
    raw = copy.deepcopy(RAW)
    for path, value in {**changes, **({drop: None} if drop else {})}.items():
        *parents, last = path.split(".")
        place = raw["profiles"]["tiny"]
        for parent in parents:
            place = place[parent]
        if path == drop:
            del place[last]
        else:
            place[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder / "params.yaml"


def models(of: Any = Params) -> Iterator[type[BaseModel]]:
    """Every model that is reachable from Params."""
    if isinstance(of, type) and issubclass(of, BaseModel):
        yield of
        for field in of.model_fields.values():
            yield from models(field.annotation)
    for part in get_args(of):
        yield from models(part)


def test_every_profile_of_the_file_parses_and_the_active_one_is_loaded() -> None:
    params = read(FILE)
    assert list(params.profiles) == ["tiny", "gpu"] and params.profile == "tiny"
    assert load(FILE) == params.profiles["tiny"]


def test_a_round_trip_loses_nothing(tmp_path: Path) -> None:
    params = read(FILE)
    again = tmp_path / "params.yaml"
    again.write_text(yaml.safe_dump(params.model_dump(mode="json")))
    assert read(again) == params
    assert params.model_dump(mode="json") == RAW


def test_no_field_has_a_default_since_dvc_tracks_only_what_the_file_says() -> None:
    found = {
        f"{m.__name__}.{name}" for m in models() for name, field in m.model_fields.items() if not field.is_required()
    }
    assert not found
    assert {Settings, Params} < set(models()) and len(set(models())) > 10


def test_reading_the_settings_of_all_profiles_runs_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether programs can be confined is asked of who wants to run them, not of a laptop that trains on puzzles."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    sandbox.way.cache_clear()
    read(FILE)


def test_settings_are_frozen() -> None:
    for model in set(models()):
        assert model.model_config.get("frozen") and model.model_config.get("extra") == "forbid"
    with pytest.raises(ValidationError):
        load(FILE).train.alpha = 2.0  # pyright: ignore


HEAD = {"kind": "feature", "heads": 4, "inner": 64, "hidden": 3, "top_k": 8, "shortlist": 0}
SHORT, ONE = {**HEAD, "shortlist": 5}, {"distill.reference": "confidence", "distill.value": 1}
UPO = {"policy": HEAD, **ONE, "train.objective": "upo", "train.alpha": 0.0, "train.pull": 0.1}
SPEEDS = {"train.alpha": [0.3, 3.0], "decode.alpha": 1.0}
EIGHT = {"kind": "number_sorting", "knobs": {"numbers": 8}, "canvas": None}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # what: (changes, what the sentence must name)
    "a block that does not divide": ({"decode.block_length": 5}, "decode.block_length=5 .* canvas of 16 .*8.* 16"),
    "a block that divides some canvases only": (
        {"decode.block_length": 16, "data.tasks.eight": EIGHT, "domain.tasks": {"eight": 1}},
        r"canvas of 8 \(eight\)",
    ),
    "a block that does not divide a transfer canvas": (
        {"decode.block_length": 16, "data.tasks.eight": EIGHT, "transfer.long.task": "eight"},
        r"canvas of \d+",
    ),
    "a shortlist larger than the block": (
        {"policy": SHORT, "decode.block_length": 4, **ONE},
        "shortlist=5 .*block_length=4",
    ),
    "probabilities that nobody reads": ({"policy.top_k": 3}, "top_k=3"),
    "a negative alpha": ({"train.alpha": -0.5}, "alpha=-0.5"),
    "no alpha": ({"train.alpha": []}, r"alpha=\[\]"),
    "an alpha twice": ({**SPEEDS, "train.alpha": [1.0, 1.0]}, r"alpha=\[1.0, 1.0\]"),
    "a speed that is not asked for": ({"train.alpha": [0.3, 3.0]}, r"decode.alpha=None .*\[0.3, 3.0\]"),
    "a speed out of the range": ({**SPEEDS, "decode.alpha": 9.0}, "decode.alpha=9.0 .*give 0.3 to 3"),
    "a speed of a policy for one": ({"decode.alpha": 1.0}, r"decode.alpha=1.0 .*one alpha \(3.0\)"),
    "speeds at one position per step": (
        {**SPEEDS, "policy.action": "categorical", **ONE},
        r"train.alpha=\[0.3, 3.0\] .*no speed",
    ),
    "an unknown kind of policy": ({"policy.kind": "featur"}, "policy.*'featur'"),
    "heads that do not split the dLLM's width": (
        {"policy": {**HEAD, "heads": 3}, **ONE},
        "policy.heads=3 .*pretrain.width=128",
    ),
    "a scale of a draw that has none": ({"decode.scale": 1.2, "policy.action": "dpls"}, "decode.scale=1.2 .*dpls"),
    "a reference of several positions for a policy of one": (
        {"policy": HEAD, "distill.reference": "threshold", "distill.value": 0.9},
        "distill.reference=threshold",
    ),
    "two positions per step for a policy of one": (
        {"policy": HEAD, "distill.reference": "margin", "distill.value": 2},
        "distill.reference=margin",
    ),
    "a reference outside the shortlist": (
        {"policy": SHORT, "distill.reference": "left_to_right", "distill.value": 1},
        "left_to_right .*shortlist=5",
    ),
    "a share of a position": ({"distill.reference": "margin", "distill.value": 1.5}, "value=1.5: margin .* whole"),
    "a threshold above one": ({"distill.reference": "klass", "distill.value": 1.5}, "value=1.5: klass .*0 to 1"),
    "a rule without its number": ({"distill.value": None}, "value=None: entropy_bound"),
    "a number for a teacher": ({"distill.reference": "teacher"}, "value=0.4: teacher"),
    "a number for the distilled policy": ({"train.reference_value": 1.0}, "reference_value=1.0: distilled"),
    "a pull to nothing": ({"train.divergence": "none", "train.pull": 0.1}, "pull=0.1 .*divergence=none"),
    "upo without a pull": ({**UPO, "train.pull": 0.0}, "objective=upo .*pull=0.0"),
    "upo for speed": ({**UPO, "train.alpha": 1.0}, "objective=upo .*alpha=1.0"),
    "upo of many positions": (
        {"train.objective": "upo", "train.alpha": 0.0, "train.pull": 0.1},
        "objective=upo .*bernoulli",
    ),
    "kl to a rule that forbids": ({**UPO, "train.reference": "max_confidence"}, "kl to max_confidence"),
    "kl to fewer positions": (
        {**UPO, "policy": SHORT, "train.reference": "top_k_random", "train.reference_value": 3},
        "top_k_random .*=5",
    ),
    "a draw of one for a policy of sets": (
        {"train.reference": "softmax_confidence", "train.reference_value": 0.05},
        "softmax_confidence .*bernoulli",
    ),
    "a reference of ordered draws": (
        {"train.reference": "random", "train.reference_value": 1},
        "train.reference=random; .*top_k_random",
    ),
    "an exact divergence of too many orders": ({"policy.action": "dpls", "train.pull": 0.1}, r"2\^16"),
    "an unknown task of the domain": ({"domain.tasks": {"sudoku_may": 1}}, "'sudoku_may' .*did you mean sudoku_many"),
    "an unknown gate task": ({"evaluate.gate_task": "latin_squares"}, "'latin_squares' .*did you mean latin_square"),
    "a gate task that is not evaluated": ({"evaluate.gate_task": "latin_square"}, "not among evaluate.tasks"),
    "an unknown transfer task": ({"transfer.long.task": "sudoku_lange"}, "'sudoku_lange'.*did you mean sudoku_large"),
    "an unknown kind of task": ({"data.tasks.sudoku_many.kind": "sudoku_mny"}, "'sudoku_mny' .*sudoku_many"),
    "an unknown kind of text": ({"data.tasks.new": {"kind": "gsm8", "knobs": {}, "canvas": 16}}, "'gsm8' .*gsm8k"),
    "an unknown knob of a task that runs programs": (
        {"data.tasks.new": {"kind": "mbpp", "knobs": {"execute": True, "second": 1}, "canvas": 16}},
        "nearest: seconds",
    ),
    "an unknown knob": ({"data.tasks.sudoku_many.knobs": {"min_clus": 1}}, r"'min_clus' .*nearest: min_clues"),
    "a knob of another type": ({"data.tasks.sudoku_many.knobs": {"min_clues": "two"}}, "two"),
    "a knob that cannot work": ({"data.tasks.sudoku_many.knobs": {"min_clues": 9, "max_clues": 2}}, "min_clues=9"),
    "a canvas for a grid": ({"data.tasks.sudoku_many.canvas": 20}, "canvas=20"),
    "a width that heads do not split": ({"policy.width": 66}, "width=66 with heads=2"),
    "a dLLM width that heads do not split": ({"pretrain.width": 100, "pretrain.heads": 3}, "width=100 with heads=3"),
    "no seed": ({"evaluate.seeds": []}, r"evaluate.seeds=\[\]"),
    "no rounds": ({"train.rounds": 0}, "train.rounds=0"),
    "a group of one": ({"train.group": 1}, "train.group=1"),
    "a word for a number": ({"train.group": "many"}, "train.group='many'"),
    "an unknown reference": ({"distill.reference": "treshold"}, "distill.reference: 'treshold'.*mean threshold"),
    "a section that is no section": ({"train": [1]}, r"train=\[1\]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_in_three_clauses(tmp_path: Path, what: str) -> None:
    changes, named = REFUSED[what]
    with pytest.raises(SettingsError, match=named) as refused:
        load(write(tmp_path, changes))
    assert_three_clauses(str(refused.value))


ALLOWED: dict[str, dict[str, Any]] = {
    "many probabilities in small blocks": {"policy.inputs": ["top"], "policy.top_k": 5, "decode.block_length": 4},
    "a list of one alpha": {"train.alpha": [3.0]},
    "several alphas": SPEEDS,
    "upo, cross-entropy to max-confidence": {**UPO, "train.divergence": "ce", "train.reference": "max_confidence"},
    "upo, KL to softmax-confidence": {**UPO, "train.reference": "softmax_confidence", "train.reference_value": 0.05},
    "upo, KL to the uniform shortlist": {
        **UPO,
        "policy": SHORT,
        "train.reference": "top_k_random",
        "train.reference_value": 5,
    },
    "upo by paper A's network": {**UPO, "policy": {**RAW["profiles"]["tiny"]["policy"], "action": "categorical"}},
    "a threshold as reference": {"train.reference": "threshold", "train.reference_value": 0.9, "train.pull": 0.1},
    "a teacher first": {"distill.reference": "teacher", "distill.value": None},
    "ordered draws in small blocks": {"policy.action": "dpls", "train.pull": 0.1, "decode.block_length": 4},
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_can_work_is_not_refused(tmp_path: Path, what: str) -> None:
    load(write(tmp_path, ALLOWED[what]))


def test_the_limit_of_exact_orders_is_the_library_s() -> None:
    assert compatibility.EXACT_LIMIT == plackett_luce.EXACT_LIMIT


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("policy.widht", "width"),
        ("train.runds", "rounds"),
        ("trane", "train"),
        ("data.tasks.sudoku_many.knob", "knobs"),
        ("models.llada.sauce", "source"),
        ("transfer.long.taks", "task"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(tmp_path: Path, path: str, near: str) -> None:
    with pytest.raises(SettingsError, match=rf"tiny\.{path} .*did you mean {near}\?") as refused:
        load(write(tmp_path, {path: 1}))
    assert_three_clauses(str(refused.value))


@pytest.mark.parametrize(
    "path", ["train.alpha", "decode", "policy.kind", "policy.width", "data.tasks.sudoku_many.canvas", "evaluate.seeds"]
)
def test_a_missing_key_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(SettingsError, match=rf"profiles\.tiny\.{path} is missing") as refused:
        load(write(tmp_path, {}, drop=path))
    assert_three_clauses(str(refused.value))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (FILE.read_text().replace("profile: tiny", "profile: tnny", 1), "'tnny'.*did you mean tiny"),
        ("", "whole file=None"),
        ("profile: [", "cannot be read"),
    ],
)
def test_a_file_that_is_none_and_an_unknown_profile_are_refused(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(SettingsError, match=named) as refused:
        load(tmp_path / "params.yaml")
    assert_three_clauses(str(refused.value))


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"params\.yaml cannot be read") as refused:
        load(tmp_path / "params.yaml")
    assert_three_clauses(str(refused.value))


def test_every_wrong_value_is_named_at_once_a_line_each(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load(write(tmp_path, {"train.alpha": -1, "train.rounds": 0, "distill.runds": 3}))
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert_three_clauses(line)


def assert_three_clauses(sentence: str) -> None:
    """Semicolons part them, or a colon the first two; the file and the place in it stand before."""
    assert "\n" not in sentence
    said = re.sub(r"^.*?params\.yaml:? (profiles\.[\w.]+: )?", "", sentence)
    clauses = re.split(r"[;:] ", said)
    assert len(clauses) >= 3 and all(clauses), sentence
