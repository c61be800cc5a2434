"""params.yaml against its models: what is there parses, what cannot work is refused before anything runs.

A refusal is one line that names the place, the value and a remedy.
"""

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
from components.maths import coupled, plackett_luce
from components.settings import Settings, compatibility, read
from components.tasks import sandbox
from tests.messages import has_remedy

ROOT = Path(__file__).parents[2]
FILE = ROOT / "params.yaml"
FILES = [FILE, *sorted((ROOT / "profiles").glob("*.yaml"))]
# A policy of paper A, which most rules about what goes together are about.
CONFIDENCE = ROOT / "profiles" / "confidence.yaml"
RAW: dict[str, Any] = yaml.safe_load(CONFIDENCE.read_text(encoding="utf-8"))


def write(folder: Path, changes: dict[str, Any], drop: str = "") -> Path:
    """params.yaml with values replaced: {"train.alpha": -1}."""
    raw = copy.deepcopy(RAW)
    for path, value in {**changes, **({drop: None} if drop else {})}.items():
        *parents, last = path.split(".")
        place = raw
        for parent in parents:
            place = place[parent]
        if path == drop:
            del place[last]
        else:
            place[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return folder / "params.yaml"


def models(of: Any = Settings) -> Iterator[type[BaseModel]]:
    """Every model that is reachable from Settings."""
    if isinstance(of, type) and issubclass(of, BaseModel):
        yield of
        for field in of.model_fields.values():
            yield from models(field.annotation)
    for part in get_args(of):
        yield from models(part)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_profile_parses_and_a_round_trip_loses_nothing(path: Path, tmp_path: Path) -> None:
    settings, again = read(path), tmp_path / "params.yaml"
    again.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    assert read(again) == settings
    assert settings.model_dump(mode="json") == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_begins_with_the_profile_that_its_outputs_are_named_after(path: Path) -> None:
    assert next(iter(yaml.safe_load(path.read_text(encoding="utf-8")))) == "profile"
    assert next(iter(Settings.model_fields)) == "profile"


def test_no_field_has_a_default_since_dvc_tracks_only_what_the_file_says() -> None:
    found = {
        f"{m.__name__}.{name}" for m in models() for name, field in m.model_fields.items() if not field.is_required()
    }
    assert not found
    assert Settings in set(models()) and len(set(models())) > 10


def test_reading_the_settings_of_all_profiles_runs_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether programs can be confined is asked of who wants to run them, not of a laptop that trains on puzzles."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    sandbox.way.cache_clear()
    for path in FILES:
        read(path)


def test_settings_are_frozen() -> None:
    for model in set(models()):
        assert model.model_config.get("frozen") and model.model_config.get("extra") == "forbid"
    with pytest.raises(ValidationError):
        read(FILE).train.alpha = 2.0  # pyright: ignore


HEAD = {"kind": "feature", "heads": 4, "mlp_width": 64, "hidden": 3, "top_k": 8, "shortlist": 0}
SHORT, ONE = {**HEAD, "shortlist": 5}, {"distill.reference": "confidence", "distill.value": 1}
UPO = {"policy": HEAD, **ONE, "train.objective": "upo", "train.alpha": 0.0, "train.kl_coef": 0.1}
SPEEDS = {"train.alpha": [0.3, 3.0], "decode.alpha": 1.0}
EIGHT = {"kind": "number_sorting", "params": {"numbers": 8}, "canvas": None}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # what: (changes, what the sentence must name)
    "a block that does not divide": ({"decode.block_length": 5}, "decode.block_length=5 .* canvas of 16 .*8.* 16"),
    "a block that divides some canvases only": (
        {"decode.block_length": 16, "data.tasks.eight": EIGHT, "domain.tasks": {"eight": 1}},
        r"canvas of 8 \(eight\)",
    ),
    "a block that does not divide a transfer canvas": (
        {"decode.block_length": 16, "data.tasks.eight": EIGHT, "transfer.longer.task": "eight"},
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
    "a speed out of the range": ({**SPEEDS, "decode.alpha": 9.0}, "decode.alpha=9.0 .*Use 0.3 to 3"),
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
    "variants of no known policy": (
        {"variants.offsets": {"learned": [], "demsk": [1.0]}},
        r"demsk is no family \(did you mean demask\?\)\. Use one of learned",
    ),
    "a share of a position": ({"distill.reference": "margin", "distill.value": 1.5}, "value=1.5: margin .* whole"),
    "a threshold above one": ({"distill.reference": "klass", "distill.value": 1.5}, "value=1.5: klass .*0 to 1"),
    "a rule without its number": ({"distill.value": None}, "value=None: entropy_bound"),
    "a number for a teacher": ({"distill.reference": "teacher"}, "value=0.4: teacher"),
    "a number for the distilled policy": ({"train.reference_value": 1.0}, "reference_value=1.0: distilled"),
    "a pull to nothing": ({"train.divergence": "none", "train.kl_coef": 0.1}, "kl_coef=0.1 .*divergence=none"),
    "upo without a pull": ({**UPO, "train.kl_coef": 0.0}, "objective=upo .*kl_coef=0.0"),
    "upo for speed": ({**UPO, "train.alpha": 1.0}, "objective=upo .*alpha=1.0"),
    "upo of many positions": (
        {"train.objective": "upo", "train.alpha": 0.0, "train.kl_coef": 0.1},
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
        "train.reference=random: .*top_k_random",
    ),
    "an exact divergence of too many orders": ({"policy.action": "dpls", "train.kl_coef": 0.1}, r"2\^16"),
    "an exact divergence of steered rows": (
        {"policy.action": "dpls", "train.kl_coef": 0.1, "decode.block_length": 4, "train.experts": 1},
        r"2\^16.*experts: 0",
    ),
    "an unknown task of the domain": ({"domain.tasks": {"sudoku_may": 1}}, "'sudoku_may' .*did you mean sudoku_many"),
    "an unknown gate task": (
        {"evaluate.gate_task": "latin_squares"},
        "gate_task=latin_squares is not among",
    ),
    "a gate task that is not evaluated": ({"evaluate.gate_task": "latin_square"}, "not among evaluate.tasks"),
    "an unknown transfer task": ({"transfer.longer.task": "sudoku_lange"}, "'sudoku_lange'.*did you mean sudoku_large"),
    "an unknown model of a case": (
        {"transfer.longer.model": "mini-dreem"},
        "transfer.longer: .*did you mean mini-dream",
    ),
    "an unknown model of a domain": ({"domain.model": "llada"}, "domain.model: .*'llada' .*mini-llada"),
    "an unknown task of an ood case": ({"ood.related.task": "latin"}, "ood.related: .*'latin'"),
    "an unknown task to measure": ({"headroom.cases.many.task": "sudoku_may"}, "headroom.cases.many: .*'sudoku_may'"),
    "an unknown task to learn from": (
        {"models.mini-dream.rows": {"sudoku_larg": 8}},
        "models.mini-dream.rows: .*did you mean sudoku_large",
    ),
    "an embedded model that learns nothing": ({"models.mini-dream.rows": {}}, "rows={} .*embedded"),
    "a model from elsewhere that learns": (
        {"models.mini-dream.source": "some/where", "models.mini-dream.dtype": "float32"},
        "rows=.*'some/where'",
    ),
    "a measured type of a model from elsewhere": (
        {"models.mini-dream.source": "some/where", "models.mini-dream.rows": {}},
        "dtype=auto .*'some/where'",
    ),
    "no model": ({"models": {}}, "models={}"),
    "a name that is no file name": ({"ood.a/b": RAW["ood"]["related"]}, "ood.a/b"),
    "a name with a dot, which DVC would split": ({"models.v1%5": RAW["models"]["mini-dream"]}, "models.v1"),
    "an unknown kind of task": ({"data.tasks.sudoku_many.kind": "sudoku_mny"}, "'sudoku_mny' .*sudoku_many"),
    "an unknown kind of text": ({"data.tasks.new": {"kind": "gsm8", "params": {}, "canvas": 16}}, "'gsm8' .*gsm8k"),
    "an unknown knob of a task that runs programs": (
        {"data.tasks.new": {"kind": "mbpp", "params": {"execute": True, "second": 1}, "canvas": 16}},
        "nearest: seconds",
    ),
    "an unknown knob": ({"data.tasks.sudoku_many.params": {"min_clus": 1}}, r"'min_clus' .*nearest: min_clues"),
    "a knob of another type": ({"data.tasks.sudoku_many.params": {"min_clues": "two"}}, "two"),
    "a knob that cannot work": ({"data.tasks.sudoku_many.params": {"min_clues": 9, "max_clues": 2}}, "min_clues=9"),
    "a canvas for a grid": ({"data.tasks.sudoku_many.canvas": 20}, "canvas=20"),
    "a width that heads do not split": ({"policy.width": 66}, "width=66 with heads=2"),
    "a dLLM width that heads do not split": ({"pretrain.width": 100, "pretrain.heads": 3}, "width=100 with heads=3"),
    "no seed": ({"sweep.seeds": []}, r"sweep.seeds=\[\]"),
    "no iterations": ({"train.iterations": 0}, "train.iterations=0"),
    "a group of one": ({"train.group": 1}, "train.group=1"),
    "a word for a number": ({"train.group": "many"}, "train.group='many'"),
    "an unknown reference": ({"distill.reference": "treshold"}, "distill.reference: 'treshold'.*mean threshold"),
    "a section that is no section": ({"train": [1]}, r"train=\[1\]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_with_place_value_and_remedy(tmp_path: Path, what: str) -> None:
    changes, named = REFUSED[what]
    with pytest.raises(SettingsError, match=named) as refused:
        read(write(tmp_path, changes))
    assert_place_and_remedy(str(refused.value))


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
    "upo by paper A's network": {**UPO, "policy": {**RAW["policy"], "action": "categorical"}},
    "a threshold as reference": {"train.reference": "threshold", "train.reference_value": 0.9, "train.kl_coef": 0.1},
    "a teacher first": {"distill.reference": "teacher", "distill.value": None},
    "ordered draws in small blocks": {"policy.action": "dpls", "train.kl_coef": 0.1, "decode.block_length": 4},
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_can_work_is_not_refused(tmp_path: Path, what: str) -> None:
    read(write(tmp_path, ALLOWED[what]))


def test_the_limit_of_exact_orders_is_the_library_s() -> None:
    assert compatibility.EXACT_LIMIT == plackett_luce.EXACT_LIMIT
    assert compatibility.COUPLED_LIMIT == coupled.EXACT_LIMIT


COUPLED = dict(
    kind="coupled",
    top_k=4,
    width=8,
    heads=2,
    mlp_width=8,
    blocks=1,
    pair_width=8,
    pair_shifts=True,
    attention=[],
    offsets=0,
)
COUPLED |= dict(positions=0, hidden_states=False, action="coupled", kappa=1.0, tau=0.0, cost=5.0, mix=0.9)


@pytest.mark.parametrize(
    ("block", "kind", "kl_coef", "refused"), [(None, "ce", 0.0, True), (4, "ce", 0.1, False), (None, "kl", 0.1, False)]
)
def test_what_a_coupled_draw_may_be_pulled_to(
    tmp_path: Path, block: int | None, kind: str, kl_coef: float, refused: bool
) -> None:
    """Its KL is estimated over any number of positions; the cross-entropy to its start would be a sum over orders."""
    changes = {"policy": COUPLED, "decode.block_length": block, "train.divergence": kind, "train.kl_coef": kl_coef}
    changes |= {"train.reference": "distilled", "train.experts": 0}
    if not refused:
        read(write(tmp_path, changes))
        return
    with pytest.raises(SettingsError, match=r"ce to a coupled policy over \d+ open positions.*Use kl"):
        read(write(tmp_path, changes))


READERS_OF_ATTENTION = {
    "a swept rule": ({"sweep.rules": {"threshold": [0.9], "adas": [0.6]}}, "sweep.rules=adas"),
    "another one": ({"sweep.rules": {"dapd": [0.1]}}, "sweep.rules=dapd"),
    "what is imitated": ({"distill.reference": "adas", "distill.value": 0.6}, "distill.reference=adas"),
    "the policy": ({"policy": COUPLED | {"attention": [-1]}, "train.divergence": "none"}, "policy.attention"),
}


@pytest.mark.parametrize("what", READERS_OF_ATTENTION)
def test_what_reads_attention_is_refused_beside_a_cache(tmp_path: Path, what: str) -> None:
    changes, named = READERS_OF_ATTENTION[what]
    changes = changes | {"train.kl_coef": 0.0, "train.experts": 0}
    read(write(tmp_path, changes))
    with pytest.raises(SettingsError, match=rf"cache=prefix with {named}, which reads attention") as refused:
        read(write(tmp_path, changes | {"decode.cache": "prefix"}))
    assert_place_and_remedy(str(refused.value))


@pytest.mark.parametrize(("layers", "refused"), [([0, 2, -3], None), ([3], "not 3"), ([-4, 0], "not -4")])
def test_attention_of_a_layer_that_an_embedded_dllm_does_not_have_is_refused(
    tmp_path: Path, layers: list[int], refused: str | None
) -> None:
    changes = {"policy": COUPLED | {"attention": layers}, "pretrain.layers": 3, "train.divergence": "none"}
    changes |= {"train.kl_coef": 0.0, "train.experts": 0}
    if refused is None:
        read(write(tmp_path, changes))
        return
    with pytest.raises(SettingsError, match=rf"the dLLM has 3 layers\. Use -3 to 2, {refused}"):
        read(write(tmp_path, changes))


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("policy.widht", "width"),
        ("train.iteration", "iterations"),
        ("trane", "train"),
        ("data.tasks.sudoku_many.parms", "params"),
        ("models.mini-llada.sauce", "source"),
        ("models.mini-llada.row", "rows"),
        ("transfer.longer.taks", "task"),
        ("ood.related.modle", "model"),
        ("headroom.cases.many.taks", "task"),
        ("swep", "sweep"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(tmp_path: Path, path: str, near: str) -> None:
    with pytest.raises(SettingsError, match=rf"params\.yaml: {path} .*did you mean {near}\?") as refused:
        read(write(tmp_path, {path: 1}))
    assert_place_and_remedy(str(refused.value))


@pytest.mark.parametrize(
    "path", ["train.alpha", "decode", "policy.kind", "policy.width", "data.tasks.sudoku_many.canvas", "sweep.seeds"]
)
def test_a_missing_key_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(SettingsError, match=rf"params\.yaml: {path} is missing") as refused:
        read(write(tmp_path, {}, drop=path))
    assert_place_and_remedy(str(refused.value))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (FILE.read_text(encoding="utf-8").replace("profile: tiny", "profile: ../tiny", 1), "profile='../tiny'"),
        ("", "whole file=None"),
        ("profile: [", "cannot be read"),
    ],
)
def test_a_file_that_is_none_and_a_profile_that_is_no_folder_are_refused(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=named) as refused:
        read(tmp_path / "params.yaml")
    assert_place_and_remedy(str(refused.value))


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"params\.yaml cannot be read") as refused:
        read(tmp_path / "params.yaml")
    assert_place_and_remedy(str(refused.value))


def test_every_wrong_value_is_named_at_once_a_line_each(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        read(write(tmp_path, {"train.alpha": -1, "train.iterations": 0, "distill.runds": 3}))
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert_place_and_remedy(line)


def assert_place_and_remedy(sentence: str) -> None:
    """One line: the file, a place in it or that it cannot be read, and an instruction."""
    assert "\n" not in sentence and len(sentence) < 500
    assert re.match(r"\S*params\.yaml(: (the whole file|[\w.-]+|Value)|: | cannot be read)", sentence), sentence
    assert has_remedy(sentence), sentence
